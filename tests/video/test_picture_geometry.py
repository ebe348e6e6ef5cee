"""How pictures are set upright and sized."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pictures import MATRICES, ONE, stored, write_plain, write_turned
from tests.zoo import Recipe, Zoo, draw, encode, read
from vidembed.video import Sampling, VideoSegment, load_segments, load_video, probe
from vidembed.video.picture import Geometry, fit_shown, letterbox, orientation, upright

LARGE = Sampling(max_pixels=None)
sides = st.integers(1, 40)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_of_the_eight_display_matrices(tmp_path: Path, matrix: tuple[int, int, int, int], suffix: str) -> None:
    pictures = np.stack([draw(number) for number in range(8)])
    path = write_turned(tmp_path / f"a{suffix}", pictures, 2, matrix)
    clip = load_video(path)
    assert [read(frame) for frame in clip.frames] == list(range(8))
    info = probe(path)
    assert (info.height, info.width) == pictures.shape[1:3]
    assert info.mirrored == (matrix[0] * matrix[3] < matrix[1] * matrix[2])


@given(st.sampled_from(MATRICES), sides, sides, st.integers(1, 2**14), st.integers(1, 2**14))
def test_a_display_matrix_undoes_itself(
    matrix: tuple[int, int, int, int], height: int, width: int, wide: int, high: int
) -> None:
    """Also one that scales its axes, which says nothing of the orientation."""
    picture = np.arange(3 * height * width, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    a, b, c, d = (value // ONE for value in matrix)
    turns, mirrored = orientation((a * wide, b * high, c * wide, d * high), "a.mp4")
    kept = stored(picture, matrix)
    geometry = Geometry(kept.shape[1], kept.shape[0], turns=turns, mirrored=mirrored)
    assert geometry.shape == picture.shape
    assert np.array_equal(upright(kept, geometry), picture)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (ONE, 0, 0, 0), (ONE, ONE, ONE, ONE)])
def test_a_matrix_without_an_inverse_is_ignored(
    tmp_path: Path, matrix: tuple[int, int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_plain(tmp_path / "a.mp4", np.stack([draw(number) for number in range(4)]), 2, matrix=matrix)
    assert [read(frame) for frame in load_video(path).frames] == [0, 1, 2, 3]
    assert caplog.text.count("its display matrix is ignored") == 1


@given(sides, sides, sides, sides, st.integers(0, 3))
def test_a_picture_laid_into_another_shape_keeps_its_aspect(
    height: int, width: int, new_height: int, new_width: int, turns: int
) -> None:
    shape = (new_height, new_width, 3)
    inner = Geometry(width, height, turns).inside(shape)
    high, wide, _ = inner.shape
    assert high == new_height or wide == new_width
    assert high <= new_height
    assert wide <= new_width
    whole_height, whole_width, _ = Geometry(width, height, turns).shape
    scale = min(new_height / whole_height, new_width / whole_width)
    assert abs(high - whole_height * scale) <= 1
    assert abs(wide - whole_width * scale) <= 1
    laid = letterbox(np.full(inner.shape, 255, np.uint8), shape)
    assert laid.shape == shape
    assert np.count_nonzero(laid) == 3 * high * wide


@settings(max_examples=30)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300_000))
def test_the_bound_on_pixels_holds(width: int, height: int, bound: int) -> None:
    planned = Geometry(*fit_shown(width, height, None, bound, "a.mp4"), turns=0)
    assert planned.width * planned.height <= max(bound, 1)


class TestShapesThatChange:
    def test_a_segment_has_the_shape_of_its_own_first_frame(self, zoo: Zoo) -> None:
        path = zoo.path("resized.ts")  # 3 s of 160x96, then 3 s of 128x80
        small = load_video(VideoSegment(path, 3.0, 6.0), LARGE)
        assert small.frames.shape[1:3] == (80, 128)
        assert [read(frame) for frame in small.frames] == [0, 15, 30, 45, 60, 75]
        for clip, (start, end) in zip(
            load_segments(path, [(0.0, 3.0), (2.0, 5.0), (3.0, 6.0)], LARGE), [(0, 3), (2, 5), (3, 6)], strict=True
        ):
            assert np.array_equal(clip.frames, load_video(VideoSegment(path, start, end), LARGE).frames)

    def test_other_shapes_within_a_segment_are_letterboxed(self, tmp_path: Path) -> None:
        parts = []
        for name, size in (("wide.ts", (160, 96)), ("high.ts", (96, 160))):
            encode(tmp_path / name, Recipe(frames=30, size=size))
            parts.append((tmp_path / name).read_bytes())
        path = tmp_path / "both.ts"
        path.write_bytes(b"".join(parts))
        clip = load_video(path)
        assert clip.frames.shape[1:3] == (96, 160)
        left = (160 - 58) // 2  # 96 x 160 scaled to a height of 96 is 57.6 wide
        for frame in clip.frames[2:]:
            assert read(frame[:, left : left + 58]) is not None
            assert frame[:, : left - 1].max() < 24
            assert frame[:, left + 59 :].max() < 24

    def test_pixels_that_change_their_shape(self, tmp_path: Path) -> None:
        """As a broadcast that goes from 4:3 to 16:9, without a change of its size. MPEG-2 makes 2.21:1 of 20:6."""
        parts = []
        for name, aspect in (("square.mpg", Fraction(1)), ("wide.mpg", Fraction(2))):
            encode(tmp_path / name, Recipe("mpeg2video", frames=45, format="vob", aspect=aspect))
            parts.append((tmp_path / name).read_bytes())
        path = tmp_path / "both.mpg"
        path.write_bytes(b"".join(parts))
        alone = load_video(tmp_path / "wide.mpg", LARGE)
        assert alone.frames.shape[1:3] == (96, 212)
        with av.open(str(path)) as container:
            assert [frame.width for frame in container.decode(video=0)] == 90 * [160]
        assert load_video(VideoSegment(path, 2.0, 2.5), LARGE).frames.shape[1:3] == (96, 212)
        clip = load_video(path, Sampling(fps=30, max_pixels=None))
        assert [read(frame) for frame in clip.frames[:45]] == list(range(45))
        for number, frame in enumerate(clip.frames[45:]):
            assert frame[:10].max() < 24
            assert frame[86:].max() < 24
            assert read(frame[12:84]) == number
