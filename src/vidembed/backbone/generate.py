"""Generation after prefilled videos: several prompts, of one or more videos, are continued in one batch.

The plain way is the host's ``model.generate`` on whole prompts. Here each prompt starts from a copy of the prefix that
embedding and head use too, so that a video is read once for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import DynamicCache

from vidembed.backbone.prefix import Sharing, VideoPrefix, as_argument, logits_of

if TYPE_CHECKING:
    from transformers import Cache

    from vidembed.backbone.architectures import Parts

Choose: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""Chooses the next token (R,) of each row by logits in float32 (R, V), and by how many tokens each row has so far."""


def greedy(logits: torch.Tensor, _step: int) -> torch.Tensor:
    """The likeliest token of each row (R,)."""
    return logits.argmax(dim=-1)


def sampled(temperature: float, seed: int) -> Choose:
    """Draw tokens by the softmax of logits over `temperature`.

    A step has one random number, of the seed, for all rows: a text does not depend on what else is in its batch.
    """
    source = torch.Generator().manual_seed(seed)
    drawn: list[float] = []  # by step

    def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
        while len(drawn) <= step:
            drawn.append(torch.rand((), generator=source).item())
        upto = torch.softmax(logits.double().cpu() / temperature, dim=-1).cumsum(dim=-1)  # (R, V)
        return torch.searchsorted(upto, drawn[step] * upto[:, -1:], right=True)[:, 0]

    return choose


@dataclass
class Generated:
    """The continuation of one prompt."""

    tokens: list[int] = field(default_factory=list)  # without the one that ended it
    is_finished: bool = False  # whether a stop token came; if not, the limit did


@dataclass
class _Row:
    """A prompt that is being continued."""

    found: Generated
    length: int  # tokens in the cache
    position: int  # of the next token


@dataclass
class _Rows:
    """Prompts that run in one pass, and their cache, padded on the left."""

    rows: list[_Row]
    cache: Cache
    position_dims: int  # as `VideoPrefix`
    hidden: torch.Tensor  # of the last token of each (R, D)


@torch.inference_mode()
def generate(
    parts: Parts,
    prompts: Sequence[tuple[VideoPrefix, Sequence[Sequence[int]]]],
    *,
    stop: Collection[int],
    max_new_tokens: int,
    sharing: Sharing,
    choose: Choose = greedy,
) -> list[list[Generated]]:
    """Continue prompts that begin with prefixes.

    Args:
        parts: Of the full model.
        prompts: For each video its prefix, and the token ids after it of each prompt (non-empty lists).
        stop: Token ids that end a continuation.
        max_new_tokens: Most tokens of a continuation, at least 1.
        sharing: How prompts share a prefix in this model. Where they can be packed, prompts of all videos run together;
            elsewhere (sliding windows, linear attention) each runs by itself.
        choose: Chooses the next tokens.

    Returns:
        Continuations, by video and prompt.
    """
    started = [_start(parts, prefix, suffix) for prefix, suffixes in prompts for suffix in suffixes]
    together = [_joined(started)] if started and sharing == "packed" else started
    for batch in together:
        _continue(parts, batch, frozenset(stop), max_new_tokens, choose)
    found = iter(row.found for batch in together for row in batch.rows)
    return [[next(found) for _ in suffixes] for _, suffixes in prompts]


def _start(parts: Parts, prefix: VideoPrefix, suffix: Sequence[int]) -> _Rows:
    """Read what follows the prefix in one prompt."""
    device = prefix.hidden.device
    cache = copy.deepcopy(prefix.cache)
    positions = prefix.next_position + torch.arange(len(suffix), device=device)[None]  # (1, S)
    hidden = _pass(parts, torch.tensor([suffix], device=device), positions, cache, prefix.position_dims)
    row = _Row(Generated(), prefix.tokens + len(suffix), prefix.next_position + len(suffix))
    return _Rows([row], cache, prefix.position_dims, hidden)


def _joined(started: list[_Rows]) -> _Rows:
    """One batch of several prompts: keys and values are padded on the left to the longest."""
    width = max(row.length for one in started for row in one.rows)
    cache = DynamicCache()
    for number in range(len(started[0].cache.layers)):
        layers: list[Any] = [one.cache.layers[number] for one in started]
        keys, values = (
            torch.cat([_padded(getattr(layer, name), width) for layer in layers]) for name in ("keys", "values")
        )  # (R, H, L, D)
        cache.update(keys, values, number)
    rows = [row for one in started for row in one.rows]
    return _Rows(rows, cache, started[0].position_dims, torch.cat([one.hidden for one in started]))


def _padded(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))


@torch.inference_mode()
def generate_plainly(
    parts: Parts,
    read: Callable[[list[int]], torch.Tensor],
    suffix: Sequence[int],
    *,
    stop: Collection[int],
    max_new_tokens: int,
    choose: Choose = greedy,
) -> Generated:
    """Continue one prompt by a whole pass for each token: slow, for models whose prompts can share no prefix.

    `read` gives the hidden state (1, D) of the last token of a prompt, by the token ids after its video.
    """
    found = Generated()
    while len(found.tokens) < max_new_tokens:
        token = int(choose(logits_of(parts, read([*suffix, *found.tokens])), len(found.tokens))[0])
        if token in stop:
            found.is_finished = True
            break
        found.tokens.append(token)
    return found


def _continue(parts: Parts, batch: _Rows, stop: frozenset[int], limit: int, choose: Choose) -> None:
    """Continue a batch until each row has ended; rows that have leave it."""
    rows, hidden = batch.rows, batch.hidden
    device = hidden.device
    for step in range(limit):
        tokens = choose(logits_of(parts, hidden), step).tolist()
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.found.is_finished = token in stop
            if not row.found.is_finished:
                row.found.tokens.append(token)
                going.append(place)
        going = [place for place in going if len(rows[place].found.tokens) < limit]
        if not going:
            return
        if len(going) < len(rows):
            batch.cache.batch_select_indices(torch.tensor(going, device=device))
            rows = [rows[place] for place in going]
        ids = torch.tensor([[row.found.tokens[-1]] for row in rows], device=device)  # (R, 1)
        positions = torch.tensor([[row.position] for row in rows], device=device)  # (R, 1)
        for row in rows:
            row.length, row.position = row.length + 1, row.position + 1
        lengths = torch.tensor([row.length for row in rows], device=device)
        width = batch.cache.get_seq_length() + 1
        is_padded = bool((lengths < width).any())
        at = torch.arange(width, device=device)
        mask = (at[None] >= width - lengths[:, None]).long() if is_padded else None  # (R, L)
        hidden = _pass(parts, ids, positions, batch.cache, batch.position_dims, mask)


def _pass(
    parts: Parts,
    ids: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
    position_dims: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden state (R, D) of the last token of each row, after the final norm; the cache grows."""
    inputs: dict[str, Any] = {"input_ids": ids, **as_argument(parts.decoder, cache), "use_cache": True}
    inputs["position_ids"] = positions[None].expand(position_dims, -1, -1) if position_dims else positions
    if mask is not None:
        inputs["attention_mask"] = mask
    last: torch.Tensor = parts.decoder(**inputs).last_hidden_state[:, -1]
    return last
