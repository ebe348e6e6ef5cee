from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from tests.index.fakes import rows, write_video
from tests.zoo import Recipe, encode
from vidembed.index.commit import locked

Loaded = list[dict[str, Any]]


def test_index_reports_and_repeats(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    first = vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    assert (first.exit_code, first.stdout.splitlines()[-1]) == (
        0,
        f"4 indexed. {tmp_path / 'ix'} holds 4 files, 4 segments.",
    )
    again = vidembed("index", clips, "--to", tmp_path / "ix")
    assert again.stdout.startswith("4 unchanged.")
    assert [call["name"] for call in loaded] == ["fake", "fake"]  # the second time from the index


def test_json_report(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    (clips / "bad\n.mp4").write_bytes(b"no video")
    result = vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", "--json")
    report = json.loads(result.stdout)
    (skipped,) = report.pop("skipped")
    assert report == {
        "index": str(tmp_path / "ix"),
        "model": "fake",
        "indexed": 4,
        "changed": 0,
        "copied": 0,
        "moved": 0,
        "unchanged": 0,
        "quarantined": 1,
        "gone": [],
        "pruned": False,
        "files": 4,
        "segments": 4,
    }
    assert skipped["uri"] == (clips / "bad\n.mp4").as_uri()
    assert (skipped["kind"], set(skipped)) == ("NotAVideo", {"uri", "kind", "message"})


def test_one_bad_file_in_twenty(many: Path, tmp_path: Path, loaded: Loaded) -> None:
    (many / "007.mp4").write_bytes(b"<html>not found</html>" * 50)
    result = vidembed("index", many, "--to", tmp_path / "ix", "--model", "fake")
    assert result.exit_code == 0
    assert "007.mp4" in result.stdout
    assert "NotAVideo" in result.stdout
    assert len(rows(tmp_path / "ix")) == 19
    stopped = vidembed("index", many, "--to", tmp_path / "ix2", "--model", "fake", "--on-error", "raise")
    assert (stopped.exit_code, len(rows(tmp_path / "ix2"))) == (1, 7)
    assert "007.mp4: NotAVideo" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_nothing_could_be_indexed(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    result = vidembed("index", tmp_path / "bad.mp4", "--to", tmp_path / "ix", "--model", "fake")
    assert (result.exit_code, (tmp_path / "ix").exists()) == (1, False)
    assert "No video could be indexed" in result.stderr


def test_a_bad_file_beside_unchanged_ones_is_no_failure(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    (clips / "bad.mp4").write_bytes(b"no video")
    assert vidembed("index", clips, "--to", tmp_path / "ix").exit_code == 0


def test_segments_and_sampling_are_remembered(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    options = ["--segment", "1", "--overlap", "0.5", "--fps", "4", "--max-frames", "6", "--layer", "3"]
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", *options)
    assert len(rows(tmp_path / "ix")) == 3 + 5
    write_video(clips / "new.mp4", [(9, 9, 9)] * 2)
    assert vidembed("index", clips, "--to", tmp_path / "ix").exit_code == 0
    assert len(rows(tmp_path / "ix")) == 3 + 5 + 3
    assert (loaded[1]["layer"], loaded[1]["sampling"]) == (3, {"fps": 4.0, "max_frames": 6, "max_pixels": 230400})
    other = vidembed("index", clips, "--to", tmp_path / "ix", "--fps", "1")
    assert other.exit_code == 2
    assert "'fps': 1.0" in other.stderr


def test_a_bad_file_goes_into_quarantine_and_is_tried_on_demand(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    (clips / "bad.mp4").write_bytes(b"no video")
    first = vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    assert "1 of the skipped files were put into quarantine; `--retry`" in first.stderr
    assert json.loads(vidembed("info", tmp_path / "ix", "--json").stdout)["quarantined"] == 1
    again = vidembed("index", clips, "--to", tmp_path / "ix")
    assert ("in quarantine since" in again.stdout, "quarantine" in again.stderr) == (True, False)
    assert "put into quarantine" in vidembed("index", clips, "--to", tmp_path / "ix", "--retry").stderr


def test_a_moved_file_is_reported(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    (clips / "red.mp4").rename(clips / "crimson.mp4")
    assert vidembed("index", clips, "--to", tmp_path / "ix").stdout.startswith("1 moved, 3 unchanged.")


def test_gone_and_prune(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    (clips / "red.mp4").unlink()
    reported = vidembed("index", clips, "--to", tmp_path / "ix")
    assert "--prune" in reported.stdout
    assert "red.mp4" in reported.stdout
    assert len(rows(tmp_path / "ix")) == 4
    pruned = vidembed("index", clips, "--to", tmp_path / "ix", "--prune")
    assert "1 pruned" in pruned.stdout
    assert len(rows(tmp_path / "ix")) == 3


def test_a_video_that_is_cut_short_is_named_in_a_message(tmp_path: Path, loaded: Loaded) -> None:
    whole = tmp_path / "whole.mp4"
    encode(whole, Recipe(frames=180, muxer={"movflags": "faststart"}))
    (tmp_path / "short.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = vidembed("index", tmp_path / "short.mp4", "--to", tmp_path / "ix", "--model", "fake")
    assert result.exit_code == 0
    assert f"Warning: {tmp_path / 'short.mp4'}: it ends at" in result.stderr
    assert "VideoTruncated" not in result.stderr


def test_a_folder_that_vanished_has_an_exit_code_of_its_own(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    write_video(tmp_path / "drive.mp4", [(1, 2, 3)])
    vidembed("index", clips, tmp_path / "drive.mp4", "--to", tmp_path / "ix", "--model", "fake")
    (tmp_path / "drive.mp4").unlink()
    result = vidembed("index", clips, tmp_path / "drive.mp4", "--to", tmp_path / "ix", "--prune")
    assert result.exit_code == 3
    assert "PathVanished" in result.stdout
    assert "They were not removed from the index" in result.stderr
    assert len(rows(tmp_path / "ix")) == 5


def test_a_relative_model_folder_is_stored_absolute(
    clips: Path, tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    vidembed("index", "clips", "--to", "ix", "--model", "model")
    assert json.loads(vidembed("info", "ix", "--json").stdout)["model"] == str(tmp_path.resolve() / "model")


def test_the_small_model_comes_with_a_warning(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    result = vidembed("index", clips, "--to", tmp_path / "ix")
    assert loaded[0]["name"] == "vidembed/shapes"
    notes = [line for line in result.stderr.splitlines() if "vidembed/shapes" in line]
    assert len(notes) == 1
    assert "shapes" not in vidembed("index", clips, "--to", tmp_path / "iy", "--model", "fake").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "paths"),
        (["{clips}"], "--to"),
        (["{clips}/nowhere", "--to", "{new}"], "nowhere' does not exist"),
        (["{empty}", "--to", "{new}"], "no video in"),
        (["{clips}", "--to", "{clips}"], "is not an index and not empty"),
        (["{clips}", "--to", "{clips}/red.mp4"], "is a file"),
        (["{clips}", "--to", "{new}", "--segment", "0"], "segment: got 0.0"),
        (["{clips}", "--to", "{new}", "--segment", "nan"], "segment: got nan"),
        (["{clips}", "--to", "{new}", "--segment", "2", "--overlap", "2"], "overlap: got 2.0"),
        (["{clips}", "--to", "{new}", "--segment", "2", "--overlap", "-1"], "overlap: got -1.0"),
        (["{clips}", "--to", "{new}", "--overlap", "1"], "without --segment"),
        (["{clips}", "--to", "{new}", "--scenes", "--segment", "2"], "--scenes together with --segment"),
        (["{clips}", "--to", "{new}", "--timeout", "0"], "timeout_s"),
        (["{clips}", "--to", "{new}", "--max-memory", "0"], "max_memory_bytes"),
        (["{clips}", "--to", "{new}", "--decode-workers", "0"], "--decode-workers"),
        (["{clips}", "--to", "{new}", "--fps", "0"], "fps=0.0"),
        (["{clips}", "--to", "{new}", "--max-frames", "0"], "max_frames=0"),
        (["{clips}", "--to", "{new}", "--batch-size", "0"], "--batch-size"),
        (["{clips}", "--to", "{new}", "--on-error", "ignore"], "ignore"),
        (["{clips}", "--to", "{ix}", "--model", "other"], "made by 'fake'"),
        (["{clips}", "--to", "{ix}", "--segment", "2"], "asked for segments of 2 s"),
        (["{clips}", "--to", "{new}", "--nonsense"], "--nonsense"),
    ],
)
def test_misuse(clips: Path, tmp_path: Path, loaded: Loaded, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    before = tree(tmp_path)
    places = {name: tmp_path / name for name in ("clips", "empty", "new", "ix")}
    result = vidembed("index", *(argument.format(**places) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert tree(tmp_path) == before


def test_a_second_writer_is_refused(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    with locked(tmp_path / "ix"):
        result = vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    assert result.exit_code == 2
    assert "another run" in result.stderr


def test_ctrl_c(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidembed.encoder.load_encoder", interrupted)
    result = vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    assert result.exit_code == 130
    assert "run the same command again to continue" in result.stderr


def test_lancedb_missing(clips: Path, tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    result = vidembed("index", clips, "--to", tmp_path / "ix")
    assert result.exit_code == 2
    assert 'pip install "vidembed[index]"' in result.stderr
    assert not (tmp_path / "ix").exists()


def test_what_the_index_shall_have_beside_its_rows(clips: Path, tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "bank.txt").write_text("a red square\na blue circle\n")
    options = ["--compact", "int8", "--query-bank", tmp_path / "bank.txt", "--exact-up-to", "7"]
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", *options).exit_code == 0
    facts = json.loads(vidembed("info", tmp_path / "ix", "--json").stdout)
    assert (facts["search"]["quantize"], facts["search"]["ann"]["rows"]) == ("int8", 4)
    assert facts["search"]["query_bank"]["queries"] == 2
    new = ["index", clips, "--to", tmp_path / "new", "--model", "fake"]
    for names, words in ((["int3"], "int3"), (["float32-512"], "Use int8"), (["int8", "binary"], "give one")):
        refused = vidembed(*new, *(part for name in names for part in ("--quantize", name)))
        assert (refused.exit_code, words in " ".join(refused.stderr.split())) == (2, True)
    assert len(loaded) == 1  # it is refused before a model is loaded
    assert not (tmp_path / "new").exists()
