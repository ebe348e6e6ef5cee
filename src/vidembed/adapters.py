"""Parts that adapters to other frameworks share. Importing it takes pydantic; torch comes with the first model."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator, model_validator

from vidembed.backbone.options import ModelOptions
from vidembed.captions import CaptionLookup
from vidembed.captions.lookup import caption_at
from vidembed.errors import NoCaptionError, NotAVideoError
from vidembed.scoring.hybrid import mixed_vectors
from vidembed.uri import SCHEMES, VideoRef, content_fingerprint, document_video, parse_video_uri
from vidembed.video import VideoError, VideoSegment, item_name
from vidembed.video.clip import check_regular
from vidembed.video.segments import Windows, lay_out

if TYPE_CHECKING:
    from vidembed.encoder import EncodedItem, VideoEncoder
    from vidembed.reranker import VideoReranker

DEFAULT_MODEL: Final = "vidembed/shapes"
DEFAULT_RERANKER: Final = "vidembed/shapes-rerank"

OnError = Literal["raise", "skip"]
NotVideo = Literal["raise", "keep", "drop"]
T = TypeVar("T")

_locks: WeakKeyDictionary[object, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def lock_of(model: VideoEncoder | VideoReranker) -> threading.RLock:
    """Return the lock of a model's weights. Tokenizers and the hooks of a shared prefix are not made for threads."""
    weights = model if model.backbone is None else model.backbone.model
    with _locks_lock:
        return _locks.setdefault(weights, threading.RLock())


def load_encoder(
    model: str,
    *,
    allow_url: bool,
    layer: int | None = None,
    device: str | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    model_options: ModelOptions | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> VideoEncoder:
    """Load an encoder from the fields of an adapter: arguments of `VideoEncoder`, and two of its `Sampling`."""
    fields = {"layer": "layer", "truncate_dim": "dimensions", "allow_url": "allowed_schemes"}
    kwargs = _kwargs(device, model_options, model_kwargs or {}, fields)
    from vidembed import VideoEncoder  # noqa: PLC0415 - it brings torch

    encoder = VideoEncoder(model, layer=layer, allow_url=allow_url, **kwargs)
    sampling = encoder.sampling
    encoder.sampling = replace(sampling, fps=fps or sampling.fps, max_frames=max_frames or sampling.max_frames)
    return encoder


def load_reranker(
    model: str,
    *,
    allow_url: bool,
    device: str | None = None,
    model_options: ModelOptions | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> VideoReranker:
    """Load a reranker from the fields of an adapter."""
    kwargs = _kwargs(device, model_options, model_kwargs or {}, {"allow_url": "allowed_schemes"})
    from vidembed import VideoReranker  # noqa: PLC0415 - it brings torch

    return VideoReranker(model, allow_url=allow_url, **kwargs)


def reranker_of(encoder: VideoEncoder, options: ModelOptions | None = None) -> VideoReranker:
    """Return the reranker that goes with an encoder by the name that this was loaded as; it reads what that may read.

    A field of an adapter is no such name: beside an encoder that is given, it keeps its default.
    """
    from vidembed.index.reranking import load_reranker as load_fitting  # noqa: PLC0415 - it brings torch

    model = encoder.loaded_as or type(encoder).__name__
    reranker = load_fitting(None, encoder, model=model, options=options)
    reranker.allow_url = encoder.allow_url
    return reranker


def warn_of_default(model: str, *, packages: Sequence[str]) -> None:
    """Warn that the bundled model is no model for real videos, at the first line outside the adapter's `packages`."""
    inside = (__name__, "pydantic", *packages)
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{model} knows only generated videos of moving shapes; give a model for real videos.", stacklevel=level
    )


def check_ready(name: str, model: object, *, methods: Iterable[str], given: Iterable[str]) -> None:
    """Raise ValueError for a model given as `name` that lacks `methods`, or beside fields that say how to load one."""
    if lacking := [f"{method}()" for method in methods if not callable(getattr(model, method, None))]:
        found = type(model).__name__
        raise ValueError(f"{name}: got {found}, which has no {', '.join(lacking)}; expected a vidembed model")
    if given := sorted(given):
        raise ValueError(f"{', '.join(given)}: {name} is already loaded; set this where you load it")


def check_dimensions(encoder: VideoEncoder, dimensions: int | None, model: str) -> None:
    """Raise ValueError if more numbers of a vector are to be kept than the model gives."""
    whole = encoder.get_embedding_dimension()
    if dimensions is not None and whole is not None and dimensions > whole:
        raise ValueError(f"dimensions: got {dimensions}; {model} gives vectors of {whole}")


def _kwargs(
    device: str | None, options: ModelOptions | None, more: Mapping[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments of a model by an adapter's fields; ValueError for one of `model_kwargs` that is another field's."""
    if device is not None and options is not None and (options.device is not None or options.device_map is not None):
        raise ValueError(f"device: got {device!r}, and model_options has a device too; give one of them")
    kwargs = {} if options is None else (options if device is None else replace(options, device=device)).kwargs()
    taken = {"device": "device", **fields, **dict.fromkeys(kwargs, "model_options")}
    for argument, field in taken.items():
        if argument in more:
            raise ValueError(f"model_kwargs: {argument!r} is set by the field {field!r}; use that field")
    return {**({"device": device} if options is None else {}), **kwargs, **more}


def to_floats(vector: NDArray[np.float32], *, shortened: bool) -> list[float]:
    """Return a vector (D,) as Python floats, which all stores can write; at length 1 again if it was `shortened`."""
    if shortened:
        vector = vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
    values: list[float] = vector.tolist()
    return values


class Gate(BaseModel):
    """The fields that say which files and addresses text may name; text could make this machine fetch addresses."""

    allowed_schemes: tuple[str, ...] = Field(
        default=("file",), description="Schemes that video URIs may have: file, http, https."
    )
    root: str | os.PathLike[str] | None = Field(
        default=None, description="Folder that files must be in, links resolved."
    )

    @field_validator("allowed_schemes")
    @classmethod
    def _known_schemes(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(schemes) - set(SCHEMES)):
            raise ValueError(f"{', '.join(map(repr, unknown))}: allowed are {', '.join(map(repr, SCHEMES))}")
        return schemes

    @property
    def wants_urls(self) -> bool:
        """Whether addresses are to be fetched."""
        return bool({"http", "https"} & set(self.allowed_schemes))

    def check_urls(self, name: str, model: object) -> None:
        """Raise ValueError if a loaded model does not fetch what the schemes allow."""
        if self.wants_urls and not getattr(model, "allow_url", False):
            raise ValueError(f"allowed_schemes: http(s) is allowed here, but {name} was made with allow_url=False")

    def video_in(self, text: str) -> VideoRef | None:
        """Return the video that a text names, or None for any other text; loaders add the white space around it."""
        return parse_video_uri(text.strip(), allowed_schemes=self.allowed_schemes, root=self.root)

    def document_in(self, text: str, *, name: str, loader: str) -> VideoRef | None:
        """Return the video of a text that is a document, or None for words; see `vidembed.uri.document_video`."""
        return document_video(text, name=name, loader=loader, allowed_schemes=self.allowed_schemes, root=self.root)


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video as loaders need it; times in seconds on the clock of a player."""

    fingerprint: str  # SHA-256 of the file: with it in the metadata, a file that was replaced is another document
    start: float  # where the first frame comes on show
    duration: float  # where the video ends
    segments: Sequence[tuple[float, float]]  # start and end of each window; one for the whole video without windows


def read_video_file(file: Path, windows: Windows | None = None) -> VideoFile:
    """Read a file whole for its fingerprint, and its times without decoding it to its end."""
    check_regular(str(file), item_name(file))  # reading a pipe could wait for ever
    fingerprint = content_fingerprint(file)
    layout = lay_out(file, windows)
    return VideoFile(fingerprint, layout.segments[0][0], round(layout.duration, 6), layout.segments)


@functools.lru_cache(maxsize=1024)
def _known_file(file: Path, _size: int, _mtime_ns: int) -> VideoFile:
    """`read_video_file` of a whole video, whose segments are often asked for one after the other."""
    return read_video_file(file)


class CaptionFields(BaseModel):
    """The fields that say how much of a document's vector is its caption; by default it is the video alone."""

    captions: Any = Field(default=None, description="File, records or `CaptionLookup` of captions.")
    caption_weight: float = Field(default=0.0, ge=0, le=1, description="Share of the caption in a document's vector.")
    without_caption: Literal["raise", "video"] = Field(
        default="raise", description="For a video without a caption: an error, or the vector of the video."
    )

    @field_validator("captions")
    @classmethod
    def _looked_up(cls, captions: Any) -> CaptionLookup | None:
        return None if captions is None else CaptionLookup.of(captions)

    @model_validator(mode="after")
    def _captions_have_a_weight(self) -> Self:
        if (self.captions is None) != (self.caption_weight == 0):
            given = "no captions" if self.captions is None else "captions"
            raise ValueError(
                f"caption_weight: got {self.caption_weight} and {given}; give captions and a weight above 0, or neither"
            )
        return self

    def caption_of(self, video: object) -> str | None:
        """Return the caption that goes into the vector of a document.

        Args:
            video: What is embedded. Only a `VideoSegment` has a caption: the one of the same bytes and times, to a
                millisecond. Words and pictures have none.

        Returns:
            The caption; None if there is none to go into the vector.

        Raises:
            NoCaptionError: The video has none, with ``without_caption="raise"``.
            VideoError: The file cannot be read.
            OSError: Likewise.
        """
        if self.captions is None or not isinstance(video, VideoSegment):
            return None
        if isinstance(video.path, Path):  # what an address gives is not known before it is fetched
            state = video.path.stat()
            known = _known_file(video.path, state.st_size, state.st_mtime_ns)
            captions = self.captions.of_video(known.fingerprint, known.start, known.duration)
            start = video.start or known.start
            found = caption_at(captions, start, known.duration if video.end is None else video.end)
            if found is not None and found.text is not None:
                return str(found.text)
        if self.without_caption == "video":
            return None
        raise NoCaptionError(
            f"{item_name(video)}: {self.captions} have no caption of these bytes and times, and caption_weight is "
            f"{self.caption_weight}. Caption it with the same segments, or give without_caption='video'."
        )

    def encode_documents(
        self,
        encoder: VideoEncoder,
        inputs: Sequence[Any],
        *,
        on_error: OnError = "raise",
        query: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> list[EncodedItem]:
        """Embed documents, as `VideoEncoder.encode_stream`, with the captions of videos in their vectors.

        Args:
            encoder: Not in use by another thread.
            inputs: As `VideoEncoder.encode_stream` takes; `caption_of` says which of them have a caption.
            on_error: "raise", or "skip" for an item with its error.
            query: Arguments of `VideoEncoder.encode_query`, by which captions are embedded, as by an index.
            **how: Of `VideoEncoder.encode_stream`.

        Returns:
            One for each input, in order; vectors (D,) float32 by `vidembed.scoring.mixed_vectors`.

        Raises:
            NoCaptionError: As `caption_of`, with ``on_error="raise"``.
            VideoError: A video cannot be read, likewise.
        """
        captions: dict[int, str | None] = {}  # by place
        failed: dict[int, Exception] = {}
        for place, one in enumerate(inputs):
            try:
                captions[place] = self.caption_of(one)
            except (NoCaptionError, VideoError, OSError) as error:
                if on_error == "raise":
                    raise
                failed[place] = error
        given = [inputs[place] for place in captions]
        items = dict(zip(captions, encoder.encode_stream(given, on_error=on_error, **how), strict=True))
        vectors = {place: item.embedding for place, item in items.items() if item.embedding is not None}
        if mixed := [place for place in vectors if captions[place] is not None]:
            texts = [{"text": captions[place]} for place in mixed]
            said = encoder.encode_query(texts, show_progress_bar=False, **(query or {}))  # (N, D)
            both = mixed_vectors([vectors[place] for place in mixed], said, self.caption_weight)  # (N, D)
            vectors |= zip(mixed, both.astype(np.float32), strict=True)
        from vidembed.encoder import EncodedItem  # noqa: PLC0415 - it brings torch

        errors = failed | {place: item.error for place, item in items.items()}
        return [EncodedItem(place, vectors.get(place), errors[place]) for place in range(len(inputs))]


def stable_id(*parts: str) -> str:
    """Return a UUID made of text: Qdrant takes no other strings for ids, and the same video keeps its id."""
    return str(functools.reduce(uuid.uuid5, parts, uuid.NAMESPACE_URL))


def storable(value: str | os.PathLike[str]) -> str:
    """Return a name as UTF-8: stores take no other. The URI keeps its bytes."""
    return os.fsencode(value).decode("utf-8", "backslashreplace")


class RerankerFields(BaseModel):
    """The fields that say which `VideoReranker` is loaded: arguments of `load_reranker`."""

    model: str = Field(default=DEFAULT_RERANKER, description="Name of the model.")
    device: str | None = Field(default=None, description="Torch device.")
    model_options: ModelOptions | None = Field(default=None, description="How the model is loaded.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="More arguments of VideoReranker.")


class RankFields(BaseModel):
    """The fields that say how documents are reranked."""

    top_n: int | None = Field(default=None, gt=0, description="Most documents to keep; default all.")
    min_score: float | None = Field(default=None, ge=0, le=1, description="Least probability to keep; default any.")
    fuse: bool | None = Field(default=None, description="Fuse with similarity; default if possible.")
    on_error: OnError = Field(default="raise", description="What happens if a video cannot be read.")
    not_video: NotVideo = Field(default="raise", description="What happens to a document that is no video.")


@dataclass(frozen=True, slots=True)
class Ranking(Generic[T]):
    """Documents that a reranker has looked at."""

    ranked: list[tuple[T, dict[str, float]]]  # with ``score``, and if fused ``similarity`` and ``match``; best first
    unread: list[T]  # those whose video could not be read
    others: list[T]  # those that name no video, with ``not_video="keep"``


def fuses(reranker: VideoReranker, fuse: bool | None) -> bool:
    """Whether scores are fused: as asked for, by default (None) if possible; ValueError if asked for and not."""
    can = bool(getattr(reranker, "can_fuse", False))
    if fuse and not can:
        raise ValueError(
            "fuse: this reranker has no fusion, or the encoder that the fusion was fitted with is not loaded; see "
            "VideoReranker.calibrate(..., first_stage=..., encoder=...)"
        )
    return can if fuse is None else fuse


def rank_documents(
    reranker: VideoReranker,
    query: str,
    documents: Iterable[T],
    video_of: Callable[[T], object | None],
    options: RankFields,
    *,
    name_of: Callable[[int, T], str],
) -> Ranking[T]:
    """Rank documents by the probability that their video matches the query; all candidates at once, for fusion.

    `video_of` returns a document's video, or None for one that is none, which `name_of` names by its position.
    `RankFields.top_n` is left to the caller.
    """
    videos: list[tuple[T, object]] = []
    others: list[T] = []
    for place, document in enumerate(documents):
        if (video := video_of(document)) is not None:
            videos.append((document, video))
        elif options.not_video == "raise":
            raise NotAVideoError(name_of(place, document))
        elif options.not_video == "keep":
            others.append(document)
    ranking: list[dict[str, Any]] = []
    if videos:
        with lock_of(reranker):
            ranking = reranker.rank(
                {"text": query},
                [video for _, video in videos],
                first_stage="own" if fuses(reranker, options.fuse) else None,
                on_error=options.on_error,
                show_progress_bar=False,
            )
    read = {each["corpus_id"] for each in ranking}
    ranked: list[tuple[T, dict[str, float]]] = [
        (videos[each["corpus_id"]][0], {part: each[part] for part in ("similarity", "match", "score") if part in each})
        for each in ranking
        if options.min_score is None or each["score"] >= options.min_score
    ]
    return Ranking(ranked, [document for place, (document, _) in enumerate(videos) if place not in read], others)
