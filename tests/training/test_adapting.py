"""`adapt` as a whole: captions, filter, training and verification, each done once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed import VideoEncoder, build
from vidembed.analysis.own_queries import OwnText
from vidembed.captions import CaptionReport, read_captions, read_pairs, write_captions
from vidembed.errors import BackboneError, CroppedTexts, NotImproved, TooFewCaptionsError
from vidembed.shapes import write_clips
from vidembed.training import Adaptation, LoraSettings, TrainingSettings, adapt
from vidembed.training.adapting import first_hits, hold_out, settings_for

MODEL = "vidembed/shapes-mllm"
CLIPS = 52
QUICK = TrainingSettings(batch_size=16, epochs=1, learning_rate=1e-3)
SMALL = LoraSettings(rank=4)

pytestmark = pytest.mark.filterwarnings("ignore::vidembed.errors.CroppedTexts")  # as the bundled model is trained


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_clips(folder, CLIPS, "train", 5)
    return folder


def quick(videos: Any, out: Path, **kwargs: Any) -> Adaptation:
    return adapt(MODEL, videos, out, **{"lora": SMALL, "training": QUICK, "device": "cpu", **kwargs})


@pytest.fixture(scope="module")
def made(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Adaptation]:
    out = tmp_path_factory.mktemp("adapted") / "out"
    return out, quick(videos, out)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, made: tuple[Path, Adaptation]) -> dict[str, Any]:
    """How often a step that takes long was done; training is quick here: it gives the model of `made`."""
    calls: dict[str, Any] = {"align": 0, "measure": 0, "describe": 0}
    model = made[0] / "model"

    def train(_: Any, pairs: Sequence[Any], out: Path, **kwargs: Any) -> Path:
        calls["align"] += 1
        calls["last"] = (len(pairs), kwargs)
        return Path(shutil.copytree(model, out))

    def measure(*args: Any, **kwargs: Any) -> Any:
        calls["measure"] += 1
        return first_hits(*args, **kwargs)

    def describe(*args: Any, **kwargs: Any) -> CaptionReport:
        report = write_captions(*args, **kwargs)
        calls["describe"] += report.described
        return report

    monkeypatch.setattr("vidembed.training.adapting.align", train)
    monkeypatch.setattr("vidembed.training.adapting.first_hits", measure)
    monkeypatch.setattr("vidembed.analysis.own_queries.write_captions", describe)
    return calls


class TestRun:
    def test_what_is_written(self, made: tuple[Path, Adaptation]) -> None:
        out, found = made
        assert {path.name for path in out.iterdir()} - {"captions.jsonl.lock"} == {
            "captions.jsonl",
            "adapt.json",
            "model",
        }
        assert len(list(read_captions(out / "captions.jsonl"))) == CLIPS
        facts = json.loads((out / "model" / "alignment.json").read_text())
        assert (facts["pairs"], facts["held_out"]) == (found.trained, 0)
        assert found.held_out == 20
        assert 20 <= found.trained <= CLIPS - 20
        assert VideoEncoder(out / "model", device="cpu").layer == -1
        assert f"Of {CLIPS} videos" in found.texts

    def test_figures_are_those_of_the_models(self, made: tuple[Path, Adaptation], videos: Path) -> None:
        """By other means: the captions that were not trained on, searched by both models."""
        out, found = made
        records = {record.content: record for record in read_captions(out / "captions.jsonl")}
        held = set(json.loads((out / "adapt.json").read_text())["held"])
        rows = [record for content, record in records.items() if content in held]
        assert len(rows) == len(held) == found.held_out
        for encoder, hits in (
            (VideoEncoder(MODEL, layer=-1, prefix=None, device="cpu"), found.before),
            (VideoEncoder(out / "model", device="cpu"), found.after),
        ):
            of_videos = encoder.encode([Path(record.video) for record in rows])
            of_texts = encoder.encode([{"text": record.texts["dense"]} for record in rows])
            scores = of_texts @ of_videos.T
            assert np.mean(scores.argmax(1) == np.arange(len(rows))) == np.mean(hits["dense"]["t2v"])
            assert np.mean(scores.argmax(0) == np.arange(len(rows))) == np.mean(hits["dense"]["v2t"])

    def test_report(self, made: tuple[Path, Adaptation]) -> None:
        out, found = made
        saved = json.loads((out / "adapt.json").read_text())
        assert saved["recall_at_1"] == found.to_dict()["recall_at_1"]
        assert len(saved["recall_at_1"]) == 2  # never long queries alone
        for ways in saved["recall_at_1"].values():
            for figures in ways.values():
                assert figures["gain"][0] == pytest.approx(figures["after"] - figures["before"], abs=0.02)
                assert figures["gain"][1] <= figures["gain"][0] <= figures["gain"][2]

    def test_what_is_complete_is_not_done_again(
        self, made: tuple[Path, Adaptation], videos: Path, counted: dict[str, int]
    ) -> None:
        out, found = made
        assert quick(videos, out) == found
        assert counted == {"align": 0, "measure": 0, "describe": 0}

    def test_goes_on_from_each_step(
        self, videos: Path, tmp_path: Path, counted: dict[str, Any], made: tuple[Path, Adaptation]
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        lines = (made[0] / "captions.jsonl").read_text().splitlines(keepends=True)
        (out / "captions.jsonl").write_text("".join(lines[:50]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vidembed.training.adapting.align", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                quick(videos, out)
        assert counted == {"align": 0, "measure": 1, "describe": CLIPS - 50}
        found = quick(videos, out)
        assert found.before == made[1].before
        trained, _ = counted.pop("last")
        assert trained == found.trained
        assert counted == {"align": 1, "measure": 2, "describe": CLIPS - 50}

    def test_other_settings_are_refused_and_trained_anew_if_asked_for(
        self, videos: Path, tmp_path: Path, made: tuple[Path, Adaptation], counted: dict[str, Any]
    ) -> None:
        out = tmp_path / "out"
        shutil.copytree(made[0], out)
        with pytest.raises(ValueError, match=r"other videos, settings or another model.*overwrite=True"):
            quick(videos, out, lora=LoraSettings(rank=2))
        assert counted["align"] == 0
        assert (out / "model").exists()
        assert quick(videos, out, lora=LoraSettings(rank=2), overwrite=True).held_out == 20
        assert (counted["align"], counted["describe"]) == (1, 0)
        assert counted["last"][1]["lora"].rank == 2

    def test_a_worse_model_is_told_of(
        self, videos: Path, tmp_path: Path, made: tuple[Path, Adaptation], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        shutil.copy(made[0] / "captions.jsonl", out)
        monkeypatch.setattr(  # the first layer holds next to nothing
            "vidembed.training.adapting.align",
            lambda mllm, _, folder, **__: build(mllm, layer=1, prefix=None, out=folder, device="cpu"),
        )
        with pytest.warns(NotImproved, match=r"fell by .* points in the mean.*Do not use it"):
            found = quick(videos, out)
        assert found.mean_gain < 0
        assert found.to_dict()["mean_gain"] == round(found.mean_gain, 2)

    def test_the_captions_are_pairs_as_they_are(self, made: tuple[Path, Adaptation], tmp_path: Path) -> None:
        """Rows that are not marked; a row of the file is enough to train on."""
        rows = [json.loads(line) for line in (made[0] / "captions.jsonl").read_text().splitlines()]
        row = {**rows[0], "problems": {}, "short": "A square moves."}
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, [*rows, row])))
        assert list(read_pairs(tmp_path / "captions.jsonl"))[-1].summary == "A square moves."


class TestMisuse:
    def test_a_folder_of_something_else(self, videos: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(FileExistsError, match="was not made by adapt"):
            quick(videos, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_model_of_someone_else_is_kept(self, videos: Path, tmp_path: Path, made: tuple[Path, Adaptation]) -> None:
        shutil.copy(made[0] / "captions.jsonl", tmp_path)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.txt").write_text("x")
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="model exists and was not made by adapt"):
                quick(videos, tmp_path, overwrite=overwrite)
        assert (tmp_path / "model" / "mine.txt").read_text() == "x"

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"model_kwargs": {"quantization_config": 1}}, ValueError, "quantized weights"),
            ({"clips": 0}, ValueError, "clips=0"),
            ({"learning_rate": 1e-3}, ValueError, "set it in training"),
            ({"clips": 39}, TooFewCaptionsError, r"of 39 described videos have usable texts, and at least 40"),
        ],
    )
    def test_arguments(
        self, videos: Path, tmp_path: Path, kwargs: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            quick(videos, tmp_path / "out", **kwargs)

    def test_a_cut_checkpoint(self, videos: Path, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match="Give the full MLLM"):
            adapt("vidembed/shapes", videos, tmp_path / "out", device="cpu")
        assert not (tmp_path / "out").exists()


def own(number: int, short: str = "") -> OwnText:
    return OwnText(Path(f"/v/{number}.mp4"), f"{number * 7919 % 1000:064x}", f"dense {number}", short or f"s {number}")


class TestParts:
    @given(st.integers(40, 300), st.integers(0, 50))
    def test_held_out_videos_are_not_trained_on(self, n: int, seed: int) -> None:
        texts = [own(number) for number in range(n)]
        held, rest = hold_out(texts, None, seed=seed)
        assert len(held) == max(20, -(-n // 10))
        assert len(held) + len(rest) == n
        assert not {one.content for one in held} & {one.content for one in rest}
        renamed = [OwnText(Path("/other") / one.video.name, one.content, one.dense, one.short) for one in texts[::-1]]
        assert {one.content for one in hold_out(renamed, None, seed=seed)[0]} == {one.content for one in held}

    @pytest.mark.parametrize("n", [-1, 0, 1, 21])
    def test_a_number_that_leaves_too_few(self, n: int) -> None:
        with pytest.raises(ValueError, match=rf"held_out={n} of 40 videos with usable texts: expected 2\.\.20"):
            hold_out([own(number) for number in range(40)], n)

    @pytest.mark.parametrize(("pairs", "batch"), [(20, 20), (100, 100), (101, 100), (430, 100)])
    def test_settings(self, pairs: int, batch: int) -> None:
        found = settings_for(pairs, 3)
        assert (found.batch_size, found.seed) == (batch, 3)
        assert found.steps(pairs) in (24, 25)  # rounded up

    def test_equal_short_texts_are_one_query(self, videos: Path) -> None:
        encoder = VideoEncoder(MODEL, layer=-1, prefix=None, device="cpu")
        clips = sorted(videos.glob("*.mp4"))[:4]
        held = [OwnText(clip, str(at), f"a red square {at}", f"text {at // 2}") for at, clip in enumerate(clips)]
        hits = first_hits(encoder, held, "short")
        assert {kind: {way: len(found) for way, found in ways.items()} for kind, ways in hits.items()} == {
            "dense": {"t2v": 4, "v2t": 4},
            "short": {"t2v": 2, "v2t": 4},
        }
        same = [OwnText(one.video, one.content, one.dense, "the same") for one in held]
        assert first_hits(encoder, same, "short")["short"] == {"t2v": [True], "v2t": [True] * 4}


@pytest.mark.usefixtures("counted")
def test_crops_are_said(videos: Path, tmp_path: Path, made: tuple[Path, Adaptation]) -> None:
    rows = [json.loads(line) for line in (made[0] / "captions.jsonl").read_text().splitlines()]
    out = tmp_path / "out"
    out.mkdir()
    marked = [json.dumps({**row, "problems": {"short": "not one sentence"}}) for row in rows]
    (out / "captions.jsonl").write_text("\n".join(marked) + "\n")
    with pytest.warns(CroppedTexts):
        found = quick(videos, out, training=QUICK)
    assert list(found.before) == ["dense", "crop"]


def test_a_model_that_knows_nothing(tiny_mllm: Callable[[str], Path], videos: Path, tmp_path: Path) -> None:
    """Random weights describe with noise, and end at no text: too few is an error and no bad adapter."""
    with pytest.raises(TooFewCaptionsError, match="Give more videos"):
        adapt(tiny_mllm("qwen2_vl"), sorted(videos.glob("*.mp4"))[:3], tmp_path / "out", device="cpu")
