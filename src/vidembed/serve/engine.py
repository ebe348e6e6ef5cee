"""The models and the index behind the routes: embeds, reranks and searches, on one model thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import VideoError
from vidembed.index import Hits, SearchOptions, VideoIndex, rerank, stored_fusion
from vidembed.index.hybrid import ByCaptions
from vidembed.index.rows import check_query
from vidembed.index.schema import segment_id
from vidembed.index.search import nearest
from vidembed.index.table import PLACE, is_local, quoted
from vidembed.serve.batching import Batcher, QueueFullError
from vidembed.serve.contents import Contents, ContentsReader, Place
from vidembed.serve.decoding import AT_ONCE, Decoder
from vidembed.serve.media import MediaLibrary
from vidembed.serve.security import ApiError, Limits, Metrics, bad_value, busy, unusable
from vidembed.serve.thumbnails import Moment, Thumbnails
from vidembed.video import Clip, VideoSegment

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker
    from vidembed.scoring import ScoreFusion
    from vidembed.serve.schemas import Task

T = TypeVar("T")

_Words: TypeAlias = "tuple[str, Task]"  # to embed, and which of the model's prompts they get


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, how long the video of each is, seconds, by URI, and the segment that they are like, if one was given."""

    hits: Hits
    durations: Mapping[str, float]
    like: Place | None = None
    fusion: ScoreFusion | None = None  # of their score and the head of the reranker that is to be asked about them


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result for one input."""

    vector: NDArray[np.float32] | None  # (D,) of length 1; None if it failed
    tokens: int = 0  # of the words; 0 for a video
    error: Exception | None = None  # why it failed


def vector_of(embedded: Embedded, param: str, dimensions: int | None = None) -> NDArray[np.float32]:
    """Return the vector of an input, cut to `dimensions` and scaled to length 1, (dimensions,); or raise its error."""
    if embedded.error is not None:
        raise unusable(param, embedded.error)
    if embedded.vector is None:
        raise RuntimeError(f"{param}: the model gave neither a vector nor an error")
    vector = np.asarray(embedded.vector, dtype=np.float64)[:dimensions]  # (dimensions,)
    norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        raise RuntimeError(f"{param}: the vector has length {norm}; finite and above 0 is needed")
    return np.asarray(vector / norm, dtype=np.float32)


class Engine:
    """One encoder, and if there are a reranker and an index, those.

    Args:
        encoder: Embeds words and videos.
        model: Name that requests give for it; `aliases` are others.
        aliases: See `model`.
        reranker: Asked whether videos match words.
        reranker_model: Name that rerank requests give for it; `reranker_aliases` are others.
        reranker_aliases: See `reranker_model`.
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
        reranker_aliases: Sequence[str] = (),
        index: VideoIndex | None = None,
        root: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.encoder = encoder
        self.model = model
        self.models = [model, *aliases]
        self.reranker = reranker
        self.reranker_model = (reranker_model or f"{model}-rerank") if reranker is not None else None
        self.rerankers = [] if self.reranker_model is None else [self.reranker_model, *reranker_aliases]
        self.index = index
        self.root = root
        self.limits = limits or Limits()
        self.metrics = Metrics(waiting=lambda: self.batcher.waiting)
        self.dimension = int(encoder.get_embedding_dimension() or 0)
        self.media: MediaLibrary | None = None
        self._contents: ContentsReader | None = None
        if index is not None:
            index.meta.require_model(encoder, name=model)
            folder = index.folder
            self.media = MediaLibrary(lambda: VideoIndex.open(folder).files())  # since the other may be in use
            self._contents = ContentsReader(folder, model)
        self._index_lock = threading.Lock()
        # Those that wait for the index, for what it holds or for its files take no thread, which others need.
        self._index_turn, self._contents_turn, self._media_turn = (asyncio.Lock() for _ in range(3))
        self.decoder = Decoder(self.limits, backend=encoder.video_backend)
        self._thumbnails = Thumbnails(self.decoder, self.limits)
        self._active = self._uploads = 0
        self.batcher: Batcher[_Words | Clip, Embedded] = Batcher(
            self._embed,
            max_items=self.limits.batch_items,
            wait_s=self.limits.batch_wait_ms / 1000,
            max_queue=self.limits.max_queue,
            observe=self.metrics.batch_items.observe,
        )

    @property
    def has_captions(self) -> bool:
        """Whether there is an index, and captions were added to it."""
        return self.index is not None and self.index.has_captions

    def close(self) -> None:
        """End the model thread and the decoders."""
        self.batcher.close()
        self.decoder.close()

    @contextmanager
    def admitted(self, *, upload: bool = False) -> Iterator[None]:
        """Count a request that needs the model, and its upload if it has one, while it is here; 503 for too many."""
        if self._active >= self.limits.max_requests:
            raise busy(f"{self._active} requests are running, the most at once; try again")
        if upload and self._uploads >= self.limits.max_uploads:
            raise busy(f"{self._uploads} uploads are being read, the most at once; try again", retry_after_s=5)
        self._active += 1
        self._uploads += upload
        try:
            yield
        finally:
            self._active -= 1
            self._uploads -= upload

    async def embed(self, items: Sequence[str | VideoSegment], *, task: Task = "query") -> list[Embedded]:
        """Embed words, with the prompt of a task, and videos; `Embedded.error` says why one of them failed.

        Raises ApiError: 503 the queue is full; 504 it took too long.
        """
        return await self._in_time(self._embed_all(items, task))

    async def rank(
        self, query: str, videos: Sequence[VideoSegment], *, param: str = "documents"
    ) -> list[tuple[int, float]]:
        """Return the places of videos with the probability that they match words, most probable first.

        Raises ApiError: 400 for a video, `param`, that cannot be read or asked about; 503; 504, also for reading.
        """
        reranker = self._reranker()
        names = [f"{param}[{number}]" for number in range(len(videos))]
        groups = [self._score(reranker, query, part, names=names, at=first) for first, part in _parts(videos)]
        ranked = [each for group in await self._in_time(_all(groups)) for each in group]
        return sorted(ranked, key=lambda each: (-each[1], each[0]))

    async def search(self, query: str, options: SearchOptions, *, count: int) -> Found:
        """Search the index as `vidembed.index.search`, and ask the reranker about the first `count` hits.

        Raises ApiError: 400 for a query, a condition, or the lack of a reranker or of captions; 404 there is no index;
        503, 504.
        """
        self.require_index()
        with bad_value("q"):
            check_query(query, options.k, name="q")
        reranker = self._reranker() if count else None
        vector = vector_of((await self.embed([query]))[0], "q")
        found = await self._nearest(vector, replace(options, k=max(options.k, count)), query, reranker)
        if reranker is None:
            return found
        how: dict[str, Any] = {"count": count, "fusion": found.fusion}
        encoder = self.encoder
        again = self.batcher.call(lambda: rerank(found.hits, reranker, query, fingerprint=encoder.fingerprint, **how))
        hits = await self._in_time(again)
        return replace(found, hits=Hits(hits[: options.k], hits.method))

    async def search_file(self, path: Path, options: SearchOptions) -> Found:
        """Search for what is like a clip or a picture, which is a clip of one frame.

        Raises ApiError: as `search`, and 400 for a `file` that cannot be read.
        """
        self.require_index()
        (made,) = await self._in_time(self._embed_videos([VideoSegment(path)], pictures=True))
        return await self._nearest(vector_of(made, "file"), options)

    async def search_like(self, segment: str, options: SearchOptions) -> Found:
        """Search for what is like a segment of the index by its id, without itself.

        Raises ApiError: as `search`, and 404 for a segment that is not in the index.
        """
        index = self.require_index()

        def read() -> dict[str, Any]:
            rows: list[dict[str, Any]] = []
            with self._index_lock:
                index.latest()
                for batch in index.scan([*PLACE, "vector"], f"id = {quoted(segment)}"):
                    rows += batch.to_pylist()
            if not rows:
                message = "segment: the index has no segment with this id; search again"
                raise ApiError(404, message, code="not_found", param="segment")
            return rows[0]

        row = await self._in_time(_in_turn(self._index_turn, read))
        # One more than asked for: where the segment itself is among them, it also drops those that overlap it.
        found = await self._nearest(np.asarray(row["vector"], dtype=np.float32), replace(options, k=options.k + 1))
        others = [hit for hit in found.hits if segment_id(hit.uri, hit.start_s, hit.end_s) != segment]
        like = Place(*(row[name] for name in PLACE))
        return replace(found, hits=Hits(others[: options.k], found.hits.method), like=like)

    async def contents(self) -> Contents:
        """Return what the index holds. Raises ApiError: 404 there is no index; 504."""
        if self._contents is None:
            raise _no_index()
        return await self._in_time(_in_turn(self._contents_turn, self._contents.read))

    async def thumbnail(self, media_id: str, seconds: float) -> tuple[Moment, Callable[[], Awaitable[bytes]]]:
        """Return the moment of a video that a thumbnail is of, and what makes it.

        Raises ApiError: 404 there is no such video. What makes it: 400 there is no such frame; 503, 504.
        """
        path = await self.find_media(media_id)
        try:
            moment = await asyncio.to_thread(Moment.of, path, seconds)
        except OSError as error:
            raise ApiError(404, "media: the file is gone or cannot be read", code="not_found") from error
        return moment, lambda: self._in_time(self._thumbnails.get(moment))

    async def find_media(self, media_id: str) -> Path:
        """Return the file of the index with this id. Raises ApiError: 404 there is none."""
        if self.media is None:
            raise ApiError(404, "media: this server has no index", code="not_found")
        try:
            return await _in_turn(self._media_turn, partial(self.media.find, media_id))
        except LookupError as error:
            raise ApiError(404, str(error.args[0]), code="not_found") from None

    def require_index(self) -> VideoIndex:
        """Return the index. Raises ApiError: 404 there is none."""
        if self.index is None:
            raise _no_index()
        return self.index

    async def _nearest(
        self, vector: NDArray[np.float32], options: SearchOptions, query: str = "", head: VideoReranker | None = None
    ) -> Found:
        index = self.require_index()

        def look() -> Found:
            # One handle must not be asked by two threads.
            with self._index_lock:
                if options.keep is not None:
                    index.latest()  # which may have new columns
                    with bad_value("where"):
                        options.keep.check(index)
                index.meta.require_model(self.encoder, name=self.model)  # it may have been trained since
                with bad_value("by"):
                    if options.by != "video":
                        ByCaptions.of(index, options.by)
                hits = nearest(index, vector.astype(np.float64), query, asked=options)
                with bad_value("rerank"):
                    fusion = None if head is None else stored_fusion(index, options.by, head)
                return Found(hits, index.of_files((hit.uri for hit in hits), "duration"), fusion=fusion)

        return await self._in_time(_in_turn(self._index_turn, look))

    def media_id(self, uri: str) -> str | None:
        """Return the id by which a video of the index is served, or None where it is not on this machine."""
        return None if self.media is None or not is_local(uri) else self.media.id_of(uri)

    def _reranker(self) -> VideoReranker:
        if self.reranker is None:
            message = "rerank: this server has no reranker; start it with --rerank or --reranker"
            raise ApiError(400, message, code="no_reranker")
        return self.reranker

    async def _embed_all(self, items: Sequence[str | VideoSegment], task: Task) -> list[Embedded]:
        texts = [(place, (item, task)) for place, item in enumerate(items) if isinstance(item, str)]
        texts.sort(key=lambda pair: len(pair[1][0]))  # texts of one batch are padded to the longest of them
        videos = [(place, item) for place, item in enumerate(items) if not isinstance(item, str)]
        groups: list[Coroutine[None, None, list[Embedded]]] = [self.batcher.submit([item for _, item in texts])]
        groups += [self._embed_videos([item for _, item in part]) for _, part in _parts(videos)]
        made = [each for group in await _all(groups) for each in group]
        places = [place for place, _ in (*texts, *videos)]
        return [each for _, each in sorted(zip(places, made, strict=True), key=lambda pair: pair[0])]

    async def _embed_videos(self, videos: Sequence[VideoSegment], *, pictures: bool = False) -> list[Embedded]:
        async with self.decoder.clips(videos, self.encoder.sampling, pictures=pictures) as found:
            made = iter(await self.batcher.submit([clip for clip in found if isinstance(clip, Clip)]))
            return [next(made) if isinstance(clip, Clip) else Embedded(None, 0, clip) for clip in found]

    async def _score(
        self, reranker: VideoReranker, query: str, videos: Sequence[VideoSegment], *, names: Sequence[str], at: int
    ) -> list[tuple[int, float]]:
        async with self.decoder.clips(videos, reranker.sampling) as found:
            pairs = []
            for number, clip in enumerate(found, at):
                if isinstance(clip, VideoError):
                    raise unusable(names[number], clip)
                pairs.append(({"text": query}, clip))
            scores = await self.batcher.call(lambda: reranker.predict(pairs, on_error="skip", show_progress_bar=False))
        for number, score in enumerate(scores, at):
            if score is np.ma.masked:
                reason = "the query is too long with this video, or contains a token that is reserved by the model"
                message = f"{names[number]}: it cannot be reranked; {reason}"
                raise ApiError(400, message, code="invalid_value", param=names[number])
        return [(number, float(score)) for number, score in enumerate(scores, at)]

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(answer, self.limits.timeout_s)
        except QueueFullError as error:
            raise busy(f"{error}; try again") from error
        except TimeoutError as error:
            message = f"no answer within {self.limits.timeout_s:g} s; send a smaller request"
            raise ApiError(504, message, code="timeout") from error

    def _embed(self, items: list[_Words | Clip]) -> list[Embedded]:
        """Embed a batch. On the model thread."""
        found = [Embedded(None, 0, RuntimeError("the model gave no result"))] * len(items)
        words = [(place, *item) for place, item in enumerate(items) if isinstance(item, tuple)]
        for task in dict.fromkeys(task for _, _, task in words):
            texts = {place: text for place, text, its_task in words if its_task == task}
            for place, result in zip(texts, self._embed_texts([*texts.values()], task), strict=True):
                found[place] = result
        if clips := {place: item for place, item in enumerate(items) if isinstance(item, Clip)}:
            places, sources, size = [*clips], [*clips.values()], self.limits.batch_items
            for each in self.encoder.encode_stream(sources, batch_size=size, on_error="skip", show_progress_bar=False):
                found[places[each.index]] = Embedded(each.embedding, 0, each.error)
        return found

    def _embed_texts(self, texts: list[str], task: Task) -> list[Embedded]:
        encode = self.encoder.encode_query if task == "query" else self.encoder.encode_document
        given = [{"text": text} for text in texts]  # since a bare string could be taken for the path of a video
        try:
            vectors = np.asarray(encode(given, show_progress_bar=False), dtype=np.float32)  # (N, D)
        except ValueError as error:  # such as a marker of the model's own among the words
            if len(texts) == 1:
                return [Embedded(None, 0, error)]
            return [self._embed_texts([text], task)[0] for text in texts]  # find the one that fails
        # Here, since a tokenizer must not be used by two threads at once.
        tokens = [len(ids) for ids in self.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return [Embedded(vector, count) for vector, count in zip(vectors, tokens, strict=True)]


def _no_index() -> ApiError:
    return ApiError(404, "search: this server has no index; start it with --in FOLDER", code="no_index")


async def _in_turn(turn: asyncio.Lock, look: Callable[[], T]) -> T:
    """Run a function in a thread, which is taken when it has its turn."""
    async with turn:
        return await asyncio.to_thread(look)


def _parts(items: Sequence[T]) -> list[tuple[int, Sequence[T]]]:
    """Return groups that are decoded together, each with the place of its first."""
    return [(first, items[first : first + AT_ONCE]) for first in range(0, len(items), AT_ONCE)]


async def _all(groups: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Await all, and if one fails, give up the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as together:
            tasks = [together.create_task(group) for group in groups]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
