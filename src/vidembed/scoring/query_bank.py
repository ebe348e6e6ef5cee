"""Query bank normalization (QB-Norm, arXiv 2112.12777): what dual-softmax does for a batch, for one live query."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidembed.scoring.checks import FORMAT_VERSION, FloatArray, as_array, check_header, matrix, number

_KIND = "query_bank"
# inverse temperature of the inverted softmax (QB-Norm, arXiv 2112.12777, and its published code), for cosines
DEFAULT_BETA = 20.0
# upper bound on the block of bank similarities held at once by `QueryBank.from_embeddings`, in bytes
DEFAULT_BLOCK_BYTES = 64 * 2**20


class QueryBank:
    """The similarities of a bank of queries to a gallery of videos, summed up per video.

    The bank stands in for a batch: a video near to many of its queries, a hub, counts less. It should be queries like
    those to come (the paper: captions of the training set), never the ones that are evaluated. It belongs to one
    gallery in one order: after videos came or went, make it again.

    Args:
        scores: ``(B, N)`` finite similarity of each bank query to each video of the gallery.
        beta: Inverse temperature, above 0, in one over the unit of the scores. Default `DEFAULT_BETA`.

    Attributes:
        size: ``B``, the number of bank queries.
        log_normalizer: ``(N,)`` float64, ``log sum_b exp(beta * scores[b, j])`` of each video.
        activation: ``(N,)`` booleans, whether a video is the top-1 of some bank query; of videos that tie, each is.

    Raises:
        ValueError: `scores` is not a finite ``(B, N)`` matrix, `beta` is not above 0, or their product overflows.
    """

    def __init__(self, scores: ArrayLike, *, beta: float = DEFAULT_BETA) -> None:
        self.beta = number("beta", beta, above_zero=True)
        bank = matrix("scores", scores, rows="B")
        self.size = len(bank)
        self.log_normalizer, self.activation = _summary(bank, self.beta)
        _check_scale(self.log_normalizer, self.beta)

    @classmethod
    def from_embeddings(
        cls,
        queries: ArrayLike,
        videos: ArrayLike,
        *,
        beta: float = DEFAULT_BETA,
        block_bytes: int = DEFAULT_BLOCK_BYTES,
    ) -> QueryBank:
        """Make the bank from embeddings by cosine, a block of at most `block_bytes` of similarities at a time.

        Given are bank queries ``(B, D)`` and the gallery ``(N, D)``, of any length but zero; `beta` as for the class. A
        ValueError if shapes do not fit, or a vector is zero or not finite.
        """
        beta = number("beta", beta, above_zero=True)
        gallery = _unit_rows("videos", matrix("videos", videos, rows="N", columns="D"))  # (N, D)
        bank = matrix("queries", queries, rows="B", columns="D", width=gallery.shape[1])
        bank = _unit_rows("queries", bank)  # (B, D)
        rows = max(1, int(block_bytes) // (8 * len(gallery)))
        log_normalizer = np.full(len(gallery), -np.inf)
        activation = np.zeros(len(gallery), dtype=np.bool_)
        for start in range(0, len(bank), rows):
            block_sum, block_top = _summary(bank[start : start + rows] @ gallery.T, beta)
            log_normalizer = np.logaddexp(log_normalizer, block_sum)
            activation |= block_top
        _check_scale(log_normalizer, beta)
        return cls._of(beta, len(bank), log_normalizer, activation)

    @classmethod
    def _of(cls, beta: float, size: int, log_normalizer: FloatArray, activation: NDArray[np.bool_]) -> QueryBank:
        bank = cls.__new__(cls)
        bank.beta, bank.size, bank.log_normalizer, bank.activation = beta, size, log_normalizer, activation
        return bank

    @property
    def videos(self) -> int:
        """``N``, the number of videos of the gallery."""
        return len(self.log_normalizer)

    def activated(self, scores: ArrayLike, *, columns: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Return for each query ``(Q,)`` whether its top-1 video is in the activation set; as of `normalize`."""
        query, index = self._check(scores, columns)
        return _activated(query, self.activation[index])

    def normalize(self, scores: ArrayLike, *, columns: ArrayLike | None = None, dynamic: bool = True) -> FloatArray:
        """Normalize the scores of live queries to float64 ranking scores of that shape; each row stands for itself.

        The inverted softmax over bank and query, ``p[i, j] = exp(beta * s[i, j]) / (exp(beta * s[i, j]) + sum_b
        exp(beta * bank[b, j]))``, is returned as its natural logarithm, which neither underflows nor ties. With or
        without the query in the sum, a row's ranking is the same.

        The dynamic variant (the paper's, and the default) leaves a row as it is unless its top-1 video is in the
        activation set (`activated`). Such a row holds similarities and the others logarithms: rank within a row only.

        Args:
            scores: ``(Q, N)`` similarities of queries to the gallery, in the bank's order; or ``(Q, K)`` of some
                videos, with ``columns``.
            columns: ``(K,)`` or ``(Q, K)`` integers: the videos that the scores are of, as positions in the gallery.
                They must hold each query's top-1 of the gallery for the dynamic variant to be the paper's.
            dynamic: False normalizes every row.

        Raises:
            ValueError: Shapes do not fit, a score is not finite, or a column is out of range.
        """
        query, index = self._check(scores, columns)
        with np.errstate(over="ignore"):  # refused below
            margin = self.log_normalizer[index] - self.beta * query  # (Q, K), log of bank sum over query term
        if not np.isfinite(margin).all():
            raise ValueError(
                f"scores: beta * score overflows at beta={self.beta}; the bank was made from scores of another scale"
            )
        normalized = -np.logaddexp(0.0, margin)
        if dynamic:
            normalized = np.where(_activated(query, self.activation[index])[:, None], normalized, query)
        return np.asarray(normalized, dtype=np.float64)

    def _check(self, scores: ArrayLike, columns: ArrayLike | None) -> tuple[FloatArray, NDArray[np.intp]]:
        """Scores ``(Q, K)`` and the gallery positions that they are of, ``(1, K)`` or ``(Q, K)``."""
        if columns is None:
            return matrix("scores", scores, width=self.videos), np.arange(self.videos)[None]
        query = matrix("scores", scores, columns="K")
        index = as_array("columns", columns)
        if index.dtype.kind not in "iu" or index.shape not in {query.shape, query.shape[1:]}:
            expected = f"integers of shape {query.shape[1:]} or {query.shape}, as the scores'"
            raise ValueError(f"columns: expected {expected}, got shape {index.shape} of {index.dtype}")
        if index.min() < 0 or index.max() >= self.videos:
            expected = f"positions in the gallery, from 0 to {self.videos - 1}"
            raise ValueError(f"columns: expected {expected}, got values from {index.min()} to {index.max()}")
        return query, np.atleast_2d(index).astype(np.intp)

    def save(self, file: str | Path) -> None:
        """Write the bank to a safetensors file: two values a video, whatever the number of bank queries."""
        header = {"kind": _KIND, "format_version": str(FORMAT_VERSION)}
        metadata = {**header, "beta": self.beta.hex(), "size": str(self.size)}
        save_file({"log_normalizer": self.log_normalizer, "activation": self.activation}, file, metadata=metadata)

    @classmethod
    def load(cls, file: str | Path) -> QueryBank:
        """Read a file that `save` wrote; a ValueError if it is not such a file, or damaged."""
        try:
            with safe_open(file, framework="numpy") as content:
                metadata = content.metadata() or {}
                check_header(_KIND, metadata, file=file)
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise ValueError(f"{file}: not a safetensors file: {error}") from error
        try:
            beta, size = float.fromhex(metadata["beta"]), int(metadata["size"])
            log_normalizer, activation = tensors["log_normalizer"], tensors["activation"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{file}: damaged, {error}; make and save the bank again") from error
        sound = (
            (beta > 0 and np.isfinite(beta) and size >= 1)
            and (log_normalizer.dtype == np.float64 and log_normalizer.ndim == 1 and log_normalizer.size >= 1)
            and (activation.dtype == np.bool_ and activation.shape == log_normalizer.shape)
            and bool(np.isfinite(log_normalizer).all())
        )
        if not sound:
            raise ValueError(f"{file}: damaged: its values are not valid; make and save the bank again")
        return cls._of(beta, size, log_normalizer, activation)


def _summary(bank: FloatArray, beta: float) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Log of the summed exponentials over the bank queries, and the videos that are the top of one of them."""
    with np.errstate(over="ignore", invalid="ignore"):  # _check_scale tells
        scaled = beta * bank  # (B, N)
        greatest = scaled.max(axis=0)  # (N,)
        log_sum = greatest + np.log(np.exp(scaled - greatest).sum(axis=0))
    return log_sum, (bank == bank.max(axis=1, keepdims=True)).any(axis=0)


def _check_scale(log_normalizer: FloatArray, beta: float) -> None:
    if not np.isfinite(log_normalizer).all():
        raise ValueError(f"beta={beta!r}: beta * score overflows; give smaller scores or a smaller beta")


def _activated(query: FloatArray, activation: NDArray[np.bool_]) -> NDArray[np.bool_]:
    top = query == query.max(axis=1, keepdims=True)  # (Q, K)
    return np.asarray((top & activation).any(axis=1))


def _unit_rows(name: str, array: FloatArray) -> FloatArray:
    greatest = np.abs(array).max(axis=1, keepdims=True)  # (rows, 1), divided by first so that no square overflows
    if not greatest.all():
        raise ValueError(f"{name}[{int(np.flatnonzero(greatest[:, 0] == 0)[0])}]: a zero vector has no cosine")
    array = array / greatest
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))
