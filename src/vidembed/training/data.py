"""Batches of pairs: each side in its prompt. A dense caption stands in for a video and takes the video's prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from vidembed.backbone.load import Features
from vidembed.backbone.templates import stand_in_template
from vidembed.captions import TextPair
from vidembed.encoder import VideoEncoder
from vidembed.errors import PairsError
from vidembed.pipeline import max_positions

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

logger = logging.getLogger(__name__)

TooLong = Literal["raise", "drop"]

_AT_ONCE = 256  # texts tokenized per call when lengths are counted


def stand_in_kwargs(encoder: BaseModel) -> ProcessingKwargs:
    """The ``processing_kwargs`` of `encode` and `preprocess` under which a text takes the video's prompt.

    The paper is silent on which prompt each side gets. Ours: the dense caption, which stands for the video, gets the
    video's with the caption where the video would be; the summary gets the text's. The template is passed per call, so
    the checkpoint keeps its own.

    Raises:
        TemplateError: The chat template of the encoder is none of vidembed's.
    """
    return {"chat_template": {"chat_template": stand_in_template(str(encoder.processor.chat_template))}}


def tokenize(
    preprocess: Callable[..., Features], texts: Sequence[str], kwargs: ProcessingKwargs | None = None
) -> Features:
    """Tokenize texts in their prompts, padded on the right and never cut.

    Padding on the right is what sentence-transformers' gradient caching can trim from a mini-batch; the pooling finds
    the last real token on either side.

    Args:
        preprocess: `VideoEncoder.preprocess`.
        texts: Words, whatever they look like.
        kwargs: `stand_in_kwargs` for captions, nothing for summaries.
    """
    options = {**(kwargs or {}), "text": {"padding_side": "right", "truncation": False}}
    return preprocess([{"text": text} for text in texts], processing_kwargs=options)


@dataclass
class PairCollator(SentenceTransformerDataCollator):
    """Makes a batch of pairs: the columns ``dense`` and ``summary``, each in its prompt.

    Attributes:
        stand_in: `stand_in_kwargs` of the encoder.
    """

    stand_in: ProcessingKwargs | None = None

    def __call__(self, features: list[dict[str, str]]) -> Features:
        """Tokenize both sides of some rows."""
        batch: Features = {}
        for column, kwargs in (("dense", self.stand_in), ("summary", None)):
            tokens = tokenize(self.preprocess_fn, [row[column] for row in features], kwargs)
            batch |= {f"{column}_{key}": value for key, value in tokens.items()}
        return batch


def context_length(encoder: VideoEncoder) -> int:
    """Most tokens that the model takes: what its configuration or its tokenizer allows, whichever is less."""
    return min(limit for limit in (max_positions(encoder.config), encoder.max_seq_length) if limit)


def fit_context(
    encoder: VideoEncoder, pairs: Sequence[TextPair], *, max_tokens: int | None = None, too_long: TooLong = "raise"
) -> list[TextPair]:
    """Check that each pair fits, prompt included. No text is ever cut.

    Args:
        encoder: Of the prompts and the tokenizer.
        pairs: Of texts.
        max_tokens: Most tokens a side may have. Default `context_length`.
        too_long: "raise" raises at the first pair that is longer. "drop" leaves such pairs out and logs how many.

    Returns:
        The pairs that fit, in order.

    Raises:
        PairsError: A pair is too long and `too_long` is "raise", or none fits.
        ValueError: An argument is out of range.
    """
    context = context_length(encoder)
    limit = context if max_tokens is None else max_tokens
    if not 1 <= limit <= context:
        raise ValueError(f"max_tokens={max_tokens!r}: the model takes 1..{context} tokens.")
    if too_long not in ("raise", "drop"):
        raise ValueError(f"too_long={too_long!r} is not known. Allowed: 'raise', 'drop'.")
    stand_in = stand_in_kwargs(encoder)
    kept: list[TextPair] = []
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        dense = tokenize(encoder.preprocess, [pair.dense for pair in part], stand_in)["attention_mask"].sum(1)  # (b,)
        summary = tokenize(encoder.preprocess, [pair.summary for pair in part])["attention_mask"].sum(1)  # (b,)
        for index, (pair, tokens) in enumerate(zip(part, dense.maximum(summary).tolist(), strict=True)):
            if tokens <= limit:
                kept.append(pair)
            elif too_long == "raise":
                raise PairsError(
                    f"pairs[{start + index}] takes {tokens} tokens with its prompt, over max_tokens={limit} (the model "
                    f"takes {context}): {pair.dense[:60]!r}... Shorten it, or pass too_long='drop' to leave such pairs "
                    "out."
                )
    if len(kept) < len(pairs):
        logger.warning("left out %d of %d pairs of more than %d tokens", len(pairs) - len(kept), len(pairs), limit)
    if not kept:
        raise PairsError(f"no pair of {len(pairs)} fits into {limit} tokens.")
    return kept
