"""The models and the index behind the routes: embeds, reranks and searches, on one model thread."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Awaitable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vidembed.index import Hits, VideoIndex, rerank, search
from vidembed.index.retrieval.search import check_query
from vidembed.serve.batching import Batcher, QueueFullError
from vidembed.serve.errors import ApiError, busy
from vidembed.serve.limits import Limits
from vidembed.serve.media import MediaLibrary
from vidembed.serve.metrics import Metrics
from vidembed.video import VideoError, VideoSegment, probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vidembed.encoder import VideoEncoder
    from vidembed.index import Hit
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PLACE = re.compile(r"\s*\(\[Errno.*\)", re.DOTALL)  # the system's words end in the path of the file


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of one input.

    Attributes:
        vector: Float32, shape (D,), of length 1; None if it failed.
        tokens: Tokens of the words; 0 for a video.
        error: Why it failed.
    """

    vector: NDArray[np.float32] | None
    tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of a rerank request.

    Attributes:
        index: Its place in the request.
        score: Probability that it matches the query.
    """

    index: int
    score: float


class _Known:
    """An encoder whose vector for the query is there already, for `vidembed.index.retrieval.search`."""

    def __init__(self, vector: NDArray[np.float32], fingerprint: str, fields: dict[str, Any]) -> None:
        self._vector = vector
        self._fields = fields
        self.fingerprint = fingerprint

    def fingerprint_fields(self) -> dict[str, Any]:
        return self._fields

    def encode_query(self, _inputs: Any, /) -> NDArray[np.float32]:
        return self._vector


class Engine:
    """One encoder, and if there are a reranker and an index, those.

    Args:
        encoder: Embeds words and videos.
        model: Name that requests give for it.
        aliases: Other names for it.
        reranker: Asked whether videos match words.
        reranker_model: Name that rerank requests give for it.
        index: To search; made by this encoder.
        root: Folder whose files requests may name by URI; None is nowhere.
        limits: Of requests.

    Raises:
        IndexMismatchError: The index was made by another model.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        *,
        model: str,
        aliases: Sequence[str] = (),
        reranker: VideoReranker | None = None,
        reranker_model: str | None = None,
        index: VideoIndex | None = None,
        root: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.encoder = encoder
        self.model = model
        self.aliases = tuple(aliases)
        self.reranker = reranker
        self.reranker_model = (reranker_model or f"{model}-rerank") if reranker is not None else None
        self.index = index
        self.root = root
        self.limits = limits or Limits()
        self.metrics = Metrics(waiting=lambda: self.batcher.waiting)
        self.dimension = int(encoder.get_embedding_dimension() or 0)
        self._fingerprint, self._fields = encoder.fingerprint, encoder.fingerprint_fields()
        self.media: MediaLibrary | None = None
        if index is not None:
            index.meta.require_model(self._fingerprint, self._fields, name=model)
            folder = index.folder
            # A handle of its own, since the other may be in use.
            self.media = MediaLibrary(lambda: VideoIndex.open(folder).files())
        # One handle must not be asked by two threads; and those that wait for it should take no thread.
        self._index_lock, self._index_turn = threading.Lock(), asyncio.Lock()
        self._active = 0
        self._uploads = 0
        self.batcher: Batcher[Any, Any] = Batcher(
            self._embed,
            max_items=self.limits.batch_items,
            wait_s=self.limits.batch_wait_ms / 1000,
            max_queue=self.limits.max_queue,
            observe=self.metrics.batch_items.observe,
        )

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.batcher.alive

    @property
    def rerankers(self) -> list[str]:
        """Names of the reranker: one, or none."""
        return [] if self.reranker_model is None else [self.reranker_model]

    def close(self) -> None:
        """End the model thread."""
        self.batcher.close()

    def is_model(self, name: str) -> bool:
        """Whether a request may call the encoder by this name."""
        return name == self.model or name in self.aliases

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request that needs the model while it is here.

        Raises:
            ApiError: 503, there are too many.
        """
        if self._active >= self.limits.max_requests:
            raise busy(f"{self._active} requests are being answered, which is the most at once; try again")
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    @contextmanager
    def admitted_upload(self) -> Iterator[None]:
        """Count an upload while it is here.

        Raises:
            ApiError: 503, there are too many.
        """
        if self._uploads >= self.limits.max_uploads:
            raise busy(f"{self._uploads} uploads are being read, which is the most at once; try again", retry_after_s=5)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    # -- what requests ask ---------------------------------------------------------------------------------------------

    async def embed(self, items: Sequence[str | VideoSegment]) -> list[Embedded]:
        """Embed words and videos, each on its own merits: `Embedded.error` says why one failed.

        Raises:
            ApiError: 503 the queue is full; 504 it took too long.
        """
        return await self._in_time(self.batcher.submit(items))

    async def rank(self, query: str, videos: Sequence[VideoSegment]) -> list[Ranked]:
        """Return videos by the probability that they match words, most probable first; ties in their order.

        Raises:
            ApiError: 400 for a video that cannot be read, 503, 504.
        """
        reranker = self._reranker()
        scores = await self._in_time(self.batcher.call(lambda: _predict(reranker, query, videos)))
        for number, score in enumerate(scores):
            if score is None:
                raise await asyncio.to_thread(_why_not, f"documents[{number}]", videos[number])
        ranked = [Ranked(number, float(score)) for number, score in enumerate(scores) if score is not None]
        return sorted(ranked, key=lambda each: (-each.score, each.index))

    async def search(self, query: str, *, k: int, count: int = 0) -> Hits:
        """Search the index, and ask the reranker about the first `count` hits.

        Raises:
            ApiError: 400 the query cannot be searched, or there is no reranker; 404 there is no index; 503, 504.
        """
        index = self.index
        if index is None:
            raise ApiError(404, "search: this server has no index; start it with --in FOLDER", code="no_index")
        try:
            check_query(query, k, name="q")
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param="q") from error
        reranker = self._reranker() if count else None
        (embedded,) = await self.embed([query])
        vector = vector_of(embedded, "q")
        hits = await self._in_time(self._in_turn(index, query, vector, max(k, count)))
        if reranker is None:
            return hits
        first = await self._in_time(self.batcher.call(lambda: rerank(hits[:count], reranker, query)))
        return Hits([*first, *hits[count:]][:k], hits.method)

    def media_id(self, hit: Hit) -> str | None:
        """Return the id by which a hit's file is served."""
        return None if self.media is None else self.media.id_of(hit.uri)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _reranker(self) -> VideoReranker:
        if self.reranker is None:
            raise ApiError(
                400, "rerank: this server has no reranker; start it with --rerank or --reranker", code="no_reranker"
            )
        return self.reranker

    async def _in_turn(self, index: VideoIndex, query: str, vector: NDArray[np.float32], k: int) -> Hits:
        async with self._index_turn:
            return await asyncio.to_thread(self._search, index, query, vector, k)

    def _search(self, index: VideoIndex, query: str, vector: NDArray[np.float32], k: int) -> Hits:
        with self._index_lock:
            return search(index, _Known(vector, self._fingerprint, self._fields), query, k=k, name=self.model)

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(answer, self.limits.timeout_s)
        except QueueFullError as error:
            raise busy(f"{error}; try again") from error
        except TimeoutError as error:
            raise ApiError(
                504, f"no answer within {self.limits.timeout_s:g} s; ask for less at once", code="timeout"
            ) from error

    def _embed(self, items: list[str | VideoSegment]) -> list[Embedded]:
        """Embed a batch. On the model thread."""
        found: list[Embedded | None] = [None] * len(items)
        texts = [place for place, item in enumerate(items) if isinstance(item, str)]
        if texts:
            for place, result in zip(texts, self._embed_texts([str(items[place]) for place in texts]), strict=True):
                found[place] = result
        videos = [place for place, item in enumerate(items) if not isinstance(item, str)]
        if videos:
            sources = [items[place] for place in videos]
            for each in self.encoder.encode_stream(
                sources, batch_size=self.limits.batch_items, on_error="skip", show_progress_bar=False
            ):
                found[videos[each.index]] = Embedded(each.embedding, 0, each.error)
        return [Embedded(None, 0, RuntimeError("the model gave no result")) if each is None else each for each in found]

    def _embed_texts(self, texts: list[str]) -> list[Embedded]:
        try:
            # Dicts, since a bare string could be taken for the path of a video. As in a search, with the prompt of
            # queries if the model has one.
            vectors = np.asarray(
                self.encoder.encode_query([{"text": text} for text in texts], show_progress_bar=False),
                dtype=np.float32,
            )  # (N, D)
        except ValueError as error:  # such as a marker of the model's own among the words
            if len(texts) == 1:
                return [Embedded(None, 0, error)]
            return [self._embed_texts([text])[0] for text in texts]  # find the one that fails
        # Here, since a tokenizer must not be used by two threads at once.
        tokens = [len(ids) for ids in self.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [Embedded(vector, count) for vector, count in zip(vectors, tokens, strict=True)]


def vector_of(embedded: Embedded, param: str, dimensions: int | None = None) -> NDArray[np.float32]:
    """Return the vector of an input, cut to its first numbers and scaled to length 1, shape (dimensions,).

    Args:
        embedded: What became of it.
        param: What to call it in errors.
        dimensions: How many numbers to keep; None for all.

    Raises:
        ApiError: 400 it is a video that cannot be read, or an input that cannot be prepared.
        RuntimeError: The model gave no usable vector.
    """
    if embedded.error is not None:
        raise unusable(param, embedded.error)
    if embedded.vector is None:
        raise RuntimeError(f"{param}: the model gave neither a vector nor an error")
    vector = np.asarray(embedded.vector, dtype=np.float64)[:dimensions]  # (dimensions,)
    norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        raise RuntimeError(f"{param}: the vector has length {norm}; finite and above 0 is needed")
    return np.asarray(vector / norm, dtype=np.float32)


def unusable(param: str, error: Exception) -> ApiError | RuntimeError:
    """Return what a client is told of an input that failed: the reason, without the name of a file of the server."""
    if isinstance(error, VideoError):
        reason = _PLACE.sub("", error.reason)
        return ApiError(400, f"{param}: {type(error).__name__}: {reason}", code="invalid_video", param=param)
    if isinstance(error, (ValueError, OSError)):
        logger.warning("%s: %s", param, error)
        return ApiError(
            400,
            f"{param}: the model cannot take it; it is too long, or holds a marker that the model keeps for itself",
            code="invalid_value",
            param=param,
        )
    return RuntimeError(f"{param}: {error}")


def _predict(reranker: VideoReranker, query: str, videos: Sequence[VideoSegment]) -> list[float | None]:
    scores = reranker.predict([({"text": query}, video) for video in videos], on_error="skip", show_progress_bar=False)
    return [None if score is np.ma.masked else float(score) for score in scores]


def _why_not(param: str, video: VideoSegment) -> Exception:
    """Return why a document has no score, which the reranker only logs."""
    try:
        probe(video.path)
    except VideoError as error:
        return unusable(param, error)
    return ApiError(
        400,
        f"{param}: the video could not be asked about; its frames cannot be decoded, or the query is too long",
        code="invalid_video",
        param=param,
    )
