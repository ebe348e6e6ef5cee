"""Recall of a similarity matrix."""

from __future__ import annotations

import torch


def recalls(similarity: torch.Tensor) -> dict[str, float]:
    """Recall@1, 5 and 10 of a square matrix whose diagonal holds the right pairs.

    Args:
        similarity: (queries, items); ties count against the query.

    Returns:
        ``R@1``, ``R@5`` and ``R@10`` in percent.
    """
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1) - 1
    return {f"R@{k}": round(100.0 * (rank < k).float().mean().item(), 2) for k in (1, 5, 10)}
