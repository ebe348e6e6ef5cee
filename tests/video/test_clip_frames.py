"""Frames that come decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.video.test_reading import numbers
from tests.zoo import draw
from vidembed.video import InvalidVideoInput, Sampling, VideoFrames, VideoSegment, load_video, probe


def frames(count: int) -> np.ndarray:
    return np.stack([draw(i) for i in range(count)])


def test_sampled_on_the_same_grid() -> None:
    clip = load_video(VideoFrames(frames(90), fps=30))
    assert numbers(clip) == [0, 15, 30, 45, 60, 75]
    assert clip.timestamps.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert clip.frames_indices.tolist() == [0, 15, 30, 45, 60, 75]
    assert (clip.duration, clip.fps, clip.total_num_frames) == (3.0, 30.0, 90)
    assert clip.video_backend == "frames"
    assert clip.item == "<frames, 90x96x160>"
    assert numbers(load_video(VideoFrames(frames(90), fps=30), Sampling(max_frames=3))) == [0, 30, 60]


def test_frames_as_sparse_as_the_grid_are_all_kept() -> None:
    """At 29.97 / 15 frames a second a grid of 2 fps would show some twice and miss the last."""
    times = np.arange(20) * 15 * 1001 / 30000
    clip = load_video(VideoFrames(frames(20), fps=29.97, timestamps=times))
    assert numbers(clip) == list(range(20))
    assert numbers(load_video(VideoFrames(frames(5), fps=1))) == list(range(5))
    many = load_video(VideoFrames(frames(20), fps=1), Sampling(max_frames=10))
    assert numbers(many) == list(range(0, 20, 2))


def test_own_times_are_followed() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 5.1, 5.2]) + 100
    clip = load_video(VideoFrames(frames(8), fps=10, timestamps=times), Sampling(fps=1))
    assert numbers(clip) == [0, 4, 4, 4, 4, 5]
    assert clip.timestamps.tolist() == pytest.approx([0, 0.4, 0.4, 0.4, 0.4, 5.0])


def test_area_is_bounded() -> None:
    clip = load_video(VideoFrames(frames(30), fps=10), Sampling(max_pixels=4000))
    assert clip.frames.shape[1] * clip.frames.shape[2] <= 4000
    assert numbers(clip) == [0, 5, 10, 15, 20, 25]


def test_segment() -> None:
    clip = load_video(VideoSegment(VideoFrames(frames(90), fps=30), 1.0, 2.0))
    assert numbers(clip) == [30, 45]
    assert clip.timestamps.tolist() == [0, 0.5]
    assert (clip.start_s, clip.duration, clip.total_num_frames) == (1.0, 1.0, 30)
    with pytest.raises(InvalidVideoInput, match="starts at"):
        load_video(VideoSegment(VideoFrames(frames(90), fps=30), 3.0))


@pytest.mark.parametrize("form", ["last", "first", "list"])
def test_dictionary(form: str) -> None:
    array: Any = frames(60)
    array = {"last": array, "first": array.transpose(0, 3, 1, 2), "list": list(array)}[form]
    clip = load_video({"array": array, "video_metadata": {"fps": 30, "total_num_frames": 60}})
    assert numbers(clip) == [0, 15, 30, 45]
    assert clip.fps == 30


def test_dictionary_of_sampled_frames() -> None:
    metadata = {"fps": 29.97, "frames_indices": [0, 15, 30, 45], "duration": 2.0, "total_num_frames": 60}
    clip = load_video({"array": frames(4), "video_metadata": metadata})
    assert numbers(clip) == [0, 1, 2, 3]
    assert clip.frames_indices.tolist() == [0, 15, 30, 45]
    assert clip.metadata()["frames_indices"] == [0, 15, 30, 45]
    assert clip.total_num_frames == 60


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 8, 8), np.uint8), "shape"),
        (np.zeros((4, 8, 8, 4), np.uint8), "shape"),
        (np.zeros((4, 8, 8, 3), np.float32), "float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((4, 0, 8, 3), np.uint8), "shape"),
        ([1, 2, 3], "list"),
    ],
)
def test_wrong_arrays(array: Any, match: str) -> None:
    with pytest.raises(InvalidVideoInput, match=match):
        VideoFrames(array, fps=2)
    with pytest.raises(InvalidVideoInput):
        load_video({"array": array, "video_metadata": {"fps": 2}})


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), None, "30", True])
def test_wrong_rates(fps: Any) -> None:
    with pytest.raises(InvalidVideoInput, match="fps"):
        VideoFrames(frames(2), fps=fps)
    with pytest.raises(InvalidVideoInput, match="fps"):
        load_video({"array": frames(2), "video_metadata": {"fps": fps}})


@pytest.mark.parametrize("times", [[0.0], [0.0, np.nan], [1.0, 0.0], [[0.0, 1.0]]])
def test_wrong_times(times: Any) -> None:
    with pytest.raises(InvalidVideoInput, match="timestamps"):
        VideoFrames(frames(2), fps=2, timestamps=np.array(times))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"array": frames(2)},
        {"array": frames(2), "video_metadata": None},
        {"array": frames(2), "video_metadata": {}},
        {"array": frames(2), "video_metadata": 5},
        {"array": frames(2), "video_metadata": {"fps": 2, "frames_indices": [1]}},
        {"array": frames(2), "video_metadata": {"fps": 2, "frames_indices": [5, 1]}},
        {"array": frames(2), "video_metadata": {"fps": 2, "frames_indices": [0.5, 1.5]}},
        {"array": [frames(1)[0], frames(1)[0, :5]], "video_metadata": {"fps": 2}},
        {"video_metadata": {"fps": 2}},
    ],
)
def test_wrong_dictionaries(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidVideoInput, match="dictionary"):
        load_video(value)


def test_probe() -> None:
    info = probe({"array": frames(60), "video_metadata": {"fps": 30}})
    assert (info.duration, info.fps, info.width, info.height, info.num_frames_estimate) == (2.0, 30.0, 160, 96, 60)
