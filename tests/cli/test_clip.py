from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import tree, vidembed
from tests.cli.test_cli import AFTER, process
from tests.index.fakes import DIMENSION, FakeEncoder, write_video
from tests.video.test_trim import frames
from tests.zoo import Zoo
from vidembed.index import IndexMeta, VideoIndex
from vidembed.index.schema import FileRows, Segment
from vidembed.video import probe
from vidembed.video.clip import FileState

Loaded = list[dict[str, Any]]
GREEN, GREY = (30, 200, 30), (90, 90, 90)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty seconds of numbered frames, thirty a second, with a key frame every half second."""
    return Zoo(tmp_path_factory.mktemp("zoo")).path("seek.mp4")


def made_index(folder: Path, videos: dict[str, list[tuple[float, float, tuple[int, int, int]]]]) -> Path:
    """An index of the fake model: of each URI its segments, by start, end and colour. Nothing is decoded."""
    model = FakeEncoder("fake")
    fields = model.fingerprint_fields()
    meta = IndexMeta("fake", None, {}, model.fingerprint, fields, DIMENSION, 1.0, 0.5, "2026-01-01T00:00:00+00:00")
    files = []
    for uri, stretches in videos.items():
        vectors = [FakeEncoder.vector(np.array(colour, dtype=np.float64)) for *_, colour in stretches]
        segments = [Segment(start, end, vector) for (start, end, _), vector in zip(stretches, vectors, strict=True)]
        files.append(FileRows(uri, segments, segments[-1].end_s, "c", FileState(1, 1)))
    VideoIndex.create(folder, meta).put(files, replace=False)
    return folder


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """An index in which the first hit for red is at 1 s of `film.mp4`, the second `red.mp4`, and the third is away."""
    colours = [GREY, (210, 20, 20), GREY, GREY]
    write_video(clips / "film.mp4", colours)
    film = [(float(second), second + 1.0, colour) for second, colour in enumerate(colours)]
    videos = {
        (clips / "film.mp4").as_uri(): film,
        (clips / "red.mp4").as_uri(): [(0.0, 1.0, (190, 50, 40))],
        "s3://bucket/a.mp4": [(0.0, 1.0, (190, 60, 50))],
        (clips / "green.mp4").as_uri(): [(0.0, 1.0, GREEN)],
    }
    return made_index(tmp_path / "ix", videos)


def numbers(path: Path) -> list[int | None]:
    return frames(path)[0]


def test_times(video: Path, tmp_path: Path) -> None:
    result = vidembed("clip", video, "--from", "12.7", "--to", "14", "--out", tmp_path / "hit.mp4")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'hit.mp4'}\n"
    assert f"Wrote {tmp_path / 'hit.mp4'}: 0:12.5-0:14.0 of {video}" in result.stderr
    assert "It begins 0.200 s earlier, at a key frame" in result.stderr
    assert numbers(tmp_path / "hit.mp4") == list(range(375, 420))


def test_an_end_or_a_start_alone(video: Path, tmp_path: Path) -> None:
    assert vidembed("clip", video, "--to", "1", "--out", tmp_path / "a.mkv").exit_code == 0
    assert numbers(tmp_path / "a.mkv") == list(range(30))
    assert vidembed("clip", video, "--from", "29", "--out", tmp_path / "b.mov").exit_code == 0
    assert numbers(tmp_path / "b.mov") == list(range(870, 900))


@pytest.mark.parametrize("scheme", ["video+file", "file"])
def test_a_uri_with_times(video: Path, tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}://{video}#t=10,10.5"
    result = vidembed("clip", uri, "--out", tmp_path / "a.mp4", "--around", "0.5", "--json")
    assert json.loads(result.stdout) == {
        "path": str(tmp_path / "a.mp4"),
        "source": str(video),
        "asked_start_s": 9.5,
        "asked_end_s": 11.0,
        "start_s": 9.5,
        "end_s": 11.0,
        "left_out": [],
    }
    assert "early" not in result.stderr
    assert numbers(tmp_path / "a.mp4") == list(range(285, 330))


def test_a_uri_without_times(video: Path, tmp_path: Path) -> None:
    result = vidembed("clip", video.as_uri(), "--to", "0.5", "--out", tmp_path / "a.mp4")
    assert result.exit_code == 0, result.stderr
    assert numbers(tmp_path / "a.mp4") == list(range(15))


def test_reports_what_is_left_out_and_what_is_missing(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    result = vidembed("clip", zoo.cut("faststart.mp4", 0.5), "--from", "1", "--out", tmp_path / "a.mp4")
    assert result.exit_code == 0
    assert "Warning: " in result.stderr
    assert "what can be read ends at" in result.stderr


def test_a_hit(index: Path, clips: Path, tmp_path: Path) -> None:
    result = vidembed("clip", "red", "--in", index, "--out", tmp_path / "hit.mp4", "--json")
    assert result.exit_code == 0, result.stderr
    first = json.loads(vidembed("search", "red", "--in", index, "-k", "1", "--json").stdout)[0]
    cut = json.loads(result.stdout)
    assert first["uri"] == (clips / "film.mp4").as_uri()
    assert (cut["source"], cut["score"]) == (str(clips / "film.mp4"), first["score"])
    assert (cut["asked_start_s"], cut["asked_end_s"]) == (1, 2)
    assert cut["start_s"] <= 1
    assert cut["end_s"] >= 2
    assert probe(tmp_path / "hit.mp4").duration == pytest.approx(cut["end_s"] - cut["start_s"], abs=0.01)


def test_another_hit_with_what_is_around_it(index: Path, clips: Path, tmp_path: Path) -> None:
    result = vidembed(
        "clip", "red", "--in", index, "--hit", "2", "--around", "9", "--out", tmp_path / "hit.mp4", "--json"
    )
    cut = json.loads(result.stdout)
    assert cut["source"] == str(clips / "red.mp4")
    assert (cut["asked_start_s"], cut["asked_end_s"]) == (0, 1)  # its video is no longer
    again = vidembed("clip", "red", "--in", index, "--around", "0.5", "--out", tmp_path / "wide.mp4", "--json")
    assert json.loads(again.stdout)["asked_start_s"] == 0.5


def test_several_hits_into_a_folder(index: Path, tmp_path: Path) -> None:
    arguments = ("clip", "red", "--in", index, "--top", "2", "--out", tmp_path / "hits")
    result = vidembed(*arguments)
    assert result.exit_code == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "hits").iterdir())
    assert names == ["1-film.mp4", "2-red.mp4"]
    assert result.stdout.splitlines() == [str(tmp_path / "hits" / name) for name in names]
    again = vidembed(*arguments)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "1-film.mp4' exists" in again.stderr
    forced = vidembed(*arguments, "--force", "--json")
    assert [Path(each["path"]).name for each in json.loads(forced.stdout)] == names


def test_a_hit_that_cannot_be_cut_does_not_stop_the_others(index: Path, clips: Path, tmp_path: Path) -> None:
    (clips / "film.mp4").write_bytes(b"no video any more")
    arguments = ("clip", "red", "--in", index, "--merge", "videos")
    result = vidembed(*arguments, "--top", "3", "--out", tmp_path / "hits")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'hits' / '2-red.mp4'}\n")
    assert f"Not cut: {clips / 'film.mp4'}: not a video" in result.stderr
    assert "Not cut: in: the hit 's3://bucket/a.mp4' is not a file on this machine" in result.stderr
    nothing = vidembed(*arguments, "--top", "1", "--out", tmp_path / "none")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "Nothing was cut." in nothing.stderr
    for hit, message in (("1", "not a video"), ("3", "is not a file on this machine")):
        single = vidembed(*arguments, "--hit", hit, "--out", tmp_path / "one.mp4")
        assert (single.exit_code, single.stdout) == (2, "")
        assert message in single.stderr
        assert not (tmp_path / "one.mp4").exists()


@pytest.mark.parametrize("name", ["[red]bold[bold].mp4", "esc\x1b[31m.mp4", "new\nline.mp4", "\udcff.mp4"])
def test_hostile_names(video: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(video.read_bytes())
    result = vidembed("clip", source, "--to", "1", "--out", tmp_path / ("cut " + name))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / ("cut " + name)).exists()
    assert "\x1b" not in result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{video}", "--out", "{new}"], "from, to: give at least one"),
        (["{video}", "--from", "1"], "--out"),
        (["{video}", "--from", "-1", "--out", "{new}"], "start=-1.0"),
        (["{video}", "--from", "nan", "--out", "{new}"], "start=nan"),
        (["{video}", "--from", "2", "--to", "1", "--out", "{new}"], "end=1.0 is not above start=2.0"),
        (["{video}", "--from", "99", "--out", "{new}"], "after the end of the video"),
        (["{video}", "--from", "1", "--around", "-1", "--out", "{new}"], "around: got -1"),
        (["{video}", "--from", "1", "--out", "{video}"], "exists; choose another name, or replace it with --force"),
        (["{video}", "--from", "1", "--out", "{video}", "--force"], "out: '{video}' is the source itself"),
        (["{video}", "--from", "1", "--out", "{dir}/a.exe"], "out: '{dir}/a.exe' ends in '.exe'"),
        (
            ["{video}", "--from", "1", "--out", "{dir}/a.webm"],
            "out: h264 cannot be written to a .webm file here; use .mp4 or",
        ),
        (["{video}", "--from", "1", "--out", "{dir}/no/a.mp4"], "its folder does not exist"),
        (["{video}", "--from", "1", "--hit", "2", "--out", "{new}"], "--hit: it needs a search"),
        (["{video}", "--from", "1", "--top", "2", "--out", "{new}"], "--top: it needs a search"),
        (["{dir}/gone.mp4", "--from", "1", "--out", "{new}"], "no such file"),
        (["video+file://{video}#t=1,2", "--from", "1", "--out", "{new}"], "has times already; give them once"),
        (["video+file://{video}#t=2,1", "--out", "{new}"], "the end of the time range"),
        (["video+https://example.org/a.mp4#t=1,2", "--out", "{new}"], "scheme 'https' is not allowed"),
        (["red", "--in", "{ix}", "--from", "1", "--out", "{new}"], "from, to: a hit has its own times"),
        (["red", "--in", "{ix}", "--hit", "1", "--top", "1", "--out", "{new}"], "together with --top"),
        (["red", "--in", "{ix}", "--hit", "0", "--out", "{new}"], "--hit"),
        (["red", "--in", "{ix}", "--hit", "99", "--out", "{new}"], "hit: got 99; the search has"),
        (["red", "--in", "{ix}", "--top", "2", "--out", "{video}"], "is a file; with --top, give a folder"),
        (["red", "--in", "{dir}", "--out", "{new}"], "no vidembed index in"),
        (["", "--in", "{ix}", "--out", "{new}"], "query: got ''"),
    ],
)
def test_misuse(index: Path, video: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"video": video, "ix": index, "dir": tmp_path, "new": tmp_path / "new.mp4"}
    before = tree(tmp_path)
    result = vidembed("clip", *(argument.format(**places) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert message.format(**places) in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before


def test_what_cannot_be_written_is_found_before_the_model_is_loaded(
    index: Path, loaded: Loaded, tmp_path: Path
) -> None:
    loaded.clear()
    (tmp_path / "there.mp4").write_bytes(b"")
    assert vidembed("clip", "red", "--in", index, "--out", tmp_path / "there.mp4").exit_code == 2
    assert loaded == []


def test_cutting_a_video_needs_neither_torch_nor_the_index(video: Path, tmp_path: Path) -> None:
    result = process("clip", video, "--to", "1", "--out", tmp_path / "a.mp4", before=AFTER)
    assert result.returncode == 0
    assert not {"torch", "lancedb", "transformers"} & set(result.stderr.split())
