from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.index.fakes import FakeEncoder, rows, write_video, write_videos
from vidembed.index import (
    IndexBusyError,
    IndexDamagedError,
    IndexingStoppedError,
    IndexMismatchError,
    Report,
    VideoIndex,
    Windows,
    index_videos,
)
from vidembed.index.commit import locked
from vidembed.index.table import path_of, uri_of

Run = Callable[..., Report]


def names(folder: Path) -> list[str]:
    return sorted({path_of(row["uri"]).name for row in rows(folder)})


def test_a_new_index_holds_every_file(run: Run, clips: Path, folder: Path) -> None:
    report = run()
    assert (report.indexed, report.unchanged, report.skipped, report.files, report.segments) == (6, 0, [], 6, 6)
    stored = rows(folder)
    assert [path_of(row["uri"]) for row in stored] == sorted(clips.iterdir())
    for row in stored:
        assert (row["start_s"], row["end_s"], row["duration"]) == (0, 1, 1)
        assert np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-6)
        assert row["model_fingerprint"] == FakeEncoder().fingerprint
    assert len({row["id"] for row in stored}) == 6


def test_a_second_run_does_nothing(run: Run, folder: Path) -> None:
    run()
    before = rows(folder)
    encoder = FakeEncoder()
    report = run(encoder)
    assert encoder.seen == []
    assert (report.indexed, report.unchanged) == (0, 6)
    assert rows(folder) == before


def test_only_what_changed_is_embedded_again(run: Run, clips: Path, folder: Path) -> None:
    run(cut=Windows(0.5))
    before = {row["id"]: row for row in rows(folder)}
    write_video(clips / "002.mp4", [(9, 9, 200), (200, 9, 9), (9, 200, 9)])
    write_video(clips / "new.mp4", [(120, 9, 120)])
    encoder = FakeEncoder()
    report = run(encoder)
    assert set(encoder.seen) == {"002.mp4", "new.mp4"}
    assert (report.indexed, report.changed, report.unchanged) == (2, 1, 5)
    after = rows(folder)
    assert len(after) == 5 * 2 + 6 + 2
    assert all(before[row["id"]] == row for row in after if path_of(row["uri"]).name not in encoder.seen)


def test_a_shorter_version_leaves_no_old_segments(run: Run, clips: Path, folder: Path) -> None:
    write_video(clips / "002.mp4", [(9, 9, 200), (200, 9, 9), (9, 200, 9)])
    run(cut=Windows(1))
    write_video(clips / "002.mp4", [(9, 200, 9)])
    run()
    assert [(row["start_s"], row["end_s"]) for row in rows(folder) if row["uri"].endswith("002.mp4")] == [(0, 1)]


def test_a_touched_file_is_read_and_not_embedded(run: Run, clips: Path, folder: Path) -> None:
    run()
    os.utime(clips / "001.mp4", ns=(5, 5))
    encoder = FakeEncoder()
    assert run(encoder).unchanged == 6
    assert encoder.seen == []
    assert {row["mtime_ns"] for row in rows(folder) if row["uri"].endswith("001.mp4")} == {5}


def test_rehash_finds_an_edit_that_kept_size_and_time(run: Run, clips: Path) -> None:
    run()
    before = (clips / "001.mp4").stat()
    data = (clips / "000.mp4").read_bytes()
    padded = data[: before.st_size].ljust(before.st_size, b"\0")
    (clips / "001.mp4").write_bytes(padded)
    os.utime(clips / "001.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run().unchanged == 6
    report = run(rehash=True)
    assert (report.unchanged, report.indexed + report.copied + len(report.skipped)) == (5, 1)


def test_equal_content_is_embedded_once(run: Run, clips: Path, folder: Path) -> None:
    shutil.copy(clips / "000.mp4", clips / "copy.mp4")
    encoder = FakeEncoder()
    report = run(encoder)
    assert encoder.seen.count("000.mp4") + encoder.seen.count("copy.mp4") == 1
    assert (report.indexed, report.copied) == (6, 1)
    vectors = {path_of(row["uri"]).name: row["vector"] for row in rows(folder)}
    assert vectors["copy.mp4"] == vectors["000.mp4"]


def test_copies_that_are_done_with_their_original(run: Run, clips: Path, folder: Path) -> None:
    for name in ("005a.mp4", "005b.mp4"):
        shutil.copy(clips / "005.mp4", clips / name)
    report = run()
    assert (report.indexed, report.copied, report.skipped, report.files) == (6, 2, [], 8)
    vectors = {path_of(row["uri"]).name: row["vector"] for row in rows(folder)}
    assert vectors["005.mp4"] == vectors["005a.mp4"] == vectors["005b.mp4"]


def test_files_that_need_no_model_are_committed_together(
    run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    for path in clips.iterdir():
        os.utime(path, ns=(5, 5))
    shutil.copytree(clips, clips / "again")
    put = VideoIndex.put
    commits: list[int] = []
    monkeypatch.setattr(
        VideoIndex, "put", lambda self, files, **how: (commits.append(len(files)), put(self, files, **how))
    )
    report = run()
    assert (report.unchanged, report.copied, report.files) == (6, 6, 12)
    assert sorted(commits) == [6, 6]
    assert run().unchanged == 12


def test_a_renamed_file_keeps_its_vectors(run: Run, clips: Path, folder: Path) -> None:
    run()
    (clips / "000.mp4").rename(clips / "renamed.mp4")
    encoder = FakeEncoder()
    report = run(encoder)
    assert encoder.seen == []
    assert (report.moved, report.copied, report.gone, report.files) == (1, 0, [], 6)
    assert names(folder)[-1] == "renamed.mp4"


def test_a_moved_file_takes_its_rows_along_in_one_commit(
    run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cut=Windows(0.5))
    before = rows(folder)
    (clips / "elsewhere").mkdir()
    for name in ("000.mp4", "001.mp4"):
        (clips / name).rename(clips / "elsewhere" / name)
    moves = []
    move = VideoIndex.move
    monkeypatch.setattr(
        VideoIndex,
        "move",
        lambda self, files, origins: (moves.append((len(files), sorted(origins))), move(self, files, origins)),
    )
    report = run()
    assert (report.moved, report.indexed, report.copied, report.unchanged, report.gone) == (2, 0, 0, 4, [])
    assert moves == [(2, [uri_of(clips / "000.mp4"), uri_of(clips / "001.mp4")])]
    after = rows(folder)
    assert sorted(row["vector"] for row in after) == sorted(row["vector"] for row in before)
    assert len({row["id"] for row in after}) == len(after) == 12
    assert names(folder) == [f"{i:03}.mp4" for i in range(6)]
    again = run()
    assert (again.unchanged, again.moved, again.gone) == (6, 0, [])


def test_one_of_two_copies_takes_the_rows_and_the_other_copies_them(run: Run, clips: Path, folder: Path) -> None:
    run()
    (clips / "000.mp4").rename(clips / "a.mp4")
    shutil.copy(clips / "a.mp4", clips / "b.mp4")
    encoder = FakeEncoder()
    report = run(encoder)
    assert encoder.seen == []
    assert (report.moved, report.copied, report.gone, report.files) == (1, 1, [], 7)


def test_a_copy_whose_original_stays_is_no_move(run: Run, clips: Path) -> None:
    run()
    shutil.copy(clips / "000.mp4", clips / "copy.mp4")
    (clips / "001.mp4").unlink()
    report = run()
    assert (report.moved, report.copied, report.gone) == (0, 1, [uri_of(clips / "001.mp4")])


def test_two_files_that_change_places(run: Run, clips: Path, folder: Path) -> None:
    run()
    before = {path_of(row["uri"]).name: row["vector"] for row in rows(folder)}
    (clips / "000.mp4").rename(clips / "x")
    (clips / "001.mp4").rename(clips / "000.mp4")
    (clips / "x").rename(clips / "001.mp4")
    os.utime(clips / "000.mp4", ns=(7, 7))
    os.utime(clips / "001.mp4", ns=(8, 8))
    run()
    after = {path_of(row["uri"]).name: row["vector"] for row in rows(folder)}
    assert (after["000.mp4"], after["001.mp4"]) == (before["001.mp4"], before["000.mp4"])


def test_what_is_gone_is_reported_and_removed_on_request(run: Run, clips: Path, folder: Path) -> None:
    run()
    (clips / "003.mp4").unlink()
    report = run()
    assert (report.gone, report.pruned, report.files) == ([uri_of(clips / "003.mp4")], False, 6)
    report = run(prune=True)
    assert (report.gone, report.pruned, report.files) == ([uri_of(clips / "003.mp4")], True, 5)
    assert "003.mp4" not in names(folder)
    assert run(prune=True).gone == []


def test_another_folder_adds_and_removes_nothing(run: Run, clips: Path, folder: Path, tmp_path: Path) -> None:
    run()
    write_videos(tmp_path / "more", 2)
    (tmp_path / "more" / "001.mp4").write_bytes((clips / "001.mp4").read_bytes())
    report = index_videos([tmp_path / "more"], folder, FakeEncoder(), model="fake", prune=True, progress=False)
    assert (report.gone, report.files) == ([], 8)


def _of(run_paths: list[Path], folder: Path, **options: object) -> Report:
    return index_videos(run_paths, folder, FakeEncoder(), **{"model": "fake", "progress": False, **options})


@pytest.mark.parametrize("how", ["emptied", "removed", "a link to nowhere"])
@pytest.mark.parametrize("prune", [False, True])
def test_a_named_folder_that_holds_no_video_any_more_keeps_its_rows(
    tmp_path: Path, clips: Path, folder: Path, how: str, prune: bool
) -> None:
    drive = tmp_path / "drive"
    write_videos(drive, 3)
    named = tmp_path / "link" if how == "a link to nowhere" else drive
    if named != drive:
        named.symlink_to(drive)
    _of([clips, named], folder)
    (clips / "005.mp4").unlink()
    shutil.rmtree(drive)
    if how == "emptied":
        drive.mkdir()
        (drive / "lost+found").mkdir()
    write_video(clips / "new.mp4", [(1, 2, 3)])
    report = _of([clips, named], folder, prune=prune)
    (problem,) = report.skipped
    assert (problem.uri, problem.kind, report.vanished) == (uri_of(drive), "PathVanished", [uri_of(drive)])
    assert "mount it and run again" in problem.message
    assert (report.indexed, report.gone) == (1, [uri_of(clips / "005.mp4")])  # the other folder goes on
    assert names(folder).count("002.mp4") == 1
    assert sum(row["uri"].startswith(uri_of(drive)) for row in rows(folder)) == 3
    with pytest.raises(ValueError, match=r"does not exist|no video in"):
        _of([named], folder, prune=prune)


def test_a_named_file_that_is_gone_keeps_its_rows(tmp_path: Path, clips: Path, folder: Path) -> None:
    (extra,) = write_videos(tmp_path / "extra", 1)
    _of([clips, extra], folder)
    extra.unlink()
    report = _of([clips, extra], folder, prune=True)
    assert (report.vanished, report.gone, report.files) == ([uri_of(extra)], [], 7)


def test_a_named_folder_that_cannot_be_read_keeps_its_rows(
    tmp_path: Path, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_videos(tmp_path / "drive", 2)
    _of([clips, tmp_path / "drive"], folder)
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "drive":
            raise OSError(116, "Stale file handle", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = _of([clips, tmp_path / "drive"], folder, prune=True)
    assert [(problem.kind, "Stale" in problem.message) for problem in report.skipped] == [("PathVanished", True)]
    assert (report.gone, report.files) == ([], 8)


def test_what_vanished_within_a_folder_that_is_named_too_stays(tmp_path: Path, folder: Path) -> None:
    write_videos(tmp_path / "v", 1)
    write_videos(tmp_path / "v" / "drive", 2)
    _of([tmp_path / "v"], folder)
    shutil.rmtree(tmp_path / "v" / "drive")
    both = _of([tmp_path / "v", tmp_path / "v" / "drive"], folder, prune=True)
    assert (both.vanished, both.gone, both.files) == ([uri_of(tmp_path / "v" / "drive")], [], 3)
    assert _of([tmp_path / "v"], folder, prune=True).files == 1  # as the message says


def test_a_path_that_the_index_knows_nothing_of_is_refused(clips: Path, folder: Path, tmp_path: Path) -> None:
    _of([clips], folder)
    with pytest.raises(ValueError, match=r"typo' does not exist"):
        _of([clips, tmp_path / "typo"], folder)
    (tmp_path / "empty").mkdir()
    assert _of([clips, tmp_path / "empty"], folder).skipped == []


@pytest.mark.parametrize("mtime_ns", [10_413_792_000_123_456_789, -(10**18), 0, 2**63 - 1, 2**63], ids=str)
def test_a_file_of_any_time_is_indexed_and_found_unchanged(run: Run, clips: Path, folder: Path, mtime_ns: int) -> None:
    os.utime(clips / "002.mp4", ns=(0, mtime_ns))
    if (clips / "002.mp4").stat().st_mtime_ns != mtime_ns:
        pytest.skip("this file system does not hold such a time")
    assert run().indexed == 6
    report = run()
    assert (report.unchanged, report.indexed) == (6, 0)
    os.utime(clips / "002.mp4", ns=(0, mtime_ns + 1 if mtime_ns < 2**63 - 1 else mtime_ns - 1))
    assert (run().unchanged, rows(folder)[2]["mtime_ns"] == mtime_ns) == (6, False)  # read, and the new time noted


@pytest.mark.parametrize("where", ["own_rows", "content_fingerprint"])
def test_whatever_fails_for_a_file_is_reported_and_the_others_are_committed(
    run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    module = {"own_rows": "vidembed.index.commit", "content_fingerprint": "vidembed.index.ingest"}[where]
    real = getattr(sys.modules[module], where)

    def failing(of: object, *rest: object) -> object:
        if "003.mp4" in str(getattr(of, "uri", of)):
            raise OverflowError("int too big to convert")
        return real(of, *rest)

    monkeypatch.setattr(f"{module}.{where}", failing)
    report = run()
    (problem,) = report.skipped
    assert (problem.uri, problem.kind) == (uri_of(clips / "003.mp4"), "OverflowError")
    assert "int too big to convert" in problem.message
    assert (report.indexed, len(names(folder))) == (5, 5)


def test_one_bad_file_in_twenty(tmp_path: Path, folder: Path) -> None:
    clips = tmp_path / "clips"
    good = write_videos(clips, 19)
    (clips / "005b.mp4").write_bytes(b"this is no video, whatever its name says" * 100)
    encoder = FakeEncoder()
    report = index_videos([clips], folder, encoder, model="fake", progress=False, batch_size=4)
    assert [(path_of(one.uri).name, one.kind) for one in report.skipped] == [("005b.mp4", "NotAVideo")]
    assert report.skipped[0].message
    assert (report.indexed, names(folder)) == (19, [path.name for path in good])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.write_bytes(b""), "EmptyFile"),
        (lambda path: path.symlink_to("nowhere"), "VideoNotFound"),
        (lambda path: path.symlink_to(path), "VideoNotFound"),
        (os.mkfifo, "NotAFile"),
        (lambda path: write_video(path, [(1, 2, 3)]).write_bytes(path.read_bytes()[:700]), "NotAVideo|CorruptVideo"),
    ],
)
def test_every_bad_file_is_named(
    run: Run, clips: Path, folder: Path, make: Callable[[Path], object], kind: str
) -> None:
    make(clips / "bad.mp4")
    report = run()
    assert [path_of(one.uri).name for one in report.skipped] == ["bad.mp4"]
    assert report.skipped[0].kind in kind.split("|")
    assert (report.indexed, len(names(folder))) == (6, 6)


def test_a_file_that_fails_in_one_segment_has_none(run: Run, clips: Path, folder: Path) -> None:
    write_video(clips / "long.mp4", [(200, 9, 9)] * 4)

    class FailsLate(FakeEncoder):
        def _batch(self, batch):  # type: ignore[no-untyped-def]
            for item in super()._batch(batch):
                if dict(batch)[item.index].item.endswith("long.mp4#t=2,3"):
                    item.embedding, item.error = None, ValueError("cannot be read")
                yield item

    report = run(FailsLate(), cut=Windows(1))
    assert [(one.kind, one.message) for one in report.skipped] == [("ValueError", "at 2 to 3 s: cannot be read")]
    assert "long.mp4" not in names(folder)


@pytest.mark.parametrize("how", ["nan", "zero", "short"])
def test_a_bad_vector_is_never_stored(run: Run, folder: Path, how: str) -> None:
    report = run(FakeEncoder(spoil={"002.mp4": how}))
    assert [(path_of(one.uri).name, one.kind) for one in report.skipped] == [("002.mp4", "InternalError")]
    assert "002.mp4" not in names(folder)
    assert np.isfinite([row["vector"] for row in rows(folder)]).all()


def test_twins_of_a_bad_file_are_bad_too(run: Run, clips: Path) -> None:
    shutil.copy(clips / "002.mp4", clips / "twin.mp4")
    report = run(FakeEncoder(spoil={"002.mp4": "nan"}))
    assert [path_of(one.uri).name for one in report.skipped] == ["002.mp4", "twin.mp4"]


def test_a_file_that_changes_while_it_is_read_waits_for_the_next_run(run: Run, clips: Path, folder: Path) -> None:
    def write(path: Path) -> None:
        if path.name == "002.mp4":
            write_video(path, [(1, 1, 1), (250, 250, 9)])

    report = run(FakeEncoder(before=write))
    assert [(path_of(one.uri).name, one.kind) for one in report.skipped] == [("002.mp4", "ChangedWhileRead")]
    assert "002.mp4" not in names(folder)
    assert run().indexed == 1


def test_a_file_that_went_bad_loses_its_old_segments(run: Run, clips: Path, folder: Path) -> None:
    run()
    (clips / "002.mp4").write_bytes(b"overwritten")
    report = run()
    assert [one.kind for one in report.skipped] == ["NotAVideo"]
    assert "earlier segments were removed" in report.skipped[0].message
    assert "002.mp4" not in names(folder)


def test_a_file_that_cannot_be_read_for_now_keeps_them(run: Run, clips: Path, folder: Path) -> None:
    run()
    (clips / "002.mp4").unlink()
    (clips / "002.mp4").symlink_to("unmounted")
    report = run()
    assert [one.kind for one in report.skipped] == ["VideoNotFound"]
    assert "002.mp4" in names(folder)


def test_on_error_raise_ends_the_run_and_keeps_what_was_committed(run: Run, clips: Path, folder: Path) -> None:
    (clips / "002b.mp4").write_bytes(b"no video")
    with pytest.raises(IndexingStoppedError, match=r"002b\.mp4: NotAVideo"):
        run(on_error="raise")
    assert names(folder) == ["000.mp4", "001.mp4", "002.mp4"]
    (clips / "002b.mp4").unlink()
    assert (run(on_error="raise").unchanged, len(names(folder))) == (3, 6)


def test_nothing_is_left_where_nothing_could_be_indexed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    report = index_videos([tmp_path / "bad.mp4"], folder, FakeEncoder(), model="fake", progress=False)
    assert not report.any_in_index
    assert not folder.exists()


def test_refusals_write_nothing(run: Run, clips: Path, folder: Path, tmp_path: Path) -> None:
    for options, message in [({"batch_size": 0}, "batch_size: got 0"), ({"on_error": "ignore"}, "'ignore'")]:
        with pytest.raises(ValueError, match=message):
            run(**options)
    with pytest.raises(ValueError, match="is not an index and not empty"):
        index_videos([clips], clips, FakeEncoder(), model="fake", progress=False)
    with pytest.raises(ValueError, match="is a file"):
        index_videos([clips], clips / "000.mp4", FakeEncoder(), model="fake", progress=False)
    assert not folder.exists()
    assert len(list(clips.iterdir())) == 6


def test_another_model_or_cut_is_refused(run: Run, folder: Path) -> None:
    run(cut=Windows(0.5))
    before = rows(folder)
    with pytest.raises(IndexMismatchError, match="name 'fake' in the index, 'other' now"):
        run(FakeEncoder("other"))
    with pytest.raises(IndexMismatchError, match=r"segments of 2 s .* segments of 0\.5 s"):
        run(cut=Windows(2))
    assert run(cut=Windows(0.5)).unchanged == 6
    assert rows(folder) == before


def test_one_writer_at_a_time(run: Run, folder: Path) -> None:
    with locked(folder), pytest.raises(IndexBusyError, match="another run"):
        run()
    assert run().indexed == 6


def test_a_run_that_waits_does_what_is_left(run: Run, clips: Path, folder: Path) -> None:
    encoder = FakeEncoder()
    with ThreadPoolExecutor() as executor, locked(folder):
        waiting = executor.submit(run, encoder, wait=True)
        time.sleep(0.5)
        assert not waiting.done()
        write_video(clips / "new.mp4", [(1, 2, 3)])  # while it waits
    assert waiting.result().indexed == 7
    assert run(FakeEncoder(), wait=True).unchanged == 7


def test_a_damaged_index_is_said_to_be(run: Run, folder: Path) -> None:
    run()
    for manifest in (folder / "segments.lance" / "_versions").iterdir():
        manifest.write_bytes(b"")
    with pytest.raises(IndexDamagedError, match="index again"):
        run()


def test_a_run_killed_before_its_first_commit_can_be_repeated(run: Run, folder: Path) -> None:
    (folder / "segments.lance" / "data").mkdir(parents=True)
    (folder / "segments.lance" / "data" / "half.lance").write_bytes(b"half")
    assert run().indexed == 6


def test_many_commits_are_compacted(run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.table.COMPACT_EVERY", 2)
    compacted = []
    compact = VideoIndex.compact
    monkeypatch.setattr(VideoIndex, "compact", lambda self: (compacted.append(1), compact(self)))
    run()
    assert len(compacted) == 6 // 2 + 1
    assert len(names(folder)) == 6


SCRIPT = """
import sys
from tests.index.fakes import FakeEncoder
from vidembed.index import Windows, index_videos
clips, folder, delay = sys.argv[1:]
index_videos([clips], folder, FakeEncoder(delay=float(delay)), model="fake", cut=Windows(0.5), batch_size=2)
"""


def start(clips: Path, folder: Path, delay: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(clips), str(folder), str(delay)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_cut_off_is_completed_by_the_next(
    run: Run, folder: Path, tmp_path: Path, clips: Path, number: signal.Signals
) -> None:
    write_videos(clips, 12)
    process = start(clips, folder, delay=0.1)
    try:
        while process.poll() is None and (not VideoIndex.exists(folder) or len(VideoIndex.open(folder)) < 6):
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -number
    cut_off = rows(folder)
    assert 6 <= len(cut_off) < 24
    assert len(cut_off) % 2 == 0  # a file has both of its segments or none
    encoder = FakeEncoder()
    run(encoder)
    assert len(encoder.seen) == 24 - len(cut_off)
    index_videos([clips], tmp_path / "undisturbed", FakeEncoder(), model="fake", cut=Windows(0.5), progress=False)
    assert rows(folder) == rows(tmp_path / "undisturbed")


def test_ctrl_c_keeps_what_is_done(run: Run, clips: Path, folder: Path) -> None:
    def stop(path: Path) -> None:
        if path.name == "004.mp4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(FakeEncoder(before=stop), batch_size=1)
    assert names(folder) == ["000.mp4", "001.mp4", "002.mp4", "003.mp4"]
    encoder = FakeEncoder()
    run(encoder)
    assert encoder.seen == ["004.mp4", "005.mp4"]


def test_ctrl_c_waits_for_the_commit(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = VideoIndex.put

    def interrupted(self: VideoIndex, *args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGINT)
        put(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(VideoIndex, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert names(folder)[0] == "000.mp4"
