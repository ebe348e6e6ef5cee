"""What a benchmark needs of an embedding model: a `VideoEncoder`, or any SentenceTransformer that takes video."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.backbone.sharing import weights_digest
from vidembed.encoder import VideoEncoder, load_encoder
from vidembed.errors import BackboneError, LayerError, MissingExtraError
from vidembed.evaluation.cache import model_key
from vidembed.pipeline import fields_digest
from vidembed.registry import resolve_model
from vidembed.scoring.checks import FloatArray

Vector = NDArray[np.float32]
_DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")  # what `SentenceTransformer.encode_document` looks for
_NOT_A_VIDEOS_FAULT: Final = (MissingExtraError, MemoryError, torch.OutOfMemoryError)


class Embedder:
    """Embeds the videos and texts of a benchmark with a SentenceTransformer that takes video."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that makes the vectors, hex."""
        model = self.model
        modules = [(type(part).__name__, getattr(part, "get_config_dict", dict)) for part in model.children()]
        parts = repr([{"class": name, "config": config()} for name, config in modules])
        processor = getattr(getattr(model[0], "processor", None), "to_json_string", str)()
        own = {name: getattr(model, name) for name in ("prompts", "default_prompt_name", "truncate_dim")}
        return fields_digest({"weights": weights_digest(model), "parts": parts, "processor": processor, **own})

    @property
    def key(self) -> str:
        """Names the model in a cache: its fingerprint and the video decoder."""
        return model_key(self.fingerprint, "sentence-transformers")

    def facts(self) -> dict[str, object]:
        """What a result shows of the model, JSON-able."""
        return {
            "kind": "SentenceTransformer",
            "layer": None,
            "prefix": None,
            "sampling": None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "similarity": str(self.model.similarity_fn_name),
            "video_backend": "as the model has it",
        }

    def texts(self, texts: Sequence[str], *, batch_size: int) -> Vector:
        """Vectors of queries ``(T, D)``; errors are raised."""
        inputs: Any = [{"text": text} for text in texts]
        return np.asarray(self.model.encode_query(inputs, batch_size=batch_size, show_progress_bar=False), np.float32)

    def similarity(self, texts: FloatArray, videos: FloatArray) -> FloatArray:
        """Similarities ``(T, V)`` of vectors, as the model has them."""
        return np.asarray(self.model.similarity(texts, videos).cpu(), dtype=np.float64)

    def videos(self, paths: Sequence[Path], *, batch_size: int) -> Iterator[Vector | Exception]:
        """Yield the vector ``(D,)`` of each video, or why it has none, in order."""
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            vectors: list[Vector | Exception] = self._encoded(chunk)
            if len(chunk) > 1 and isinstance(vectors[0], Exception):  # whose fault it is, is found out one by one
                vectors = [self._encoded([path])[0] for path in chunk]
            for vector in vectors:
                broken = not isinstance(vector, Exception) and not np.isfinite(vector).all()
                yield ValueError("the model gave a vector that is not finite") if broken else vector

    def _encoded(self, paths: Sequence[Path]) -> list[Vector | Exception]:
        """The vectors of some videos, or for each of them why there are none."""
        inputs: Any = [{"video": str(path)} for path in paths]
        try:
            vectors = self.model.encode_document(inputs, batch_size=len(paths), show_progress_bar=False)
        except ImportError as error:
            reads = "model: it reads videos by sentence-transformers itself, which says"
            raise MissingExtraError(f"{reads}: {error}") from error
        except _NOT_A_VIDEOS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - any decoder's; handed on as these videos'
            return [error] * len(paths)
        return list(np.asarray(vectors, dtype=np.float32))


class _EncoderEmbedder(Embedder):
    """Embeds with a `VideoEncoder`."""

    model: VideoEncoder

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def key(self) -> str:
        return model_key(self.fingerprint, str(self.model.video_backend))

    def facts(self) -> dict[str, object]:
        model, config = self.model, self.model.checkpoint_config
        own = {"kind": "VideoEncoder", "layer": model.layer, "prefix": config.prefix if config else None}
        return {**super().facts(), **own, "sampling": model.sampling.as_dict(), "video_backend": model.video_backend}

    def videos(self, paths: Sequence[Path], *, batch_size: int) -> Iterator[Vector | Exception]:
        prompts = self.model.prompts
        name = next((one for one in _DOCUMENT_PROMPTS if one in prompts), self.model.default_prompt_name)
        how: dict[str, Any] = {"batch_size": batch_size, "on_error": "skip", "show_progress_bar": False}
        prompt = (prompts.get(name) if name else None) or None
        stream = self.model.encode_stream([{"video": path} for path in paths], prompt=prompt, **how)
        try:
            for item in stream:
                yield item.error or np.asarray(item.embedding, dtype=np.float32)
        finally:
            if isinstance(stream, Generator):
                stream.close()  # its threads end with it


def embedder_of(model: Any) -> Embedder:
    """Return what a benchmark needs of a model; a ValueError if it takes no video."""
    if hasattr(model, "encode_stream") and hasattr(model, "fingerprint"):
        return _EncoderEmbedder(model)
    takes = [str(one) for one in getattr(model, "modalities", ())]
    if not isinstance(model, SentenceTransformer) or "video" not in takes:
        raise ValueError(
            f"model: this {type(model).__name__} takes {', '.join(takes) or 'unknown inputs'} but not video; expected "
            f"a VideoEncoder, or a SentenceTransformer whose modalities include video"
        )
    return Embedder(model)


@dataclass(frozen=True)
class ModelName:
    """A model to load."""

    name: str  # A folder, ``vidembed/NAME``, or a name on the Hub
    layer: int | None = None  # decoder layer, for a video MLLM; None for a checkpoint

    def __str__(self) -> str:
        """As `parse` takes it."""
        return self.name if self.layer is None else f"{self.name}@{self.layer}"

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read ``NAME`` or ``NAME@LAYER``; a folder may have an @ in its name. A ValueError if LAYER is no number."""
        name, at, layer = text.rpartition("@")
        if not at or Path(text).exists():
            return cls(text)
        try:
            return cls(name, int(layer))
        except ValueError as error:
            raise ValueError(f"model: {text!r}: expected NAME or NAME@LAYER, where LAYER is a whole number") from error


def load_any(model: ModelName, options: ModelOptions | None = None) -> SentenceTransformer:
    """As `load_encoder`; but a SentenceTransformer that takes video where the model can be no `VideoEncoder`."""
    try:
        return load_encoder(model.name, layer=model.layer, options=options)
    except (BackboneError, AttributeError, TypeError) as error:  # of an architecture that vidembed does not know
        if model.layer is not None or isinstance(error, LayerError):
            raise
        try:
            plain = SentenceTransformer(resolve_model(model.name), **kwargs_of(options))
            embedder_of(plain)
        except OSError as other:
            raise ValueError(f"model: {model.name!r} cannot be loaded: {other}") from error
        except ValueError as other:
            raise ValueError(f"model: {model.name!r}: {other}") from error
        return plain
