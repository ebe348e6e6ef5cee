"""The tokens that mean Yes and No, and the log-odds of Yes that logits give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidembed.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Against = Literal["vocabulary", "no"]


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids of the answers.

    Attributes:
        yes: Ids of the affirmative variants ("Yes", and "yes" if it is one token), the first being that of "Yes".
        no: Likewise of "No".
    """

    yes: tuple[int, ...]
    no: tuple[int, ...]


def answer_tokens(tokenizer: PreTrainedTokenizerBase, *, name: str) -> AnswerTokens:
    """Find the answer tokens of a tokenizer.

    Raises:
        BackboneError: "Yes" or "No" is not a single token, so its probability cannot be read off one position.
    """

    def variants(word: str) -> tuple[int, ...]:
        ids, lower = (tokenizer.encode(form, add_special_tokens=False) for form in (word, word.lower()))
        if len(ids) != 1:
            raise BackboneError(
                f"{name}: {word!r} is {len(ids)} tokens for its tokenizer, and the reranker reads the answer off one "
                "token. Use a model whose tokenizer has it as one."
            )
        return (*ids, *lower) if len(lower) == 1 else tuple(ids)

    return AnswerTokens(variants("Yes"), variants("No"))


def yes_log_odds(logits: torch.Tensor, answers: AnswerTokens, *, against: Against) -> torch.Tensor:
    """Log-odds of Yes; their sigmoid is a probability.

    Args:
        logits: Float32 logits of the first answer token (N, V).
        answers: Token ids.
        against: "vocabulary": the affirmative tokens against all others, whose sigmoid is their share of the softmax
            over the whole vocabulary (VidVec, section 3.3). "no": "Yes" against "No" alone.

    Returns:
        (N,) float32.
    """
    if against == "no":
        return logits[:, answers.yes[0]] - logits[:, answers.no[0]]
    yes = torch.logsumexp(logits[:, list(answers.yes)], dim=1)
    others = logits.clone()
    others[:, list(answers.yes)] = -torch.inf
    return yes - torch.logsumexp(others, dim=1)  # log p - log(1 - p), without the loss of 1 - p
