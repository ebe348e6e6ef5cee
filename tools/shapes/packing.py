"""Several answers about one clip in one row: a tree of segments, with the attention mask and positions it implies.

A clip's frames are read once, and every instruction about it continues from there without seeing the others. A segment
sees itself and its ancestors. An *isolated* segment sees itself and only the last token of its parent: an answer so
isolated has to be generated from the states of the last prompt token alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens.

    Attributes:
        tokens: Token ids.
        parent: Index of the segment it continues, -1 for the first.
        weights: Weight of the loss on each token, predicted from the token before it; empty for none.
        isolated: Whether it sees only the last token of its parent.
        grid: (time, height, width) of the visual tokens among ``tokens``, None without.
        vision_start: Index of the first visual token.
    """

    tokens: list[int]
    parent: int = -1
    weights: list[float] = field(default_factory=list)
    isolated: bool = False
    grid: tuple[int, int, int] | None = None
    vision_start: int = 0


Row = list[Segment]


@dataclass(slots=True)
class Packed:
    """A batch of rows; B rows padded on the right to L tokens, N weighted targets in all.

    Attributes:
        input_ids: (B, L) int64.
        position_ids: (3, B, L) int64: time, height, width.
        visible: (B, 1, L, L) bool, True where a query (row) may attend to a key (column).
        rows: (N,) int64, the row of each target.
        predictors: (N,) int64, the index of the token that predicts it.
        targets: (N,) int64, the token to predict.
        weights: (N,) float32.
        last: (B,) int64, the last token of each row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    rows: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    last: torch.Tensor

    def to(self, device: torch.device) -> Packed:
        """The same batch on another device."""
        return Packed(*(getattr(self, name).to(device) for name in self.__slots__))


def _positions(segment: Segment, start: int, tokens_per_grid: int) -> tuple[NDArray[np.int64], int]:
    """Positions (3, n) of a segment that starts at ``start``, and the position that follows it.

    As ``Qwen2_5_VLModel.get_rope_index`` has it: text after a clip resumes at its start plus its larger spatial side.
    """
    n = len(segment.tokens)
    if segment.grid is None:
        return np.broadcast_to(np.arange(start, start + n), (3, n)), start + n
    t, h, w = segment.grid
    first = start + segment.vision_start
    visual = np.stack(np.meshgrid(np.arange(t) * tokens_per_grid, np.arange(h), np.arange(w), indexing="ij"))
    before = np.broadcast_to(np.arange(start, first), (3, segment.vision_start))
    resume = first + max(h, w)
    after = n - segment.vision_start - t * h * w
    rest = np.broadcast_to(np.arange(resume, resume + after), (3, after))
    return np.concatenate([before, visual.reshape(3, -1) + first, rest], axis=1), resume + after


def pack(rows: list[Row], *, pad: int, tokens_per_grid: int) -> Packed:
    """Lays rows out as one batch.

    Args:
        rows: At least one row of segments, parents before children.
        pad: Token id of the padding.
        tokens_per_grid: Temporal positions between two visual time steps (``tokens_per_second`` x seconds per step).

    Returns:
        The batch.
    """
    length = max(sum(len(s.tokens) for s in row) for row in rows)
    ids = np.full((len(rows), length), pad, np.int64)
    positions = np.zeros((3, len(rows), length), np.int64)
    visible = np.zeros((len(rows), length, length), bool)
    visible[:, np.arange(length), np.arange(length)] = True  # padding too: a row of the softmax must not be empty
    causal = np.tri(length, dtype=bool)
    found: list[tuple[int, int, int, float]] = []
    for b, row in enumerate(rows):
        spans: list[tuple[int, int]] = []
        nexts: list[int] = []
        offset = 0
        for segment in row:
            start, end = offset, offset + len(segment.tokens)
            parent = segment.parent
            ids[b, start:end] = segment.tokens
            laid, following = _positions(segment, nexts[parent] if parent >= 0 else 0, tokens_per_grid)
            positions[:, b, start:end] = laid
            visible[b, start:end, start:end] = causal[: end - start, : end - start]
            if segment.isolated and parent >= 0:
                visible[b, start:end, spans[parent][1] - 1] = True
            else:
                ancestor = parent
                while ancestor >= 0:
                    visible[b, start:end, slice(*spans[ancestor])] = True
                    ancestor = row[ancestor].parent
            before = spans[parent][1] - 1 if parent >= 0 else start
            for i, weight in enumerate(segment.weights):
                if weight:
                    found.append((b, before if i == 0 else start + i - 1, segment.tokens[i], weight))
            spans.append((start, end))
            nexts.append(following)
            offset = end
    lengths = [sum(len(s.tokens) for s in row) for row in rows]
    return Packed(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        visible=torch.from_numpy(visible)[:, None],
        rows=torch.tensor([f[0] for f in found], dtype=torch.long),
        predictors=torch.tensor([f[1] for f in found], dtype=torch.long),
        targets=torch.tensor([f[2] for f in found], dtype=torch.long),
        weights=torch.tensor([f[3] for f in found], dtype=torch.float32),
        last=torch.tensor(lengths, dtype=torch.long) - 1,
    )
