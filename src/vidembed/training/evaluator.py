"""Recall between held-out captions and summaries, measured while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.evaluation import BaseEvaluator

from vidembed.evaluation import ranks
from vidembed.training.pairs import TextPair
from vidembed.training.prompts import stand_in_kwargs

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

CUTS: Final = (1, 5, 10)
"""Ranks of the recalls that the paper reports."""


def pair_recalls(scores: NDArray[Any], positives: NDArray[np.bool_]) -> dict[str, float]:
    """Recall in percent of a matrix of scores.

    Args:
        scores: (Q, N), rows rank columns.
        positives: (Q, N), which columns are right.

    Returns:
        ``R@1``, ``R@5`` and ``R@10``.
    """
    found = ranks(scores, positives)  # (Q,)
    return {f"R@{cut}": round(100.0 * float((found <= cut).mean()), 2) for cut in CUTS}


class PairEvaluator(BaseEvaluator):
    """Text-to-text recall of pairs, each side in its prompt, in percent.

    A column counts as right for every row that has the same summary or the same caption.

    Args:
        pairs: Held-out pairs.
        batch_size: Texts embedded at once.
    """

    def __init__(self, pairs: Sequence[TextPair], *, batch_size: int = 32) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pairs = list(pairs)
        self.batch_size = batch_size
        self.primary_metric = "summary_to_dense_R@1"
        dense, summary = (np.array([getattr(pair, side) for pair in self.pairs]) for side in ("dense", "summary"))
        self._positives = (dense[:, None] == dense) | (summary[:, None] == summary)  # (N, N)

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,  # noqa: ARG002
        epoch: float = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """Measure; called by the trainer.

        Returns:
            ``summary_to_dense_R@k`` and ``dense_to_summary_R@k`` for k in `CUTS`.
        """
        encoder = cast("VideoEncoder", model)

        def embed(texts: list[str], **kwargs: Any) -> NDArray[Any]:
            vectors: NDArray[Any] = encoder.encode(
                [{"text": text} for text in texts], batch_size=self.batch_size, show_progress_bar=False, **kwargs
            )
            return vectors

        dense = embed([pair.dense for pair in self.pairs], processing_kwargs=stand_in_kwargs(encoder))  # (N, D)
        summary = embed([pair.summary for pair in self.pairs])  # (N, D)
        scores = summary @ dense.T  # (N, N)
        recalls = {
            "summary_to_dense": pair_recalls(scores, self._positives),
            "dense_to_summary": pair_recalls(scores.T, self._positives.T),
        }
        return {f"{way}_{name}": value for way, found in recalls.items() for name, value in found.items()}
