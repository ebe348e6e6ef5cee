"""What is read with frames left undecoded is bit-equal to what is read by decoding all of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import av.error
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.video.containers import Altered
from tests.zoo import Recipe, Zoo, encode
from vidembed.video import Clip, CorruptVideo, Sampling, VideoError, VideoTruncated, dropping, load_segments
from vidembed.video.picture import Undecoded
from vidembed.video.reader import FrameReader, TimedFrame

pytestmark = pytest.mark.timeout(60)
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
few = settings(max_examples=15, phases=PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture])

SIZE = (96, 64)
WHOLE: list[tuple[float, float | None]] = [(0.0, None)]
X265 = "log-level=none:pools=1:frame-threads=1"
Read = tuple[list[Clip | tuple[type, str]], list[str]]  # clips, or the error that ended them; warnings


def h264(gop: int, b_frames: int, *, open_gop: bool = False, pyramid: bool = True, **other: Any) -> Recipe:
    parameters = (
        f"keyint={gop}:open-gop={int(open_gop)}:scenecut=0:b-adapt=0:b-pyramid={'normal' if pyramid else 'none'}"
    )
    options = {"preset": "superfast", "crf": "28", "x264-params": parameters}
    return Recipe(gop=gop, b_frames=b_frames, options=options, size=SIZE, **other)


def hevc(gop: int, more: str = "open-gop=0", **other: Any) -> Recipe:
    options = {"preset": "ultrafast", "x265-params": f"{X265}:keyint={gop}:scenecut=0:{more}"}
    return Recipe("libx265", options=options, size=SIZE, **other)


MADE = {
    "h264.mp4": h264(60, 3, frames=300),
    "h264.mkv": h264(60, 3, frames=300),
    "h264.ts": h264(60, 3, frames=300),
    "h264.flv": h264(60, 3, frames=300),
    "no_b.mp4": h264(75, 0, frames=300),
    "vfr.mkv": h264(60, 2, ticks=[n for n in range(600) if n % 100 < 40 or n % 7 == 0]),
    "open.ts": h264(24, 3, open_gop=True, frames=300),
    "hevc.mp4": hevc(60, frames=240),
    "hevc_layers.mkv": hevc(60, "open-gop=0:temporal-layers=2:bframes=4", frames=240),
    "hevc_open.mp4": hevc(60, "open-gop=1:bframes=4:b-adapt=0", frames=240),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sparse")
    for name, recipe in MADE.items():
        encode(folder / name, recipe)
    return {name: folder / name for name in MADE}


def read(
    path: Path, sampling: Sampling, segments: Sequence[tuple[float, float | None]] = WHOLE, *, threads: int = 1
) -> tuple[Read, int]:
    """What reading gives, and how many frames of it were left undecoded."""
    left_out = 0
    step = FrameReader.__next__

    def count(self: FrameReader) -> TimedFrame:
        nonlocal left_out
        timed = step(self)
        left_out += isinstance(timed.shown, Undecoded)
        return timed

    found: list[Clip | tuple[type, str]] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(FrameReader, "__next__", count)
        try:
            found.extend(load_segments(path, segments, sampling, threads=threads))
        except VideoError as error:
            found.append((type(error), error.reason))
    return (found, [str(each.message) for each in caught if each.category is VideoTruncated]), left_out


def read_through(*arguments: Any, **options: Any) -> Read:
    """What it gives by decoding through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping, "MIN_STEP_S", math.inf)
        found, left_out = read(*arguments, **options)
    assert not left_out
    return found


def differing(a: Clip | tuple[type, str], b: Clip | tuple[type, str]) -> list[str]:
    """What differs between two clips or errors."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return [] if a == b else [str(a), str(b)]
    names = [each.name for each in fields(Clip)]
    return [name for name in names if not np.array_equal(getattr(a, name), getattr(b, name))]


def assert_equal(a: Read, b: Read) -> None:
    assert a[1] == b[1]
    assert len(a[0]) == len(b[0])
    for one, other in zip(a[0], b[0], strict=True):
        assert not differing(one, other)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("h264.mp4", 0.4),
        ("h264.mkv", 0.4),
        ("h264.ts", 0.4),
        ("h264.flv", 0.4),
        ("no_b.mp4", 0.2),  # only what follows the last chosen frame of a group
        ("vfr.mkv", 0.25),
        ("open.ts", 0.3),  # only what nothing refers to
        ("hevc.mp4", 0.35),
        ("hevc_layers.mkv", 0.4),
        ("hevc_open.mp4", 0.2),
    ],
)
def test_what_nobody_needs_is_left_undecoded(made: dict[str, Path], name: str, share: float, threads: int) -> None:
    sampling = Sampling(fps=0.4)
    found, left_out = read(made[name], sampling, threads=threads)
    assert_equal(found, read_through(made[name], sampling, threads=threads))
    (clip,) = found[0]
    assert isinstance(clip, Clip)
    assert left_out >= share * clip.total_num_frames


def test_a_dense_grid_is_decoded_through(made: dict[str, Path]) -> None:
    """So that damage is seen wherever it is."""
    for sampling in (Sampling(), Sampling(fps=1.01)):
        assert read(made["h264.mp4"], sampling)[1] == 0
    assert read(made["h264.mp4"], Sampling(fps=1.0))[1] > 0


@few
@given(data=st.data())
def test_any_stream_and_grid(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    frames = draw(st.integers(60, 200), "frames")
    suffix = draw(st.sampled_from([".mp4", ".mkv", ".ts", ".flv"]), "suffix")
    recipe = h264(
        draw(st.integers(5, 120), "gop"),
        draw(st.integers(0, 8), "b_frames"),
        open_gop=draw(st.booleans(), "open_gop"),
        pyramid=draw(st.booleans(), "pyramid"),
        frames=frames,
    )
    if draw(st.booleans(), "vfr"):
        gaps = draw(st.lists(st.integers(1, 9), min_size=10, max_size=10), "gaps")
        recipe = replace(recipe, ticks=np.cumsum(np.resize(gaps, frames)).tolist())
    path = tmp_path / f"a{suffix}"
    encode(path, recipe)
    step = draw(st.floats(1.0, 6.0), "step")
    sampling = Sampling(1 / step, draw(st.sampled_from([1, 2, 3, 180]), "max_frames"))
    threads = draw(st.integers(1, 3), "threads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping, "MAX_AHEAD", draw(st.sampled_from([20, 50, 1024]), "ahead"))
        patch.setattr(dropping, "PROOF_FRAMES", draw(st.sampled_from([1, 8, 32]), "proof"))
        found, _ = read(path, sampling, threads=threads)
    assert_equal(found, read_through(path, sampling, threads=threads))


@settings(few, max_examples=6)
@given(data=st.data())
def test_any_hevc_stream(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    more = f"bframes={draw(st.integers(0, 4))}:b-adapt=0:b-pyramid={draw(st.integers(0, 1))}"
    more += f":open-gop={draw(st.integers(0, 1))}:temporal-layers={draw(st.integers(1, 2))}"
    path = tmp_path / f"a{draw(st.sampled_from(['.mp4', '.mkv', '.ts']))}"
    encode(path, hevc(draw(st.integers(8, 90)), more, frames=draw(st.integers(60, 150))))
    sampling = Sampling(1 / draw(st.floats(1.0, 3.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping, "MAX_AHEAD", draw(st.sampled_from([20, 1024])))
        patch.setattr(dropping, "PROOF_FRAMES", 8)
        found, _ = read(path, sampling)
    assert_equal(found, read_through(path, sampling))


@settings(few, max_examples=30)
@given(data=st.data())
def test_any_windows(made: dict[str, Path], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["h264.mp4", "h264.ts", "no_b.mp4", "open.ts", "vfr.mkv", "hevc.mp4"]))
    window = st.tuples(st.floats(0, 7.9), st.one_of(st.none(), st.floats(0.05, 8)))
    drawn = sorted(data.draw(st.lists(window, min_size=1, max_size=5)), key=lambda each: each[0])
    segments = [(start, None if length is None else start + length) for start, length in drawn]
    # with few frames a window, long ones are sparse and short ones dense
    sampling = Sampling(data.draw(st.sampled_from([0.3, 1.0, 2.0])), data.draw(st.sampled_from([1, 3, 180])))
    found, _ = read(made[name], sampling, segments)
    assert_equal(found, read_through(made[name], sampling, segments))


def test_dense_windows_among_sparse_ones_are_decoded_through(made: dict[str, Path]) -> None:
    sampling = Sampling(2.0, max_frames=3)
    sparse, mixed = [(0.0, 9.0)], [(0.0, 9.0), (4.0, 5.0)]
    (_, left_out), (found, fewer) = read(made["h264.ts"], sampling, sparse), read(made["h264.ts"], sampling, mixed)
    assert_equal(found, read_through(made["h264.ts"], sampling, mixed))
    assert 0 < fewer <= left_out - 20  # the window lies in a group of 60 frames


def test_real_videos(real_videos: list[Path]) -> None:
    sampling, left = Sampling(fps=0.4, max_pixels=64 * 64), 0
    for path in real_videos:
        if path.suffix != ".gif":
            found, left_out = read(path, sampling)
            assert_equal(found, read_through(path, sampling))
            left += left_out
    assert left


# -- streams that are not plain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "recipe"),
    [
        (".avi", h264(30, 2, frames=200)),  # no times of presentation
        (".mp4", h264(30, 2, frames=200, first_tick=90)),
        (".mp4", replace(h264(30, 0, frames=200), options={"x264-params": "keyint=30:tff=1", "preset": "superfast"})),
        (".mp4", Recipe("mpeg4", frames=200, gop=30, size=SIZE)),
        (
            ".webm",
            Recipe("libvpx-vp9", frames=90, gop=30, size=SIZE, options={"deadline": "realtime", "cpu-used": "8"}),
        ),
    ],
    ids=["avi", "starts late", "interlaced", "mpeg4", "vp9"],
)
def test_other_streams(tmp_path: Path, suffix: str, recipe: Recipe) -> None:
    path = tmp_path / f"a{suffix}"
    encode(path, recipe)
    found, left_out = read(path, Sampling(fps=0.5))
    assert_equal(found, read_through(path, Sampling(fps=0.5)))
    assert (left_out > 0) is bool(recipe.first_tick)


def test_clocks_that_start_again_and_sizes_that_change(made: dict[str, Path], tmp_path: Path) -> None:
    """Once with the same parameters, whose clock alone tells, and once with others."""
    part, other = made["h264.ts"].read_bytes(), tmp_path / "other.ts"
    encode(other, replace(MADE["h264.ts"], size=(128, 80), first_tick=330))
    for data in (part + part, part + other.read_bytes(), part + part + other.read_bytes()):
        path = tmp_path / "joined.ts"
        path.write_bytes(data)
        found, left_out = read(path, Sampling(fps=0.4))
        assert_equal(found, read_through(path, Sampling(fps=0.4)))
        assert left_out > 80  # of the first part


def test_hidden_frames_and_a_missing_first_time(zoo: Zoo, made: dict[str, Path], tmp_path: Path) -> None:
    """Stream copies: an edit list hides the frames before the cut, and Matroska has packets without a time."""
    assert_equal(read(zoo.path("cut.mp4"), Sampling(fps=0.5))[0], read_through(zoo.path("cut.mp4"), Sampling(fps=0.5)))
    path = tmp_path / "copy.mkv"
    with av.open(str(made["h264.mp4"])) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in list(old.demux(old.streams.video[0]))[61:-1]:  # the key frame is gone
            packet.stream = stream
            new.mux(packet)
    found, _ = read(path, Sampling(fps=0.4))
    assert_equal(found, read_through(path, Sampling(fps=0.4)))


# -- damage ------------------------------------------------------------------------------------------------------------


@settings(few, max_examples=40)
@given(
    name=st.sampled_from(["h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "open.ts"]),
    kind=st.sampled_from(["flip", "zero", "cut"]),
    place=st.floats(0.05, 0.99),
    length=st.integers(1, 400),
)
def test_damage(made: dict[str, Path], tmp_path: Path, name: str, kind: str, place: float, length: int) -> None:
    """As by decoding through, but for what is said of damage in frames that are left out."""
    data = bytearray(made[name].read_bytes())
    begin = int(place * len(data))
    end = min(begin + length, len(data))
    if kind == "cut":
        del data[begin:end]
    else:
        data[begin:end] = bytes(end - begin) if kind == "zero" else bytes(each ^ 0x5A for each in data[begin:end])
    path = tmp_path / name
    path.write_bytes(data)
    sampling = Sampling(fps=0.4)
    (found, warned), _ = read(path, sampling)
    through, warned_through = read_through(path, sampling)
    if not (differs := differing(found[0], through[0])):
        assert warned == warned_through
    elif isinstance(through[0], tuple):  # too much of it
        ((intact, *_), _), _ = read(made[name], sampling)
        assert isinstance(intact, Clip)
        assert not differing(found[0], replace(intact, item=f"{path}#t=0"))
    else:
        assert through[0].damaged
        assert set(differs) <= {"damaged", "fps", "frames_indices", "total_num_frames"}
        assert warned == warned_through


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_hole_and_a_lost_tail_are_seen(zoo: Zoo, share: float) -> None:
    """Whether anything in them is chosen or not."""
    for path in (zoo.zeroed("faststart.mp4", share, share + 0.02), zoo.cut("faststart.mp4", share)):
        found, _ = read(path, Sampling(fps=0.3))
        assert_equal(found, read_through(path, Sampling(fps=0.3)))


class Proxy:
    """A packet that says something else than what it holds, or decodes to something else."""

    def __init__(self, packet: Any, **other: Any) -> None:
        self._packet, self._other = packet, other

    def __getattr__(self, name: str) -> Any:
        return self._other[name] if name in self._other else getattr(self._packet, name)

    def __bytes__(self) -> bytes:
        return bytes(self._packet)


def altered(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Any], Any]) -> Altered:
    """Readers of what follows see packets as `change` makes them, by their number."""

    def demux(stream: Any) -> Iterator[Any]:
        return (change(number, packet) for number, packet in enumerate(container.container.demux(stream)))

    container = Altered(monkeypatch, demux=demux)
    return container


def fails() -> list[Any]:
    raise av.error.InvalidDataError(1, "made up")


@pytest.mark.parametrize(
    ("change", "is_read_again"),
    [
        (lambda number, packet: Proxy(packet, is_corrupt=True) if number == 200 else packet, True),
        (lambda number, packet: Proxy(packet, decode=fails) if number == 240 else packet, True),
        (lambda number, packet: Proxy(packet, decode=list) if number == 240 else packet, True),  # no frame comes out
        (lambda number, packet: Proxy(packet, pts=None) if number == 200 else packet, False),
        (lambda number, packet: Proxy(packet, is_discard=True) if number == 200 else packet, False),
        (lambda number, packet: Proxy(packet, pts=packet.pts - 5120) if number == 200 else packet, False),
    ],
    ids=["flagged", "error", "lost", "no time", "hidden", "order"],
)
def test_what_packets_do_not_say(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Any], Any], is_read_again: bool
) -> None:
    container = altered(monkeypatch, change)
    found, left_out = read(made["h264.mp4"], Sampling(fps=0.4))
    assert left_out > 20
    assert container.opened == 1 + is_read_again
    assert_equal(found, read_through(made["h264.mp4"], Sampling(fps=0.4)))


def test_too_much_damage_is_refused_as_before(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, lambda number, packet: Proxy(packet, decode=fails) if 200 <= number < 260 else packet)
    (found, _), _ = read(made["h264.mp4"], Sampling(fps=0.4))
    assert found == read_through(made["h264.mp4"], Sampling(fps=0.4))[0]
    assert found[0][0] is CorruptVideo  # type: ignore[index]


def test_no_more_is_read_ahead_than_is_allowed(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a frame is given, of a stream in which decoding never begins anew."""
    monkeypatch.setattr(dropping, "MAX_AHEAD", 40)
    taken = given_out = most = 0

    def count(_: int, packet: Any) -> Any:
        nonlocal taken
        taken += 1
        return packet

    altered(monkeypatch, count)
    step = FrameReader.__next__

    def out(self: FrameReader) -> TimedFrame:
        nonlocal given_out, most
        timed = step(self)
        given_out += 1
        most = max(most, taken - given_out)
        return timed

    monkeypatch.setattr(FrameReader, "__next__", out)
    found, left_out = read(made["open.ts"], Sampling(fps=0.6))
    assert left_out > 50
    assert 20 < most <= 40 + 8  # and what the decoder holds
    assert_equal(found, read_through(made["open.ts"], Sampling(fps=0.6)))
