from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidembed.captions import CaptionedVideo
from vidembed.evaluation.two_stage import first_stage_candidates

VECTORS = {"a": [1.0, 0.0], "b": [0.8, 0.6], "c": [0.0, 1.0]}


class Encoder:
    """Texts and videos by the first letter of their name."""

    def encode_document(self, inputs: list[Path], **_: Any) -> np.ndarray:
        return np.array([VECTORS[path.name[0]] for path in inputs])

    def encode_query(self, inputs: list[dict[str, str]], **_: Any) -> np.ndarray:
        return np.array([VECTORS[item["text"][0]] for item in inputs])


def captioned(*rows: tuple[str, str]) -> list[CaptionedVideo]:
    return [CaptionedVideo(Path(video), text) for video, text in rows]


def test_the_first_stage_s_best_with_their_labels() -> None:
    rows = captioned(("a.mp4", "a one"), ("b.mp4", "b one"), ("c.mp4", "b one"), ("c.mp4", "a two"))
    found = first_stage_candidates(Encoder(), rows, k=2)  # type: ignore[arg-type]
    assert [(text["text"], video.name) for text, video in found.pairs] == [
        ("a one", "a.mp4"),
        ("a one", "b.mp4"),
        ("b one", "b.mp4"),
        ("b one", "a.mp4"),
        ("a two", "a.mp4"),
        ("a two", "b.mp4"),
    ]
    assert found.labels.tolist() == [True, False, True, False, False, False]
    assert found.similarities == pytest.approx([1.0, 0.8, 1.0, 0.8, 1.0, 0.8])
    assert found.missed == 1  # "a two" is said of c alone
    wider = first_stage_candidates(Encoder(), rows, k=9)  # type: ignore[arg-type]
    assert (len(wider.pairs), wider.missed, int(wider.labels.sum())) == (9, 0, 4)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one caption"):
        first_stage_candidates(Encoder(), [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none with a label"):
        first_stage_candidates(Encoder(), [CaptionedVideo(Path("a.mp4"), "a", True)])  # type: ignore[arg-type]
