"""Telling inputs apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.clips import moving_square, write_video
from vidembed import Sampling, VideoError, VideoFrames, VideoSegment
from vidembed.encoding.inputs import kind_of, to_host_input

FRAMES = np.zeros((4, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("a red square", "text"),
        ("", "text"),
        ("see clip.mp4", "text"),
        ("line\nclip.mp4", "text"),
        ("clip.mp4", "video"),
        ("dir/CLIP.MKV", "video"),
        ("https://example.org/a.mp4?x=1", "video"),
        ("clip.gif", "video"),
        ("photo.jpg", "image"),
        (Path("photo.PNG"), "image"),
        (Path("clip.webm"), "video"),
        (Path("no_suffix"), "video"),
        (VideoSegment("a.mp4", 1.0, 2.0), "video"),
        (VideoFrames(FRAMES, fps=2.0), "video"),
        (b"abc", "video"),
        (io.BytesIO(b"abc"), "video"),
        ({"array": FRAMES, "video_metadata": {"fps": 2.0}}, "video"),
        (Image.new("RGB", (4, 4)), "image"),
        ({"text": "clip.mp4"}, "text"),
        ({"video": "clip.mp4"}, "video"),
        ({"image": "x.jpg"}, "image"),
        ({"video": "clip.mp4", "text": "a"}, "mixed"),
        ({"role": "user", "content": "a"}, "message"),
        ([{"role": "user", "content": "a"}], "message"),
    ],
)
def test_kinds(item: Any, kind: str) -> None:
    assert kind_of(item) == kind


@given(st.text().filter(lambda text: "." not in text and not text.startswith("data:image/")))
def test_words_are_text(text: str) -> None:
    assert kind_of(text) == "text"


@given(st.text(max_size=300))
def test_any_string_is_told_apart_without_a_crash(text: str) -> None:
    assert kind_of(text) in ("text", "video", "image")
    assert kind_of({"text": text}) == "text"


@pytest.mark.parametrize("item", [FRAMES, torch.zeros(2, 4, 3, 8, 8)])
def test_bare_frames_have_no_rate(item: Any) -> None:
    with pytest.raises(VideoError, match=r"VideoFrames\(array, fps"):
        kind_of(item)


@pytest.mark.parametrize("item", [3, 2.5, None, {"array": FRAMES}, {"vid": "x"}, {}, np.zeros(16000)])
def test_what_no_model_takes(item: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        kind_of(item)


def test_short_video_is_extended_by_its_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", moving_square(1))
    host, _ = to_host_input(path, Sampling(), backend="pyav", allow_url=False, min_frames=2)
    array, metadata = host["video"]["array"], host["video"]["video_metadata"]
    assert array.shape[:2] == (2, 3)  # (T, C)
    assert torch.equal(array[0], array[1])
    assert len(metadata["frames_indices"]) == 2


def test_message_videos_are_decoded_with_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", moving_square(30), fps=10)
    message = {"role": "user", "content": [{"type": "video", "video": str(path)}, {"type": "text", "text": "x"}]}
    host, metadata = to_host_input(message, Sampling(), backend="pyav", allow_url=False)
    assert host[0]["content"][0]["video"].shape[0] == 6  # 3 s at 2 fps
    assert metadata[0]["fps"] == 10.0
    assert message["content"][0]["video"] == str(path)  # the user's message is left as it was
