"""Telling inputs apart."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.clips import moving_square, write_video
from vidembed import Sampling, VideoEncoder, VideoError, VideoFrames, VideoReranker, VideoSegment
from vidembed.inputs import kind_of, load_input

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


@pytest.mark.parametrize("name", ["recording", "recording.dat", "videos"])
def test_path_that_exists_is_not_embedded_as_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert kind_of(str(path)) == "text"
    path.mkdir() if name == "videos" else path.write_bytes(b"x")
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
        kind_of(str(path))
    assert kind_of({"text": str(path)}) == "text"
    assert kind_of(path) == "video"


@pytest.mark.parametrize("kind", [tuple, list])
def test_pair_of_strings_is_a_pair_of_texts(kind: Callable[[list[str]], object]) -> None:
    assert kind_of(kind(["a", "b"])) == "text"
    for name, key in {"gone.mp4": "video", "gone.jpg": "image"}.items():
        for pair in [["words", name], [name, "words"], [name, name]]:
            with pytest.raises(ValueError, match=rf"'{name}' names a file.*{{'{key}': ..., 'text': ...}}"):
                kind_of(kind(pair))


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
    loaded, _ = load_input(path, Sampling(), min_frames=2)
    array, metadata = loaded["video"]["array"], loaded["video"]["video_metadata"]
    assert array.shape[:2] == (2, 3)  # (T, C)
    assert torch.equal(array[0], array[1])
    assert len(metadata["frames_indices"]) == 2


def test_message_videos_are_decoded_with_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", moving_square(30), fps=10)
    message = {"role": "user", "content": [{"type": "video", "video": str(path)}, {"type": "text", "text": "x"}]}
    loaded, metadata = load_input(message, Sampling())
    assert loaded[0]["content"][0]["video"].shape[0] == 6  # 3 s at 2 fps
    assert metadata[0]["fps"] == 10.0
    assert message["content"][0]["video"] == str(path)  # the user's message is left as it was


def _generated() -> Iterator[str]:
    yield "a red square"
    yield "a blue circle"


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(lambda: pd.Series(["a red square", "a blue circle"]), id="Series"),
        pytest.param(_generated, id="generator"),
        pytest.param(lambda: {"a red square", "a blue circle"}, id="set"),
        pytest.param(lambda: map(str, ["a red square", "a blue circle"]), id="map"),
        pytest.param({1: "a red square"}.values, id="values"),
        pytest.param(lambda: iter([]), id="iterator"),
    ],
)
class TestCollectionsThatAreNoLists:
    def test_encode_says_what_to_do(self, inputs: Callable[[], Any]) -> None:
        encoder = VideoEncoder("vidembed/shapes", device="cpu")
        for encode in (encoder.encode, encoder.encode_query, encoder.encode_document):
            with pytest.raises(ValueError, match=r"inputs: got a \w+, .* Pass list\(inputs\), or .* encode_stream"):
                encode(inputs())
        texts = list(inputs())
        streamed = [item.embedding for item in encoder.encode_stream(inputs())]
        assert len(streamed) == len(texts)
        if texts:
            assert np.abs(np.stack(streamed) - encoder.encode(texts)).max() <= 1e-6  # type: ignore[arg-type]

    def test_rank_says_what_to_do(self, inputs: Callable[[], Any]) -> None:
        reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
        with pytest.raises(TypeError, match=r"documents: got a \w+; expected a list. Pass list\(documents\)"):
            reranker.rank("clip.mp4", inputs())
        with pytest.raises(TypeError, match=r"inputs: got a \w+; expected a list. Pass list\(inputs\)"):
            reranker.answers(inputs())


def test_pairs_in_any_order_are_refused() -> None:
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    with pytest.raises(TypeError, match=r"inputs: got a set, which has no order. Pass a list of pairs"):
        reranker.predict({("a red square", "clip.mp4")})  # type: ignore[call-overload]
