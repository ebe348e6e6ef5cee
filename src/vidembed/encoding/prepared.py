"""One input after decoding and the processor, and the batch that several of them make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")  # each (1, S)
_COUNTS = ("num_images_per_sample", "num_videos_per_sample")  # each (1,)


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the model.

    Attributes:
        index: Position among the inputs of the call.
        name: How the input is named in messages.
        features: What the processor returned for it alone: per-token tensors (1, S) and the visual tensors.
    """

    index: int
    name: str
    features: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Number of prompt tokens S, visual ones included."""
        return int(self.features["input_ids"].shape[1])


def collate(batch: Sequence[Prepared], *, pad_token_id: int) -> dict[str, Any]:
    """Join inputs into one left-padded batch, as the processor would have made it from all of them at once.

    Args:
        batch: Inputs in batch order.
        pad_token_id: Fills ``input_ids``; every other per-token tensor is filled with 0.

    Returns:
        Features for the model: per-token tensors (B, S_max), visual tensors concatenated in batch order.
    """
    width = max(item.tokens for item in batch)
    keys = {key: None for item in batch for key in item.features}  # a set that keeps order
    joined: dict[str, Any] = {}
    for key in keys:
        values = [item.features.get(key) for item in batch]
        if key in _PER_TOKEN:
            fill = pad_token_id if key == "input_ids" else 0
            rows = [
                torch.zeros((1, item.tokens), dtype=torch.long) if value is None else value
                for item, value in zip(batch, values, strict=True)
            ]
            # left padding: the last column is the readout position of every row
            joined[key] = torch.cat(
                [torch.nn.functional.pad(row, (width - row.shape[1], 0), value=fill) for row in rows]
            )  # (B, S_max)
        elif key in _COUNTS:
            joined[key] = torch.cat([torch.zeros(1, dtype=torch.long) if value is None else value for value in values])
        elif key == "modality":
            joined[key] = "message"
        elif key == "logits_to_keep":
            joined[key] = max(value for value in values if value is not None)
        else:
            present = [value for value in values if value is not None]
            if isinstance(present[0], torch.Tensor):
                joined[key] = torch.cat(present)
            else:
                joined[key] = [entry for value in present for entry in value]
    return joined


def split_rows(features: dict[str, Any], indices: Sequence[int], names: Sequence[str]) -> list[Prepared]:
    """Take a padded batch of texts apart into one `Prepared` per row, padding dropped."""
    real = features["attention_mask"].bool()  # (B, S)
    rows = []
    for row, (index, name) in enumerate(zip(indices, names, strict=True)):
        kept = {key: features[key][row][real[row]][None] for key in _PER_TOKEN if key in features}  # (1, S_row)
        rows.append(Prepared(index, name, {**kept, "modality": "message"}))
    return rows
