"""The dual-softmax loss on pairs of texts, plain and with cached gradients.

Source: CAMoE, arXiv 2109.04290 ("DSL"), which VidVec trains with (arXiv 2602.08099, sections 3.4 and 3.5). For B pairs
let C be the (B, B) matrix of cosines, row i a dense caption and column j a summary, S = C / temperature, and
P = C / prior temperature. Then::

    captions to summaries   logits[i, j] = S[i, j] * B * softmax of P[:, j] over the captions
    summaries to captions   logits[i, j] = S[i, j] * B * softmax of P[i, :] over the summaries

and the loss is the cross-entropy of the diagonal along the rows of the first and the columns of the second, averaged.
The factor says how much the other direction agrees; a uniform one is 1, which leaves plain symmetric InfoNCE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import torch
from sentence_transformers.base.losses import CachedLossMixin
from torch import Tensor, nn

from vidembed.backbone.load import Features

TEMPERATURE: Final = 0.05  # ours: the paper is silent. It is 1 / 20, the scale of sentence-transformers' ranking losses
# ours: the softmax of the factor is over plain cosines. With P = S it is so sharp that a pair found in one direction
# satisfies the loss of the other too: in the embedded world the loss fell to a twentieth, and captions found clips less
# often than before (``python -m tools.shapes.align --prior-temperature 0.05``; docs/training.md). Code in use for this
# loss often has 1000 times the temperature here, which leaves next to nothing of the factor
PRIOR_TEMPERATURE: Final = 1.0
# texts embedded at once with cached gradients (ours): it bounds memory and changes no gradient
MINI_BATCH_SIZE: Final = 16


def dual_softmax_loss(scores: Tensor, same: Tensor | None = None, *, prior: Tensor | None = None) -> Tensor:
    """The loss of a matrix of scores, a scalar.

    Args:
        scores: (B, B) cosines over the temperature; the diagonal holds the pairs.
        same: (B, B) booleans: off-diagonal entries that are no negatives, because the texts are the same. They take
            no part in any softmax, and the factor B is the number of entries that do. Default: none.
        prior: (B, B) cosines over the prior temperature. Default: the scores.

    Raises:
        ValueError: `scores` is not square, or `same` has another shape or a True on its diagonal.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores: expected a square matrix with the pairs on its diagonal, got {tuple(scores.shape)}.")
    if same is None:
        same = torch.zeros_like(scores, dtype=torch.bool)  # (B, B)
    if same.shape != scores.shape or bool(same.diagonal().any()):
        raise ValueError(
            f"same: expected booleans of shape {tuple(scores.shape)} with a diagonal of False, got "
            f"{tuple(same.shape)} with {int(same.diagonal().sum())} of the diagonal True."
        )
    masked = (scores if prior is None else prior).masked_fill(same, -torch.inf)  # (B, B)
    losses = []
    for direction, other in ((1, 0), (0, 1)):
        factor = masked.softmax(other) * (~same).sum(other, keepdim=True)  # (B, B)
        logits = (scores * factor).masked_fill(same, -torch.inf)  # (B, B)
        losses.append(-logits.log_softmax(direction).diagonal().mean())
    return (losses[0] + losses[1]) / 2


def row_keys(feature: Features) -> Tensor:
    """A number (B,) int64 for each row of a tokenized batch, on the CPU: 8 bytes of a hash, equal for equal tokens."""
    ids, real = feature["input_ids"].cpu(), feature["attention_mask"].cpu().bool()  # (B, S)
    keys = []
    for row, mask in zip(ids, real, strict=True):
        digest = hashlib.blake2b(row[mask].numpy().tobytes(), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little", signed=True))
    return torch.tensor(keys)  # (B,)


def same_texts(keys: Tensor) -> Tensor:
    """Off-diagonal entries (B, B) of a batch whose captions or whose summaries are the same text; `keys` are (2, B)."""
    equal = (keys[:, :, None] == keys[:, None, :]).any(0)  # (B, B)
    return equal.fill_diagonal_(fill_value=False)


class DualSoftmaxLoss(nn.Module):
    """Dual-softmax loss (CAMoE, arXiv 2109.04290) on (dense caption, short summary) pairs; see the module's docstring.

    A batch with the same text twice holds false negatives: the summary of one pair is as right for the other. Such
    entries are left out of every softmax, and counted in `false_negatives`, which the trainer logs and sets to 0.

    Args:
        model: The model that embeds both sides.
        temperature: What cosines are divided by, above 0. Default `TEMPERATURE`.
        prior_temperature: What they are divided by inside the factor, above 0. Default `PRIOR_TEMPERATURE`.
    """

    def __init__(
        self, model: nn.Module, temperature: float = TEMPERATURE, *, prior_temperature: float = PRIOR_TEMPERATURE
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("prior_temperature", prior_temperature)):
            if not value > 0:
                example = TEMPERATURE if name == "temperature" else PRIOR_TEMPERATURE
                raise ValueError(f"{name}={value!r}: expected a number above 0, for example {example}.")
        self.model = model
        self.temperature = temperature
        self.prior_temperature = prior_temperature
        self.false_negatives = 0

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The loss of one batch: the tokenized captions and the tokenized summaries, in this order."""
        features, keys = self._checked(sentence_features)
        dense, summary = (self.model(feature)["sentence_embedding"] for feature in features)
        return self._loss(dense, summary, keys)

    def get_config_dict(self) -> dict[str, float]:
        """The settings, for model cards and logs."""
        return {"temperature": self.temperature, "prior_temperature": self.prior_temperature}

    @staticmethod
    def _checked(sentence_features: Iterable[Features]) -> tuple[list[Features], Tensor]:
        """The features, and the keys of their rows (2, B), taken before a module can change the features."""
        features = list(sentence_features)
        if len(features) != 2:
            raise ValueError(f"sentence_features: expected captions and summaries, got {len(features)} columns.")
        return features, torch.stack([row_keys(feature) for feature in features])

    def _loss(self, dense: Tensor, summary: Tensor, keys: Tensor) -> Tensor:
        same = same_texts(keys).to(dense.device)  # (B, B)
        self.false_negatives += int(same.sum()) // 2
        with torch.autocast(dense.device.type, enabled=False):  # half precision is too coarse for these logits
            a = nn.functional.normalize(dense.float(), dim=-1)  # (B, D)
            b = nn.functional.normalize(summary.float(), dim=-1)  # (B, D)
            cosines = a @ b.T  # (B, B)
            return dual_softmax_loss(cosines / self.temperature, same, prior=cosines / self.prior_temperature)


class CachedDualSoftmaxLoss(CachedLossMixin, DualSoftmaxLoss):
    """`DualSoftmaxLoss` with cached gradients (arXiv 2101.06983): the same gradients, memory of one mini-batch.

    The pattern, and the replay of dropout, are sentence-transformers' own (`CachedLossMixin`). `mini_batch_size` texts
    are embedded at once, by default `MINI_BATCH_SIZE`; `show_progress_bar` shows a bar over the mini-batches of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float = TEMPERATURE,
        *,
        prior_temperature: float = PRIOR_TEMPERATURE,
        mini_batch_size: int = MINI_BATCH_SIZE,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(model, temperature, prior_temperature=prior_temperature)
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={mini_batch_size!r}: expected at least 1 text.")
        self.mini_batch_size = mini_batch_size
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The loss of one batch; as `DualSoftmaxLoss.forward`. ``backward`` embeds the batch a second time."""
        features, keys = self._checked(sentence_features)
        return self.forward_cached(features, keys)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings of each side by mini-batch, (b, D) each; `labels` (2, B) are the keys of the rows."""
        assert labels is not None  # noqa: S101 - `forward` passes the keys
        loss = self._loss(torch.cat(reps[0]), torch.cat(reps[1]), labels)
        if with_backward:
            torch.autograd.backward(loss)
            return loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, float]:
        """The settings, for model cards and logs."""
        return {**super().get_config_dict(), "mini_batch_size": self.mini_batch_size}
