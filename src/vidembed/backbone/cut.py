"""A decoder cut after block `layer`, as a view that shares every weight with the full model.

Its final norm gets unit weight: such an RMSNorm only rescales a vector, and cosine similarity does not see its scale.
The cut model neither runs nor stores what comes after, and it is an ordinary transformers model.
"""

from __future__ import annotations

import copy
import json
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from sentence_transformers.base.modules import Transformer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from vidembed.backbone.architectures import M, Parts, check_layer, find_parts, shallow
from vidembed.errors import LayerError, UnsupportedBackboneError

if TYPE_CHECKING:
    from vidembed.video.clip import Sampling

DEFAULT_SHARE = 24 / 28  # of the depth: what VidVec reads of VideoLLaMA3-7B without training (section 4)
_SET_BY_LOADING = ("hf_quantizer", "quantization_method", "is_quantized", "_hf_peft_config_loaded", "peft_config")


def cut(model: nn.Module, layer: int, *, name: str | None = None) -> PreTrainedModel:
    """Cut a model after decoder block `layer`, 1-based; -1 keeps all blocks with the trained final norm.

    The result is built as a reload would build it, from the shortened config, and takes the weights of the model: what
    a decoder derives from its config (tables packed over blocks, which blocks share keys and values) is right then.

    Returns:
        The base model (no head) of `layer` blocks: new modules on the same parameters, but for the final norm's unit
        weight. The model itself is left as it was.

    Raises:
        LayerError: `layer` is not a block of the model, or transformers cannot end a model of its type there.
        UnsupportedBackboneError: The parts of the model were not found, or its final norm is not supported.
    """
    name = name or type(model).__name__
    parts = find_parts(model, name=name)
    blocks = check_layer(layer, parts.depth, name=name)
    config = _cut_config(parts, blocks, name=name)
    with torch.device("meta"):
        view = type(parts.base)(config)
    _take_weights(view, parts.base)
    vars(view).update({key: value for key, value in vars(parts.base).items() if key in _SET_BY_LOADING})
    if layer != -1:
        setattr(view.get_submodule(parts.decoder_name), parts.norm_name, _unit_norm(parts.norm, name=name))
    view.train(parts.base.training)
    return view


def default_layer(model: nn.Module, *, name: str | None = None) -> int:
    """The block at `DEFAULT_SHARE` of the depth, rounded, or the next one before it at which the model can be cut."""
    name = name or type(model).__name__
    parts = find_parts(model, name=name)
    for layer in range(round(parts.depth * DEFAULT_SHARE), 0, -1):
        with suppress(LayerError):
            _cut_config(parts, layer, name=name)
            return layer
    return -1


def _cut_config(parts: Parts, blocks: int, *, name: str) -> PretrainedConfig:
    """The config of a model that ends after `blocks` blocks, read back as from a file."""
    config: Any = copy.deepcopy(parts.base.config)
    text = config.get_text_config()
    fields = json.loads(json.dumps(text.to_dict()))
    for key, value in fields.items():
        if isinstance(value, list) and len(value) == parts.depth:  # one entry a block, such as layer_types
            fields[key] = value[:blocks]
        elif isinstance(value, dict) and value and all(index.isdecimal() for index in value):  # per_layer_config
            fields[key] = {int(index): entry for index, entry in value.items() if int(index) < blocks}
    fields["num_hidden_layers"] = blocks
    if fields.get("num_kv_shared_layers"):  # the last ones, of gemma4
        fields["num_kv_shared_layers"] = max(0, fields["num_kv_shared_layers"] - (parts.depth - blocks))
    asked = list(fields.get("layer_types") or [])  # before `from_dict`, which may write into it
    short: Any = type(text).from_dict(fields, attn_implementation=parts.attention, dtype=text.dtype)
    if asked and list(short.layer_types) != asked:
        last = short.layer_types[-1]
        allowed = [str(index) for index, kind in enumerate(text.layer_types, start=1) if kind == last]
        raise LayerError(
            f"{name}: layer={blocks}: a {config.model_type} of transformers must end with a block of {last}, and this "
            f"is one of {asked[-1]}. Allowed: {', '.join(allowed)}, or -1 for all blocks with the trained norm."
        )
    if text is config:
        return cast("PretrainedConfig", short)
    setattr(config, next(key for key in config.sub_configs if getattr(config, key, None) is text), short)
    return cast("PretrainedConfig", config)


def _take_weights(view: nn.Module, source: nn.Module) -> None:
    """Put parameters, buffers and tensors of `source` into `view`: the leading part of those packed over the blocks."""
    for key, wanted in list(view.named_parameters(recurse=False)):
        found = source.get_parameter(key)
        if wanted.shape != found.shape:
            part = found.detach()[tuple(slice(0, size) for size in wanted.shape)].contiguous()
            found = nn.Parameter(part, requires_grad=found.requires_grad)
        setattr(view, key, found)
    for key, _ in list(view.named_buffers(recurse=False)):
        setattr(view, key, source.get_buffer(key))
    tensors = {key: value for key, value in vars(source).items() if isinstance(value, torch.Tensor)}
    vars(view).update({key: value for key, value in tensors.items() if key in vars(view)})
    children, found_children = vars(view)["_modules"], vars(source)["_modules"]  # None, and of two names, too
    for key, child in children.items():
        if child is None or type(child) is not type(found_children[key]):  # quantized, or with an adapter
            children[key] = found_children[key]
        else:
            _take_weights(child, found_children[key])


def without_hooks(module: M) -> M:
    """A second tree of modules on the same parameters, without hooks: those of transformers do not pickle."""
    clone = shallow(module)
    registries = clone.__dict__
    registries["_forward_hooks"].clear()
    registries.pop("_output_capturing_hooks_installed", None)
    children = registries["_modules"].items()  # one that hangs under two names too, unlike named_children
    registries["_modules"] = {name: child and without_hooks(child) for name, child in children}
    return clone


@torch.no_grad()
def _unit_norm(norm: nn.Module, *, name: str) -> nn.Module:
    """The final norm with unit weight, which must only rescale a vector: it may not subtract a mean or add a bias.

    Where the norm multiplies by ``1 + weight``, it doubles the vector, which its direction does not show either.
    """
    unit, weight = shallow(norm), getattr(norm, "weight", None)
    keeps = isinstance(weight, nn.Parameter) and set(dict(norm.named_parameters())) == {"weight"}
    if keeps:
        unit.weight = nn.Parameter(torch.ones_like(cast("nn.Parameter", weight)), requires_grad=False)
        tried = shallow(norm)
        tried.weight = nn.Parameter(torch.ones(len(cast("nn.Parameter", weight))), requires_grad=False)  # (D,)
        x = torch.linspace(-1.0, 2.0, len(tried.weight))  # (D,)
        keeps = nn.functional.cosine_similarity(tried(x), x, dim=0).item() > 0.9999
    if not keeps:
        raise UnsupportedBackboneError(
            f"{name}: with unit weight its final norm {type(norm).__name__} changes the direction of a vector, so a "
            "cut checkpoint would not give the output of a block. Allowed: layer=-1, which keeps the trained norm."
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
    asked = [{"role": "user", "content": [{"type": "video", "video": "placeholder"}, {"type": "text", "text": "."}]}]
    render: Any = processor.apply_chat_template  # its types say less than it takes
    if render(asked, tokenize=False) != render(asked, tokenize=False, chat_template=chat_template):
        # smolvlm: for a message with a video it takes a template of its own, unless one is named in the call
        module.processing_kwargs = {**module.processing_kwargs, "chat_template": {"chat_template": chat_template}}
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
