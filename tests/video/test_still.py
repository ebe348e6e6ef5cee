"""A single picture, which the decoding processes take as a clip of one frame where they are asked to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clips import moving_square, write_video
from tests.video.test_segments import equal
from vidembed.video import Clip, CorruptVideo, DecodePool, NotAVideo, Sampling, VideoError, VideoTooLarge, load_video

SAMPLING = Sampling(max_pixels=None)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=1) as started:
        yield started


def read(pool: DecodePool, path: Path, sampling: Sampling = SAMPLING) -> Clip:
    (clip,) = pool.submit(path, sampling, pictures=True)
    if isinstance(clip, VideoError):
        raise clip
    return clip


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_a_picture_is_a_clip_of_one_frame(pool: DecodePool, tmp_path: Path, suffix: str) -> None:
    frame = moving_square(1)[0]
    Image.fromarray(frame).save(tmp_path / f"a.{suffix}", lossless=True)  # which WebP alone could do otherwise
    clip = read(pool, tmp_path / f"a.{suffix}")
    assert np.array_equal(clip.frames, frame[None])
    assert (clip.timestamps.tolist(), clip.duration, clip.start_s) == ([0.0], 1.0, 0.0)


def test_it_is_upright_rgb_and_no_larger_than_asked_for(pool: DecodePool, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("L", (60, 20), 128).save(tmp_path / "a.jpg", exif=exif)
    assert read(pool, tmp_path / "a.jpg").frames.shape == (1, 60, 20, 3)
    assert read(pool, tmp_path / "a.jpg", Sampling(max_pixels=300)).frames.shape == (1, 30, 10, 3)


def test_a_video_is_read_as_ever(pool: DecodePool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(12))
    equal(read(pool, path), load_video(path, SAMPLING))


def test_it_is_refused_unless_asked_for(pool: DecodePool, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(NotAVideo, match="a single picture; give it as an image"):
        list(pool.submit(tmp_path / "a.png", SAMPLING))


def test_what_is_no_single_picture(pool: DecodePool, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(NotAVideo, match="neither a video nor a picture of JPEG"):
        read(pool, tmp_path / "words.png")
    first, second = (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200))
    first.save(tmp_path / "two.webp", save_all=True, append_images=[second])
    with pytest.raises(NotAVideo, match="WEBP file with 2 pictures"):
        read(pool, tmp_path / "two.webp")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")  # would run Ghostscript
    with pytest.raises(NotAVideo):
        read(pool, tmp_path / "a.eps")


def test_damage_and_bombs(pool: DecodePool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorruptVideo, match="the picture cannot be decoded"):
        read(pool, path)
    Image.new("1", (40_000, 2)).save(tmp_path / "long.png")
    with pytest.raises(VideoTooLarge, match="40000x2"):
        read(pool, tmp_path / "long.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    assert read(pool, tmp_path / "good.png").frames.shape == (1, 8, 8, 3)  # by the same process
