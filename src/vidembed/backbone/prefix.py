"""One prefill of a video, shared by every sentence that is asked of it, since their prompts begin alike.

Sentences are packed into one row: a mask keeps each to the prefix and to itself, its positions are those it has alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from vidembed.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    from vidembed.backbone.architectures import Parts
    from vidembed.backbone.load import Features

# suffix tokens per pass: longer rows spend their time on masked attention, shorter ones on calls (measured on CPU)
PACKED_TOKENS = 512
MASKED_ATTENTION = ("sdpa", "eager")  # attention that takes a mask of its own form; flash attention does not
VISUAL = "visual."
_PIXELS = "pixel_values_videos"
_TOKENS = VISUAL + "tokens"  # (V, D)
_DEEPSTACK = VISUAL + "deepstack."  # one (V, D) per level, Qwen3-VL only
_BOOKKEEPING = ("modality", "num_images_per_sample", "num_videos_per_sample", "logits_to_keep")
_PER_TOKEN = ("input_ids", "mm_token_type_ids", "token_type_ids")


@torch.inference_mode()
def encode_visual(parts: Parts, features: Features) -> Features:
    """Run the vision tower on the one video of a prompt, and put the visual tokens in the place of the pixels."""
    encode: Any = parts.base.get_video_features
    grids = {name: features[name] for name in inspect.signature(encode).parameters if name in features}
    output = encode(**grids, return_dict=True)
    kept = {name: value for name, value in features.items() if name != _PIXELS}
    kept[_TOKENS] = torch.cat(list(output.pooler_output))  # (V, D), before token compression
    for level, tokens in enumerate(getattr(output, "deepstack_features", None) or ()):
        kept[f"{_DEEPSTACK}{level}"] = torch.cat(list(tokens))  # (V, D)
    return kept


def model_inputs(features: Features) -> Features:
    """Keyword arguments of the base model: without bookkeeping, and visual tokens as it takes them."""
    names = [name for name in features if name not in _BOOKKEEPING and not name.startswith(VISUAL)]
    inputs = {name: features[name] for name in names}
    if _TOKENS in features:
        levels = sorted((name for name in features if name.startswith(_DEEPSTACK)), key=lambda name: (len(name), name))
        deepstack = [(features[name],) for name in levels]
        output = SimpleNamespace(pooler_output=(features[_TOKENS],), deepstack_features=deepstack)
        inputs["mm_encoder_outputs"] = {"video": output}
    return inputs


@dataclass(frozen=True)
class VideoPrefix:
    """The prefilled beginning of every prompt about one video."""

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]  # per decoder block, (1, H_kv, P, D_head) each
    tokens: int  # number of prefix tokens P
    next_position: int  # of the first token after the prefix; neither P nor the largest position + 1
    hidden: torch.Tensor  # output of the base model at the last prefix position (D,)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(tensor.nbytes for pair in self.keys_values for tensor in pair)


def can_share_prefix(parts: Parts) -> bool:
    """Whether the model's attention takes the packed mask."""
    return getattr(parts.base.config, "_attn_implementation", None) in MASKED_ATTENTION


def prefix_length(input_ids: torch.Tensor, media_token_ids: Sequence[int]) -> int:
    """Tokens of a prompt (1, S) up to and including the last of the media ids; ValueError if it holds none."""
    is_media = torch.isin(input_ids[0], torch.tensor(list(media_token_ids), device=input_ids.device))  # (S,)
    if not bool(is_media.any()):
        raise ValueError("the prompt holds no visual token, so there is no prefix to share")
    return int(is_media.nonzero()[-1]) + 1


@torch.inference_mode()
def prefill(parts: Parts, features: Features) -> VideoPrefix:
    """Run the beginning of a prompt up to its last visual token, and keep its keys and values.

    `features` are those of one whole prompt, suffix included, since positions depend on the whole.
    """
    config: Any = parts.base.config  # of a class of its own in each architecture
    length = prefix_length(features["input_ids"], (config.video_token_id, config.image_token_id))
    positions = _positions(parts, features)  # (3, 1, S) or None
    inputs = model_inputs(features)
    inputs.pop("attention_mask", None)
    inputs |= {key: inputs[key][:, :length] for key in _PER_TOKEN if key in inputs}
    if positions is not None:
        inputs["position_ids"] = positions[:, :, :length]
    cache = DynamicCache(config=config)
    output = parts.base(**inputs, **_as_argument(parts.base, cache), use_cache=True)
    layers: Any = cache.layers  # of a class with keys and values in all supported architectures
    keys_values = [(layer.keys, layer.values) for layer in layers if layer.keys is not None]
    next_position = length if positions is None else int(positions[0, 0, length])
    # a copy, since a view would keep all P positions alive
    return VideoPrefix(keys_values, length, next_position, output.last_hidden_state[0, -1].clone())


def no_prefix(parts: Parts) -> VideoPrefix:
    """An empty prefix: `read_suffixes` then reads whole prompts without a video."""
    text: Any = parts.base.config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    like = torch.empty(text.hidden_size, dtype=parts.decoder.dtype, device=parts.decoder.device)  # (D,)
    empty = like.new_empty((1, text.num_key_value_heads, 0, head_dim))  # (1, H_kv, 0, D_head)
    return VideoPrefix([(empty, empty)] * parts.depth, 0, 0, like)


def _as_argument(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The argument that takes a cache: transformers 5.24 renamed it, and warns of the old name."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def _positions(parts: Parts, features: Features) -> torch.Tensor | None:
    """Position ids of a whole prompt as the model itself gives them (3, 1, S); None where they are a plain range."""
    if parts.architecture.position_dims == 1:
        return None
    rope: Any = parts.base.get_rope_index
    wanted = {key: features[key] for key in inspect.signature(rope).parameters if key in features}
    positions: torch.Tensor = rope(**wanted)[0]
    return positions


def packs(lengths: Sequence[int], max_tokens: int = PACKED_TOKENS) -> Iterator[range]:
    """Split suffixes into consecutive packs of at most `max_tokens` tokens, at least one suffix each."""
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and total + length > max_tokens:
            yield range(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield range(start, len(lengths))


@torch.inference_mode()
def read_suffixes(
    parts: Parts, prefix: VideoPrefix, suffixes: Sequence[Sequence[int]], *, max_tokens: int = PACKED_TOKENS
) -> torch.Tensor:
    """Hidden state (N, D) of the last token of each prompt that begins with `prefix`, after the final norm.

    `suffixes` are the token ids after the prefix, one non-empty list per prompt; `max_tokens` of them go in one pass.
    UnsupportedBackboneError if the attention implementation takes no mask of its own.
    """
    if not can_share_prefix(parts):
        found = getattr(parts.base.config, "_attn_implementation", None)
        raise UnsupportedBackboneError(
            f"attn_implementation={found!r} cannot keep packed sentences apart. Load the model "
            f"with one of {MASKED_ATTENTION}, or score pairs one by one with shared_prefix=False."
        )
    parted = packs([len(suffix) for suffix in suffixes], max_tokens)
    return torch.cat([_read_pack(parts, prefix, [suffixes[index] for index in pack]) for pack in parted])


def _read_pack(parts: Parts, prefix: VideoPrefix, suffixes: list[Sequence[int]]) -> torch.Tensor:
    device = prefix.hidden.device
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=device)  # (N,)
    ids = torch.tensor([token for suffix in suffixes for token in suffix], device=device)[None]  # (1, T)
    total = ids.shape[1]
    segment = torch.repeat_interleave(torch.arange(len(suffixes), device=device), lengths)  # (T,)
    starts = torch.cumsum(lengths, 0) - lengths  # (N,)
    within = torch.arange(total, device=device) - starts[segment]  # (T,)

    own = (segment[:, None] == segment[None]) & (within[:, None] >= within[None])  # (T, T)
    mask = torch.cat([torch.ones(total, prefix.tokens, dtype=torch.bool, device=device), own], dim=1)[None, None]
    embeddings = parts.decoder.get_input_embeddings()(ids)  # (1, T, D)
    # as what is added to the logits: eager attention takes no other, and sdpa would convert it in every block
    mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, torch.finfo(embeddings.dtype).min)
    positions = (prefix.next_position + within)[None]  # (1, T)
    if parts.architecture.position_dims > 1:
        positions = positions[None].expand(parts.architecture.position_dims, -1, -1)  # (3, 1, T)
    cache = Cache(layers=[_FrozenLayer(keys, values) for keys, values in prefix.keys_values])
    inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}
    output = parts.decoder(**inputs, **_as_argument(parts.decoder, cache), use_cache=True)
    last: torch.Tensor = output.last_hidden_state[0, starts + lengths - 1]  # (N, D)
    return last


class _FrozenLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that shows the prefix before new keys and values, and stores neither."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None  # noqa: S101, PT018 - set in the constructor
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@torch.inference_mode()
def logits_of(parts: Parts, hidden: torch.Tensor) -> torch.Tensor:
    """Language model logits in float32 (N, V) of hidden states (N, D), for these rows alone.

    video_llama_3 ignores ``logits_to_keep`` and would compute them at every position.
    """
    assert parts.head is not None  # noqa: S101 - the reranker refuses a model without it
    logits: torch.Tensor = parts.head(hidden)
    return logits.float()
