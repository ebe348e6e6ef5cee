"""`build(layer="auto")` on videos without labels: captioned, chosen on dense and short texts, said in the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vidembed import VideoEncoder, analyze_layers, build
from vidembed.analysis.own_queries import own_texts, read_records
from vidembed.captions import CaptionedVideo, CaptionReport, read_captions, write_captions
from vidembed.errors import CroppedTexts, TooFewCaptionsError
from vidembed.shapes import ClipRecord, write_clips

MODEL = "vidembed/shapes-mllm"
CLIPS = 30
Written = list[tuple[Path, ClipRecord]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_clips(tmp_path_factory.mktemp("videos"), CLIPS, "train", 5)


def by_hand(file: Path, written: Written, **changes: Any) -> Path:
    """A file of captions as a model that can shorten would write them."""
    rows = [
        {"video": str(path), "dense": record.caption, "short": record.summary, **changes} for path, record in written
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def auto(out: Path, **kwargs: Any) -> tuple[int | None, str]:
    """The layer, and what the card says of the choice."""
    folder = build(MODEL, layer="auto", prefix=None, out=out, device="cpu", **kwargs)
    card = (folder / "README.md").read_text()
    return VideoEncoder(folder, device="cpu").layer, card.partition("## How the layer was chosen")[2]


@pytest.mark.filterwarnings("ignore::vidembed.errors.CroppedTexts")  # as the bundled model is trained
def test_a_folder_is_described_and_the_layer_chosen_on_it(written: Written, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    layer, card = auto(tmp_path / "m", videos=written[0][0].parent, captions=file, clips=28, seed=3)
    assert "Of 28 videos that the model described" in card
    assert "drawn by seed 3" in card
    assert len(list(read_captions(file))) == 28
    texts = own_texts(read_records(file), seed=3)
    wanted = analyze_layers(MODEL, texts.queries(), prefixes="none", device="cpu", dual_softmax=False)
    assert len(wanted.kinds) == 2
    assert wanted.summary() in card
    assert layer == wanted.chosen_layer


@pytest.mark.filterwarnings("ignore::vidembed.errors.CroppedTexts")
def test_a_file_of_captions_is_gone_on_from(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = written[0][0].parent, tmp_path / "captions.jsonl"
    first = auto(tmp_path / "m", videos=folder, captions=file)
    reports: list[CaptionReport] = []

    def write(*args: Any, **kwargs: Any) -> CaptionReport:
        reports.append(write_captions(*args, **kwargs))
        return reports[-1]

    monkeypatch.setattr("vidembed.analysis.own_queries.write_captions", write)
    assert auto(tmp_path / "n", videos=folder, captions=file) == first
    assert [(report.described, report.unchanged) for report in reports] == [(0, CLIPS)]


def test_short_texts_are_used_where_the_model_can_write_them(
    written: Written, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    layer, card = auto(tmp_path / "m", captions=by_hand(tmp_path / "c.jsonl", written))
    kinds = {
        "dense": [CaptionedVideo(path, record.caption) for path, record in written],
        "short": [CaptionedVideo(path, record.summary) for path, record in written],
    }
    assert layer == analyze_layers(MODEL, kinds, prefixes="none", device="cpu", dual_softmax=False).chosen_layer
    assert f"{CLIPS} are used, with detailed captions and short texts" in card
    assert "short queries" in card
    assert not [one for one in recwarn.list if one.category is CroppedTexts]


def test_crops_stand_in_and_that_is_said(written: Written, tmp_path: Path) -> None:
    file = by_hand(tmp_path / "c.jsonl", written, problems={"short": "not one sentence"})
    with pytest.warns(CroppedTexts, match=f"0 of {CLIPS} short texts of this model can be used"):
        _, card = auto(tmp_path / "m", captions=file)
    assert "crops of the captions in place of short texts" in card
    assert "dense queries" in card  # never crops alone
    assert "crop queries" in card


def test_too_few_usable_texts(written: Written, tmp_path: Path) -> None:
    file = by_hand(tmp_path / "c.jsonl", written[:19])
    with pytest.raises(TooFewCaptionsError, match="19 of 19 described videos have usable texts, and at least 20"):
        auto(tmp_path / "m", captions=file)
    assert not (tmp_path / "m").exists()
