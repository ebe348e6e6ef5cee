from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from vidembed.uri import content_fingerprint, parse_video_uri, video_uri
from vidembed.video import NotAVideo

from langchain_vidembed import VideoLoader
from tests.conftest import write_scenes


def test_a_document_a_video(folder: Path) -> None:
    documents = VideoLoader(folder).load()
    assert [document.page_content for document in documents] == [
        video_uri(folder / name) for name in ("a.mp4", "b.MP4", "c.mp4")
    ]
    assert documents[1].metadata == {
        "kind": "video",
        "source": str(folder / "b.MP4"),
        "start_s": 0.0,
        "end_s": 8.0,
        "duration_s": 8.0,
        "content_fingerprint": content_fingerprint(folder / "b.MP4"),
    }


def test_a_document_a_segment(folder: Path) -> None:
    documents = VideoLoader(folder / "a.mp4", segment_s=5, overlap_s=1).load()
    assert [document.page_content for document in documents] == [
        video_uri(folder / "a.mp4", *times) for times in ((0, 5), (4, 9), (7, 12))
    ]
    assert [(one.metadata["start_s"], one.metadata["end_s"]) for one in documents] == [(0, 5), (4, 9), (7, 12)]
    assert {one.metadata["duration_s"] for one in documents} == {12}


def test_ids_are_uuids_of_the_uri(folder: Path) -> None:
    first, again = (VideoLoader(folder, segment_s=4).load() for _ in range(2))
    assert [document.id for document in first] == [document.id for document in again]
    assert len({uuid.UUID(document.id) for document in first}) == 6


def test_it_is_lazy(folder: Path) -> None:
    (folder / "z.mp4").write_text("no video")
    documents = VideoLoader(folder).lazy_load()
    assert parse_video_uri(next(documents).page_content).source == folder / "a.mp4"
    with pytest.raises(NotAVideo, match=r"z\.mp4"):
        list(documents)


def test_skip_reports_what_it_leaves_out(folder: Path) -> None:
    (folder / "bad.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "lost.mp4").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.mp4")
    loader = VideoLoader(folder, on_error="skip")
    assert len(loader.load()) == 3
    assert {Path(name).name: type(error).__name__ for name, error in loader.skipped.items()} == {
        "bad.mp4": "NotAVideo",
        "empty.mp4": "EmptyFile",
        "lost.mp4": "VideoNotFound",
        "pipe.mp4": "NotAFile",
    }
    (folder / "empty.mp4").unlink()
    loader.load()
    assert len(loader.skipped) == 3


def test_glob_and_recursive(folder: Path) -> None:
    write_scenes(folder / "deep" / "d.mp4", 0)
    (folder / "deep" / "notes.txt").touch()

    def names(**options: object) -> list[str]:
        return [Path(one.metadata["source"]).name for one in VideoLoader(folder, **options).lazy_load()]

    assert names() == ["a.mp4", "b.MP4", "c.mp4", "d.mp4"]
    assert names(recursive=False) == ["a.mp4", "b.MP4", "c.mp4"]
    assert names(glob="**/[cd].*") == ["c.mp4", "d.mp4"]
    assert names(glob="deep/*") == ["d.mp4"]
    with pytest.raises(ValueError, match=r"no video .* matches glob='\*\.mkv'"):
        names(glob="*.mkv")


def test_names_that_are_not_utf8_can_be_stored(folder: Path) -> None:
    odd = folder / os.fsdecode(b"\xff\xfe #1.mp4")
    (folder / "c.mp4").rename(odd)
    (document,) = VideoLoader(odd).load()
    document.metadata["source"].encode()
    assert parse_video_uri(document.page_content).source == odd


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_s": 0}, "segment"),
        ({"segment_s": 2, "overlap_s": 2}, "overlap"),
        ({"overlap_s": 2}, "it needs segment_s"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoLoader(folder, **options)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        VideoLoader(tmp_path / "missing").load()
