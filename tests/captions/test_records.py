from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.captions import CaptionRecord, read_captioned_videos, read_captions, read_pairs
from vidembed.errors import AnnotationError

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())


@given(
    texts=st.dictionaries(st.sampled_from(["dense", "short", "tags"]), WORDS.map(str.strip), max_size=3),
    problem=st.none() | WORDS.map(str.strip),
    match=st.floats(0, 1),
    segment=st.none() | st.tuples(st.floats(0, 100), st.floats(101, 200)),
)
def test_a_record_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: dict[str, str],
    problem: str | None,
    match: float,
    segment: tuple[float, float] | None,
) -> None:
    start, end = segment or (None, None)
    problems = {} if problem is None else {"short": problem}
    record = CaptionRecord("a.mp4", "ab12", texts, problems, {"dense": match}, start, end, "m", "f")
    file = tmp_path_factory.mktemp("records") / "captions.jsonl"
    file.write_text(record.to_json() + "\n" + record.to_json() + "\n")
    assert list(read_captions(file)) == [record, record]
    assert "\x1b" not in file.read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"dense": "words"}, "no 'video'"),
        ({"video": "a.mp4", "start_s": 1.0}, "give both"),
        ({"video": "a.mp4", "start_s": 2.0, "end_s": 1.0}, "the end after the start"),
        ({"video": "a.mp4", "start_s": -1, "end_s": 1}, "start_s=-1"),
        ({"video": "a.mp4", "start_s": True, "end_s": 1}, "start_s=True"),
        ({"video": "a.mp4", "problems": "bad"}, "expected an object"),
        ({"video": "a.mp4", "match": {"dense": 2}}, "from 0 to 1"),
        ({"video": "a.mp4", "match": {"dense": "0.5"}}, "from 0 to 1"),
        ({"video": "a.mp4", "problems": {"dense": 1}}, "expected a string"),
        ({"video": 3}, "expected a string"),
        ({"video": "a.mp4", "dense": "\ud800"}, "not valid Unicode"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text(json.dumps({"video": "a.mp4", "dense": "words"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(AnnotationError, match=message) as raised:
        list(read_captions(file))
    assert "line 2" in str(raised.value)


def test_kinds_may_not_be_keys_of_a_record() -> None:
    with pytest.raises(ValueError, match="video"):
        CaptionRecord("a.mp4", texts={"video": "words"})


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="jsonl"):
        list(read_captions(tmp_path / "captions.csv"))
    with pytest.raises(AnnotationError, match="cannot be read"):
        list(read_captions(tmp_path / "captions.jsonl"))


def test_marked_records_are_no_pairs_and_no_captioned_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [
        CaptionRecord("a.mp4", texts={"dense": "a red square goes left", "short": "A red square."}),
        CaptionRecord("b.mp4", texts={"dense": "a blue ring", "short": "ring"}, problems={"short": "not one sentence"}),
        CaptionRecord("c.mp4", error="cannot be decoded"),
    ]
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(record.to_json() + "\n" for record in records))
    with caplog.at_level(logging.WARNING):
        assert [(pair.dense, pair.summary) for pair in read_pairs(file)] == [
            ("a red square goes left", "A red square.")
        ]
        assert [video.video.name for video in read_captioned_videos(file)] == ["a.mp4"]
    assert caplog.text.count("left out 2 rows") == 2
    assert records[0].usable("short")
    assert records[1].usable("dense")
    assert not records[1].usable("short")
    assert not records[2].usable("dense")


def test_a_file_of_marked_records_alone_holds_no_pairs(tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text(CaptionRecord("a.mp4", error="gone").to_json() + "\n")
    with pytest.raises(AnnotationError, match="no pairs found"):
        list(read_pairs(file))
