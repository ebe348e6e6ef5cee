"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from llama_index.core import instrumentation
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from vidembed.adapters import (
    RankFields,
    RerankerFields,
    check_ready,
    fuses,
    load_reranker,
    rank_documents,
    reranker_of,
    warn_of_default,
)

from llama_index.embeddings.vidembed.inputs import READY, Gate, check_loadable, node_name

if TYPE_CHECKING:
    from vidembed import VideoReranker

    from llama_index.embeddings.vidembed.base import VideoEmbedding

logger = logging.getLogger(__name__)
dispatcher = instrumentation.get_dispatcher(__name__)  # type: ignore[attr-defined]  # not in its __all__

RETRIEVAL_SCORE = "retrieval_score"
_LOADING = ("device", "model_options", "model_kwargs")


class VideoRerank(RankFields, RerankerFields, Gate, BaseNodePostprocessor):
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
        model_options: How the model is loaded, as for `VideoEmbedding`.
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

    keep_retrieval_score: bool = Field(default=False, description="Whether to keep the store's score in the metadata.")

    _reranker: Any = PrivateAttr(default=None)
    _loaded_by_name: bool = PrivateAttr(default=False)

    def __init__(self, model: str | None = None, *, reranker: VideoReranker | None = None, **fields: Any) -> None:
        if model is not None:
            fields["model"] = model
        super().__init__(**fields)
        if reranker is None:
            if model is None:
                packages = ("llama_index.postprocessor.vidembed_rerank",)
                warn_of_default(self.model, packages=packages)
            self._load()
        else:
            given = [name for name in _LOADING if getattr(self, name)]
            check_ready("reranker", reranker, methods=("rank",), given=given)
            self.check_urls("reranker", reranker)
            self._reranker = reranker
            if model is None:
                self.model = f"{READY}{reranker.source}"
        fuses(self._reranker, self.fuse)

    def _load(self) -> None:
        check_loadable(self.model, "reranker")
        self._reranker = load_reranker(
            self.model,
            device=self.device,
            allow_url=self.wants_urls,
            model_options=self.model_options,
            model_kwargs=self.model_kwargs,
        )
        self._loaded_by_name = True

    @classmethod
    def from_embedding(cls, embedding: VideoEmbedding, **fields: Any) -> Self:
        """Make the reranker that belongs to an embedding model, with its limits on which files may be read.

        Its weights are the embedding model's own, in memory once, if that was cut from an MLLM as it was loaded
        (``VideoEmbedding(MLLM, layer=...)``); else it loads ``NAME-rerank`` beside ``vidembed/NAME``, else what the
        checkpoint was built from.

        Args:
            embedding: What finds the nodes.
            **fields: As of the class, but for those of the model.

        Raises:
            ValueError: There is no such reranker.
        """
        reranker = reranker_of(embedding.encoder, embedding.model_options)
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
            raise ValueError(f"query: got {query!r}; give some words")
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
        found = rank_documents(self.reranker, query, nodes, self._video_of, self, name_of=_no_video)
        for one in found.unread:  # vidembed has logged why
            logger.warning("skipped %s: it gets no score", node_name(one.node))
        scored = [
            NodeWithScore(node=self._with_parts(one, scores), score=scores["score"]) for one, scores in found.ranked
        ]
        return [*scored, *found.others]

    def _video_of(self, found: NodeWithScore) -> object | None:
        video = self.node_video(found.node)
        return video if video is None or isinstance(video, dict) else {"video": video}

    def _with_parts(self, found: NodeWithScore, scores: dict[str, float]) -> BaseNode:
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


def _no_video(place: int, found: NodeWithScore) -> str:
    return (
        f"nodes[{place}], {node_name(found.node)}, is not a video: its text is not a video URI, and it has no "
        "video_resource. Retrieve videos and texts separately, and rerank only the videos."
    )
