"""Colours and fields: what is converted, to what, and what is left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.pictures import BT709, HLG, PQ, write_bt2020, write_interlaced, write_plain
from tests.zoo import Zoo, draw
from vidembed.video import (
    BackendUnavailable,
    Sampling,
    UnsupportedCodec,
    VideoSegment,
    load_segments,
    load_video,
    probe,
)
from vidembed.video import decord as decord_backend
from vidembed.video.picture import to_rgb
from vidembed.video.reader import FrameReader

PATCHES = np.array(
    [
        *([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128], [255, 255, 0]),
        *([0, 255, 255], [255, 0, 255], [64, 64, 64], [192, 192, 192], [200, 120, 40], [30, 90, 160], [90, 160, 60]),
        *([230, 180, 150], [120, 60, 30]),
    ],
    dtype=np.uint8,
)
SIZE = 16  # pixels a side of a patch


def patches(count: int = 2) -> NDArray[np.uint8]:
    """Sixteen colours as ``(T, H, W, 3)``."""
    return np.tile(PATCHES.reshape(4, 4, 3).repeat(SIZE, 0).repeat(SIZE, 1), (count, 1, 1, 1))


def seen(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean colour of each patch ``(16, 3)``, its edges left out."""
    blocks = frame.reshape(4, SIZE, 4, SIZE, 3)[:, 4:-4, :, 4:-4]
    return blocks.mean(axis=(1, 3)).reshape(16, 3)


class TestWideColours:
    @pytest.mark.parametrize(("transfer", "name"), [(PQ, "PQ"), (HLG, "HLG"), (BT709, "BT.2020")])
    def test_known_patches(self, tmp_path: Path, transfer: int, name: str) -> None:
        """As near as ffmpeg comes with `zscale` and `tonemap`: a mean error of 1.06 of 255 for PQ, 1.21 for BT.2020."""
        path = write_bt2020(tmp_path / "a.mkv", patches(), 2, transfer)
        error = np.abs(seen(load_video(path).frames[0]) - PATCHES)
        assert error.mean() < 1.4
        assert error[[3, 4, 5, 9, 10, 11, 12, 13, 14, 15]].max() <= 2  # the rest are coarse where 10 bits are nearly 0
        colour = probe(path).colour
        assert colour is not None
        assert (colour.matrix, colour.primaries, colour.range) == ("bt2020nc", "bt2020", "mpeg")
        assert colour.conversion == f"{name} to SDR BT.709"

    @pytest.mark.parametrize("transfer", [PQ, HLG])
    def test_what_is_brighter_than_white_is_clipped_with_its_hue(self, transfer: int) -> None:
        frame = av.VideoFrame(64, 64, "yuv444p10le")
        level = {PQ: 0.72, HLG: 0.97}[transfer]  # about 750 cd/m2
        for plane, value in zip(frame.planes, (64 + 876 * level, 512 - 120, 512 + 60), strict=True):
            plane.update(np.full((plane.height, plane.line_size // 2), value, dtype="<u2"))
        frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
        red, green, blue = to_rgb(frame, 64, 64, "a.mp4")[32, 32].tolist()
        assert red == 255
        assert 255 > green > blue + 40
        assert (frame.colorspace, frame.color_trc, frame.color_primaries) == (9, transfer, 9)  # as it was

    def test_a_phone_clip_of_two_sizes_is_converted_alike(self, tmp_path: Path) -> None:
        path = write_bt2020(tmp_path / "a.mkv", patches(), 2, HLG, codec="libx265")
        full = load_video(path).frames[0].astype(float)
        small = load_video(path, Sampling(max_pixels=32 * 32)).frames[0].astype(float)
        assert np.abs(full.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) - small).mean() < 6

    def test_sdr_is_left_as_it_is(self, zoo: Zoo) -> None:
        for name in ("h264.mp4", "hevc10.mkv", "mjpeg.avi"):
            with av.open(str(zoo.path(name))) as container:
                first = next(container.decode(video=0))
                expected = first.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
            assert np.array_equal(load_video(zoo.path(name), Sampling(max_pixels=None)).frames[0], expected)
            colour = probe(zoo.path(name)).colour
            assert colour is not None
            assert colour.conversion == "none"


def tagged(**tags: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(draw(3), format="rgb24").reformat(format="yuv444p")
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


class TestTags:
    @pytest.mark.parametrize(
        ("matrix", "primaries", "as_matrix"), [(3, 2, 2), (10, 9, 9), (12, 1, 1), (12, 9, 9), (13, 1, 1), (13, 9, 9)]
    )
    def test_a_matrix_that_is_near_to_another(self, matrix: int, primaries: int, as_matrix: int) -> None:
        found = to_rgb(tagged(colorspace=matrix, color_primaries=primaries), 160, 96, "a.mp4")
        assert np.array_equal(found, to_rgb(tagged(colorspace=as_matrix, color_primaries=primaries), 160, 96, "a.mp4"))

    @pytest.mark.parametrize(("matrix", "name"), [(8, "ycgco"), (11, "smpte2085"), (14, "ictcp"), (17, "ycgco-ro")])
    def test_a_matrix_that_is_like_no_other_is_refused(self, matrix: int, name: str) -> None:
        with pytest.raises(UnsupportedCodec, match=f"matrix {name}, which is not converted"):
            to_rgb(tagged(colorspace=matrix), 160, 96, "a.mp4")

    @pytest.mark.parametrize("matrix", [8, 14])
    def test_the_disk_is_not_blamed(self, tmp_path: Path, matrix: int) -> None:
        path = write_plain(tmp_path / "a.mp4", np.stack(2 * [draw(0)]), 2, colorspace=matrix)
        with pytest.raises(UnsupportedCodec, match="its colours are in the matrix"):
            load_video(path)
        colour = probe(path).colour
        assert colour is not None
        assert colour.conversion == "refused: its matrix is not converted"

    @pytest.mark.parametrize("transfer", range(19))
    def test_every_transfer_is_read(self, tmp_path: Path, transfer: int) -> None:
        frame = tagged(color_trc=transfer, color_primaries=1)
        assert to_rgb(frame, 160, 96, "a.mp4").shape == (96, 160, 3)
        assert frame.color_trc == transfer


def combing(frames: NDArray[np.uint8]) -> float:
    """How much a line differs from those above and below it, in steps of 255."""
    grey = frames.astype(float).mean(axis=-1)  # (T, H, W)
    return float(np.abs(grey[:, 1:-1] - (grey[:, :-2] + grey[:, 2:]) / 2).mean())


def moving(count: int, height: int = 96, width: int = 160) -> NDArray[np.uint8]:
    """A bar that crosses the picture, and one that rises: ``(T, H, W, 3)``."""
    y, x = np.mgrid[0:height, 0:width]
    frames = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[(np.abs(x - (10 + 4 * number) % width) < 12) & (y > 20)] = (220, 200, 60)
        frame[(x > 120) & (np.abs(y - (90 - number) % height) < 6)] = (60, 120, 230)
    return frames


class TestInterlaced:
    @pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
    def test_no_lines_of_another_moment(self, tmp_path: Path, name: str) -> None:
        pictures = moving(40)
        path = write_interlaced(tmp_path / name, pictures, 10)
        assert probe(path).interlaced
        with av.open(str(path)) as container:
            woven = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])[::5]
        found, wanted = load_video(path).frames, pictures[::10]
        assert found.shape == wanted.shape
        assert combing(found) < 1.2 * combing(wanted) < 0.4 * combing(woven)
        assert np.abs(found.astype(float) - wanted).mean() < 3  # the first of its two moments

    def test_progressive_frames_are_not_touched(self, zoo: Zoo) -> None:
        assert not probe(zoo.path("h264.mp4")).interlaced

    @pytest.mark.parametrize("pixels", [1, 2, 3, 4, 7, 300])
    def test_any_bound_on_pixels(self, tmp_path: Path, pixels: int) -> None:
        path = write_interlaced(tmp_path / "a.mp4", moving(8), 2)
        height, width = load_video(path, Sampling(max_pixels=pixels)).frames.shape[1:3]
        assert 1 <= height * width <= pixels

    def test_a_picture_too_low_to_deinterlace(self, tmp_path: Path) -> None:
        path = write_interlaced(tmp_path / "a.ts", moving(8, 96, 160)[:, :2], 2, codec="mpeg2video")
        assert load_video(path).frames.shape[1:3] == (2, 160)

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
    def test_the_same_after_seeking(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_interlaced(tmp_path / name, moving(500), 10)
        sought: list[float] = []
        seek = FrameReader.seek
        monkeypatch.setattr(FrameReader, "seek", lambda self, seconds: (sought.append(seconds), seek(self, seconds))[1])
        found = list(load_segments(path, [(0.0, 1.0), (9.0, 11.0), (20.0, 22.0)]))
        assert sought
        monkeypatch.setattr(FrameReader, "seek", _no_seek)
        monkeypatch.setattr("vidembed.video.reader.SEEKABLE_FORMATS", ())
        for clip, (start, end) in zip(found, [(0.0, 1.0), (9.0, 11.0), (20.0, 22.0)], strict=True):
            assert np.array_equal(clip.frames, load_video(VideoSegment(path, start, end)).frames)


def _no_seek(*_: Any) -> None:
    raise AssertionError("sought")


class TestDecord:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decord_backend, "require_decord", lambda item: None)

    @pytest.mark.parametrize("kind", ["mirrored", "interlaced", "HLG", "no rotation"])
    def test_refuses_what_it_would_show_otherwise(self, tmp_path: Path, kind: str) -> None:
        path, pictures = tmp_path / ("a.mkv" if kind == "HLG" else "a.mp4"), moving(8)
        if kind == "interlaced":
            write_interlaced(path, pictures, 2)
        elif kind == "HLG":
            write_bt2020(path, pictures, 2, HLG, codec="libx265")
        else:
            write_plain(path, pictures, 2, matrix=(-(2**16), 0, 0, 2**16) if kind == "mirrored" else (0, 0, 0, 0))
        with pytest.raises(BackendUnavailable, match=kind):
            load_video(path, backend="decord")
