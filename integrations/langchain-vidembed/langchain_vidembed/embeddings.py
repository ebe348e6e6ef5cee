"""`VideoEmbeddings`: a vidembed encoder as LangChain embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from vidembed.adapters import (
    DEFAULT_MODEL,
    Gate,
    OnError,
    check_dimensions,
    check_ready,
    load_encoder,
    lock_of,
    to_floats,
    warn_of_default,
)
from vidembed.backbone.options import ModelOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from vidembed import EncodedItem

_LOADING = frozenset({"model", "layer", "dimensions", "fps", "max_frames", "device", "model_options", "model_kwargs"})
_ENCODE_KWARGS = frozenset({"prompt", "show_progress_bar"})


class VideoEmbeddings(Gate, Embeddings):
    """Embeds videos and text into one space.

    A text that is exactly one video URI (`vidembed.uri.video_uri`) is the video that it names. It is never embedded as
    words: if the video may not or cannot be read, that is an error. So is the bare path of a video. Any other text is
    text, and so is every query.

    The model is loaded when this is made. It is used by one thread at a time, `batch_size` inputs at a time, so that
    queries come in between while documents are embedded.

    Args:
        model: Any name that `vidembed.VideoEncoder` takes. Default the bundled one, which knows only drawn shapes; a
            warning says so.
        layer: Decoder block to read; needed for an MLLM.
        dimensions: Keep this many numbers of each vector, and scale it to length 1 again. Default all.
        fps: Frames looked at per second of video. Default what the model says.
        max_frames: Most frames of one video. Default what the model says.
        device: Torch device. Default the best there is.
        batch_size: Most inputs per batch. Default 8.
        model_options: How the model is loaded: `vidembed.ModelOptions`, or a dict of its fields, such as
            ``{"quantize": "int8"}``.
        model_kwargs: More arguments of `VideoEncoder`, such as ``{"revision": ...}``.
        encode_kwargs: More arguments of `VideoEncoder.encode_stream` for documents: ``prompt``, ``show_progress_bar``.
        on_error: "raise", or "skip" to leave out videos that cannot be read, where something can be left out: in
            `embed_videos`, and in `langchain_vidembed.index_videos`. `embed_documents` raises in both cases, since a
            store takes a vector for every text.
        encoder: A `VideoEncoder` that is loaded already, in the place of what says how to load one.
        **fields: Those of `vidembed.adapters.Gate`: ``allowed_schemes``, ``root``.

    Raises:
        ValueError: An option is unknown, out of range, or in conflict with `encoder` (pydantic's `ValidationError`).
        LayerError: As `VideoEncoder`.
        BackboneError: As `VideoEncoder`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model: str = DEFAULT_MODEL
    layer: int | None = None
    dimensions: int | None = Field(default=None, gt=0)
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_frames: int | None = Field(default=None, gt=0)
    device: str | None = None
    model_options: ModelOptions | None = None
    batch_size: int = Field(default=8, gt=0)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    on_error: OnError = "raise"
    encoder: Any = Field(default=None, exclude=True, repr=False)

    _loaded_by_name: bool = PrivateAttr(default=False)
    _embedded: dict[str, list[float]] = PrivateAttr(default_factory=dict)

    @field_validator("encode_kwargs")
    @classmethod
    def _known_encode_kwargs(cls, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(given) - _ENCODE_KWARGS):
            raise ValueError(f"{', '.join(map(repr, unknown))}: allowed are {', '.join(sorted(_ENCODE_KWARGS))}")
        return given

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, or check the one that was given."""
        super().model_post_init(context)
        if self.encoder is not None:
            given = self.model_fields_set & _LOADING
            check_ready("encoder", self.encoder, methods=("encode_stream", "encode_query"), given=given)
            self.check_urls("encoder", self.encoder)
            return
        if "model" not in self.model_fields_set:
            warn_of_default(self.model, packages=("langchain_vidembed",))
        self._load()

    def _load(self) -> None:
        encoder = load_encoder(
            self.model,
            layer=self.layer,
            device=self.device,
            model_options=self.model_options,
            fps=self.fps,
            max_frames=self.max_frames,
            allow_url=self.wants_urls,
            model_kwargs=self.model_kwargs,
        )
        if self.dimensions is not None:
            check_dimensions(encoder, self.dimensions, self.model)
            encoder.truncate_dim = self.dimensions
        self.encoder, self._loaded_by_name = encoder, True

    # -- LangChain's methods -----------------------------------------------------------------------------------------

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts and videos.

        Args:
            texts: Video URIs, which are videos, and anything else, which is text.

        Returns:
            One vector for each, in order.

        Raises:
            VideoError: A video cannot be read; the message names it.
            VideoUriError: A video URI is malformed, or what it names is not allowed; or a text is the bare path of a
                video (`vidembed.uri.names_video`).
            ValueError: A text is empty.
            TypeError: A text is no string.
        """
        inputs = [self._input(text, place) for place, text in enumerate(texts)]
        known = {text: vector for text in texts if (vector := self._embedded.pop(text, None)) is not None}
        unknown = [one for text, one in zip(texts, inputs, strict=True) if text not in known]
        encoded = (item.embedding for item in self._encode(unknown))
        fresh = (self._floats(vector) for vector in encoded if vector is not None)
        return [known[text] if text in known else next(fresh) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed a query. It is words, even if they look like a video URI or the name of a file.

        Raises:
            ValueError: It is empty.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"query: got {text!r}; give some words")
        with lock_of(self.encoder):
            vector = self.encoder.encode_query({"text": text}, show_progress_bar=False)
        return self._floats(vector)

    def embed_videos(self, videos: Sequence[Any]) -> list[list[float] | None]:
        """Embed videos in any form that `VideoEncoder` takes: paths, segments, bytes; or video URIs.

        Args:
            videos: A string is a video URI or the name of a file.

        Returns:
            A vector for each, in order; with ``on_error="skip"``, None for one that cannot be read.

        Raises:
            VideoError: A video cannot be read, with ``on_error="raise"``.
            VideoUriError: A video URI is malformed, or what it names is not allowed.
        """
        inputs = [self._video(video) for video in videos]
        return [
            None if item.embedding is None else self._floats(item.embedding)
            for item in self._encode(inputs, on_error=self.on_error)
        ]

    async def aembed_videos(self, videos: Sequence[Any]) -> list[list[float] | None]:
        """As `embed_videos`, in a thread."""
        return await run_in_executor(None, self.embed_videos, videos)

    # -- the parts ---------------------------------------------------------------------------------------------------

    def _input(self, text: str, place: int) -> Any:
        found = self.document_in(text, name=f"texts[{place}]", loader="VideoLoader")
        return {"text": text} if found is None else found.segment()  # a dict, since text could look like a file's name

    def _video(self, video: Any) -> Any:
        if isinstance(video, str):
            found = self.video_in(video)
            video = video if found is None else found.segment()
        return {"video": video}

    def _encode(self, inputs: Sequence[Any], *, on_error: OnError = "raise") -> Iterator[EncodedItem]:
        for first in range(0, len(inputs), self.batch_size):
            batch = inputs[first : first + self.batch_size]
            how = {"batch_size": self.batch_size, "on_error": on_error, "show_progress_bar": False}
            with lock_of(self.encoder):  # let go between batches, so that a query need not wait for all of them
                items = list(self.encoder.encode_stream(batch, **{**how, **self.encode_kwargs}))
            yield from items

    def embed_ahead(self, texts: Sequence[str]) -> dict[str, Exception]:
        """Embed texts and videos that `embed_documents` will be asked for next, and keep those vectors for it.

        Args:
            texts: As `embed_documents` takes. What was kept before is forgotten.

        Returns:
            Those that failed, with the reason.
        """
        self._embedded.clear()
        failed: dict[str, Exception] = {}
        inputs: dict[str, Any] = {}
        for place, text in enumerate(texts):
            try:
                inputs[text] = self._input(text, place)
            except ValueError as error:
                failed[text] = error
        for text, item in zip(inputs, self._encode(list(inputs.values()), on_error="skip"), strict=True):
            if item.embedding is not None:
                self._embedded[text] = self._floats(item.embedding)
            elif item.error is not None:
                failed[text] = item.error
        return failed

    def _floats(self, vector: NDArray[np.float32]) -> list[float]:
        return to_floats(vector, shortened=self.encoder.truncate_dim is not None)

    # -- pickling ----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[Any, Any]:
        """Without a model that can be loaded again by its name."""
        state = super().__getstate__()
        if self._loaded_by_name:
            state["__dict__"] = {**state["__dict__"], "encoder": None}
        state["__pydantic_private__"] = {**(state["__pydantic_private__"] or {}), "_embedded": {}}
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Load the model again where it was left out."""
        super().__setstate__(state)
        if self._loaded_by_name:
            self._load()
