"""A clip that was read before is a source too, for the sampling that it was read with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.zoo import Zoo
from vidembed.video import (
    Clip,
    InvalidVideoInput,
    Sampling,
    VideoFrames,
    VideoSegment,
    item_name,
    load_segments,
    load_video,
    probe,
)

SAMPLING = Sampling(fps=3, max_frames=8)


def clips(path: Path) -> list[Clip]:
    frames = VideoFrames(load_video(path).frames, fps=2)
    dictionary = {"array": frames.array, "video_metadata": {"fps": 2}}
    sources = [path, VideoSegment(path, 0.5, 1.5), path.read_bytes(), frames, dictionary, VideoSegment(frames, 1.0)]
    read = [load_video(source, SAMPLING) for source in sources]
    read += load_segments(path, [(0.0, 1.0), (0.5, 2.0)], SAMPLING)
    read += load_segments(frames, [(0.0, 1.0)], SAMPLING)
    return read


def test_a_clip_says_how_it_was_sampled_and_comes_back_as_it_is(zoo: Zoo) -> None:
    for clip in clips(zoo.path("h264.mp4")):
        assert clip.sampling == SAMPLING
        assert load_video(clip, Sampling(3.0, 8)) is clip
        assert item_name(clip) == clip.item


@pytest.mark.parametrize("other", [Sampling(), Sampling(3, 9), Sampling(3, 8, max_pixels=None)])
def test_another_sampling_is_refused(zoo: Zoo, other: Sampling) -> None:
    clip = load_video(zoo.path("h264.mp4"), SAMPLING)
    with pytest.raises(InvalidVideoInput, match=r"h264\.mp4: the clip was read with Sampling\(fps=3\.0.*") as info:
        load_video(clip, other)
    assert str(SAMPLING) in info.value.reason
    assert str(other) in info.value.reason


def test_an_unknown_sampling_is_refused(zoo: Zoo) -> None:
    clip = replace(load_video(zoo.path("h264.mp4"), SAMPLING), sampling=None)
    with pytest.raises(InvalidVideoInput, match="does not say how it was sampled"):
        load_video(clip, SAMPLING)


def test_a_clip_is_cut_no_more(zoo: Zoo) -> None:
    clip = load_video(zoo.path("h264.mp4"))
    for read in (
        lambda: load_video(VideoSegment(clip, 0.5, 1.0)),  # type: ignore[arg-type]
        lambda: load_segments(clip, [(0.5, 1.0)]),
        lambda: probe(clip),
    ):
        with pytest.raises(InvalidVideoInput, match=r"h264\.mp4"):
            read()


def test_decord_says_how_it_sampled(zoo: Zoo) -> None:
    pytest.importorskip("decord")
    clip = load_video(zoo.path("h264.mp4"), SAMPLING, backend="decord")
    assert load_video(clip, SAMPLING) is clip
    (part,) = load_segments(zoo.path("h264.mp4"), [(0.5, 1.5)], SAMPLING, backend="decord")
    expected = load_video(VideoSegment(zoo.path("h264.mp4"), 0.5, 1.5), SAMPLING, backend="decord")
    assert np.array_equal(part.frames, expected.frames)
    assert (part.video_backend, part.sampling) == ("decord", SAMPLING)
