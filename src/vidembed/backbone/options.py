"""How a model is loaded: the options that the command line, Python, the server, Ray and the adapters share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from vidembed.errors import BackboneError
from vidembed.text import require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import TorchAoConfig

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
Quantization = Literal["int8", "int4"]
INT4_GROUP = 32  # weights that share a scale: the least that torchao's kernels take, so the least error
_FIELD_OF = {"torch_dtype": "dtype", "quantization_config": "quantize"}  # other names in `model_kwargs`
_FAST = {  # of a CPU that computes in a dtype no slower than in float32, as `torch.cpu.get_capabilities` names it
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
    "float16": ("amx_fp16", "avx512_fp16", "fp16_arith"),
}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded. A field that is None keeps the default of the checkpoint and the libraries.

    `kwargs` gives them in the names of sentence-transformers:

        >>> from vidembed import ModelOptions, VideoEncoder
        >>> encoder = VideoEncoder("vidembed/shapes", **ModelOptions(dtype="bfloat16", device="cpu").kwargs())
        >>> encoder.dtype
        torch.bfloat16

    Attributes:
        dtype: "auto" (the checkpoint's own, as without it), "float32", "bfloat16" or "float16".
        device: Torch device, such as "cuda". Default: the best there is.
        device_map: Of transformers, in place of `device`: "auto" spreads a model over all GPUs.
        attn_implementation: Of transformers, such as "sdpa", "eager" or "flash_attention_2".
        quantize: "int8" or "int4": each linear layer of decoder and vision tower keeps its weights in 8 or 4 bits
            (torchao, weight-only). Embeddings, norms, the head, and biases stay. int4 computes in bfloat16.
        revision: Commit, tag or branch of a model on the Hub.
        model_kwargs: More arguments of transformers' `from_pretrained`.

    Raises:
        ValueError: A value is not known, two options contradict each other, or a key of `model_kwargs` is a field.
    """

    dtype: str | None = None
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    attn_implementation: str | None = None
    quantize: Quantization | None = None
    revision: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without torch."""
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype={self.dtype!r} is not known. Allowed: {', '.join(DTYPES)}.")
        if self.quantize not in (None, *get_args(Quantization)):
            allowed = ", ".join(get_args(Quantization))
            raise ValueError(
                f"quantize={self.quantize!r} is not known. Allowed: {allowed}; leave it out to load the weights as "
                f"they are."
            )
        if self.device is not None and self.device_map is not None:
            raise ValueError(
                f"device={self.device!r}, device_map={self.device_map!r}: both place the model; give one of them."
            )
        if self.quantize == "int4" and self.dtype not in (None, "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}: quantize='int4' computes in bfloat16; leave dtype out.")
        if not isinstance(self.model_kwargs, Mapping):
            raise ValueError(f"model_kwargs={self.model_kwargs!r}: expected a mapping of argument names to values.")  # noqa: TRY004
        if self.model_kwargs.get("trust_remote_code"):
            raise ValueError("model_kwargs: trust_remote_code is refused; models load with transformers' own classes.")
        for key in self.model_kwargs:
            name = _FIELD_OF.get(key, key)
            if name in _NAMES and (name != "quantize" or self.quantize is not None):
                raise ValueError(f"model_kwargs: {key!r} has an option of its own; give {name} instead.")

    def kwargs(self) -> dict[str, Any]:
        """Return the fields that were given, as arguments of `SentenceTransformer`, `VideoEncoder` and `VideoReranker`.

        Raises:
            ValueError: This machine cannot do the quantization.
            MissingExtraError: torchao is not installed, which quantizes.
        """
        model_kwargs = {
            **self.model_kwargs,
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "device_map": self.device_map,
        }
        device = self.device
        if self.quantize is not None:
            kind = self._quantizing_device()
            model_kwargs["quantization_config"] = _torchao_config(self.quantize, kind)
            if self.quantize == "int4":
                model_kwargs["dtype"] = "bfloat16"
            if kind.type != "cpu" and self.device_map is None:  # quantized as they are read: where they are to stay
                model_kwargs["device_map"], device = {"": str(kind)}, None
        model_kwargs = {name: value for name, value in model_kwargs.items() if value is not None}
        found = {"device": device, "revision": self.revision, "model_kwargs": model_kwargs or None}
        return {name: value for name, value in found.items() if value is not None}

    def _quantizing_device(self) -> torch.device:
        import torch  # noqa: PLC0415 - options are made, checked and sent to workers without it

        if self.device_map is not None:
            return torch.device("cuda" if torch.cuda.is_available() and self.device_map != {"": "cpu"} else "cpu")
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


_NAMES = frozenset(each.name for each in fields(ModelOptions)) - {"model_kwargs"}


def _torchao_config(quantize: Quantization, device: torch.device) -> TorchAoConfig:
    """Return transformers' configuration of a quantization; ValueError where the device cannot do it."""
    require("quantize", "torchao", "accelerate", purpose=f"quantize={quantize!r}")
    import torch  # noqa: PLC0415 - as above
    from torchao import quantization as torchao  # noqa: PLC0415 - of an extra
    from transformers import TorchAoConfig  # noqa: PLC0415 - it brings torch

    refused = f"quantize={quantize!r} cannot be done here"
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{refused}: on {device.type} it is not tested. Leave it out, or give device='cpu'.")
    if quantize == "int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    if device.type == "cpu":
        try:
            from torchao.prototype.quantization import int4  # noqa: PLC0415 - torchao may move it
        except ImportError as error:
            raise ValueError(f"{refused}: this torchao has no 4-bit kernel for CPUs. Give 'int8'.") from error
        return TorchAoConfig(int4.PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP))
    if not torch.cuda.is_available() or (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        found = "there is no GPU" if not torch.cuda.is_available() else f"its compute capability is {capability}"
        raise ValueError(f"{refused}: the 4-bit kernel needs compute capability 8.0, and {found}. Give 'int8'.")
    return TorchAoConfig(torchao.Int4WeightOnlyConfig(group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d"))


def kwargs_of(options: ModelOptions | None) -> dict[str, Any]:
    """Return `ModelOptions.kwargs`; nothing for None."""
    return {} if options is None else options.kwargs()


def with_dtype(kwargs: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return arguments of a model with a dtype among its `model_kwargs`; None leaves them as they are."""
    if dtype is None:
        return dict(kwargs)
    return {**kwargs, "model_kwargs": {**(kwargs.get("model_kwargs") or {}), "dtype": dtype}}


def refuse_quantization(kwargs: Mapping[str, Any], why: str) -> None:
    """Raise ValueError where arguments of a model ask for quantized weights."""
    if "quantization_config" in (kwargs.get("model_kwargs") or {}):
        raise ValueError(f"quantize: {why}")


def quantization_name(quantization_config: Any) -> str:
    """Name what a model's config says of its quantization, such as "torchao Int8WeightOnlyConfig"."""
    known = quantization_config if isinstance(quantization_config, dict) else vars(quantization_config)
    method, kind = known.get("quant_method"), known.get("quant_type")
    return str(getattr(method, "value", method)) + (f" {type(kind).__name__}" if method == "torchao" else "")


def check_quantized_once(config: Mapping[str, Any], model_kwargs: Mapping[str, Any], *, name: str) -> None:
    """Raise BackboneError, before any weight is read, where a checkpoint that is quantized shall be quantized again."""
    published = config.get("quantization_config")
    if published and "quantization_config" in model_kwargs:
        method = published.get("quant_method", "another method")
        raise BackboneError(f"quantize: {name} is already quantized, by {method}. Leave quantize out.")


def log_loaded(model: PreTrainedModel, *, name: str) -> None:
    """Log which layers of a model are quantized, and on a CPU whether another dtype is faster."""
    import torch  # noqa: PLC0415 - as above

    if (quantized := getattr(model.config, "quantization_config", None)) is not None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
        untyped: Any = model
        head = untyped.get_output_embeddings()
        left = [key for key, one in layers.items() if type(one.weight) is torch.nn.Parameter and one is not head]
        some = f"; not {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}" if left else ""
        what = f"{quantization_name(quantized)}, {len(layers) - len(left)} of {len(layers)} linear layers{some}"
        logger.log(logging.WARNING if left else logging.INFO, "%s: %s", name, what)
    if model.device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # of torch 2.10
        return
    dtype, has = str(model.dtype).removeprefix("torch."), torch.cpu.get_capabilities()
    if dtype in _FAST and not any(has.get(each) for each in _FAST[dtype]):
        logger.warning(
            "%s: its weights are %s, for which this CPU has no instructions: dtype='float32' is several times faster, "
            "takes twice the memory, and gives other vectors",
            name,
            dtype,
        )
    elif dtype != "bfloat16" and has.get("amx_bf16"):
        logger.info(
            "%s: its weights are %s; this CPU has AMX: dtype='bfloat16' is faster, and gives other vectors", name, dtype
        )
