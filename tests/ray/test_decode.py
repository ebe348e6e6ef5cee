from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import fs

from tests.clips import moving_square, write_video
from vidembed.index.table import uri_of
from vidembed.ray import DecodeVideos
from vidembed.ray.decode import CLIP, FRAMES, clip_at
from vidembed.ray.indexer import KnownContents
from vidembed.video import Clip, CorruptVideo, Sampling, VideoError, VideoSegment, Windows, load_video
from vidembed.video.clip import FileState, content_fingerprint
from vidembed.video.segments import Layout

SAMPLING = Sampling(fps=2.0, max_frames=8, max_pixels=48 * 48)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{i}.mp4", moving_square(25 + 10 * i, seed=i)) for i in range(3)]


@pytest.fixture
def decode() -> Iterator[DecodeVideos]:
    made = DecodeVideos(SAMPLING, cut=Windows(1))
    yield made
    made.close()


def run(stage: DecodeVideos, batch: Any) -> tuple[list[dict[str, Any]], list[Clip | None]]:
    tables = list(stage(batch))
    rows = [row for table in tables for row in table.drop_columns([CLIP, FRAMES]).to_pylist()]
    return rows, [clip_at(table, place) for table in tables for place in range(len(table))]


def test_each_segment_is_a_row_with_its_frames(clips: list[Path], decode: DecodeVideos) -> None:
    rows, found = run(decode, {"uri": [str(path) for path in clips]})
    assert [(row["uri"], row["segment"], row["segments"]) for row in rows] == [
        (uri_of(path), number, count) for path, count in zip(clips, (3, 4, 5), strict=True) for number in range(count)
    ]
    for row, clip in zip(rows, found, strict=True):
        path = clips[int(row["uri"][-5])]
        wanted = load_video(VideoSegment(path, row["start_s"], row["end_s"]), SAMPLING)
        assert clip is not None
        assert clip.frames.flags.writeable
        for name in ("frames", "timestamps", "frames_indices"):
            assert np.array_equal(getattr(clip, name), getattr(wanted, name))
        assert clip.metadata() == wanted.metadata()
        assert (clip.sampling, clip.start_s) == (SAMPLING, row["start_s"])
        assert row["content_fingerprint"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert FileState(row["size"], row["mtime_ns"]) == FileState.of(path)
        assert row["error"] is None
    assert [row["end_s"] for row in rows][:3] == [1.0, 2.0, rows[0]["duration"]]


def test_whole_videos(clips: list[Path]) -> None:
    stage = DecodeVideos(SAMPLING.as_dict())
    rows, [clip] = run(stage, {"uri": [uri_of(clips[0])]})
    assert [(row["start_s"], row["end_s"], row["segments"]) for row in rows] == [(0.0, 2.5, 1)]
    assert clip is not None
    assert np.array_equal(clip.frames, load_video(clips[0], SAMPLING).frames)
    stage.close()


@pytest.mark.parametrize(
    "form", [pa.table, pd.DataFrame, lambda batch: {key: np.array(value) for key, value in batch.items()}]
)
def test_batches_of_every_form_keep_their_columns(form: Any, clips: list[Path]) -> None:
    stage = DecodeVideos(SAMPLING, cut=Windows(2), column="path")
    batch = form({"path": [str(clips[0]), "/none.mp4"], "label": [7, 8], "size_of_hat": ["a", "b"]})
    rows, _ = run(stage, batch)
    assert [(row["label"], row["size_of_hat"], row["path"][-5:]) for row in rows] == [
        (7, "a", "0.mp4"),
        (7, "a", "0.mp4"),
        (8, "b", "e.mp4"),
    ]
    stage.close()


def test_bad_files_are_rows_and_end_nothing(tmp_path: Path, clips: list[Path], decode: DecodeVideos) -> None:
    (tmp_path / "text.mp4").write_text("this is no video, whatever its name says" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.mp4")
    names = [*(str(tmp_path / name) for name in ("text.mp4", "empty.mp4", "fifo.mp4", "none.mp4")), "rel.mp4", "", None]
    rows, found = run(decode, pa.table({"uri": pa.array([*names, str(clips[0])], pa.string())}))
    kinds = [(row["error"] or "").partition(":")[0] for row in rows]
    assert kinds == [
        *("NotAVideo", "EmptyFile", "NotAFile", "VideoNotFound", "InvalidVideoInput", "InvalidVideoInput"),
        "InternalError",
        *("", "", ""),
    ]
    assert all(row["start_s"] is None and clip is None for row, clip in zip(rows[:7], found[:7], strict=True))
    assert rows[0]["content_fingerprint"] == content_fingerprint(tmp_path / "text.mp4")
    assert "text.mp4" not in rows[0]["error"]  # it stands in the column of its own


class StubPool:
    """Reads what it is given.

    Args:
        entries: What a reading gives.
        at: Called when a segment is read.
    """

    def __init__(self, entries: list[Any], at: Any = None) -> None:
        self.entries, self.at, self.cancelled = entries, at, 0

    def submit(self, path: Path, *_: Any, **__: Any) -> StubPool:
        return self

    def layout(self) -> Layout:
        return Layout(float(len(self.entries)), [(float(i), i + 1.0) for i in range(len(self.entries))])

    def __iter__(self) -> Iterator[Any]:
        for number, entry in enumerate(self.entries):
            if self.at:
                self.at(number)
            yield entry

    def cancel(self) -> None:
        self.cancelled += 1

    def close(self) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[StubPool], None]:
    """Has stages decode with a stub."""
    return lambda pool: monkeypatch.setattr("vidembed.ray.decode.DecodePool", lambda **_: pool)


def test_an_error_ends_its_file(clips: list[Path], decode: DecodeVideos, stub: Callable[[StubPool], None]) -> None:
    clip = load_video(VideoSegment(clips[0], 0, 1), SAMPLING)
    stub(pool := StubPool([clip, CorruptVideo("item", "no frames"), clip]))
    rows, found = run(decode, {"uri": [str(clips[0])]})
    assert [row["error"] for row in rows] == [None, "CorruptVideo: at 1 to 2 s: no frames"]
    assert [clip is None for clip in found] == [False, True]
    assert pool.cancelled == 1


def test_a_file_that_changes_has_an_error_and_not_all_rows(
    tmp_path: Path, decode: DecodeVideos, stub: Callable[[StubPool], None]
) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(20))
    clip = load_video(path, SAMPLING)
    stub(StubPool([clip] * 3, lambda number: number == 1 and path.write_bytes(b"new")))
    rows, _ = run(decode, {"uri": [str(path)]})
    assert [(row["error"] or "").partition(":")[0] for row in rows] == ["", "", "ChangedWhileRead"]


def test_what_is_broken_in_us_is_an_error_of_the_file(
    clips: list[Path], decode: DecodeVideos, stub: Callable[[StubPool], None]
) -> None:
    class Broken(StubPool):
        def layout(self) -> Layout:
            raise RuntimeError("a\nbug")

    stub(Broken([]))
    [row], _ = run(decode, {"uri": [str(clips[0])]})
    assert row["error"] == "InternalError: RuntimeError: a bug"


def test_known_contents_are_not_decoded(clips: list[Path]) -> None:
    known = KnownContents([content_fingerprint(clips[1])])
    stage = DecodeVideos(SAMPLING, cut=Windows(1), known=known)
    rows, found = run(stage, {"uri": [str(path) for path in clips[:2]]})
    assert [(row["segments"], row["error"]) for row in rows] == [(3, None)] * 3 + [(0, None)]
    assert rows[3]["content_fingerprint"] == content_fingerprint(clips[1])
    assert found[3] is None
    stage.close()


def test_known_contents() -> None:
    contents = [hashlib.sha256(bytes([i])).hexdigest() for i in range(100)]
    known = pickle.loads(pickle.dumps(KnownContents(contents[:50] * 2)))
    assert [known(content) for content in contents] == [True] * 50 + [False] * 50
    assert not KnownContents([])(contents[0])


def test_other_file_systems(clips: list[Path]) -> None:
    system = fs.SubTreeFileSystem(str(clips[0].parent.parent), fs.LocalFileSystem())
    stage = DecodeVideos(SAMPLING, filesystem=system)
    state = FileState.of(clips[0])
    rows, found = run(
        stage,
        {
            "uri": [f"s3://{clips[0].parent.name}/0.mp4", f"s3://{clips[0].parent.name}/0.mp4"],
            "size": [state.size, state.size + 1],
            "mtime_ns": [state.mtime_ns + 1, state.mtime_ns],
        },
    )
    assert [(row["error"] or "").partition(":")[0] for row in rows] == ["", "ChangedWhileRead"]
    assert rows[0]["mtime_ns"] == state.mtime_ns + 1
    assert found[0] is not None
    assert np.array_equal(found[0].frames, load_video(clips[0], SAMPLING).frames)
    stage.close()


@pytest.mark.parametrize("given", [pd.DataFrame, lambda columns: {k: np.array(v, float) for k, v in columns.items()}])
def test_listings_with_gaps_are_read(clips: list[Path], given: Callable[[dict[str, list[Any]]], Any]) -> None:
    system = fs.SubTreeFileSystem(str(clips[0].parent.parent), fs.LocalFileSystem())
    stage = DecodeVideos(SAMPLING, filesystem=system)
    state = FileState.of(clips[0])
    listing = given({"size": [state.size, None], "mtime_ns": [state.mtime_ns, None]})
    batch = {**{name: listing[name] for name in listing}, "uri": [f"s3://{clips[0].parent.name}/0.mp4"] * 2}
    rows, _ = run(stage, pd.DataFrame(batch) if given is pd.DataFrame else batch)
    assert [(row["error"], row["size"]) for row in rows] == 2 * [(None, state.size)]
    stage.close()


def test_it_pickles_after_use(clips: list[Path], decode: DecodeVideos) -> None:
    before, _ = run(decode, {"uri": [str(clips[0])]})
    again = pickle.loads(pickle.dumps(decode))
    assert run(again, {"uri": [str(clips[0])]})[0] == before
    again.close()


def test_a_batch_without_the_column_is_refused(decode: DecodeVideos) -> None:
    with pytest.raises(ValueError, match=r"column: the batch has no 'uri'; it has path"):
        list(decode({"path": ["a"]}))


def test_a_clip_that_was_tampered_with_is_refused(clips: list[Path], decode: DecodeVideos) -> None:
    [table, *_] = decode({"uri": [str(clips[0])]})
    for column, value in ((CLIP, "{}"), (FRAMES, b"short"), (CLIP, "no json")):
        place = table.column_names.index(column)
        broken = table.set_column(place, column, pa.array([value], table.schema.field(column).type))
        with pytest.raises(ValueError, match="not a clip"):
            clip_at(broken, 0)


def test_importing_loads_neither_torch_nor_ray() -> None:
    code = "import sys, vidembed.ray; print({'torch', 'ray', 'lancedb', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_errors_of_videos_are_of_the_known_family() -> None:
    from vidembed.errors import ChangedWhileRead

    assert issubclass(ChangedWhileRead, VideoError)
