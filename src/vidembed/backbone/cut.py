"""A decoder cut after block `layer`, as a view that shares every weight with the full model.

Its final norm gets unit weight: such an RMSNorm only rescales a vector, and cosine similarity does not see its scale.
The cut model neither runs nor stores what comes after, and it is an ordinary transformers model.
"""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from vidembed.backbone.architectures import Parts, check_layer, find_parts
from vidembed.errors import UnsupportedBackboneError

if TYPE_CHECKING:
    from vidembed.video.clip import Sampling

M = TypeVar("M", bound=nn.Module)

_OWN_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def cut(model: nn.Module, layer: int, *, name: str | None = None) -> PreTrainedModel:
    """Cut a model after decoder block `layer`, 1-based; -1 keeps all blocks with the trained final norm.

    Returns:
        The base model (no head) of `layer` blocks, on the same parameters: only the final norm's unit weight is new.
        With ``layer=-1`` nothing is new. The model itself is left as it was.

    Raises:
        LayerError: `layer` is not a block of the model.
        UnsupportedBackboneError: The architecture or its final norm is not supported.
    """
    name = name or type(model).__name__
    parts = find_parts(model, name=name)
    blocks = check_layer(layer, parts.depth, name=name)
    # transformers hooks the blocks once per decoder object: were the view first to ask for hidden states, the full
    # decoder would hook the shared blocks again and every index would be off.
    maybe_install_capturing_hooks(parts.decoder)

    decoder = _shallow(parts.decoder)
    decoder.layers = parts.blocks[:blocks]
    if layer != -1:
        decoder.norm = _unit_norm(parts, name=name)
    view = _shallow(parts.base)
    view.config = copy.deepcopy(parts.base.config)
    text_config: Any = view.config.get_text_config()  # of a class of its own in each architecture
    text_config.num_hidden_layers = blocks
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = list(text_config.layer_types)[:blocks]
    decoder.config = text_config
    setattr(view, parts.decoder_name, decoder)
    return view


def _shallow(module: M) -> M:
    """A second module object on the same parameters, buffers and children."""
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__ = dict(module.__dict__)
    for registry in _OWN_REGISTRIES:  # copy.copy would share these, and a cut would cut the original too
        clone.__dict__[registry] = copy.copy(module.__dict__[registry])
    return clone


def without_hooks(module: M) -> M:
    """A second tree of modules on the same parameters, without hooks: those of transformers do not pickle."""
    clone = _shallow(module)
    registries = clone.__dict__
    registries["_forward_hooks"].clear()
    registries.pop("_output_capturing_hooks_installed", None)
    children = registries["_modules"].items()  # one that hangs under two names too, unlike named_children
    registries["_modules"] = {name: child and without_hooks(child) for name, child in children}
    return clone


@torch.no_grad()
def _unit_norm(parts: Parts, *, name: str) -> nn.Module:
    """The final norm with unit weight, if it multiplies by its weight, not by ``1 + weight``, and subtracts no mean."""
    norm, parameters = parts.norm, dict(parts.norm.named_parameters())
    is_plain = "RMSNorm" in type(norm).__name__ and set(parameters) == {"weight"}
    if is_plain:
        weight = parameters["weight"]  # (D,)
        unit = _shallow(norm)
        unit.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)
        if not weight.is_meta:  # there would be nothing to compute on; the build verifies the saved model anyway
            x = torch.linspace(-1.0, 2.0, len(weight), device=weight.device, dtype=weight.dtype)  # (D,)
            is_plain = nn.functional.cosine_similarity(unit(x).float(), x.float(), dim=0).item() > 0.9999
    if not is_plain:
        raise UnsupportedBackboneError(
            f"{name}: its final norm {type(norm).__name__} is not a plain RMSNorm (y = weight * x / rms(x)), so a unit "
            "weight would change the direction of the vector. Such norms need their own treatment in "
            "vidembed.backbone.cut."
        )
    return unit


class _InMemoryTransformer(Transformer):
    """`Transformer` whose model is handed over instead of read from disk; its own constructor decides all else."""

    _handed_over: PreTrainedModel

    def __init__(self, model: PreTrainedModel, processor_dir: str, **kwargs: Any) -> None:
        object.__setattr__(self, "_handed_over", model)
        super().__init__(processor_dir, **kwargs)
        object.__delattr__(self, "_handed_over")

    def _load_config(self, *_args: object, **_kwargs: object) -> tuple[PretrainedConfig, bool]:
        return self._handed_over.config, False

    def _load_model(self, *_args: object, **_kwargs: object) -> PreTrainedModel:
        return self._handed_over


def as_transformer_module(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    chat_template: str,
    task: Literal["feature-extraction", "any-to-any"] = "feature-extraction",
) -> Transformer:
    """Wrap a loaded model, sharing its weights, as a plain `Transformer`: the class that ``modules.json`` will name."""
    with tempfile.TemporaryDirectory(prefix="vidembed-") as folder:
        processor.save_pretrained(folder)
        options = {"chat_template": chat_template}
        module = _InMemoryTransformer(model, folder, transformer_task=task, processor_kwargs=options)
    module.__class__ = Transformer
    processor = module.processor
    processor.tokenizer.padding_side = "left"
    video_processor = processor.video_processor
    video_processor.do_sample_frames = True  # stock users pass whole videos (`declare_sampling`); we sample ourselves
    if getattr(video_processor, "cap_pixels_per_frame", True) is None:
        # undecided, transformers warns and lets a long video take more tokens than Qwen's own qwen-vl-utils would
        video_processor.cap_pixels_per_frame = True
    return module


def declare_sampling(processor: ProcessorMixin, sampling: Sampling) -> None:
    """Write a frame grid into a processor, for stock users of a checkpoint: with none, it cannot sample a video at all.

    Their frames are not ours: stock sampling goes by index and not by time, and rounds to whole temporal patches.
    """
    video_processor = processor.video_processor
    video_processor.num_frames = None  # stock sampling takes this or fps
    video_processor.fps = sampling.fps
    video_processor.max_frames = sampling.max_frames
