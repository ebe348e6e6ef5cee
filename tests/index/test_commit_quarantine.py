from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.index.fakes import FakeEncoder, write_video
from vidembed.index import Report
from vidembed.index.commit import QUARANTINE_FILE, Entry, Quarantine, read
from vidembed.index.table import uri_of
from vidembed.video.clip import FileState

Run = Callable[..., Report]
NO_VIDEO = b"this is no video, whatever its name says" * 100
ENTRY = Entry("file:///a.mp4", "00ff", 7, 8, "CorruptVideo", "broken", "2026-01-01T00:00:00+00:00", {"av": "17"})


@pytest.fixture
def bad(clips: Path) -> Path:
    (clips / "002b.mp4").write_bytes(NO_VIDEO)
    return clips / "002b.mp4"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are handed to the decoder."""
    from vidembed.video.pool import DecodePool

    names: list[str] = []
    submit = DecodePool.submit

    def noted(self: DecodePool, path: Path, *args: object, **how: object) -> object:
        names.append(path.name)
        return submit(self, path, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodePool, "submit", noted)
    return names


def test_a_bad_file_is_decoded_once(run: Run, bad: Path, folder: Path, decoded: list[str]) -> None:
    first = run()
    assert (first.quarantined, decoded.count("002b.mp4")) == (1, 1)
    (entry,) = read(folder).values()
    assert (entry.uri, entry.kind, entry.message) == (uri_of(bad), "NotAVideo", first.skipped[0].message)
    decoded.clear()
    second = run()
    assert (decoded, second.quarantined) == ([], 0)
    (problem,) = second.skipped
    assert problem.kind == "NotAVideo"
    assert problem.message.startswith(first.skipped[0].message)
    assert f"in quarantine since {entry.since}; --retry tries it again" in problem.message


def test_it_is_tried_again_on_demand(run: Run, bad: Path, folder: Path, decoded: list[str]) -> None:
    run()
    decoded.clear()
    report = run(retry=True)
    assert (decoded, report.quarantined, len(read(folder))) == (["002b.mp4"], 1, 1)


@pytest.mark.parametrize("limits", [{"timeout_s": 601.0}, {"max_memory_bytes": 9 * 2**30}])
def test_other_limits_try_it_again(run: Run, bad: Path, folder: Path, decoded: list[str], limits: dict) -> None:
    run()
    decoded.clear()
    run(**limits)
    assert decoded == ["002b.mp4"]
    run(**limits)
    assert decoded == ["002b.mp4"]


def test_a_file_that_was_mended_is_indexed_and_off_the_list(run: Run, bad: Path, folder: Path) -> None:
    run()
    write_video(bad, [(9, 9, 200)])
    assert (run().indexed, read(folder)) == (1, {})
    assert not (folder / QUARANTINE_FILE).exists()


def test_a_file_that_is_gone_is_off_the_list(run: Run, bad: Path, folder: Path) -> None:
    run()
    bad.unlink()
    run()
    assert read(folder) == {}


def test_the_same_content_under_another_name_is_known(run: Run, bad: Path, folder: Path, decoded: list[str]) -> None:
    run()
    decoded.clear()
    (bad.parent / "other.mp4").write_bytes(NO_VIDEO)
    report = run()
    assert decoded == []
    assert [problem.kind for problem in report.skipped] == ["NotAVideo", "NotAVideo"]


def test_what_is_not_the_contents_fault_is_tried_every_time(run: Run, clips: Path, folder: Path) -> None:
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "link.mp4").symlink_to("nowhere")
    report = run(FakeEncoder(spoil={"001.mp4": "nan"}))
    assert sorted(problem.kind for problem in report.skipped) == ["EmptyFile", "InternalError", "VideoNotFound"]
    assert (report.quarantined, read(folder)) == (0, {})
    assert run().indexed == 1


def test_a_bad_file_before_the_index_exists_is_noted_once_it_does(run: Run, clips: Path, folder: Path) -> None:
    (clips / "000.mp4").write_bytes(NO_VIDEO)
    run(batch_size=1)
    assert [Path(entry.uri).name for entry in read(folder).values()] == ["000.mp4"]


def test_a_line_that_was_cut_off_is_left_out_and_not_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Quarantine(tmp_path, {"av": "17"})
    first.add(ENTRY)
    first.write()
    file = tmp_path / QUARANTINE_FILE
    file.write_bytes(file.read_bytes() + file.read_bytes()[:20])
    second = Quarantine(tmp_path, {"av": "17"})
    assert "line 2" in caplog.text
    second.add(replace(ENTRY, uri="file:///b.mp4"))
    second.write()
    assert set(read(tmp_path)) == {"file:///a.mp4", "file:///b.mp4"}
    second.tidy({"file:///a.mp4"}, lambda uri: False)
    assert [json.loads(line)["uri"] for line in file.read_text().splitlines()] == ["file:///b.mp4"]


def test_an_entry_holds_for_its_state_content_and_decoder(tmp_path: Path) -> None:
    list_ = Quarantine(tmp_path, {"av": "17"})
    list_.add(ENTRY)
    list_.write()
    same = Quarantine(tmp_path, {"av": "17"})
    assert same.of_file(ENTRY.uri, FileState(7, 8)) == same.of_content("00ff") == ENTRY
    assert same.of_file(ENTRY.uri, FileState(7, 9)) is None
    assert same.of_content("00fe") is None
    for other in (Quarantine(tmp_path, {"av": "18"}), Quarantine(tmp_path, {"av": "17"}, retry=True)):
        assert other.of_file(ENTRY.uri, FileState(7, 8)) is None
        assert other.of_content("00ff") is None
