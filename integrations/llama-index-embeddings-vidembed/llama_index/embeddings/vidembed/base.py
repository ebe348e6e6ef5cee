"""`VideoEmbedding`: a vidembed encoder as a LlamaIndex embedding model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core import instrumentation
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_serializer, field_validator
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode, ImageType, MetadataMode
from llama_index.core.utils import get_tqdm_iterable

from llama_index.embeddings.vidembed.inputs import READY, Gate, NothingToEmbedError, check_loadable, node_name
from vidembed.adapters import (
    DEFAULT_MODEL,
    OnError,
    check_dimensions,
    check_ready,
    load_encoder,
    lock_of,
    to_floats,
    warn_of_default,
)
from vidembed.backbone.options import ModelOptions
from vidembed.video import VideoError, item_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed import VideoEncoder

logger = logging.getLogger(__name__)
dispatcher = instrumentation.get_dispatcher(__name__)  # type: ignore[attr-defined]  # not in its __all__

Vector = list[float]
_LOADING = ("layer", "fps", "max_frames", "device", "model_options", "model_kwargs")
_OF_THIS_PROCESS = frozenset({"callback_manager", "rate_limiter"})


class VideoEmbedding(Gate, MultiModalEmbedding):
    """Embeds videos, images and text into one space.

    A text that is one video URI (`vidembed.uri.video_uri`), with nothing before it but metadata that LlamaIndex put
    there, is the video that it names. It is never embedded as words: if the video may not or cannot be read, that is an
    error. So is the bare path of a video. Any other text is text, and so is every query.

    The model is loaded when this is made, and used by one thread at a time, a batch at a time, so that queries come in
    between while documents are embedded. Async methods run in threads.

    Args:
        model_name: Any name that `vidembed.VideoEncoder` takes. Default the bundled one, which knows only drawn shapes;
            a warning says so.
        encoder: A `VideoEncoder` that is loaded already, in the place of what says how to load one.
        layer: Decoder block to read; needed for an MLLM.
        dimensions: Keep this many numbers of each vector, and scale it to length 1 again. Default all.
        fps: Frames looked at per second of video. Default what the model says.
        max_frames: Most frames of one video. Default what the model says.
        query_instruction: Put before queries, as a prompt. Default what the model says.
        text_instruction: Put before texts that are documents, as a prompt. Default none.
        device: Torch device. Default the best there is.
        model_options: How the model is loaded: `vidembed.ModelOptions`, or a dict of its fields, such as
            ``{"quantize": "int8"}``.
        model_kwargs: More arguments of `VideoEncoder`, such as ``{"revision": ...}``.
        on_error: "raise", or "skip" to leave out what cannot be read, and log it: nodes that this is called with, as
            pipelines do, get no embedding, which keeps them out of stores, and `get_video_embeddings` gives None.
            Methods that must give a vector for every text raise in both cases.
        fingerprint: Of the model's vectors (`VideoEncoder.fingerprint`). It is filled in whenever this is saved or
            hashed, so that the cache of a pipeline tells models of one name apart, also one that was trained since; a
            saved one is compared with the model that is loaded.
        **fields: ``embed_batch_size`` (default 10), ``callback_manager``, ``num_workers``, and those of `Gate`:
            ``allowed_schemes``, ``root``.

    Raises:
        ValueError: An option is unknown, out of range, or in conflict with `encoder` (pydantic's `ValidationError`), or
            the model is another than the one of `fingerprint`. Also for ``embeddings_cache``: it is keyed by text
            alone, so a query would get the vector of a document, and a changed file its old one.
        LayerError: As `VideoEncoder`.
        BackboneError: As `VideoEncoder`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model_name: str = Field(default=DEFAULT_MODEL, description="Name of the model.")
    layer: int | None = Field(default=None, description="Decoder block to read.")
    dimensions: int | None = Field(default=None, gt=0, description="Numbers of each vector to keep.")
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Frames per second of video.")
    max_frames: int | None = Field(default=None, gt=0, description="Most frames of one video.")
    query_instruction: str | None = Field(default=None, description="Prompt of queries.")
    text_instruction: str | None = Field(default=None, description="Prompt of texts that are documents.")
    device: str | None = Field(default=None, description="Torch device.")
    model_options: ModelOptions | None = Field(default=None, description="How the model is loaded.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="More arguments of VideoEncoder.")
    on_error: OnError = Field(default="raise", description="What happens if a video cannot be read.")
    fingerprint: str | None = Field(default=None, description="Of the model's vectors.")

    _encoder: Any = PrivateAttr(default=None)
    _loaded_by_name: bool = PrivateAttr(default=False)

    def __init__(self, model_name: str | None = None, *, encoder: VideoEncoder | None = None, **fields: Any) -> None:
        if model_name is not None:
            fields["model_name"] = model_name
        super().__init__(**fields)
        if encoder is None:
            if model_name is None:
                warn_of_default(self.model_name, packages=("llama_index.embeddings.vidembed",))
            self._load()
        else:
            given = [name for name in _LOADING if getattr(self, name)]
            check_ready("encoder", encoder, methods=("encode_stream",), given=given)
            self.check_urls("encoder", encoder)
            self._encoder = encoder
            if model_name is None:
                self.model_name = f"{READY}{encoder.fingerprint[:16]}"
        self._check_model()

    @field_validator("embeddings_cache")
    @classmethod
    def _no_cache(cls, cache: Any) -> None:
        if cache is not None:
            raise ValueError(
                "embeddings_cache: it is keyed by text alone, so a query could get the vector of a document, and a "
                "changed file its old vector. Leave it out; the cache of IngestionPipeline works."
            )

    def _load(self) -> None:
        check_loadable(self.model_name, "encoder")
        self._encoder = load_encoder(
            self.model_name,
            layer=self.layer,
            device=self.device,
            model_options=self.model_options,
            fps=self.fps,
            max_frames=self.max_frames,
            allow_url=self.wants_urls,
            model_kwargs=self.model_kwargs,
        )
        self._loaded_by_name = True

    def _check_model(self) -> None:
        check_dimensions(self._encoder, self.dimensions, self.model_name)
        found = self._encoder.fingerprint
        if self.fingerprint not in (None, found):
            raise ValueError(
                f"fingerprint: {self.model_name} now gives other vectors than when this was saved ({found[:16]}, was "
                f"{str(self.fingerprint)[:16]}). Leave fingerprint out, and embed all stored documents again."
            )
        self.fingerprint = found

    @field_serializer("fingerprint")
    def _fingerprint_now(self, _known: str | None) -> str:
        """Of the weights as they are now: the model may have been trained since."""
        self.fingerprint = self.encoder.fingerprint
        return self.fingerprint

    @classmethod
    def class_name(cls) -> str:
        """Name that this is saved under."""
        return "VideoEmbedding"

    @property
    def encoder(self) -> VideoEncoder:
        """The model."""
        encoder: VideoEncoder = self._encoder
        return encoder

    # -- the model's work --------------------------------------------------------------------------------------------

    def _embed(self, inputs: Sequence[Any], *, on_error: OnError = "raise") -> list[Vector | None]:
        """Embed what `Gate` made, texts with their instruction; None where an input failed."""
        vectors: list[Vector | None] = [None] * len(inputs)
        places: dict[str | None, list[int]] = {}
        for place, one in enumerate(inputs):
            is_text = isinstance(one, dict) and set(one) == {"text"}
            places.setdefault(self.text_instruction if is_text else None, []).append(place)
        with lock_of(self._encoder):
            for prompt, group in places.items():
                items = self._encoder.encode_stream(
                    [inputs[place] for place in group],
                    batch_size=self.embed_batch_size,
                    on_error=on_error,
                    show_progress_bar=False,
                    prompt=prompt,
                    truncate_dim=self.dimensions,
                )
                for place, item in zip(group, items, strict=True):
                    vectors[place] = None if item.embedding is None else self._floats(item.embedding)
        return vectors

    def _embed_all(self, inputs: Sequence[Any]) -> list[Vector]:
        return [vector for vector in self._embed(inputs) if vector is not None]

    def _floats(self, vector: NDArray[np.float32]) -> Vector:
        return to_floats(vector, shortened=self.dimensions is not None or self._encoder.truncate_dim is not None)

    # -- LlamaIndex's hooks ------------------------------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Vector:
        """A query is words, even if they look like a video URI or the name of a file."""
        if not isinstance(query, str) or not query.strip():
            raise NothingToEmbedError(f"query: got {query!r}; give some words")
        how = {} if self.query_instruction is None else {"prompt": self.query_instruction}
        with lock_of(self._encoder):
            vector = self._encoder.encode_query(
                {"text": query}, show_progress_bar=False, truncate_dim=self.dimensions, **how
            )
        return self._floats(vector)

    async def _aget_query_embedding(self, query: str) -> Vector:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Vector:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Vector:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return self._embed_all([self.text_input(text) for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Vector]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **kwargs: Any) -> list[Vector]:
        """As the base class, after a look at all texts: one that cannot be embedded is named before any is."""
        self._check_texts(texts)
        return super().get_text_embedding_batch(texts, show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Vector]:
        """As `get_text_embedding_batch`."""
        self._check_texts(texts)
        return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)

    def _check_texts(self, texts: list[str]) -> None:
        for place, text in enumerate(texts):
            self.text_input(text, f"texts[{place}]")

    def _get_image_embedding(self, img_file_path: ImageType) -> Vector:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Vector:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Vector]:
        return self._embed_all([self.image_input(image) for image in img_file_paths])

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Vector]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    # -- videos ------------------------------------------------------------------------------------------------------

    def get_video_embedding(self, video: Any) -> Vector:
        """Embed one video.

        Args:
            video: A path, a video URI, or any other form that `VideoEncoder` takes: segments, bytes, file objects.

        Raises:
            VideoError: It cannot be read.
            VideoUriError: It is not allowed.
        """
        with self._reported([item_name(video)]) as vectors:
            (vector,) = self._embed_all([self.video_input(video)])
            vectors.append(vector)
        return vector

    async def aget_video_embedding(self, video: Any) -> Vector:
        """As `get_video_embedding`, in a thread."""
        return await asyncio.to_thread(self.get_video_embedding, video)

    def get_video_embeddings(self, videos: Sequence[Any], show_progress: bool = False) -> list[Vector | None]:
        """Embed videos, ``embed_batch_size`` at a time.

        Args:
            videos: Each as `get_video_embedding` takes.
            show_progress: Whether to show a bar.

        Returns:
            A vector for each, in order; with ``on_error="skip"``, None for one that cannot be read.

        Raises:
            VideoError: One cannot be read, with ``on_error="raise"``.
            VideoUriError: One is not allowed, with ``on_error="raise"``.
        """
        found: list[Vector | None] = []
        for batch in self._batches(videos, show_progress):
            with self._reported([item_name(video) for video in batch]) as vectors:
                vectors.extend(self._embed_each(batch, self.video_input, item_name))
            found += vectors
        return found

    async def aget_video_embeddings(self, videos: Sequence[Any], show_progress: bool = False) -> list[Vector | None]:
        """As `get_video_embeddings`, in a thread."""
        return await asyncio.to_thread(self.get_video_embeddings, videos, show_progress)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Set the embeddings of nodes: of their video, else of their text, else of their image.

        Args:
            nodes: Their video is what the URI in their text names, else their ``video_resource``.
            **kwargs: ``show_progress``.

        Returns:
            The same nodes. With ``on_error="skip"``, the embedding of one that cannot be read is None.

        Raises:
            VideoError: A video cannot be read, with ``on_error="raise"``.
            VideoUriError: One is not allowed, with ``on_error="raise"``.
            NothingToEmbedError: A node is empty, with ``on_error="raise"``.
        """
        for batch in self._batches(nodes, kwargs.get("show_progress", False)):
            with self._reported([node.get_content(MetadataMode.EMBED) for node in batch]) as vectors:
                if self.rate_limiter is not None:
                    self.rate_limiter.acquire()
                vectors.extend(self._embed_each(batch, self.node_input, node_name))
            for node, vector in zip(batch, vectors, strict=True):
                node.embedding = vector
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """As a call, in a thread."""
        return await asyncio.to_thread(self.__call__, nodes, **kwargs)

    def _batches(self, items: Sequence[Any], show_progress: bool) -> Iterator[Sequence[Any]]:
        starts = range(0, len(items), self.embed_batch_size)
        for start in get_tqdm_iterable(starts, show_progress, "Generating embeddings"):
            yield items[start : start + self.embed_batch_size]

    def _embed_each(
        self, items: Sequence[Any], as_input: Callable[[Any], Any], name_of: Callable[[Any], str]
    ) -> list[Vector | None]:
        """Embed items that `as_input` reads. With ``on_error="skip"``, None for those that fail, and a line of log."""
        inputs: dict[int, Any] = {}
        for place, item in enumerate(items):
            try:
                inputs[place] = as_input(item)
            except (VideoError, ValueError, OSError) as error:
                if self.on_error == "raise":
                    raise
                logger.warning("skipped %s: %s", name_of(item), error)
        vectors: list[Vector | None] = [None] * len(items)
        for place, vector in zip(inputs, self._embed(list(inputs.values()), on_error=self.on_error), strict=True):
            vectors[place] = vector
            if vector is None:  # vidembed has logged why
                logger.warning("skipped %s: it gets no embedding", name_of(items[place]))
        return vectors

    @contextmanager
    def _reported(self, chunks: list[str]) -> Iterator[list[Vector | None]]:
        """Emit both kinds of events around an embedding; what is put into the list is what was embedded."""
        payload = self.to_payload()
        dispatcher.event(EmbeddingStartEvent(model_dict=payload))
        vectors: list[Vector | None] = []
        with self.callback_manager.event(
            CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
        ) as callback_event:
            yield vectors
            done = [(chunk, vector) for chunk, vector in zip(chunks, vectors, strict=True) if vector is not None]
            names, embeddings = [chunk for chunk, _ in done], [vector for _, vector in done]
            callback_event.on_end(payload={EventPayload.CHUNKS: names, EventPayload.EMBEDDINGS: embeddings})
        dispatcher.event(EmbeddingEndEvent(chunks=names, embeddings=embeddings))

    # -- pickling ----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Without a model that can be loaded again by its name, and without what belongs to this process."""
        self.fingerprint = self.encoder.fingerprint
        names = set(type(self).model_fields) - _OF_THIS_PROCESS
        encoder = None if self._loaded_by_name else self._encoder
        return {"encoder": encoder, "fields": {name: getattr(self, name) for name in sorted(names)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the model again where it was left out."""
        self.__init__(encoder=state["encoder"], **state["fields"])  # type: ignore[misc]  # as the base class does
