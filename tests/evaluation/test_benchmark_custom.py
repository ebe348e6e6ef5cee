from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.minis import owned, touch, write_csv
from vidembed.errors import AnnotationError
from vidembed.evaluation import read_benchmark


def jsonl(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_equal_texts_are_true_of_all_their_videos(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4")
    file = jsonl(
        tmp_path / "mine.jsonl",
        {"video": "a.mp4", "captions": ["a dog", "an animal", "a dog"]},
        {"video": "sub/b.mp4", "caption": "an animal"},
    )
    got = read_benchmark("custom", annotations=file)
    assert owned(got) == [("a dog", "a.mp4"), ("an animal", "a.mp4"), ("an animal", "sub/b.mp4")]
    assert got.positives.tolist() == [[True, False], [True, True]]
    assert (got.title, got.source, got.videos) == ("mine", str(file), (tmp_path / "a.mp4", tmp_path / "sub/b.mp4"))
    assert got.notes == ("4 rows have 2 different texts; equal ones are merged.",)


def test_csv_and_a_folder_of_videos(tmp_path: Path) -> None:
    videos = touch(tmp_path / "v", "a.mp4", "b.mp4")
    file = write_csv(tmp_path / "mine.csv", ("video", "text"), [("a.mp4", "one"), (str(videos / "b.mp4"), "two")])
    got = read_benchmark("custom", annotations=file, videos=videos)
    assert owned(got) == [("one", "a.mp4"), ("two", "b.mp4")]
    assert got.notes == ()


def test_one_video_by_two_spellings(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4")
    file = jsonl(tmp_path / "m.jsonl", {"video": "a.mp4", "text": "x"}, {"video": "sub/../a.mp4", "text": "y"})
    got = read_benchmark("custom", annotations=file)
    assert owned(got) == [("x", "a.mp4"), ("y", "a.mp4")]


def test_refusals(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    for label in (True, 0):
        file = jsonl(tmp_path / "l.jsonl", {"video": "a.mp4", "text": "x", "label": label})
        with pytest.raises(AnnotationError, match=r"l\.jsonl: rows have a label"):
            read_benchmark("custom", annotations=file)
    file = jsonl(tmp_path / "m.jsonl", {"video": "a.mp4", "text": "x"}, {"video": "b.mp4", "text": "y"})
    with pytest.raises(AnnotationError, match=r"1 of 2 video files are missing: .*b\.mp4 \(line 2\)"):
        read_benchmark("custom", annotations=file)
    with pytest.raises(ValueError, match="split: not for 'custom'"):
        read_benchmark("custom", annotations=file, split=file)
    with pytest.raises(ValueError, match="allow_missing: not for 'custom'"):
        read_benchmark("custom", annotations=file, allow_missing=True)
    with pytest.raises(AnnotationError, match=r"ends in \.jsonl or \.csv"):
        read_benchmark("custom", annotations=tmp_path)
