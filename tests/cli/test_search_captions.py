"""`vidembed index --captions`, `search --by` and `calibrate --hybrid`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from vidembed.captions import CaptionRecord

Loaded = list[dict[str, Any]]
TEXTS = {"red": "red", "green": "The green one.", "blue": "blue " + "and wide " * 20, "long": "grey\n\x1b[31m<b>&amp;"}


def write(file: Path, clips: Path, texts: dict[str, str], **more: Any) -> Path:
    """Write a file as `vidembed caption` does, of whole videos."""
    lines = []
    for name, text in texts.items():
        path = clips / f"{name}.mp4"
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        given = {"texts": {"dense": text}, "model": "mllm", "fingerprint": "p" * 64, **more}
        lines.append(CaptionRecord(path.name, content, **given).to_json() + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def captions(clips: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "captions.jsonl", clips, TEXTS)


@pytest.fixture
def bare(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """An index of whole videos without captions."""
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake").exit_code == 0
    return tmp_path / "ix"


@pytest.fixture
def index(bare: Path, clips: Path, captions: Path) -> Path:
    result = vidembed("index", clips, "--to", bare, "--captions", captions)
    assert result.exit_code == 0, result.stderr
    assert "4 unchanged" in result.stdout
    assert "Captions: 4 added. 4 of 4 segments have one." in result.stdout
    return bare


def test_a_new_index_gets_captions_in_one_run(clips: Path, tmp_path: Path, loaded: Loaded, captions: Path) -> None:
    how = ("index", clips, "--to", tmp_path / "new", "--model", "fake", "--captions", captions, "--json")
    report = json.loads(vidembed(*how).stdout)
    assert report["indexed"] == 4
    assert (report["captions"]["added"], report["captions"]["captioned"]) == (4, 4)
    assert json.loads(vidembed(*how).stdout)["captions"]["unchanged"] == 4


@pytest.mark.parametrize(
    ("by", "column", "message"),
    [
        ("caption", "caption cosine", "Ordered by the cosine of query and caption."),
        ("text", "BM25", "Ordered by BM25 of the query's words in the caption."),
        ("hybrid", "RRF", "`vidembed calibrate INDEX --hybrid` fits weights."),
    ],
)
def test_names_the_score_that_orders_the_hits(index: Path, by: str, column: str, message: str) -> None:
    result = vidembed("search", "red", "--in", index, "--by", by, "-k", "1")
    assert result.exit_code == 0, result.stderr
    assert "red.mp4" in result.stdout
    assert {column, "cosine"} <= {name.strip() for name in result.stdout.split("\n")[1].split("┃")}
    assert message in result.stderr
    assert "no caption" not in result.stderr


def test_segments_without_a_caption_are_said(bare: Path, clips: Path, tmp_path: Path) -> None:
    some = write(tmp_path / "some.jsonl", clips, {"red": "red"})
    assert vidembed("index", clips, "--to", bare, "--captions", some).exit_code == 0
    result = vidembed("search", "red", "--in", bare, "--by", "hybrid")
    assert "3 of 4 segments have no caption. They are ranked by cosine alone." in result.stderr
    assert "green.mp4" in result.stdout
    result = vidembed("search", "red", "--in", bare, "--by", "text")
    assert "3 of 4 segments have no caption. They cannot be hits." in result.stderr
    assert "green.mp4" not in result.stdout


def test_json(index: Path) -> None:
    (hit,) = json.loads(vidembed("search", "red", "--in", index, "--by", "text", "--json").stdout)
    assert set(hit) == {"uri", "start_s", "end_s", "score", "caption", "caption_score", "text_score"}
    assert hit["caption"] == "red"
    by_video = json.loads(vidembed("search", "red", "--in", index, "--json").stdout)
    assert set(by_video[0]) == {"uri", "start_s", "end_s", "score", "caption"}
    lines = vidembed("search", "--in", index, "--by", "hybrid", "--json", typed="red\n").stdout
    assert json.loads(lines)["search"]["fusion"] == "reciprocal_rank"


def test_captions_are_shown_as_text(index: Path, tmp_path: Path) -> None:
    result = vidembed("search", "red", "--in", index, "--html", tmp_path / "hits.html")
    assert "\x1b" not in result.stdout
    assert "grey \\x1b[31m<b>&amp;" in result.stdout  # one line, and nothing that a terminal acts on
    assert "..." in result.stdout
    assert "and wide " * 8 not in result.stdout
    page = (tmp_path / "hits.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;amp;" in page
    assert ("blue " + "and wide " * 20).strip() in page


@pytest.mark.parametrize("by", ["caption", "text", "hybrid"])
@pytest.mark.parametrize("command", ["search", "clip", "calibrate"])
def test_no_captions(bare: Path, tmp_path: Path, loaded: Loaded, captions: Path, command: str, by: str) -> None:
    arguments = {
        "search": ("red", "--in", bare, "--by", by),
        "clip": ("red", "--in", bare, "--by", by, "--out", tmp_path / "a.mp4"),
        "calibrate": (bare, "--hybrid", "--pairs", captions),
    }
    before, count = tree(tmp_path), len(loaded)
    result = vidembed(command, *arguments[command])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "vidembed caption VIDEOS --out captions.jsonl" in result.stderr
    assert "vidembed index VIDEOS --to INDEX --captions captions.jsonl" in result.stderr
    assert (tree(tmp_path), len(loaded)) == (before, count)


def test_captions_of_another_model(index: Path, clips: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", clips, {"red": "blue"}, fingerprint="q" * 64, model="other")
    result = vidembed("index", clips, "--to", index, "--captions", other)
    assert result.exit_code == 2
    assert "--replace-captions" in result.stderr
    result = vidembed("index", clips, "--to", index, "--captions", other, "--replace-captions")
    assert "Captions: 1 added. 1 of 4 segments have one." in result.stdout


def test_captions_that_fit_nothing(bare: Path, clips: Path, tmp_path: Path) -> None:
    """Of the same names, and other bytes or other times."""
    (tmp_path / "other").mkdir()
    for name in TEXTS:
        (tmp_path / "other" / f"{name}.mp4").write_bytes(b"another")
    for file in (
        write(tmp_path / "bytes.jsonl", tmp_path / "other", TEXTS),
        write(tmp_path / "times.jsonl", clips, TEXTS, start_s=0.0, end_s=0.5),
    ):
        result = vidembed("index", clips, "--to", bare, "--captions", file)
        assert result.exit_code == 1
        assert "Captions: 4 of other files or times. 0 of 4 segments have one." in result.stdout
        assert "No caption of" in result.stderr


def test_marked_captions(bare: Path, clips: Path, tmp_path: Path) -> None:
    marked = write(tmp_path / "marked.jsonl", clips, {"red": "red"}, problems={"dense": "the head denies it"})
    result = vidembed("index", clips, "--to", bare, "--captions", marked)
    assert (result.exit_code, "1 left out because marked" in result.stdout) == (1, True)
    result = vidembed("index", clips, "--to", bare, "--captions", marked, "--marked-captions")
    assert (result.exit_code, "Captions: 1 added" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replace-captions"], "replace-captions: it needs --captions FILE"),
        (["--marked-captions"], "marked-captions: it needs --captions FILE"),
        (["--captions", "{folder}/none.jsonl"], "cannot be read"),
        (["--captions", "{folder}/bad.jsonl"], "bad.jsonl, line 1: not JSON"),
        (["--captions", "{folder}/a.csv"], "captions are read from .jsonl"),
    ],
)
def test_misuse_of_index(
    bare: Path, clips: Path, tmp_path: Path, loaded: Loaded, arguments: list[str], message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text("red", encoding="utf-8")
    count = len(loaded)
    result = vidembed("index", clips, "--to", bare, *(each.format(folder=tmp_path) for each in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(loaded) == count


def test_clip_cuts_the_hit_that_search_shows(index: Path, tmp_path: Path) -> None:
    result = vidembed("clip", "wide", "--in", index, "--by", "text", "--out", tmp_path / "a.mp4", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["source"].endswith("blue.mp4")


def test_weights_are_fitted_and_said(index: Path, clips: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"video": str(clips / f"{name}.mp4"), "caption": name} for name in ("red", "green", "blue")]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = vidembed("calibrate", index, "--hybrid", "--pairs", pairs, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["queries"], report["pairs"], report["matches"]) == (3, 12, 3)
    result = vidembed("search", "red", "--in", index, "--by", "hybrid", "-k", "1")
    assert "with fitted weights." in result.stderr
    assert "log-odds" in result.stdout
    assert "red.mp4" in result.stdout
    assert "fitted" in vidembed("info", index).stdout
    info = json.loads(vidembed("info", index, "--json").stdout)["search"]["captions"]
    assert (info["segments"], info["model"], info["fusion"]) == (4, "mllm", "fitted")


@pytest.mark.parametrize(
    "option", [("--out", "a.json"), ("--encoder", "fake"), ("--score", "yes"), ("--plot", "a.png")]
)
def test_misuse_of_calibrate(index: Path, captions: Path, option: tuple[str, str]) -> None:
    result = vidembed("calibrate", index, "--hybrid", "--pairs", captions, *option)
    assert result.exit_code == 2
    assert f"{option[0][2:]}: it is an option for rerankers" in result.stderr


def test_a_reranker_is_calibrated_into_a_file(captions: Path) -> None:
    result = vidembed("calibrate", "vidembed/shapes-rerank", "--pairs", captions)
    assert (result.exit_code, "out: give a file or a folder" in result.stderr) == (2, True)
