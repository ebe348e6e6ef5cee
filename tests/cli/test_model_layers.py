"""`vidembed layers` and `vidembed build --layer auto` on the bundled model and real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from vidembed import VideoEncoder
from vidembed.analysis import LayerAnalysis
from vidembed.shapes import write_clips

MODEL = "vidembed/shapes-mllm"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve clips, and beside it pairs.jsonl and pairs.csv."""
    folder = tmp_path_factory.mktemp("drawn")
    written = write_clips(folder / "clips", 12, "test", 0)
    rows = [{"video": path.name, "caption": record.caption} for path, record in written]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f'clips/{row["video"]},"{row["caption"]}"' for row in rows]
    (folder / "pairs.csv").write_text("\n".join(["video,caption", *lines]))
    return folder


def test_the_whole_way(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = vidembed(
        "layers", "--model", MODEL, "--pairs", drawn / "pairs.jsonl", "--videos", drawn / "clips", "--out", out,
        "--prefix", "both", "--plot", tmp_path / "more.svg", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("| layer |") == 2
    assert "| -1 (block 10 and final norm) |" in result.stdout
    assert "Layer " in result.stdout
    assert {path.name for path in out.iterdir()} == {"layers-vidembed-shapes-mllm.json", "layers.png"}
    assert (tmp_path / "more.svg").stat().st_size > 5000
    analysis = LayerAnalysis.load(out / "layers-vidembed-shapes-mllm.json")
    assert (analysis.model, analysis.depth) == (MODEL, 10)
    assert [prompt.prefix for prompt in analysis.prompts] == ["none", "zero-shot"]
    assert analysis.prompts[0].row(7).t2v.recall_1.estimate > 0.6  # of 6: the model can do this
    assert analysis.table() in result.stdout
    assert str(drawn) not in (out / "layers-vidembed-shapes-mllm.json").read_text()


def test_two_models_as_json(drawn: Path, tmp_path: Path) -> None:
    result = vidembed(
        "layers", "--model", MODEL, "--model", MODEL, "--pairs", drawn / "pairs.csv", "--prefix", "none", "--json",
        "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found) == 2
    assert found[0] == found[1] == LayerAnalysis.from_dict(found[0]).to_dict()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"layers-vidembed-shapes-mllm.json", "layers-vidembed-shapes-mllm-2.json", "layers.png"}


def test_without_matplotlib(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.plots.can_plot", lambda: False)
    arguments = ["layers", "--model", MODEL, "--pairs", drawn / "pairs.csv", "--prefix", "none"]
    result = vidembed(*arguments, "--plot", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "vidembed[plot]" in result.stderr
    result = vidembed(*arguments, "--out", tmp_path)
    assert result.exit_code == 0
    assert "No plot" in result.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_misuse_writes_nothing(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "few.csv").write_text((drawn / "pairs.csv").read_text().rpartition("\n")[0])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    before = tree(tmp_path)
    usual: dict[str, Any] = {"--model": MODEL, "--pairs": drawn / "pairs.csv", "--out": tmp_path / "out"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"--model": "vidembed/shapes"}, "Give the full MLLM"),
        ({"--model": tmp_path / "nowhere"}, "nowhere"),
        ({"--model": tmp_path / "bert"}, "bert"),
        ({"--pairs": drawn / "gone.csv"}, "no such file"),
        ({"--pairs": drawn / "pairs.jsonl"}, "12 of 12 video files are missing"),
        ({"--pairs": tmp_path / "few.csv", "--videos": tmp_path / "gone"}, "no such folder"),
        ({"--pairs": tmp_path / "few.csv"}, "11 of 11 video files are missing"),
        ({"--device": "nonsense"}, "device='nonsense'"),
        ({"--dtype": "int8"}, "int8"),
        ({"--prefix": "other"}, "'other'"),
        ({"--out": tmp_path / "file"}, "is a file"),
        ({"--plot": tmp_path / "a.jpg"}, ".png, .svg or .pdf"),
        ({"--plot": tmp_path / "gone" / "a.png"}, "does not exist"),
    ]
    for change, message in cases:
        result = vidembed("layers", *(word for option in {**usual, **change}.items() for word in option))
        assert (result.exit_code, result.stdout) == (2, ""), change
        assert message in result.stderr
        assert tree(tmp_path) == before, change


def test_a_wrong_second_model_is_found_before_the_first_is_run(drawn: Path, tmp_path: Path) -> None:
    result = vidembed("layers", "--model", MODEL, "--model", "vidembed/shapes", "--pairs", drawn / "pairs.csv")
    assert result.exit_code == 2
    assert "Encoding" not in result.stderr


def captions(drawn: Path, file: Path, **marks: Any) -> Path:
    """Captions of twenty clips in a folder of `drawn`, as a model that can shorten would write them."""
    if not (drawn / "more").exists():
        write_clips(drawn / "more", 20, "test", 0)
    rows = [json.loads(line) for line in (drawn / "more" / "captions.jsonl").read_text().splitlines()]
    texts = [
        {"video": str(drawn / "more" / row["file"]), "dense": row["caption"], "short": row["summary"], **marks}
        for row in rows
    ]
    file.write_text("\n".join(map(json.dumps, texts)))
    return file


class TestCaptions:
    def test_a_curve_a_kind(self, drawn: Path, tmp_path: Path) -> None:
        file = captions(drawn, tmp_path / "c.jsonl")
        result = vidembed("layers", "--model", MODEL, "--captions", file, "--prefix", "none", "--out", tmp_path / "o")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("| layer |") == 2
        assert "prefix none, dense queries" in result.stdout
        assert "prefix none, short queries" in result.stdout
        assert "Of 20 videos that the model described, 20 are used" in result.stderr
        analysis = LayerAnalysis.load(tmp_path / "o" / "layers-vidembed-shapes-mllm.json")
        assert list(analysis.curves) == ["dense", "short"]
        assert "Warning" not in result.stderr

    def test_crops_are_said(self, drawn: Path, tmp_path: Path) -> None:
        file = captions(drawn, tmp_path / "c.jsonl", problems={"short": "not one sentence"})
        result = vidembed("layers", "--model", MODEL, "--captions", file, "--prefix", "none", "--json")
        assert result.exit_code == 0, result.stderr
        assert "Warning: 0 of 20 short texts" in result.stderr
        assert list(json.loads(result.stdout)[0]["kinds"]) == ["dense", "crop"]

    def test_long_queries_alone_are_warned_of(self, drawn: Path) -> None:
        result = vidembed("layers", "--model", MODEL, "--pairs", drawn / "pairs.csv", "--prefix", "none")
        assert result.exit_code == 0
        assert "Warning: all queries are long" in result.stderr

    def test_misuse(self, drawn: Path, tmp_path: Path) -> None:
        file = captions(drawn, tmp_path / "c.jsonl")
        for arguments, message in [
            ([], "give either --pairs FILE or --captions FILE"),
            (["--captions", file, "--pairs", drawn / "pairs.csv"], "give either --pairs FILE or --captions FILE"),
            (["--captions", file, "--videos", drawn], "relative to its folder"),
            (["--captions", drawn / "pairs.csv"], "captions are read from .jsonl"),
        ]:
            result = vidembed("layers", "--model", MODEL, *arguments)
            assert (result.exit_code, result.stdout) == (2, ""), arguments
            assert message in result.stderr


class TestBuild:
    def test_on_videos_without_labels(self, drawn: Path, tmp_path: Path) -> None:
        captions(drawn, tmp_path / "c.jsonl")  # draws the clips
        out, file = tmp_path / "model", tmp_path / "said.jsonl"
        usual = ("build", MODEL, "--layer", "auto", "--videos", drawn / "more", "--no-prefix", "--captions", file)
        result = vidembed(*usual, "--out", out, "--clips", 10)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "at least 20 are needed" in result.stderr
        assert len(file.read_text().splitlines()) == 10  # and are not described again

    def test_auto(self, drawn: Path, tmp_path: Path) -> None:
        out = tmp_path / "model"
        result = vidembed(
            "build", MODEL, "--layer", "auto", "--pairs", drawn / "pairs.jsonl", "--videos", drawn / "clips",
            "--no-prefix", "--out", out,
        )  # fmt: skip
        assert (result.exit_code, result.stdout.strip()) == (0, str(out)), result.stderr
        layer = VideoEncoder(out, device="cpu").layer
        card = (out / "README.md").read_text()
        assert f"Layer {layer} of 10 (prefix none), chosen on 6 videos" in card

    def test_misuse_writes_nothing(self, drawn: Path, tmp_path: Path) -> None:
        out = tmp_path / "model"
        for arguments, message in [
            (["--layer", "auto"], "needs pairs"),
            (["--layer", "auto", "--pairs", drawn / "gone.csv"], "no such file"),
            (["--layer", "7", "--pairs", drawn / "pairs.csv"], "layer=7: pairs, videos"),
            (["--layer", "best"], "layer: got 'best'"),
            (["--layer", "1.5"], "layer: got '1.5'"),
        ]:
            result = vidembed("build", MODEL, "--out", out, *arguments)
            assert (result.exit_code, result.stdout) == (2, ""), arguments
            assert message in result.stderr
            assert not out.exists()

    def test_minus_one_is_still_a_layer(self, tmp_path: Path) -> None:
        out = tmp_path / "model"
        assert vidembed("build", MODEL, "--layer", "-1", "--out", out).exit_code == 0
        assert VideoEncoder(out, device="cpu").layer == -1
