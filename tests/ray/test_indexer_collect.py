from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tqdm import tqdm

from tests.index.fakes import rows
from vidembed.index import IndexingStoppedError, IndexMeta, IndexMismatchError, Report
from vidembed.index.commit import Committer, Quarantine
from vidembed.index.files import Job
from vidembed.index.table import uri_of
from vidembed.ray import indexer
from vidembed.ray.indexer import Collector

MODEL = "m" * 64
META = IndexMeta("made", None, {}, MODEL, {}, 3, 1.0, 0.0, "2026-01-01T00:00:00+00:00")


def row(path: Path, segment: int = 0, segments: int = 1, **given: Any) -> dict[str, Any]:
    """What comes back for a segment of `path`."""
    return {
        "uri": uri_of(path),
        "content_fingerprint": f"{path.name}-content",
        "size": 7,
        "mtime_ns": 8,
        "duration": float(segments),
        "segment": segment,
        "segments": segments,
        "start_s": float(segment),
        "end_s": segment + 1.0,
        "model_fingerprint": MODEL,
        "vector": [1.0, float(segment), float(path.stem == "b")],
        "error": None,
        **given,
    }


def table(*found: dict[str, Any]) -> pa.Table:
    schema = pa.schema([("vector", pa.list_(pa.float32(), 3)), ("error", pa.string())])
    made = pa.Table.from_pylist(list(found))
    for field in schema:
        place = made.column_names.index(field.name)
        made = made.set_column(place, field, made.column(place).cast(field.type))
    return made


class Scene:
    """A collector over a folder that is empty."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder / "index"
        self.folder.mkdir()
        self.paths = [folder / name for name in ("a.mp4", "b.mp4")]
        for path in self.paths:
            path.write_bytes(b"x")
        self.report = Report(str(self.folder), "made")
        self.quarantine = Quarantine(self.folder, {"decoder": 1})
        self.committer = Committer(
            self.folder, None, META, report=self.report, quarantine=self.quarantine, **{"on_error": "skip", **options}
        )
        self.bar = tqdm(total=2, disable=True)
        self.collector = Collector(self.committer, self.bar)
        self.jobs = [Job(path, uri_of(path), None) for path in self.paths]
        assert self.collector.expect(self.jobs) == self.jobs

    def stored(self) -> list[tuple[str, float]]:
        if self.committer.index is None:
            return []
        return [(found["uri"][-5:], found["start_s"]) for found in rows(self.folder)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_file_is_stored_when_all_of_it_is_there_in_whatever_order(scene: Scene) -> None:
    a, b = scene.paths
    scene.collector.take(table(row(a, 2, 3), row(b, 1, 2), row(a, 0, 3)))
    assert scene.stored() == []
    scene.collector.take(table(row(b, 0, 2)))
    assert scene.stored() == [("b.mp4", 0.0), ("b.mp4", 1.0)]
    scene.collector.take(table(row(a, 1, 3)))
    scene.collector.close()
    assert scene.stored() == [("a.mp4", 0.0), ("a.mp4", 1.0), ("a.mp4", 2.0), ("b.mp4", 0.0), ("b.mp4", 1.0)]
    vectors = [found["vector"] for found in rows(scene.folder)]
    assert np.array_equal(vectors, [[1, 0, 0], [1, 1, 0], [1, 2, 0], [1, 0, 1], [1, 1, 1]])
    assert (scene.report.indexed, scene.report.skipped) == (2, [])


def test_rows_that_come_twice_count_once(scene: Scene) -> None:
    a, b = scene.paths
    scene.collector.take(table(row(a, 0, 2), row(a, 0, 2)))
    assert scene.stored() == []
    scene.collector.take(table(row(a, 1, 2), row(a, 0, 2), row(b)))
    scene.collector.take(table(row(a, 0, 2), row(b)))
    scene.collector.close()
    assert scene.stored() == [("a.mp4", 0.0), ("a.mp4", 1.0), ("b.mp4", 0.0)]
    assert scene.report.indexed == 2


def test_a_file_of_which_not_all_came_is_reported(scene: Scene) -> None:
    scene.collector.take(table(row(scene.paths[0], 0, 2), row(scene.paths[1])))
    scene.collector.close()
    [problem] = scene.report.skipped
    assert (problem.uri[-5:], problem.kind) == ("a.mp4", "InternalError")
    assert "1 segments came back" in problem.message
    assert scene.stored() == [("b.mp4", 0.0)]


@pytest.mark.parametrize("other", [{"content_fingerprint": "other"}, {"segments": 3}], ids=["content", "count"])
def test_a_file_that_was_read_twice_and_differs_is_reported(scene: Scene, other: dict[str, Any]) -> None:
    scene.collector.take(
        table(row(scene.paths[0], 0, 2), row(scene.paths[0], **{"segment": 1, "segments": 2, **other}))
    )
    scene.collector.close()
    assert [problem.kind for problem in scene.report.skipped] == ["ChangedWhileRead", "InternalError"]


def test_an_error_ends_its_file(scene: Scene) -> None:
    a, b = scene.paths
    scene.collector.take(table(row(a, 1, 2, error="CorruptVideo: at 1 to 2 s: no frames: none", vector=None), row(b)))
    scene.collector.take(table(row(a, 0, 2)))
    scene.collector.close()
    [problem] = scene.report.skipped
    assert (problem.kind, problem.message) == ("CorruptVideo", "at 1 to 2 s: no frames: none")
    assert scene.stored() == [("b.mp4", 0.0)]
    assert [entry.content_fingerprint for entry in scene.quarantine.entries.values()] == ["a.mp4-content"]


@pytest.mark.parametrize(
    "given",
    [{"error": "InternalError: odd", "vector": None}, {"error": "VideoTooLarge: x", "content_fingerprint": None}],
)
def test_what_is_not_the_contents_fault_is_tried_again(scene: Scene, given: dict[str, Any]) -> None:
    scene.collector.take(table(row(scene.paths[0], **given)))
    scene.collector.settle(now=True)
    assert len(scene.report.skipped) == 1
    assert scene.quarantine.entries == {}


def test_the_first_error_can_end_the_run(tmp_path: Path) -> None:
    scene = Scene(tmp_path, on_error="raise")
    with pytest.raises(IndexingStoppedError, match=r"a\.mp4: NotAVideo: text"):
        scene.collector.take(table(row(scene.paths[0], error="NotAVideo: text", vector=None)))


def test_a_worker_with_another_model_ends_the_run(scene: Scene) -> None:
    with pytest.raises(IndexMismatchError, match="a worker loaded one with fingerprint xyz"):
        scene.collector.take(table(row(scene.paths[0], model_fingerprint="xyz")))
    assert scene.stored() == []


def test_files_done_in_quick_succession_share_a_commit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(indexer.time, "monotonic", lambda: now[0])
    a, b = scene.paths
    scene.collector.take(table(row(a)))
    assert scene.stored() == [("a.mp4", 0.0)]  # the last commit is long ago
    now[0] += indexer.COMMIT_EVERY_S / 2
    scene.collector.take(table(row(b)))
    assert scene.stored() == [("a.mp4", 0.0)]
    now[0] += indexer.COMMIT_EVERY_S / 2
    scene.collector.take(table(row(a)))
    assert scene.stored() == [("a.mp4", 0.0), ("b.mp4", 0.0)]


def test_many_rows_do_not_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "COMMIT_ROWS", 1)
    monkeypatch.setattr(indexer, "COMMIT_EVERY_S", 1e12)
    scene.collector.take(table(row(scene.paths[0])))
    assert scene.stored() == [("a.mp4", 0.0)]


def test_equal_files_get_the_same_vectors(scene: Scene) -> None:
    a, b = scene.paths
    scene.collector.take(table(row(a, content_fingerprint="same"), row(b, content_fingerprint="same")))
    scene.collector.close()
    first, second = rows(scene.folder)
    assert first["vector"] == second["vector"] == [1, 0, 0]
    assert (scene.report.indexed, scene.report.copied) == (1, 1)


def test_a_content_that_is_no_longer_known_is_done_again(scene: Scene) -> None:
    a, b = scene.paths
    scene.collector.take(table(row(a, segments=0, vector=None, duration=None, start_s=None, end_s=None), row(b)))
    scene.collector.close()
    assert scene.stored() == [("b.mp4", 0.0)]
    assert [job.uri for job in scene.collector.again] == [uri_of(a)]
    assert scene.report.skipped == []
    assert [job.uri for job in scene.collector.expect(scene.collector.again)] == [uri_of(a)]
    scene.collector.take(table(row(a)))
    scene.collector.close()
    assert scene.stored() == [("a.mp4", 0.0), ("b.mp4", 0.0)]
