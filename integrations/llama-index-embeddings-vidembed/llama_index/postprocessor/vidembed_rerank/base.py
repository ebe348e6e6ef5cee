"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from llama_index.core import instrumentation
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index.embeddings.vidembed.inputs import Gate, NotAVideoError, OnError, node_name
from llama_index.embeddings.vidembed.models import (
    DEFAULT_RERANKER,
    READY,
    check_loadable,
    check_model_kwargs,
    check_ready,
    check_urls,
    lock_of,
    warn_of_default,
)

if TYPE_CHECKING:
    from vidembed import VideoReranker

    from llama_index.embeddings.vidembed.base import VideoEmbedding

logger = logging.getLogger(__name__)
dispatcher = instrumentation.get_dispatcher(__name__)  # type: ignore[attr-defined]  # not in its __all__

RETRIEVAL_SCORE = "retrieval_score"
_LOADING = ("device", "model_kwargs")


class VideoRerank(Gate, BaseNodePostprocessor):
    """Orders nodes by the probability that their video matches the query.

    It returns new `NodeWithScore` and leaves those that it is given as they are.

    Args:
        model: Any name that `vidembed.VideoReranker` takes. Default the bundled one, which knows only drawn shapes; a
            warning says so.
        reranker: A `VideoReranker` that is loaded already, in the place of what says how to load one.
        top_n: Most nodes to keep. Default all.
        min_score: Leave out nodes below this probability, 0 to 1. Default none. Unlike the similarity cutoff of
            LlamaIndex, it means the same with every store.
        keep_retrieval_score: Whether to keep the score of the store in ``metadata["retrieval_score"]``, of a copy of
            the node. Default False.
        device: Torch device. Default the best there is.
        model_kwargs: More arguments of `VideoReranker`, such as ``{"mode": "yes"}``.
        on_error: "raise", or "skip" to leave out nodes whose video cannot be read, and log them. A node that is no
            video is an error in both cases.
        **fields: ``callback_manager``, and those of `Gate`: ``allowed_schemes``, ``root``.

    Raises:
        ValueError: An option is unknown, out of range, or in conflict with `reranker` (pydantic's `ValidationError`).
        BackboneError: As `VideoReranker`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str = Field(default=DEFAULT_RERANKER, description="Name of the model.")
    top_n: int | None = Field(default=None, gt=0, description="Most nodes to keep.")
    min_score: float | None = Field(default=None, ge=0, le=1, description="Least probability to keep.")
    keep_retrieval_score: bool = Field(default=False, description="Whether to keep the store's score in the metadata.")
    device: str | None = Field(default=None, description="Torch device.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="More arguments of VideoReranker.")
    on_error: OnError = Field(default="raise", description="What happens if a video cannot be read.")

    _reranker: Any = PrivateAttr(default=None)
    _loaded_by_name: bool = PrivateAttr(default=False)

    def __init__(self, model: str | None = None, *, reranker: VideoReranker | None = None, **fields: Any) -> None:
        if model is not None:
            fields["model"] = model
        super().__init__(**fields)
        if reranker is None:
            if model is None:
                warn_of_default(self.model)
            self._load()
            return
        check_ready("reranker", reranker, "predict", {name: getattr(self, name) for name in _LOADING})
        check_urls(wants_urls=self.wants_urls, model=reranker, name="reranker")
        self._reranker = reranker
        if model is None:
            self.model = f"{READY}{reranker.source}"

    def _load(self) -> None:
        check_loadable(self.model, "reranker")
        check_model_kwargs(self.model_kwargs, {"device": "device", "allow_url": "allowed_schemes"})
        from vidembed import VideoReranker  # noqa: PLC0415 - it brings torch

        self._reranker = VideoReranker(self.model, device=self.device, allow_url=self.wants_urls, **self.model_kwargs)
        self._loaded_by_name = True

    @classmethod
    def from_embedding(cls, embedding: VideoEmbedding, **fields: Any) -> Self:
        """Make one that goes with an embedding model, and reads what that may read.

        Its weights are the embedding model's own, in memory once, if that was cut from an MLLM as it was loaded
        (``VideoEmbedding(MLLM, layer=...)``); else it loads ``NAME-rerank`` beside ``vidembed/NAME``, else what the
        checkpoint was built from.

        Args:
            embedding: What finds the nodes.
            **fields: As of the class, but for those of the model.

        Raises:
            ValueError: There is no such reranker.
        """
        from vidembed.index.model import load_reranker  # noqa: PLC0415 - it brings torch

        reranker = load_reranker(None, embedding.encoder, model=embedding.model_name)
        reranker.allow_url = embedding.encoder.allow_url
        shared = {"allowed_schemes": embedding.allowed_schemes, "root": embedding.root}
        return cls(**{**shared, "reranker": reranker, **fields})

    @classmethod
    def class_name(cls) -> str:
        """Name that this is saved under."""
        return "VideoRerank"

    @property
    def reranker(self) -> VideoReranker:
        """The model."""
        reranker: VideoReranker = self._reranker
        return reranker

    # -- reranking ---------------------------------------------------------------------------------------------------

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("Missing query bundle in extra info. Pass query_bundle or query_str.")
        if not nodes:
            return []
        query = query_bundle.query_str
        if not query.strip():
            raise ValueError(f"query: got {query!r}; some words are needed to rerank by")
        top_n = self.top_n or len(nodes)
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=self.model))
        with self.callback_manager.event(
            CBEventType.RERANKING,
            payload={
                EventPayload.NODES: nodes,
                EventPayload.MODEL_NAME: self.model,
                EventPayload.QUERY_STR: query,
                EventPayload.TOP_K: top_n,
            },
        ) as event:
            ranked = self._ranked(nodes, query)[:top_n]
            event.on_end(payload={EventPayload.NODES: ranked})
        dispatcher.event(ReRankEndEvent(nodes=ranked))
        return ranked

    def _ranked(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        """New nodes with scores of at least `min_score`, best first; ties as they came."""
        pairs = [{"text": query, "video": self._video(found.node, place)} for place, found in enumerate(nodes)]
        with lock_of(self._reranker):
            scores = np.ma.asarray(self._reranker.predict(pairs, on_error=self.on_error, show_progress_bar=False))
        missing = np.ma.getmaskarray(scores)  # (N,)
        scored: list[NodeWithScore] = []
        for place, found in enumerate(nodes):
            if missing[place]:  # vidembed has logged why
                logger.warning("skipped %s: it gets no score", node_name(found.node))
                continue
            score = float(scores[place])
            if self.min_score is None or score >= self.min_score:
                node = self._with_retrieval_score(found) if self.keep_retrieval_score else found.node
                scored.append(NodeWithScore(node=node, score=score))
        return sorted(scored, key=lambda found: -(found.score or 0.0))

    def _video(self, node: BaseNode, place: int) -> Any:
        video = self.node_video(node)
        if video is None:
            raise NotAVideoError(
                f"nodes[{place}], {node_name(node)}, is no video: it has neither a video URI for its text nor a "
                "video_resource. Retrieve videos and texts apart, and rerank only the videos."
            )
        return video["video"] if isinstance(video, dict) else video

    @staticmethod
    def _with_retrieval_score(found: NodeWithScore) -> BaseNode:
        node = found.node
        return node.model_copy(
            update={
                "metadata": {**node.metadata, RETRIEVAL_SCORE: found.score},
                "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, RETRIEVAL_SCORE],
                "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, RETRIEVAL_SCORE],
            }
        )

    # -- pickling ----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Without a model that can be loaded again by its name, and without what belongs to this process."""
        names = set(type(self).model_fields) - {"callback_manager"}
        reranker = None if self._loaded_by_name else self._reranker
        return {"reranker": reranker, "fields": {name: getattr(self, name) for name in sorted(names)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the model again where it was left out."""
        self.__init__(reranker=state["reranker"], **state["fields"])  # type: ignore[misc]  # as the base class does
