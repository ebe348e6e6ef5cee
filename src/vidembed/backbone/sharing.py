"""One copy of a model's weights in a process, whoever asks for them, and what keeps its users apart.

A model that is loaded is never run as it is: each user gets modules of its own (`own_modules`), whose parameters are
its own too and lie on the same memory. So a user that is moved, cast, trained or given an adapter leaves the others
alone, and memory is copied at that moment only, for what changes.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

M = TypeVar("M", bound=nn.Module)

_PACKED = "__tensor_flatten__"  # of tensors of torchao, which are made of others
_WRAPPED = "base_layer"  # where an adapter layer of PEFT keeps the layer that it wraps


class Link(NamedTuple):
    """A user's parameter that has the values of one of the loaded model, and its memory unless it was moved."""

    own: nn.Parameter
    loaded: nn.Parameter
    version: int  # of both, when they were linked; an edit in place of either changes it

    @classmethod
    def of(cls, own: nn.Parameter, loaded: nn.Parameter) -> Link:
        """Link two that are equal."""
        return cls(own, loaded, own._version)  # noqa: SLF001 - torch documents it

    @property
    def same_memory(self) -> bool:
        """Whether there is one tensor in memory for both."""
        return self.own.data_ptr() == self.loaded.data_ptr() and self.own.dtype == self.loaded.dtype


Links: TypeAlias = list[Link]

WEIGHT_SAMPLES = 64  # values per tensor: enough to tell any two trained or merged models apart, cheap at 7B parameters

_lock = threading.RLock()
_loaded: WeakValueDictionary[Hashable, PreTrainedModel] = WeakValueDictionary()
_states: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()  # of a loaded model's weights, as they were loaded
_users: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()


def load_once(key: Hashable, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model that was loaded under this key and is still in use with the weights that it had then, else a new one.

    Threads that ask at once wait for the one that loads. Nothing here keeps a model in memory.
    """
    with _lock:
        model = _loaded.get(key)
        if model is None or _state(model) != _states[model]:
            model = load()
            _loaded[key], _states[model] = model, _state(model)
        return model


def _state(model: nn.Module) -> object:
    """What changes with the weights: writes through ``.data`` leave the version, small edits the sampled values."""
    tensors = dict(model.named_parameters())
    plain = {name: tensor for name, tensor in tensors.items() if type(tensor) is nn.Parameter and not tensor.is_meta}
    values = sampled_values(plain)
    # what was loaded in inference mode has no version
    versions = {name: None if tensor.is_inference() else tensor._version for name, tensor in tensors.items()}  # noqa: SLF001
    return [(name, tensor.dtype, versions[name], values.get(name)) for name, tensor in tensors.items()]


@torch.no_grad()
def sampled_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """`WEIGHT_SAMPLES` of each tensor as little-endian float32; one transfer per device, since each would wait."""
    places: dict[tuple[int, torch.device], torch.Tensor] = {}
    picked: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name}: its weights are on the device 'meta' and have no values. Load the weights first."
            )
        key = (tensor.numel(), tensor.device)
        if key not in places:
            count = min(WEIGHT_SAMPLES, tensor.numel())
            places[key] = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long().to(tensor.device)
        picked.setdefault(tensor.device, {})[name] = tensor.reshape(-1)[places[key]].float()  # (<= WEIGHT_SAMPLES,)
    found: dict[str, bytes] = {}
    for parts in picked.values():
        values = torch.cat(list(parts.values())).cpu().numpy().astype("<f4")
        ends = np.cumsum([len(part) for part in parts.values()])
        found |= {name: part.tobytes() for name, part in zip(parts, np.split(values, ends[:-1]), strict=True)}
    return found


def own_modules(module: M, loaded: nn.Module, user: nn.Module) -> tuple[M, Links]:
    """Modules of a user's own, as those of `module`, on the memory of the loaded model, and how both go together.

    `module` is the loaded model or a cut of it. What it has in memory of its own stays in common.
    """
    known = {id(parameter) for parameter in loaded.parameters()}
    links: Links = []
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = parameter
        if id(parameter) in known and type(parameter) is nn.Parameter:  # not those of a quantization library's class
            own = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            links.append(Link.of(own, parameter))
            memo[id(parameter)] = own
    if getattr(getattr(loaded, "config", None), "quantization_config", None) is not None:
        memo |= {id(buffer): buffer for buffer in module.buffers()}  # they hold the weights
    add_user(loaded, user)
    return copy.deepcopy(module, memo), links


def add_user(loaded: nn.Module, user: nn.Module) -> None:
    """Count `user` among those that a loaded model's weights serve, for as long as it lives."""
    with _lock:
        _users.setdefault(loaded, WeakSet()).add(user)


def _others(loaded: nn.Module, user: nn.Module) -> list[nn.Module]:
    with _lock:
        return [other for other in _users.get(loaded, ()) if other is not user]


def _links_of(user: nn.Module) -> Links:
    links: Links = getattr(user, "links", [])
    return links


def _intact(links: Links) -> Links:
    """Those of `links` that nobody has edited since: by torch's count, and by sampled values after a move."""
    moved = [link for link in links if link.own.device != link.loaded.device]
    moved = [link for link in moved if link.own._version == link.version and not link.own.is_meta]  # noqa: SLF001
    ours = sampled_values({str(place): link.own for place, link in enumerate(moved)})
    theirs = sampled_values({str(place): link.loaded for place, link in enumerate(moved)})
    equal = {id(link.own) for place, link in enumerate(moved) if ours[str(place)] == theirs[str(place)]}
    return [link for link in links if link.same_memory or id(link.own) in equal]


def before_move(loaded: nn.Module, user: nn.Module, move: Callable[[torch.Tensor], torch.Tensor]) -> Links:
    """Take what another user has already where `move`, as of `torch.nn.Module._apply`, will put parameters of `user`.

    So the second user on a GPU takes no memory there for what the first one has brought. Returns the links that stay.
    """
    links, there = _intact(_links_of(user)), dict[int, list[nn.Parameter]]()
    for other in _others(loaded, user):
        for link in _intact(_links_of(other)):
            there.setdefault(id(link.loaded), [link.loaded]).append(link.own)
    goals: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    for own, of, _ in links:
        place = (own.dtype, own.device)
        if place not in goals:
            goals[place] = move(torch.empty(0, dtype=own.dtype, device=own.device))
        goal = goals[place]
        if goal.dtype == own.dtype and goal.device != own.device:
            found = [one for one in there.get(id(of), ()) if (one.dtype, one.device) == (goal.dtype, goal.device)]
            own.data = found[0].data if found else own.data
    return links


def after_move(loaded: nn.Module, user: nn.Module) -> Links:
    """Let the loaded model follow a user that was moved or cast, if nobody needs it where it was; the links that stay.

    With other users, a cast makes copies that belong to `user` alone.
    """
    others, kept = _others(loaded, user), list[Link]()
    in_use = {link.own.data_ptr() for other in others for link in _links_of(other)}
    present = {id(parameter) for parameter in user.parameters()}  # torch puts new ones in their place on a few devices
    links = [link for link in _links_of(user) if id(link.own) in present]
    cast = {link.own.dtype for link in links if link.own.dtype != link.loaded.dtype}
    for link in links:
        if link.own.dtype != link.loaded.dtype and others:
            continue
        if not link.same_memory and link.loaded.data_ptr() not in in_use:
            link.loaded.data = link.own.data
        kept.append(link)
    if len(cast) == 1 and not others:
        loaded.to(dtype=cast.pop())  # what no link is of, such as the head: all of it has one dtype
    return kept


def before_training(loaded: nn.Module, user: nn.Module) -> Links:
    """Give a user that will be trained memory of its own for what it trains, if others use it; the links that stay.

    Alone, it trains in place. The parameters stay the same objects, which an optimizer may hold.
    """
    links = _links_of(user)
    if not (others := _others(loaded, user)):
        return links
    plain = (parameter for other in others for parameter in other.parameters() if type(parameter) is nn.Parameter)
    shared = {parameter.data_ptr() for parameter in plain}
    trained: set[int] = set()
    for parameter in user.parameters():
        if parameter.requires_grad and type(parameter) is nn.Parameter and parameter.data_ptr() in shared:
            parameter.data = parameter.data.clone()
            trained.add(id(parameter))
    return [link for link in links if id(link.own) not in trained] if trained else links


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """SHA-256 hex digest of name, shape and 64 evenly spaced values of every parameter and saved buffer.

    Nothing is kept between calls: neither the address nor the version counter of a tensor shows every change (writes
    through ``.data`` and to inference tensors leave both). Adapter layers that apply no adapter count as the layers
    that they wrap; those that apply one count with its name and scale. The digest changes with training, merging an
    adapter or a cast, not with the device; an edit that touches none of the sampled values, such as one row of an
    embedding table, it does not see. ValueError for a tensor on the device "meta", which has no values.
    """
    adapters, saved = applied_adapters(model), model.state_dict(keep_vars=True)
    stored = [*model.named_parameters(), *(one for one in model.named_buffers() if one[0] in saved)]  # tied ones once
    named = ((_name_in_use(name, adapters), tensor) for name, tensor in stored)
    tensors = {part: each for name, tensor in named if name is not None for part, each in _unpacked(name, tensor)}
    digest = hashlib.sha256()
    for name, values in sorted(sampled_values(tensors).items()):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode() + values)
    for name, applied in sorted(adapters.items()):
        if applied:
            digest.update(f"{name}{sorted(applied.items())}".encode())
    return digest.hexdigest()


def _unpacked(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensor by its name, or those that a quantized one is made of."""
    flatten = getattr(tensor, _PACKED, None)
    if flatten is None:
        return [(name, tensor)]
    parts = {part: getattr(tensor, part) for part in flatten()[0]}
    return [(f"{name}.{part}", each) for part, each in parts.items() if each is not None]


def _name_in_use(name: str, adapters: Mapping[str, Mapping[str, object]]) -> str | None:
    """The name of a tensor in the model without the adapters that it does not apply; None if it belongs to one."""
    layer, _, rest = name.rpartition(".")
    while layer and layer not in adapters:
        layer, _, last = layer.rpartition(".")
        rest = f"{last}.{rest}"
    if not layer:
        return name
    kind, _, rest = rest.partition(".")  # such as lora_A, then the name of the adapter
    if kind == _WRAPPED:
        return name if adapters[layer] else f"{layer}.{rest}"
    return name if rest.partition(".")[0] in adapters[layer] else None


def applied_adapters(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The adapters that each adapter layer of PEFT applies now, and the scale of each, by the name of the layer.

    Empty for a layer whose adapters are switched off, or already added to its weights.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, _WRAPPED):
            continue
        merged = list(getattr(layer, "merged_adapters", ()))
        if getattr(layer, "disable_adapters", False):
            # its next forward pass takes a merged adapter out again
            found[name] = {f"{adapter} (merged, switched off)": None for adapter in merged}
        else:
            active, scales = getattr(layer, "active_adapters", ()), getattr(layer, "scaling", {})
            names = [] if merged else [active] if isinstance(active, str) else active
            found[name] = {adapter: scales.get(adapter) for adapter in names}
    return found


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of torchao's, which are made of others."""
    return hasattr(tensor, _PACKED)
