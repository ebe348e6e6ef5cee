"""A vector from a clip is the vector from its file, bit for bit."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo import Zoo
from vidembed import Sampling, VideoEncoder, VideoReranker, VideoSegment, load_video
from vidembed.inputs import kind_of, load_input, name_of
from vidembed.shapes import ClipRecord, write_clips
from vidembed.video import DecodePool, InvalidVideoInput, VideoTruncated

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, ClipRecord]]:
    return write_clips(tmp_path_factory.mktemp("clips"), 4, "test", 3)


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes", device="cpu")


def test_it_is_a_video(written: list[tuple[Path, ClipRecord]]) -> None:
    clip = load_video(written[0][0])
    assert kind_of(clip) == kind_of({"video": clip}) == "video"
    assert kind_of({"video": clip, "text": "x"}) == "mixed"
    assert name_of(clip) == str(written[0][0])


def test_it_is_not_extended_in_place(written: list[tuple[Path, ClipRecord]]) -> None:
    clip = load_video(VideoSegment(written[0][0], 0.0, 0.1))
    loaded, _ = load_input(clip, Sampling(), min_frames=2)
    assert loaded["video"]["array"].shape[:2] == (2, 3)  # (T, C)
    assert len(clip.frames) == len(clip.metadata()["frames_indices"]) == 1


def test_equals_the_file(encoder: VideoEncoder, written: list[tuple[Path, ClipRecord]]) -> None:
    paths = [path for path, _ in written]
    segments = [VideoSegment(paths[0], 0.3, 1.1), VideoSegment(paths[1], 0.5)]
    files: list[Any] = [*paths, *segments]
    clips = [load_video(source, encoder.sampling) for source in files]
    with DecodePool(workers=1) as pool:
        clips += [clip for path in paths for clip in pool.submit(path, encoder.sampling)]  # type: ignore[misc]
    wrapped: list[Any] = [
        *clips,
        {"video": clips[0]},
        [{"role": "user", "content": [{"type": "video", "video": clips[1]}]}],
        {"video": clips[2], "text": "at night"},
    ]
    bare = [
        *(*files, *paths, {"video": paths[0]}),
        [{"role": "user", "content": [{"type": "video", "video": str(paths[1])}]}],
        {"video": str(paths[2]), "text": "at night"},
    ]
    expected, found = encoder.encode(bare, batch_size=4), encoder.encode(wrapped, batch_size=4)
    assert np.array_equal(found, expected)
    assert np.array_equal(encoder.encode(clips[0]), encoder.encode(paths[0]))
    assert len(np.unique(expected[: len(files)], axis=0)) == len(files)  # the comparison bites


def test_reranker(written: list[tuple[Path, ClipRecord]]) -> None:
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    (path, record), (other, _) = written[:2]
    clip = load_video(path, reranker.sampling)
    pairs = [(record.caption, path), (record.summary, path), (record.caption, other)]
    by_clip = [(record.caption, clip), (record.summary, clip), (record.caption, load_video(other, reranker.sampling))]
    assert np.array_equal(reranker.predict(by_clip), reranker.predict(pairs))
    assert np.array_equal(reranker.predict([(clip, record.caption)]), reranker.predict([(path, record.caption)]))


def test_a_truncated_video_warns_at_the_line_of_the_caller(encoder: VideoEncoder, tmp_path: Path) -> None:
    path = Zoo(tmp_path).cut("faststart.mp4", 0.6)
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    for call in (
        lambda: encoder.encode([path, "a text"]),
        lambda: encoder.encode_query(path),
        lambda: list(encoder.encode_stream([path])),
        lambda: reranker.predict([("a text", path)]),
        lambda: reranker.rank("a text", [path], first_stage="own"),
    ):
        with pytest.warns(VideoTruncated, match="it ends at") as caught:
            call()
        assert [warned.filename for warned in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VideoTruncated):
            encoder.encode(path)


def test_another_sampling_is_refused(encoder: VideoEncoder, written: list[tuple[Path, ClipRecord]]) -> None:
    path = written[0][0]
    other = Sampling(fps=1.0, max_frames=encoder.sampling.max_frames, max_pixels=encoder.sampling.max_pixels)
    for clip in (load_video(path, other), replace(load_video(path, encoder.sampling), sampling=None)):
        with pytest.raises(InvalidVideoInput, match="is needed"):
            encoder.encode([path, clip])
        items = list(encoder.encode_stream([path, clip], on_error="skip"))
        assert items[0].error is None
        assert isinstance(items[1].error, InvalidVideoInput)
        assert items[1].embedding is None
