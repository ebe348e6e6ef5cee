"""The fields that `VideoRerank` and `VideoCrossEncoder` have in common: those of a `VideoReranker`."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field, PrivateAttr
from vidembed.adapters import Gate, RerankerFields, check_ready, load_reranker, reranker_of, warn_of_default

from langchain_vidembed.embeddings import VideoEmbeddings

_LOADING = frozenset({"model", "device", "model_options", "model_kwargs"})


class RerankerModel(RerankerFields, Gate):
    """The fields that say which `VideoReranker` scores, and what it may read.

    Args:
        model: Any name that `vidembed.VideoReranker` takes. Default the bundled one, which knows only drawn shapes; a
            warning says so.
        device: Torch device. Default the best there is.
        model_options: How the model is loaded, as for `VideoEmbeddings`.
        model_kwargs: More arguments of `VideoReranker`, such as ``{"mode": "yes"}``.
        reranker: A `VideoReranker` that is loaded already, in the place of what says how to load one.
        **fields: Those of `vidembed.adapters.Gate`: ``allowed_schemes``, ``root``.

    Raises:
        ValueError: An option is unknown, out of range, or in conflict with `reranker` (pydantic's `ValidationError`).
        BackboneError: As `VideoReranker`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    reranker: Any = Field(default=None, exclude=True, repr=False)

    _loaded_by_name: bool = PrivateAttr(default=False)

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, or check the one that was given."""
        super().model_post_init(context)
        if self.reranker is not None:
            given = self.model_fields_set & _LOADING
            check_ready("reranker", self.reranker, methods=("predict", "rank"), given=given)
            self.check_urls("reranker", self.reranker)
            return
        if "model" not in self.model_fields_set:
            warn_of_default(self.model, packages=("langchain_vidembed",))
        self._load()

    def _load(self) -> None:
        self.reranker = load_reranker(
            self.model,
            device=self.device,
            allow_url=self.wants_urls,
            model_options=self.model_options,
            model_kwargs=self.model_kwargs,
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
        reranker = reranker_of(embeddings.encoder, embeddings.model_options)
        shared = {"allowed_schemes": embeddings.allowed_schemes, "root": embeddings.root}
        return cls(**{**shared, "reranker": reranker, **fields})

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
