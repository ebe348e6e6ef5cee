"""Models for an evaluation, by name: a `VideoEncoder` where it can be one, else any SentenceTransformer with video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from vidembed.backbone.errors import BackboneError, LayerError
from vidembed.backbone.load import check_device, check_dtype
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.embedding import embedder_of
from vidembed.models import resolve_model


@dataclass(frozen=True)
class ModelName:
    """A model to load.

    Attributes:
        name: A folder, ``vidembed/NAME``, or a name on the Hub.
        layer: Decoder layer, for a video MLLM; None for a checkpoint.
    """

    name: str
    layer: int | None = None

    def __str__(self) -> str:
        """As `parse` takes it."""
        return self.name if self.layer is None else f"{self.name}@{self.layer}"

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read ``NAME`` or ``NAME@LAYER``; a folder may have an @ in its name.

        Raises:
            ValueError: LAYER is no whole number.
        """
        name, at, layer = text.rpartition("@")
        if not at or Path(text).exists():
            return cls(text)
        try:
            return cls(name, int(layer))
        except ValueError as error:
            raise ValueError(f"model: {text!r}: expected NAME or NAME@LAYER, LAYER being a whole number") from error


def load_encoder(model: ModelName, *, device: str | None = None, dtype: str | None = None) -> VideoEncoder:
    """Load a `VideoEncoder`.

    Args:
        model: What to load.
        device: Torch device; None for the best there is.
        dtype: "float32", "bfloat16" or "float16"; None for the model's own.

    Raises:
        ValueError: There is no such model, it takes no video, or an argument is out of range.
    """
    check_device(device)
    check_dtype(dtype)
    try:
        return VideoEncoder(model.name, layer=model.layer, device=device, **_kwargs(dtype))
    except OSError as error:  # what transformers raises for a model that it cannot find
        raise ValueError(f"model: {model.name!r} cannot be loaded: {error}") from error


def load_any(model: ModelName, *, device: str | None = None, dtype: str | None = None) -> Any:
    """Load a `VideoEncoder` where the model can be one, else a SentenceTransformer that takes video.

    Raises:
        ValueError: It takes no video, or as `load_encoder`.
    """
    try:
        return load_encoder(model, device=device, dtype=dtype)
    except (BackboneError, AttributeError, TypeError) as error:  # of an architecture that vidembed does not know
        if model.layer is not None or isinstance(error, LayerError):
            raise
        try:
            plain = SentenceTransformer(resolve_model(model.name), device=device, **_kwargs(dtype))
            embedder_of(plain)
        except OSError as other:
            raise ValueError(f"model: {model.name!r} cannot be loaded: {other}") from error
        except ValueError as other:
            raise ValueError(f"model: {model.name!r}: {other}") from error
        return plain


def _kwargs(dtype: str | None) -> dict[str, Any]:
    return {} if dtype is None else {"model_kwargs": {"dtype": dtype}}
