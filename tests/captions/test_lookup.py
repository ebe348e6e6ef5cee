from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.captions import CaptionLookup, CaptionMatches, CaptionRecord, TimedCaption, caption_at, caption_line
from vidembed.errors import AnnotationError

A, B = "a" * 64, "b" * 64


def record(content: str | None, text: str, *times: float, **fields: Any) -> CaptionRecord:
    start, end = times or (None, None)
    return CaptionRecord("a.mp4", content, {"dense": text}, start_s=start, end_s=end, **fields)


def write(folder: Path, *records: CaptionRecord) -> Path:
    file = folder / "captions.jsonl"
    file.write_text("".join(one.to_json() + "\n" for one in records), encoding="utf-8")
    return file


def test_captions_of_the_video_and_of_its_segments(tmp_path: Path) -> None:
    file = write(tmp_path, record(A, "all of it"), record(A, "late", 4, 8), record(A, "early", 0, 4), record(B, "else"))
    found = CaptionLookup(file).of_video(A, 0.5, 8.25)
    assert found == [(0, 4, "early"), (0.5, 8.25, "all of it"), (4, 8, "late")]
    assert CaptionLookup(file).of_video("c" * 64, 0, 8) == []
    assert CaptionLookup([record(A.upper(), "words")]).of_video(A, 0, 8) == [(0, 8, "words")]


TIMES = st.floats(0, 20).map(lambda value: round(value, 6))


@given(
    records=st.lists(st.tuples(st.sampled_from([A, B]), TIMES, TIMES.map(lambda value: value + 20.1)), max_size=12),
    content=st.sampled_from([A, B]),
    start=TIMES,
    length=st.floats(0.01, 40),
    pick=st.none() | st.integers(0, 11),
)
def test_a_caption_is_of_the_same_bytes_and_times(
    records: list[tuple[str, float, float]], content: str, start: float, length: float, pick: int | None
) -> None:
    end = start + length
    if pick is not None and pick < len(records):
        content, start, end = records[pick]
    lookup = CaptionLookup([record(one, f"{place}", *times) for place, (one, *times) in enumerate(records)])
    found = caption_at(lookup.of_video(content, 0, 50), start, end)
    fitting = [
        place
        for place, (one, first, last) in enumerate(records)
        if one == content and abs(first - start) <= 0.001 and abs(last - end) <= 0.001
    ]
    assert (found is None) == (not fitting)
    assert found is None or int(found.text or "") in fitting


def test_the_last_of_several_counts_and_an_error_says_nothing() -> None:
    failed = CaptionRecord("a.mp4", A, error="cannot be decoded")
    short = CaptionRecord("a.mp4", A, {"short": "A square."})
    lookup = CaptionLookup([record(A, "first"), record(A, "second"), failed, short])
    assert caption_at(lookup.of_video(A, 0, 4), 0, 4) == (0, 4, "second")
    marked = record(A, "third", problems={"dense": "the head gives it 3%"})
    found = caption_at(CaptionLookup([record(A, "first"), marked]).of_video(A, 0, 4), 0, 4)
    assert found == (0, 4, None)


def test_marked_texts_are_left_out_unless_asked(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = write(tmp_path, record(A, "marked", problems={"dense": "empty"}), record(B, "good"), record(None, "bytes?"))
    matches = CaptionMatches(CaptionLookup(file))
    assert matches.at(matches.of_video(tmp_path / "a.mp4", A, 0, 4), 0, 4) is None
    assert caplog.text.count("left out 1 texts that are marked") == 1
    assert caplog.text.count("left out 1 records that do not say which bytes") == 1
    matches.log()
    assert "other times" not in caplog.text  # it is of these times
    matches = CaptionMatches(CaptionLookup(file, marked=True))
    assert matches.at(matches.of_video(tmp_path / "a.mp4", A, 0, 4), 0, 4) == "marked"


def test_another_kind_of_text() -> None:
    records = [CaptionRecord("a.mp4", A, {"dense": "a red square", "short": "Red."})]
    assert CaptionLookup(records, kind="short").of_video(A, 0, 4) == [(0, 4, "Red.")]
    with pytest.raises(ValueError, match=r"kind='tags': captions has no such text; it has dense, short"):
        CaptionLookup(records, kind="tags")
    assert CaptionLookup([], kind="tags").of_video(A, 0, 4) == []


def test_what_is_left_out_is_said_once_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.mp4", (tmp_path / "b.mp4").as_uri(), str(tmp_path / "c.mp4"), "s3://bucket/d.mp4"]
    file = write(tmp_path, *(CaptionRecord(name, A, {"dense": "words"}) for name in names))
    matches = CaptionMatches(CaptionLookup(file))
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "never seen.mp4"):
        assert matches.of_video(tmp_path / name, B, 0, 4) == []
    assert matches.of_video(tmp_path / "a.mp4", A, 0, 4) == [(0, 4, "words")]
    timed = [TimedCaption(0, 4, "words")]
    assert [matches.at(timed, *times) for times in ((0, 4), (0, 4.002), (0.002, 4), (4, 8))] == [
        "words",
        None,
        None,
        None,
    ]
    assert matches.at([], 0, 4) is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        matches.log()
    changed, untimed = (one.getMessage() for one in caplog.records)
    assert "captions.jsonl: left out the captions of 3 videos" in changed
    assert "a.mp4" in changed
    assert untimed.startswith("3 videos or segments have no caption")


@pytest.mark.parametrize("video", ["a\0b.mp4", "file://%00", "//machine/share/a.mp4", "x" * 5000, "file:///%FF.mp4"])
def test_paths_of_records_are_never_looked_up(video: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup_of = CaptionLookup
    records = [CaptionRecord(video, A, {"dense": "words"})]
    for name in ("stat", "lstat"):
        real = getattr(__import__("os"), name)

        def seen(path: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            assert "machine" not in str(path)
            return real(path, *args, **kwargs)

        monkeypatch.setattr("os." + name, seen)
    assert lookup_of(records).of_video(A, 0, 4) == [(0, 4, "words")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a {red} square: {0} {page_content}", "a {red} square: {0} {page_content}"),
        ("one\r\ntwo\u2028three\x85 \tfour ", "one two three four"),
        ("\x1b[31mred\x9b0m\0", r"\x1b[31mred\x9b0m\x00"),
        ("<b>&amp;</b>", "<b>&amp;</b>"),
        ("\ud800", r"\ud800"),
        ("می\u200cرود 👩\u200d🚀", "می\u200cرود 👩\u200d🚀"),  # joiners are part of words
        ("x" * 10_000, "x" * 10_000),
    ],
)
def test_a_caption_is_one_line(text: str, line: str) -> None:
    assert caption_line(text) == caption_line(line) == line
    assert CaptionLookup([record(A, text)]).of_video(A, 0, 4) == [(0, 4, line)]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        CaptionLookup(tmp_path / "none.jsonl")
    with pytest.raises(TypeError, match="at position 1 is a str; expected a CaptionRecord"):
        CaptionLookup([record(A, "words"), "words"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at position 0, start_s=None, end_s=4; give both times or neither"):
        CaptionLookup([CaptionRecord("a.mp4", A, {"dense": "words"}, end_s=4)])
    lookup = CaptionLookup([record(A, "words")])
    assert CaptionLookup.of(lookup) is lookup
