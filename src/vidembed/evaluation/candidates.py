"""Labelled pairs as a reranker meets them: the first stage's top K of each caption, right or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vidembed.annotations import CaptionedVideo
from vidembed.evaluation.staged import top_candidates
from vidembed.scoring._checks import FloatArray

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs for `VideoReranker.calibrate`.

    Attributes:
        pairs: P of (text, video).
        labels: ``(P,)`` booleans: whether the text is a caption of the video.
        similarities: ``(P,)`` cosines of the first stage.
        missed: Captions none of whose videos are among the candidates.
    """

    pairs: list[tuple[dict[str, str], Path]]
    labels: NDArray[np.bool_]
    similarities: FloatArray
    missed: int


def first_stage_candidates(
    encoder: VideoEncoder, captioned: Sequence[CaptionedVideo], *, k: int = 10, show_progress_bar: bool | None = None
) -> Candidates:
    """Search every caption among the videos of all captions, and keep the `k` best of each.

    Args:
        encoder: The first stage.
        captioned: Captions and their videos. Equal captions, and equal paths, are one; several videos may share one.
        k: Candidates of a caption. Default 10, as the paper reranks with its optimized model (VidVec, section 4).
        show_progress_bar: As `VideoEncoder.encode`.

    Raises:
        ValueError: ``k`` is below 1, there are no captions, or some have a label.
        VideoError: A video could not be decoded.
    """
    if not captioned or any(one.label is not None for one in captioned):
        raise ValueError("captioned: expected at least one caption, and none with a label, whose negatives are given")
    texts = list(dict.fromkeys(one.text for one in captioned))
    videos = list(dict.fromkeys(one.video for one in captioned))
    right = np.zeros((len(texts), len(videos)), dtype=np.bool_)  # (T, V)
    rows, columns = {text: row for row, text in enumerate(texts)}, {video: at for at, video in enumerate(videos)}
    for one in captioned:
        right[rows[one.text], columns[one.video]] = True
    vectors = encoder.encode_document(videos, show_progress_bar=show_progress_bar)  # (V, D)
    queries = encoder.encode_query([{"text": text} for text in texts], show_progress_bar=show_progress_bar)  # (T, D)
    similarity = np.asarray(queries, dtype=np.float64) @ np.asarray(vectors, dtype=np.float64).T  # (T, V)
    best = top_candidates(similarity, k)  # (T, K)
    labels = np.take_along_axis(right, best, axis=1)  # (T, K)
    return Candidates(
        pairs=[({"text": texts[row]}, videos[at]) for row, found in enumerate(best.tolist()) for at in found],
        labels=labels.reshape(-1),
        similarities=np.take_along_axis(similarity, best, axis=1).reshape(-1),
        missed=int((~labels.any(axis=1)).sum()),
    )
