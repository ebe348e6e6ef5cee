from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from tests.clips import moving_square, write_video
from tests.index.fakes import rows
from tests.ray import s3
from tests.ray.fakes import DIMENSION, ClipEncoder, FakeEmbed
from vidembed.index import Derived, IndexMismatchError, VideoIndex, Windows, index_videos
from vidembed.index.bank import open_bank
from vidembed.index.table import path_of, uri_of
from vidembed.ray import ClusterError, index_videos_ray

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

Run = Callable[..., Any]
Seen = Callable[[], dict[int, list[str]]]

ROOT = Path(__file__).parent.parent.parent


def write_clips(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_video(folder / f"{number:02d}.mp4", moving_square(12 + 5 * (number % 5), seed=number))
        for number in range(count)
    ]


def local(paths: Any, folder: Path, **options: Any) -> Any:
    """`index_videos` with the same model in this process."""
    settings = {"model": "fake", "progress": False, **options}
    return index_videos(paths, folder, ClipEncoder(settings["model"]), **settings)


def facts(report: Any) -> dict[str, Any]:
    """What a report says, without the messages and the name of the index."""
    kinds = sorted((problem.uri, problem.kind) for problem in report.skipped)
    return {**report.to_dict(), "index": None, "skipped": kinds}


def test_the_same_rows_and_report_as_the_local_engine(run: Run, seen: Seen, tmp_path: Path, cluster: Path) -> None:
    clips = tmp_path / "clips"
    write_clips(clips, 5)
    shutil.copy(clips / "03.mp4", clips / "twin.mp4")
    (clips / "bad.mp4").write_bytes(b"this is no video, whatever its name says" * 100)
    (clips / "empty.mp4").write_bytes(b"")
    ours = run([clips], tmp_path / "ray", cut=Windows(0.5, 0.1), batch_size=4)
    theirs = local([clips], tmp_path / "local", cut=Windows(0.5, 0.1), batch_size=4)
    assert facts(ours) == facts(theirs)
    assert (ours.indexed, ours.copied, ours.quarantined, len(ours.skipped)) == (5, 1, 1, 2)
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert len(rows(tmp_path / "ray")) > 12
    # again: what is in the index and what is in quarantine costs nothing
    for file in cluster.iterdir():
        file.unlink()
    (clips / "empty.mp4").unlink()
    again = run([clips], tmp_path / "ray")
    assert (again.unchanged, again.indexed, seen()) == (6, 0, {})
    assert "in quarantine since" in again.skipped[0].message
    again = run([clips], tmp_path / "ray", retry=True)
    assert [(problem.kind, "quarantine" in problem.message) for problem in again.skipped] == [("NotAVideo", False)]


def test_two_workers_one_killed(run: Run, seen: Seen, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 16)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            at_work = [pid for pid, uris in seen().items() if uris]
            if len(at_work) == 2:
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    report = run([tmp_path / "clips"], tmp_path / "ray", cut=Windows(0.5), batch_size=2, model="slow:0.1")
    thread.join()
    local([tmp_path / "clips"], tmp_path / "local", cut=Windows(0.5), model="slow:0.1")
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert (report.indexed, report.skipped) == (len(clips), [])
    done = {pid: set(uris) for pid, uris in seen().items()}
    assert len(done[killed[0]]) < len(clips) / 2  # it was in the middle
    assert len(done) == 3, "no worker took the place of the one that was killed"


def test_ctrl_c_keeps_what_is_done_and_the_next_run_does_the_rest(run: Run, seen: Seen, tmp_path: Path) -> None:
    """As in a terminal: the cluster that the command started is in its process group, and gets the signal too."""
    clips = {uri_of(path) for path in write_clips(tmp_path / "clips", 12)}
    code = (
        "import sys, vidembed.ray.cluster as cluster\n"
        "from tests.ray.fakes import FakeEmbed\n"
        "from vidembed.ray import index_videos_ray\n"
        "cluster.EmbedVideos = FakeEmbed\n"
        "try:\n"
        "    index_videos_ray([sys.argv[1]], sys.argv[2], model='slow:0.2', batch_size=1, progress=False)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    (notes := tmp_path / "notes").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "clips"), str(tmp_path / "index")],
        env={**os.environ, "NOTES": str(notes), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(len(file.read_text().split()) for file in notes.iterdir()) >= 4:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stored = {row["uri"] for row in rows(tmp_path / "index")}
    assert 0 < len(stored) < len(clips)
    report = run([tmp_path / "clips"], tmp_path / "index", model="slow:0.2", batch_size=1)
    again = [uri for uris in seen().values() for uri in uris]
    assert sorted(again) == sorted(clips - stored)
    assert (report.indexed, report.unchanged) == (len(again), len(stored))
    local([tmp_path / "clips"], tmp_path / "local", model="slow:0.2")
    assert rows(tmp_path / "index") == rows(tmp_path / "local")


def test_changes_are_followed_as_by_the_local_engine(run: Run, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    write_clips(clips, 9)
    local([clips], tmp_path / "local", cut=Windows(1))
    shutil.copytree(tmp_path / "local", tmp_path / "ray")
    (clips / "00.mp4").unlink()  # gone
    (clips / "01.mp4").rename(clips / "moved.mp4")
    os.utime(clips / "02.mp4", ns=(5, 5))  # touched
    write_video(clips / "03.mp4", moving_square(33, seed=77))  # changed
    shutil.copy(clips / "04.mp4", clips / "copy.mp4")
    (clips / "05.mp4").rename(clips / "x")  # these two change places
    (clips / "06.mp4").rename(clips / "05.mp4")
    (clips / "x").rename(clips / "06.mp4")
    os.utime(clips / "05.mp4", ns=(7, 7))
    os.utime(clips / "06.mp4", ns=(8, 8))
    (clips / "07.mp4").write_bytes(b"no longer a video" * 99)
    write_video(clips / "new.mp4", moving_square(15, seed=78))
    ours = run([clips], tmp_path / "ray", prune=True)
    theirs = local([clips], tmp_path / "local", prune=True)
    assert facts(ours) == facts(theirs)
    assert (ours.moved, ours.indexed, ours.changed, ours.gone) == (1, 2, 1, [uri_of(clips / "00.mp4")])
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def test_object_stores(run: Run, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "bucket" / "a b", 3)
    (tmp_path / "bucket" / "a b" / "bad.mp4").write_bytes(b"no video" * 99)
    local([tmp_path / "bucket"], tmp_path / "local", cut=Windows(1))
    shutil.copytree(tmp_path / "local", tmp_path / "index")
    with s3.serve(tmp_path) as (host, asked):
        store = fs.S3FileSystem(
            endpoint_override=host, scheme="http", access_key="k", secret_key="SECRET", region="us-east-1"
        )
        report = run(["s3://bucket/a b"], tmp_path / "fresh", filesystem=store, cut=Windows(1))
        assert (report.indexed, [problem.uri for problem in report.skipped]) == (3, ["s3://bucket/a%20b/bad.mp4"])
        found, expected = rows(tmp_path / "fresh"), rows(tmp_path / "local")
        assert [row["uri"] for row in found] == [f"s3://bucket/a%20b/{path_of(row['uri']).name}" for row in expected]
        same = ("start_s", "end_s", "duration", "content_fingerprint", "size", "model_fingerprint", "vector")
        assert [[row[key] for key in same] for row in found] == [[row[key] for key in same] for row in expected]
        assert {row["mtime_ns"] for row in found} == {s3.MOMENT * 10**9}
        # the second run lists, and reads nothing
        asked.clear()
        clips[0].unlink()
        report = run(["s3://bucket/a b"], tmp_path / "fresh", filesystem=store, prune=True)
        assert (report.unchanged, report.gone, report.files) == (2, ["s3://bucket/a%20b/00.mp4"], 2)
        assert not [name for command, name in asked if command == "GET" and name.endswith(".mp4")]
        # into an index that has the same contents under the names of local files
        report = run(["s3://bucket/a b", tmp_path / "bucket"], tmp_path / "index", filesystem=store)
        assert (report.copied, report.unchanged, report.files) == (2, 2, 5)
    assert b"SECRET" not in b"".join(file.read_bytes() for file in (tmp_path / "fresh").rglob("*") if file.is_file())


def test_an_index_of_another_cut_or_model_is_refused(run: Run, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 1)
    local(clips, tmp_path / "index", cut=Windows(1))
    with pytest.raises(IndexMismatchError, match="segments of 2 s"):
        run(clips, tmp_path / "index", cut=Windows(2))
    with pytest.raises(IndexMismatchError, match="cannot be compared"):
        run(clips, tmp_path / "index", model="other")


def test_what_fails_on_the_workers_says_why(run: Run, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 1)
    with pytest.raises(ValueError, match=r"^model: 'none' is no folder here$"):
        run(clips, tmp_path / "index", model="none")
    with pytest.raises(
        ClusterError, match=r"^ray: RuntimeError: CUDA error: unspecified launch failure\. Finished files"
    ):
        run(clips, tmp_path / "index", model="broken")
    assert not (tmp_path / "index").exists()


def test_a_query_bank_is_made_with_the_model_of_the_workers(run: Run, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 2)
    local(clips, tmp_path / "index")
    run(clips, tmp_path / "index", derived=Derived(query_bank=["a", "bb"], compact=["int8"]))
    assert open_bank(VideoIndex.open(tmp_path / "index")) is not None


def test_the_real_model(cluster: Path, tmp_path: Path) -> None:
    from vidembed import VideoEncoder

    write_clips(tmp_path / "clips", 5)
    options = {"model": "vidembed/shapes", "cut": Windows(1), "progress": False}
    index_videos_ray([tmp_path / "clips"], tmp_path / "ray", decoders=1, batch_size=3, **options)
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    index_videos([tmp_path / "clips"], tmp_path / "local", encoder, **options)
    found, expected = rows(tmp_path / "ray"), rows(tmp_path / "local")
    for row, wanted in zip(found, expected, strict=True):
        # other segments share the batch, so the padding differs and with it the last bits of sums
        assert np.abs(np.subtract(row.pop("vector"), wanted.pop("vector"))).max() < 1e-5
    assert found == expected


@pytest.mark.parametrize("form", ["class", "object"])
def test_the_stage_in_a_pipeline_of_ones_own(form: str, cluster: Path, tmp_path: Path) -> None:
    import ray

    clips = write_clips(tmp_path / "clips", 2)
    items = [{"uri": str(path), "label": path.stem} for path in [*clips, tmp_path / "none.mp4"]]
    dataset = ray.data.from_items(items, override_num_blocks=1)
    if form == "class":
        pool = ray.data.ActorPoolStrategy(size=1)
        dataset = dataset.map_batches(FakeEmbed, fn_constructor_args=("fake",), compute=pool)
    else:
        dataset = dataset.map_batches(FakeEmbed("fake", cut=Windows(1)), batch_format="pyarrow")
    found = sorted(dataset.take_all(), key=lambda row: (row["label"], row["segment"]))
    good = [row for row in found if row["error"] is None]
    assert {row["label"] for row in good} == {"00", "01"}
    assert all(np.shape(row["vector"]) == (DIMENSION,) for row in good)
    assert len(good) == (2 if form == "class" else 4)
    assert [(row["label"], row["error"].partition(":")[0], row["vector"]) for row in found if row["error"]] == [
        ("none", "VideoNotFound", None)
    ]
