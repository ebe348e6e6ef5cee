"""One prefill of a video, shared by every sentence that is asked of it, since their prompts begin alike.

Where every block attends to all tokens, sentences are packed into one row: a mask keeps each to the prefix and to
itself, its positions are those it has alone. Elsewhere (sliding windows, linear attention, convolutions) each sentence
gets a copy of the prefix. `vidembed.proof` tries which of both gives a model the outputs of whole prompts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from vidembed.backbone.architectures import shallow
from vidembed.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    from vidembed.backbone.architectures import Parts
    from vidembed.backbone.load import Features

# suffix tokens per pass: longer rows spend their time on masked attention, shorter ones on calls (measured on CPU)
PACKED_TOKENS = 512
COPIED_BYTES = 2**30  # of copies of a prefix at a time: 1 GiB beside the model (ours)
MASKED_ATTENTION = ("sdpa", "eager")  # attention that takes a mask of its own form; flash attention does not
Sharing = Literal["packed", "repeated"]
"""How sentences follow one prefix: in one row, kept apart by a mask, or each after a copy of it."""
VISUAL = "visual."
_PIXELS = "pixel_values_videos"
_TOKENS = VISUAL + "tokens"  # (V, D)
_DEEPSTACK = VISUAL + "deepstack."  # one (V, D) per level, Qwen3-VL only
_BOOKKEEPING = ("modality", "num_images_per_sample", "num_videos_per_sample", "logits_to_keep")
_CACHES = ("cache", "past_key_values", "use_cache")
_MEDIA_IDS = ("video_token_id", "image_token_id", "image_patch_id")  # smolvlm and internvl have one for both


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

    cache: Cache  # of transformers, as the decoder left it after the prefix
    tokens: int  # number of prefix tokens P
    next_position: int  # of the first token after the prefix; neither P nor the largest position + 1
    position_dims: int  # rows of ``position_ids``, 3 or 4 for multimodal RoPE; 0 where they are a plain range
    hidden: torch.Tensor  # output of the base model at the last prefix position (D,)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        held = [value for layer in self.cache.layers for value in vars(layer).values()]
        return sum(value.nbytes for value in held if isinstance(value, torch.Tensor))

    def first(self, blocks: int) -> VideoPrefix:
        """The prefix as a decoder cut after `blocks` blocks makes it; `hidden` stays that of the whole one."""
        cache = copy.copy(self.cache)
        cache.layers = list(self.cache.layers[:blocks])
        return replace(self, cache=cache)


def can_pack(parts: Parts) -> bool:
    """Whether the decoder might take a packed row: each block attends to all tokens, by a mask of our form."""
    text = parts.base.config.get_text_config()
    masked = parts.attention in MASKED_ATTENTION
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=text).layers)
    return masked and plain and not any("per_layer_input" in key and value for key, value in vars(text).items())


def media_token_ids(parts: Parts) -> list[int]:
    """Ids of the tokens that stand for visual tokens in a prompt."""
    found = [getattr(parts.base.config, key, None) for key in _MEDIA_IDS]
    return [token for token in found if token is not None]


def prefix_length(features: Features, media_token_ids: Sequence[int]) -> int:
    """Tokens of one prompt up to and including the last visual one; ValueError if it holds none.

    Where the processor types its tokens, the marks around frames count too: molmo2 lets them attend to each other.
    """
    ids = features["input_ids"]  # (1, S)
    is_media = torch.isin(ids[0], torch.tensor(list(media_token_ids), device=ids.device))  # (S,)
    if "mm_token_type_ids" in features:
        is_media |= features["mm_token_type_ids"][0] != 0
    if not bool(is_media.any()):
        raise ValueError("the prompt has no visual token, so there is no prefix to share")
    return int(is_media.nonzero()[-1]) + 1


class _Output(BaseModelOutputWithPast):
    """Output of a base model of which only the hidden states are known: every other field is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _with_forward(root: nn.Module, path: str, forward: Any) -> nn.Module:
    """A second module tree on the same weights, in which the module at `path` runs `forward`; others see nothing."""
    root = module = shallow(root)
    for name in path.split("."):
        child = shallow(module.get_submodule(name))
        setattr(module, name, child)
        module = child
    module.forward = forward
    return root


def decoder_inputs(parts: Parts, features: Features, cache: Cache) -> dict[str, Any]:
    """What the base model gives to its decoder for a prompt; the decoder does not run.

    Embeddings with the visual tokens in place, positions, masks and whatever else an architecture hands over
    (DeepStack, per-layer inputs) are in it, so that no code here has to know how they are made.
    """
    given: dict[str, Any] = {}

    def record(**inputs: Any) -> _Output:
        given.update(inputs)
        return _Output(last_hidden_state=inputs["inputs_embeds"])

    base = _with_forward(parts.base, parts.decoder_name, record)
    base(**model_inputs(features), **as_argument(parts.base, cache), use_cache=True)
    if not given:
        raise UnsupportedBackboneError(f"{type(parts.base).__name__} does not call its decoder {parts.decoder_name}.")
    return given


def _beginning(key: str, value: Any, length: int, whole: int) -> Any:
    """An argument of the decoder for the first `length` of `whole` positions."""
    if isinstance(value, dict):
        return {name: _beginning(name, entry, length, whole) for name, entry in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if key == "position_ids":
        return value[..., :length]
    if value.ndim == 4 and value.shape[-2:] == (whole, whole):  # a mask (1, 1, S, S)
        return value[..., :length, :length]
    return value[:, :length] if value.shape[:2] == (1, whole) else value


@torch.inference_mode()
def prefill(parts: Parts, features: Features) -> VideoPrefix:
    """Run the beginning of a prompt up to its last visual token, and keep its cache.

    `features` are those of one whole prompt, suffix included, since positions depend on the whole.
    """
    length, whole = prefix_length(features, media_token_ids(parts)), int(features["input_ids"].shape[1])
    cache = DynamicCache(config=parts.base.config)
    given = decoder_inputs(parts, {key: value for key, value in features.items() if key != "attention_mask"}, cache)
    positions = given.get("position_ids")  # (1, S), or (3, 1, S) of multimodal RoPE
    inputs = {key: _beginning(key, value, length, whole) for key, value in given.items() if key not in _CACHES}
    output = parts.decoder(**inputs, **as_argument(parts.decoder, cache), use_cache=True)
    next_position = length if positions is None else int(positions.reshape(-1, whole)[-1, length])
    dims = len(positions) if positions is not None and positions.ndim == 3 else 0
    # a copy, since a view would keep all P positions alive
    return VideoPrefix(cache, length, next_position, dims, output.last_hidden_state[0, -1].clone())


def no_prefix(parts: Parts) -> VideoPrefix:
    """An empty prefix: `read_suffixes` then reads whole prompts without a video."""
    hidden = torch.empty(0, dtype=parts.decoder.dtype, device=parts.decoder.device)
    return VideoPrefix(DynamicCache(config=parts.base.config), 0, 0, 0, hidden)


def as_argument(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The argument that takes a cache: transformers 5.24 renamed it, and warns of the old name."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


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
    parts: Parts,
    prefix: VideoPrefix,
    suffixes: Sequence[Sequence[int]],
    sharing: Sharing,
    *,
    max_tokens: int = PACKED_TOKENS,
) -> torch.Tensor:
    """Hidden state (N, D) of the last token of each prompt that begins with `prefix`, after the final norm.

    `suffixes` are the token ids after the prefix, one non-empty list per prompt; `max_tokens` of them go in one pass,
    and repeated prefixes of at most `COPIED_BYTES`.
    """
    read = _read_pack if sharing == "packed" else _read_copies
    copies = max(1, COPIED_BYTES // max(1, prefix.nbytes)) if sharing == "repeated" else len(suffixes)
    parted = packs([len(suffix) for suffix in suffixes], max_tokens)
    passes = [pack[first : first + copies] for pack in parted for first in range(0, len(pack), copies)]
    return torch.cat([read(parts, prefix, [suffixes[index] for index in one]) for one in passes])


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
    inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": _of_dims(positions, prefix)}
    if prefix.tokens:
        layers: Any = prefix.cache.layers  # with keys and values, where rows can be packed
        cache = Cache(layers=[_FrozenLayer(layer.keys, layer.values) for layer in layers])
        inputs |= {**as_argument(parts.decoder, cache), "use_cache": True}
    output = parts.decoder(**inputs)
    last: torch.Tensor = output.last_hidden_state[0, starts + lengths - 1]  # (N, D)
    return last


def _of_dims(positions: torch.Tensor, prefix: VideoPrefix) -> torch.Tensor:
    """Positions of text (N, T) as the decoder takes them: (3, N, T) for multimodal RoPE."""
    return positions[None].expand(prefix.position_dims, -1, -1) if prefix.position_dims else positions


def _read_copies(parts: Parts, prefix: VideoPrefix, suffixes: list[Sequence[int]]) -> torch.Tensor:
    """Each suffix after a copy of the cache. Padding is on the right: what follows a token does not change it."""
    device = prefix.hidden.device
    lengths = [len(suffix) for suffix in suffixes]
    rows = [[*suffix, *[suffix[-1]] * (max(lengths) - len(suffix))] for suffix in suffixes]
    positions = (prefix.next_position + torch.arange(max(lengths), device=device)).expand(len(rows), -1)  # (N, T)
    cache = copy.deepcopy(prefix.cache)
    if prefix.tokens:
        first = torch.zeros(len(rows), dtype=torch.long, device=device)
        cache.reorder_cache(cast("torch.LongTensor", first))
    inputs = {"input_ids": torch.tensor(rows, device=device), "position_ids": _of_dims(positions, prefix)}
    hidden = parts.decoder(**inputs, **as_argument(parts.decoder, cache), use_cache=True).last_hidden_state
    ends = torch.tensor(lengths, device=device) - 1  # (N,)
    last: torch.Tensor = hidden[torch.arange(len(rows), device=device), ends]  # (N, D)
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

    By the model's own forward pass after its base model, since some scale or cap what the head gives.
    """
    known = _Output(last_hidden_state=hidden[None])  # (1, N, D)
    model = _with_forward(parts.model, parts.model.base_model_prefix, lambda *_args, **_kwargs: known)
    ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
    logits: torch.Tensor = model(input_ids=ids).logits[0]
    return logits.float()
