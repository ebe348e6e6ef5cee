"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Self

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

    Where the reranker was calibrated together with a first stage, as the bundled one is, the probability is made of the
    head's answer and of the similarity. The reranker finds the similarity itself, in the same pass over the video: the
    scores of vector stores have scales of their own, and are not used. The nodes of a call are compared with each
    other, so give all candidates at once.

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
        fuse: Whether to use the similarity. Default (None) wherever the reranker can; False for the head alone.
        on_error: "raise", or "skip" to leave out nodes whose video cannot be read, and log them.
        not_video: What happens to a node that is no video: "raise"; "keep" to let it follow the videos, with the score
            of the store and in its place among such nodes; "drop" to leave it out.
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
    fuse: bool | None = Field(default=None, description="Whether scores are made of similarity and head.")
    on_error: OnError = Field(default="raise", description="What happens if a video cannot be read.")
    not_video: Literal["raise", "keep", "drop"] = Field(
        default="raise", description="What happens to a node that is no video."
    )

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
            self._fuses()
            return
        check_ready("reranker", reranker, "rank", {name: getattr(self, name) for name in _LOADING})
        check_urls(wants_urls=self.wants_urls, model=reranker, name="reranker")
        self._reranker = reranker
        self._fuses()
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
        from vidembed.index.meta import load_reranker  # noqa: PLC0415 - it brings torch

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
        videos: list[tuple[NodeWithScore, Any]] = []
        others: list[NodeWithScore] = []
        for place, found in enumerate(nodes):
            if self.not_video != "raise" and self.node_video(found.node) is None:
                others.append(found)
            else:
                videos.append((found, self._video(found.node, place)))
        ranking: list[dict[str, Any]] = []
        if videos:
            with lock_of(self._reranker):
                ranking = self._reranker.rank(
                    {"text": query},
                    [{"video": video} for _, video in videos],
                    first_stage="own" if self._fuses() else None,
                    on_error=self.on_error,
                    show_progress_bar=False,
                )
        for place in sorted(set(range(len(videos))) - {each["corpus_id"] for each in ranking}):
            logger.warning("skipped %s: it gets no score", node_name(videos[place][0].node))  # vidembed has logged why
        scored = [
            NodeWithScore(node=self._with_parts(videos[each["corpus_id"]][0], each), score=each["score"])
            for each in ranking
            if self.min_score is None or each["score"] >= self.min_score
        ]
        return [*scored, *others] if self.not_video == "keep" else scored

    def _fuses(self) -> bool:
        can = bool(getattr(self._reranker, "can_fuse", False))
        if self.fuse and not can:
            raise ValueError(
                "fuse: this reranker has no fusion, or does not know the encoder that it was fitted with; see "
                "VideoReranker.calibrate(..., first_stage=..., encoder=...)"
            )
        return can if self.fuse is None else self.fuse

    def _video(self, node: BaseNode, place: int) -> Any:
        video = self.node_video(node)
        if video is None:
            raise NotAVideoError(
                f"nodes[{place}], {node_name(node)}, is no video: it has neither a video URI for its text nor a "
                "video_resource. Retrieve videos and texts apart, and rerank only the videos."
            )
        return video["video"] if isinstance(video, dict) else video

    def _with_parts(self, found: NodeWithScore, scores: dict[str, Any]) -> BaseNode:
        """The node, or a copy with what its score is made of in the metadata, which no model is shown."""
        node = found.node
        parts: dict[str, Any] = {name: scores[name] for name in ("similarity", "match") if name in scores}
        if self.keep_retrieval_score:
            parts[RETRIEVAL_SCORE] = found.score
        if not parts:
            return node
        return node.model_copy(
            update={
                "metadata": {**node.metadata, **parts},
                "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *parts],
                "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *parts],
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
