"""What `VideoRerank` and `VideoCrossEncoder` have in common: a `VideoReranker`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator
from vidembed.uri import SCHEMES

from langchain_vidembed.embeddings import VideoEmbeddings
from langchain_vidembed.models import (
    DEFAULT_RERANKER,
    OnError,
    check_model_kwargs,
    check_ready,
    check_urls,
    lock_of,
    wants_urls,
    warn_of_default,
)

_LOADING = ("model", "device", "model_kwargs")


class RerankerModel(BaseModel):
    """The fields that say which `VideoReranker` scores, and what it may read.

    Args:
        model: Any name that `vidembed.VideoReranker` takes. Default the bundled one, which knows only drawn shapes; a
            warning says so.
        device: Torch device. Default the best there is.
        allowed_schemes: As of `VideoEmbeddings`.
        root: As of `VideoEmbeddings`.
        model_kwargs: More arguments of `VideoReranker`, such as ``{"mode": "yes"}``.
        reranker: A `VideoReranker` that is loaded already, in the place of what says how to load one.

    Raises:
        ValueError: An option is unknown, out of range, or in conflict with `reranker` (pydantic's `ValidationError`).
        BackboneError: As `VideoReranker`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str = DEFAULT_RERANKER
    device: str | None = None
    allowed_schemes: tuple[str, ...] = ("file",)
    root: str | os.PathLike[str] | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    reranker: Any = Field(default=None, exclude=True, repr=False)

    _loaded_by_name: bool = PrivateAttr(default=False)

    @field_validator("allowed_schemes")
    @classmethod
    def _known_schemes(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(schemes) - set(SCHEMES)):
            raise ValueError(f"{', '.join(map(repr, unknown))}: allowed are {', '.join(map(repr, SCHEMES))}")
        return schemes

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, or check the one that was given."""
        super().model_post_init(context)
        if self.reranker is not None:
            check_ready(self, "reranker", ("predict", "rank"), _LOADING)
            check_urls(self.allowed_schemes, self.reranker, "reranker")
            return
        check_model_kwargs(self.model_kwargs, {"device": "device", "allow_url": "allowed_schemes"})
        if "model" not in self.model_fields_set:
            warn_of_default(self.model)
        self._load()

    def _load(self) -> None:
        from vidembed import VideoReranker  # noqa: PLC0415 - it brings torch

        self.reranker = VideoReranker(
            self.model,
            device=self.device,
            **{"allow_url": wants_urls(self.allowed_schemes), **self.model_kwargs},
        )
        self._loaded_by_name = True

    @classmethod
    def from_embeddings(cls, embeddings: VideoEmbeddings, **fields: Any) -> Self:
        """Make one that goes with embeddings, and reads what they may read.

        Its model is the embeddings' own, in memory once, if that was cut from an MLLM as it was loaded; else
        ``NAME-rerank`` beside ``vidembed/NAME``, else what the checkpoint was built from.

        Args:
            embeddings: What found the documents.
            **fields: As of the class, but for those of the model.

        Raises:
            ValueError: There is no such reranker.
        """
        from vidembed.index.meta import load_reranker  # noqa: PLC0415 - it brings torch

        reranker = load_reranker(None, embeddings.encoder, model=embeddings.model)
        reranker.allow_url = embeddings.encoder.allow_url
        shared = {"allowed_schemes": embeddings.allowed_schemes, "root": embeddings.root}
        return cls(**{**shared, "reranker": reranker, **fields})

    def _fuses(self, fuse: bool | None) -> bool:
        """Whether scores are fused with the similarity: as asked for, by default wherever it is possible.

        Raises:
            ValueError: It is asked for and not possible.
        """
        can = bool(getattr(self.reranker, "can_fuse", False))
        if fuse and not can:
            raise ValueError(
                "fuse: this reranker has no fusion, or does not know the encoder that it was fitted with; see "
                "VideoReranker.calibrate(..., first_stage=..., encoder=...)"
            )
        return can if fuse is None else fuse

    def _rank(self, query: str, videos: Sequence[Any], *, fuse: bool, on_error: OnError = "raise") -> list[Any]:
        """Rank videos, best first, as `VideoReranker.rank`."""
        with lock_of(self.reranker):
            found: list[Any] = self.reranker.rank(
                {"text": query},
                list(videos),
                first_stage="own" if fuse else None,
                on_error=on_error,
                show_progress_bar=False,
            )
            return found

    def _predict(self, pairs: Sequence[Any], *, on_error: OnError = "raise") -> np.ma.MaskedArray:
        """Score pairs (N,); the mask is True where there is no score."""
        with lock_of(self.reranker):
            return np.ma.asarray(self.reranker.predict(list(pairs), on_error=on_error, show_progress_bar=False))

    def __getstate__(self) -> dict[Any, Any]:
        """Without a model that can be loaded again by its name."""
        state = super().__getstate__()
        if self._loaded_by_name:
            state["__dict__"] = {**state["__dict__"], "reranker": None}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Load the model again where it was left out."""
        super().__setstate__(state)
        if self._loaded_by_name:
            self._load()
