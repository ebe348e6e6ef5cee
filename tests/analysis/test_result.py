"""An analysis as JSON, as a table and as a figure."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidembed.analysis import (
    DirectionFigures,
    LayerAnalysis,
    LayerRow,
    Margin,
    PromptAnalysis,
    Sample,
    plot_layers,
)
from vidembed.evaluation import Interval
from vidembed.plots import check_plot


def figures(recall: float, temperature: float | None = None) -> DirectionFigures:
    return DirectionFigures(Interval(recall, recall - 0.05, recall + 0.05, 0.95), 0.9, 1.0, 1.5, temperature)


def prompt(prefix: str, depth: int = 4, chosen: int = 3) -> PromptAnalysis:
    rows = tuple(
        LayerRow(layer, figures(0.1 * abs(layer)), figures(0.2), figures(0.3, 0.01), None, 0.1, 0.2)
        for layer in [*range(1, depth + 1), -1]
    )
    difference = Interval(0.2, 0.1, 0.3, 0.95)
    margins = tuple(Margin(prefix, layer, difference, difference) for layer in (-1, depth))
    return PromptAnalysis(prefix, rows, chosen, margins)


def analysis(model: str = "a/model", depth: int = 4, prefixes: tuple[str, ...] = ("none",), **kwargs: Any) -> Any:
    sample = Sample(10, 12, 11, 13, 1, 0.09, 0, 2000, ("b.mp4: no file",), 2)
    prompts = tuple(prompt(prefix, depth, **kwargs) for prefix in prefixes)
    others = tuple(Margin(name, 3, *[Interval(0.0, -0.1, 0.1, 0.95)] * 2) for name in prefixes[1:])
    return LayerAnalysis(model, "qwen2_vl", depth, sample, prompts, prefixes[0], others)


class TestJson:
    @pytest.mark.parametrize("prefixes", [("none",), ("zero-shot", "none", "Say:")])
    def test_round_trip(self, tmp_path: Path, prefixes: tuple[str, ...]) -> None:
        made = analysis(prefixes=prefixes)
        made.save(tmp_path / "a.json")
        assert LayerAnalysis.load(tmp_path / "a.json") == made
        assert LayerAnalysis.from_dict(made.to_dict()) == made
        assert json.loads((tmp_path / "a.json").read_text()) == made.to_dict()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format_version": 2}, "format_version 2"),
            ({"kind": "other"}, "got kind 'other'"),
            ({"prompts": None}, "not a complete layer analysis"),
            ({"sample": {}}, "not a complete layer analysis"),
            ({"more": 1}, "not a complete layer analysis"),
        ],
    )
    def test_other_files(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        file = tmp_path / "a.json"
        file.write_text(json.dumps({**analysis().to_dict(), **change}))
        with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
            LayerAnalysis.load(file)

    @pytest.mark.parametrize("text", ["", "[]", "5", "{"])
    def test_what_is_no_analysis(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "a.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json: "):
            LayerAnalysis.load(file)


class TestReading:
    def test_the_choice_is_that_of_the_chosen_prefix(self) -> None:
        made = replace(analysis(prefixes=("none", "zero-shot")), chosen_prefix="zero-shot")
        made = replace(made, prompts=(made.prompts[0], replace(made.prompts[1], chosen_layer=2)))
        assert (made.chosen_layer, made.margin.over_prefix, made.margin.over_layer) == (2, "zero-shot", -1)
        assert made.rows == made.prompts[1].rows
        assert made.chosen.row(-1) is made.rows[-1]
        with pytest.raises(ValueError, match=r"layer=9: expected 1\.\.4 or -1"):
            made.chosen.row(9)

    def test_table(self) -> None:
        lines = analysis().table().splitlines()
        rows = [line for line in lines if line.startswith("|")]
        assert len(rows) == 2 + 5
        assert len({line.count("|") for line in rows}) == 1
        assert rows[4] == (
            "| **3** | 30.0 (25.0 to 35.0) | 90.0 / 100.0 | 1.5 | 30.0 / 90.0 / 100.0 "
            "| 20.0 (15.0 to 25.0) | 90.0 / 100.0 | 1.5 | - |"
        )
        assert rows[-1].startswith("| -1 (block 4 and final norm) | 10.0 (")
        assert "Layer 3 of 4 (prefix none), chosen on 10 videos. On 11 others with 13 texts" in lines[-1]
        assert "over the final layer (-1) 20.0 (10.0 to 30.0)" in lines[-1]

    def test_one_table_a_prompt(self) -> None:
        text = analysis(prefixes=("none", "zero-shot")).table()
        assert text.count("| layer |") == 2
        assert "a/model, prefix zero-shot" in text


class TestPlot:
    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_several_models_and_prompts(self, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"layers{suffix}"
        plot_layers([analysis(), analysis("other", 9, ("none", "zero-shot"), chosen=-1)], file)
        assert file.stat().st_size > 5000

    def test_what_is_drawn(self, tmp_path: Path) -> None:
        def words(*analyses: LayerAnalysis, **kwargs: Any) -> str:
            import matplotlib as mpl

            with mpl.rc_context({"svg.fonttype": "none"}):
                plot_layers(analyses, tmp_path / "a.svg", **kwargs)
            return (tmp_path / "a.svg").read_text()

        one = words(analysis("first", prefixes=("none", "zero-shot")))
        assert "decoder block" in one
        assert "first, prefix zero-shot" in one
        assert "text to video" in one
        kinds = tuple(replace(prompt("none"), kind=kind) for kind in ("dense", "short"))
        two = words(replace(analysis("first"), prompts=kinds))
        assert "first, dense queries" in two
        assert "first, short queries" in two  # a line a kind
        assert "depth (share" in words(analysis("first"), analysis("second", 9))
        assert "decoder block" in words(analysis("first"), analysis("second", 9), x="block")
        assert "depth (share" in words(analysis("first"), x="depth")

    @pytest.mark.parametrize(
        ("analyses", "name", "kwargs", "message"),
        [
            ([], "a.png", {}, "at least one"),
            ([analysis()], "a.jpg", {}, r"\.png, \.svg or \.pdf"),
            ([analysis()], "a.png", {"x": "layer"}, "x='layer'"),
        ],
    )
    def test_misuse(self, tmp_path: Path, analyses: Any, name: str, kwargs: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plot_layers(analyses, tmp_path / name, **kwargs)
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vidembed.plots.can_plot", lambda: False)
        with pytest.raises(ModuleNotFoundError, match=r"vidembed\[plot\]"):
            check_plot(tmp_path / "a.png")

    def test_takes_no_pyplot(self, tmp_path: Path) -> None:
        plot_layers([analysis()], tmp_path / "a.png")
        assert "matplotlib.pyplot" not in sys.modules
