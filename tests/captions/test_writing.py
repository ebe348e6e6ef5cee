"""A file of captions is written as videos are described, and a run that ended early is taken up again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.captions.conftest import CLIPS, counted
from tests.fixtures import vision_tower
from vidembed import VideoEncoder, VideoReranker
from vidembed.captions import (
    CaptionRecord,
    CaptionReport,
    describe,
    read_captioned_videos,
    read_captions,
    read_pairs,
    write_captions,
)
from vidembed.captions.files import MAX_LINE_BYTES
from vidembed.errors import (
    AnnotationError,
    BackboneError,
    CaptionsBusyError,
    CaptionsMismatchError,
    InputError,
    VideoError,
)
from vidembed.video import Windows
from vidembed.video.clip import content_fingerprint

Scenes = list[tuple[Path, Any]]
HOW: dict[str, Any] = {"kinds": ["dense"], "progress": False}
# the third argument and what follows are videos; killed as its second batch is written, of which the end is missing
KILLED = """
import os, signal, sys
from vidembed import VideoReranker
from vidembed.captions import write_captions
calls, real = [], os.fsync

def fsync(number):
    real(number)
    calls.append(number)
    if len(calls) == 2:
        os.ftruncate(number, os.fstat(number).st_size - 20)
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync
model = VideoReranker("vidembed/shapes-rerank", device="cpu")
write_captions(model, sys.argv[2:], sys.argv[1], kinds=["dense"], batch_size=1, progress=False)
"""


@pytest.fixture
def clips(scenes: Scenes, tmp_path: Path) -> list[Path]:
    """Clips that a test may change."""
    folder = tmp_path / "clips"
    folder.mkdir()
    return [Path(shutil.copy(clip, folder)) for clip, _ in scenes]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def records(out: Path) -> list[CaptionRecord]:
    return list(read_captions(out))


def counts(report: CaptionReport) -> tuple[int, int, int, int]:
    return report.described, report.unchanged, len(report.failed), report.records


def test_a_record_holds_what_describe_says(model: VideoReranker, clips: list[Path], out: Path) -> None:
    with counted(model) as passes:
        report = write_captions(model, clips, out, progress=False)
    assert len(passes) == CLIPS  # one prefill for both texts and what the head says of them
    found = records(out)
    assert counts(report) == (CLIPS, 0, 0, CLIPS)
    assert report.marked == sum(bool(one.problems) for one in found)
    for record, said in zip(found, describe(model, clips), strict=True):
        assert (record.texts, record.problems) == (said.texts, said.problems)
        assert record.match == pytest.approx(said.match, abs=1e-5)
    assert [record.video for record in found] == [f"clips/{clip.name}" for clip in clips]
    assert {(record.fingerprint, record.model) for record in found} == {(report.fingerprint, "vidembed/shapes-mllm")}


def test_nothing_is_generated_twice(model: VideoReranker, clips: list[Path], out: Path) -> None:
    write_captions(model, clips[:2], out, **HOW)
    before = out.read_bytes()
    with counted(model) as passes:
        again = write_captions(model, clips[:2], out, **HOW)
        assert (counts(again), len(passes)) == ((0, 2, 0, 2), 0)
        assert out.read_bytes() == before
        more = write_captions(model, clips, out, **HOW)
    assert (counts(more), len(passes)) == ((CLIPS - 2, 2, 0, CLIPS), CLIPS - 2)
    assert out.read_bytes().startswith(before)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_is_taken_up(
    model: VideoReranker, clips: list[Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [str(clip) for clip in clips]
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), *names], check=False, timeout=240)
    assert done.returncode == -signal.SIGKILL
    whole, torn = out.read_bytes().split(b"\n")
    assert torn.startswith(b'{"video": "clips/')
    with caplog.at_level(logging.WARNING), counted(model) as passes:
        report = write_captions(model, clips, out, **HOW)
    assert (counts(report), len(passes)) == ((CLIPS - 1, 1, 0, CLIPS), CLIPS - 1)
    assert out.read_bytes().split(b"\n")[0] == whole
    assert f"removed the last line, which was incomplete: {len(torn)} bytes" in caplog.text
    assert {record.video for record in records(out)} == {f"clips/{clip.name}" for clip in clips}


def test_ctrl_c_finishes_the_batch_at_hand(model: VideoReranker, clips: list[Path], out: Path) -> None:
    def interrupt(*_: object) -> None:
        hook.remove()
        signal.raise_signal(signal.SIGINT)

    hook = vision_tower(model.parts).register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_captions(model, clips, out, batch_size=2, **HOW)
    assert [record.video for record in records(out)] == [f"clips/{clip.name}" for clip in clips[:2]]
    with counted(model) as passes:
        assert counts(write_captions(model, clips, out, **HOW)) == (CLIPS - 2, 2, 0, CLIPS)
    assert len(passes) == CLIPS - 2


@pytest.mark.parametrize(
    ("tail", "is_kept"), [(b'{"vi', False), (b'{"video": "clips/a.mp4", "dense": "A', False), (None, True)]
)
def test_the_end_of_a_file_without_a_line_end(
    model: VideoReranker, clips: list[Path], out: Path, tail: bytes | None, is_kept: bool
) -> None:
    write_captions(model, clips[:1], out, **HOW)
    whole = out.read_bytes()
    out.write_bytes(whole.rstrip(b"\n") if tail is None else whole + tail)
    report = write_captions(model, clips[:1], out, **HOW)
    assert out.read_bytes() == whole
    assert counts(report) == (0, 1, 0, 1)
    assert is_kept == (tail is None)


def test_what_is_no_record_stays(model: VideoReranker, clips: list[Path], out: Path) -> None:
    out.write_text("notes of mine")
    with pytest.raises(AnnotationError, match="line 1: not JSON"):
        write_captions(model, clips[:1], out, overwrite=True, **HOW)
    assert out.read_text() == "notes of mine"


def test_records_of_other_settings_are_refused_or_removed(model: VideoReranker, clips: list[Path], out: Path) -> None:
    write_captions(model, clips[:2], out, **HOW)
    before = out.read_bytes()
    with counted(model) as passes:
        with pytest.raises(CaptionsMismatchError, match=r"other prompts, settings.*another file, or --overwrite"):
            write_captions(model, clips, out, max_new_tokens=50, **HOW)
        with pytest.raises(
            CaptionsMismatchError, match=r"of the model 'vidembed/shapes-mllm', but this run uses 'mine'"
        ):
            write_captions(model, clips, out, name="mine", max_new_tokens=50, **HOW)
        with pytest.raises(CaptionsMismatchError, match="of the kinds dense, and short are requested now"):
            write_captions(model, clips, out, kinds=["short"], progress=False)
    assert (out.read_bytes(), passes) == (before, [])
    report = write_captions(model, clips[:1], out, max_new_tokens=50, overwrite=True, **HOW)
    assert counts(report) == (1, 0, 0, 1)
    again = write_captions(model, clips[:1], out, max_new_tokens=50, overwrite=True, **HOW)
    assert counts(again) == (0, 1, 0, 1)  # the same command goes on


def test_captions_that_no_model_wrote_are_refused(model: VideoReranker, clips: list[Path], out: Path) -> None:
    out.write_text(json.dumps({"video": "clips/a.mp4", "caption": "my own words"}) + "\n")
    with pytest.raises(CaptionsMismatchError, match="without a model"):
        write_captions(model, clips, out, **HOW)


def test_one_writer_at_a_time(model: VideoReranker, clips: list[Path], out: Path) -> None:
    with FileLock(f"{out}.lock"), pytest.raises(CaptionsBusyError, match=r"another run.*captions\.jsonl"):
        write_captions(model, clips[:1], out, **HOW)
    assert not out.exists()


def test_a_failure_is_a_record_and_is_tried_again(model: VideoReranker, clips: list[Path], out: Path) -> None:
    good = clips[1].read_bytes()
    clips[1].write_bytes(b"no video")
    missing = clips[0].with_name("missing.mp4")
    report = write_captions(model, [*clips[:3], missing], out, **HOW)
    assert counts(report) == (2, 0, 2, 4)
    assert set(report.failed) == {str(clips[1]), str(missing)}
    errors = {record.video: record.error for record in records(out) if record.error}
    assert set(errors) == {f"clips/{clips[1].name}", "clips/missing.mp4"}
    assert str(errors[f"clips/{clips[1].name}"]).startswith("NotAVideo: ")
    assert counts(write_captions(model, clips[:3], out, **HOW)) == (0, 2, 1, 4)  # still one record of each
    clips[1].write_bytes(good)
    missing.write_bytes(clips[3].read_bytes())
    with counted(model) as passes:
        assert counts(write_captions(model, [*clips[:3], missing], out, **HOW)) == (2, 2, 0, 4)
    assert len(passes) == 2
    assert not [record for record in records(out) if record.error]


def test_a_failure_ends_the_run_on_demand(model: VideoReranker, clips: list[Path], out: Path) -> None:
    clips[1].write_bytes(b"no video")
    with pytest.raises(VideoError, match=clips[1].name):
        write_captions(model, clips, out, on_error="raise", **HOW)
    assert [bool(record.error) for record in records(out)].count(False) <= 1
    with pytest.raises(InputError, match="up to 100000"):
        write_captions(model, clips[:1], out.with_name("other.jsonl"), on_error="raise", max_new_tokens=10**5, **HOW)


def test_segments_are_those_of_an_index(model: VideoReranker, clips: list[Path], out: Path) -> None:
    cut = Windows(1.5, 0.5)
    report = write_captions(model, clips[:2], out, cut=cut, **HOW)
    spans = cut.split(4.0)  # of a clip
    assert [(one.video, one.start_s, one.end_s) for one in records(out)] == [
        (f"clips/{clip.name}", *span) for clip in clips[:2] for span in spans
    ]
    assert counts(report) == (2 * len(spans), 0, 0, 2 * len(spans))
    lines = out.read_text().splitlines(keepends=True)
    del lines[1]
    out.write_text("".join(lines))
    with counted(model) as passes:
        again = write_captions(model, clips[:2], out, cut=cut, **HOW)
    assert (counts(again), len(passes)) == ((1, 2 * len(spans) - 1, 0, 2 * len(spans)), 1)
    whole = write_captions(model, clips[:1], out, **HOW)  # a file as one is something else
    assert (whole.described, whole.unchanged) == (1, 0)


def test_a_record_follows_the_bytes_of_its_video(model: VideoReranker, clips: list[Path], out: Path) -> None:
    write_captions(model, clips[:2], out, **HOW)
    first, second = records(out)
    moved = clips[0].rename(clips[0].with_name("moved.mp4"))
    with counted(model) as passes:
        assert counts(write_captions(model, [moved, clips[1]], out, **HOW)) == (0, 2, 0, 2)
    assert passes == []
    assert [record.video for record in records(out)] == ["clips/moved.mp4", second.video]
    assert records(out)[0].texts == first.texts
    shutil.copy(clips[2], clips[1])  # other bytes under the same name
    assert counts(write_captions(model, [clips[1]], out, **HOW)) == (1, 0, 0, 2)
    assert [record.content for record in records(out)].count(second.content) == 0


def test_equal_files_are_described_once(model: VideoReranker, clips: list[Path], out: Path) -> None:
    twin = Path(shutil.copy(clips[0], clips[0].with_name("twin.mp4")))
    with counted(model) as passes:
        assert counts(write_captions(model, [clips[0], twin], out, **HOW)) == (1, 1, 0, 1)
    assert len(passes) == 1


def test_a_name_that_no_reader_could_find_is_reported(model: VideoReranker, clips: list[Path], out: Path) -> None:
    spaced = clips[0].rename(clips[0].with_name(" one.mp4"))
    ending = clips[1].rename(clips[1].with_name("two.mp4 "))
    report = write_captions(model, [spaced, ending], out, **HOW)
    assert counts(report) == (1, 0, 1, 1)
    assert "rename it" in next(iter(report.failed.values()))
    beside = write_captions(model, [spaced], out.parent / "clips" / "own.jsonl", **HOW)
    assert beside.described == 1
    assert [record.video for record in records(out.parent / "clips" / "own.jsonl")] == ["./ one.mp4"]


def test_the_file_is_read_as_pairs_and_as_captioned_videos(
    model: VideoReranker, clips: list[Path], out: Path, tmp_path: Path
) -> None:
    prompts = {"dense": "Describe above video in detail:", "short": "Describe above video in detail:"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / "captions.jsonl"
    report = write_captions(model, clips, file, kinds=["dense"], agree=False, progress=False)
    videos = read_captioned_videos(file)
    assert [row.video for row in videos] == clips  # outside of the folder of the file, so by their whole paths
    assert len(videos) == report.described - report.marked
    write_captions(model, clips, out, prompts=prompts, agree=False, progress=False)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({**line, "problems": {}}) + "\n" for line in lines))
    pairs = list(read_pairs(out, kind="own"))
    assert [(pair.dense, pair.summary) for pair in pairs] == [(line["dense"], line["short"]) for line in lines]


def test_a_text_is_untrusted(
    model: VideoReranker, clips: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 'A "red" \x1b[31msquare\x07 \u202e moves\nleft.'
    monkeypatch.setattr(model.tokenizer, "decode", lambda *_, **__: said)
    write_captions(model, clips[:1], out, agree=False, **HOW)
    assert out.read_bytes().isascii()
    assert not set(out.read_bytes()) & {0x1B, 0x07}
    assert [record.texts["dense"] for record in read_captions(out)] == [said.replace("\n", " ")]
    monkeypatch.setattr(model.tokenizer, "decode", lambda *_, **__: "\x1b" * MAX_LINE_BYTES)
    report = write_captions(model, clips[1:2], out, agree=False, **HOW)
    assert "lower max_new_tokens" in report.failed[str(clips[1])]
    assert [bool(record.error) for record in read_captions(out)] == [False, True]


def test_a_file_that_is_written_to_meanwhile_fails(
    model: VideoReranker, clips: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> str:
        found = content_fingerprint(path)
        os.utime(path, ns=(0, 0))
        return found

    monkeypatch.setattr("vidembed.captions.writing.content_fingerprint", change)
    report = write_captions(model, clips[:1], out, **HOW)
    assert "ChangedWhileRead" in report.failed[str(clips[0])]


def test_a_model_without_a_head_decodes_nothing(clips: list[Path], out: Path) -> None:
    with pytest.raises(BackboneError, match="no language model head"):
        write_captions(VideoEncoder("vidembed/shapes", device="cpu"), clips, out, **HOW)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("captions.csv", {}, r"does not end in \.jsonl"),
        ("no/captions.jsonl", {}, "does not exist"),
        ("captions.jsonl", {"batch_size": 0}, "batch_size=0"),
        ("captions.jsonl", {"on_error": "ignore"}, "on_error='ignore'"),
        ("captions.jsonl", {"temperature": 11.0}, r"temperature=11\.0"),
    ],
)
def test_bad_arguments_are_refused(
    model: VideoReranker, tmp_path: Path, clips: list[Path], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_captions(model, clips, tmp_path / name, **HOW, **options)
    assert not (tmp_path / name).exists()
