"""What an index says of itself: the model that made it and how files were cut. Written once, with the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vidembed.errors import IndexDamagedError, IndexMismatchError
from vidembed.registry import NAMESPACE, find_model
from vidembed.video.segments import Cut, Scenes, Windows, cut_from_dict, cut_to_dict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker
    from vidembed.video import Sampling


SCHEMA_VERSION = 2
_WITHOUT_SCENES = 1


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How an encoder is loaded; the arguments of `load_model`.

    Attributes:
        name: As `VideoEncoder` takes it.
        layer: Decoder layer, for a model that is not a vidembed checkpoint.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        device: Torch device, such as `cuda`. None: the best there is.
    """

    name: str
    layer: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None

    def load(self) -> VideoEncoder:
        """Load the encoder; raises as `load_model`."""
        return load_model(self.name, layer=self.layer, sampling=self.sampling, device=self.device)


@dataclass(frozen=True, slots=True)
class IndexMeta:
    """The description stored in an index."""

    model: str  # name or path that loads the model again
    layer: int | None  # decoder layer that was asked for on loading, or None for the checkpoint's own
    sampling: dict[str, Any]  # settings of frame sampling on loading, by name
    model_fingerprint: str  # SHA-256 of all that made the vectors, hex
    fingerprint_fields: dict[str, Any]  # the same, readable
    dimension: int  # length of a vector
    segment_s: float | None  # length of the windows, seconds, or None where a file is one row
    overlap_s: float  # of the windows, seconds
    created: str  # ISO 8601 with offset
    scenes: dict[str, Any] | None = None  # how files are cut by their content, as `cut_to_dict` writes it
    schema_version: int = _WITHOUT_SCENES  # of this description and of the columns: 2 where there are scenes, else 1

    @property
    def cut(self) -> Cut | None:
        """How files are cut, or None where a file is one row."""
        if self.scenes is not None:
            return cut_from_dict(self.scenes)
        return None if self.segment_s is None else Windows(self.segment_s, self.overlap_s)

    def model_options(self, name: str | None = None, *, device: str | None = None) -> ModelOptions:
        """Return how to load the model again, from `name` if it lies elsewhere now."""
        return ModelOptions(name or self.model, self.layer, self.sampling, device)

    @staticmethod
    def fields_of(cut: Cut | None) -> dict[str, Any]:
        """Return the fields that say how files are cut, and the version that knows them."""
        if isinstance(cut, Scenes):
            return {"segment_s": None, "overlap_s": 0.0, "scenes": cut_to_dict(cut), "schema_version": SCHEMA_VERSION}
        if cut is None:
            return {"segment_s": None, "overlap_s": 0.0}
        return {"segment_s": cut.length, "overlap_s": cut.overlap}

    def to_json(self) -> str:
        """Return the description as JSON. Without scenes, it is one that version 1 reads."""
        fields = asdict(self)
        if self.scenes is None:
            del fields["scenes"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexMeta:
        """Read what `to_json` wrote.

        Raises:
            IndexDamagedError: It is not such a description.
            IndexMismatchError: It was written by a later version.
        """
        damaged = "index: its description cannot be read ({}); remove the folder and index again"
        try:
            fields = json.loads(text)
            is_later = fields["schema_version"] > SCHEMA_VERSION
        except (ValueError, TypeError, KeyError) as error:
            raise IndexDamagedError(damaged.format(error)) from error
        if is_later:
            raise IndexMismatchError(
                f"index: its format is version {fields['schema_version']}, and this vidembed reads up to "
                f"{SCHEMA_VERSION}; update vidembed"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise IndexDamagedError(damaged.format(error)) from error

    def require_model(self, model: Fingerprinted, *, name: str) -> None:
        """Refuse a model, loaded as `name`, other than the one that made the vectors, or that one with other weights.

        Raises:
            IndexMismatchError: The fingerprints differ. The message says both, and the fields that differ.
        """
        fingerprint = model.fingerprint
        if fingerprint == self.model_fingerprint:
            return
        fields = model.fingerprint_fields()
        keys = sorted({*fields, *self.fingerprint_fields})
        differing = [
            f"{key} {self.fingerprint_fields.get(key)!r} in the index, {fields.get(key)!r} now"
            for key in keys
            if _plain(fields.get(key)) != self.fingerprint_fields.get(key)
        ]
        raise IndexMismatchError(
            f"model: the index was made by {self.model!r} (fingerprint {self.model_fingerprint[:12]}) and {name!r} has "
            f"fingerprint {fingerprint[:12]}; their vectors cannot be compared "
            f"({'; '.join(differing) or 'no field differs'}). Use the model of the index, or make another index"
        )


def _plain(value: Any) -> Any:
    """Return `value` as it comes back from JSON: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def load_model(
    name: str,
    *,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> VideoEncoder:
    """Load the encoder that an index needs.

    Args:
        name: As `VideoEncoder` takes it.
        layer: Decoder layer, for a model that is not a vidembed checkpoint.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        device: Torch device, such as `cuda`. None: the best there is.

    Raises:
        ValueError: There is no such model, it takes no video, or an argument is out of range.
    """
    from vidembed.encoder import VideoEncoder  # noqa: PLC0415 - it brings torch, which an index does not need

    try:
        encoder = VideoEncoder(name, layer=layer, device=device)
    except OSError as error:  # what transformers raises for a model that it cannot find
        where = "" if Path(name).exists() else "is no folder here, no model of the store, and "
        raise ValueError(f"model: {name!r} {where}cannot be loaded: {error}") from error
    if sampling:
        encoder.sampling = replace(encoder.sampling, **sampling)
    return encoder


def stored_name(name: str) -> str:
    """Return the name to store for a model: a folder by its absolute path, so that a search finds it from anywhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def load_reranker(
    name: str | None,
    encoder: VideoEncoder,
    *,
    model: str,
    mode: Any = None,
    calibration: Path | None = None,
    visual_cache: Path | None = None,
    device: str | None = None,
) -> VideoReranker:
    """Load the reranker that goes with the encoder of an index.

    Args:
        name: A reranker, or a video MLLM with its head. None: the encoder's own MLLM if it holds it, else
            ``<model>-rerank`` if such a one is bundled or built, else what the encoder's checkpoint was built from.
        encoder: Of the index. The reranker gets its frame grid.
        model: Name that the encoder was loaded by.
        mode: Score mode; None for the reranker's own.
        calibration: File that `VideoReranker.save_calibration` wrote.
        visual_cache: Folder to keep visual tokens in from search to search; None for nowhere.
        device: Torch device. None: that of the encoder.

    Raises:
        ValueError: There is no such reranker, or none that the encoder names.
    """
    from vidembed.reranker import VideoReranker  # noqa: PLC0415 - it brings torch
    from vidembed.visual_cache import VisualTokenCache  # noqa: PLC0415 - it brings torch

    how: dict[str, Any] = {
        "mode": mode,
        "calibration": calibration,
        "visual_cache": None if visual_cache is None else VisualTokenCache(visual_cache),
    }
    if name is None and encoder.backbone is not None:
        reranker = encoder.reranker(**how)
    else:
        name = name or _reranker_of(encoder, model)
        try:
            reranker = VideoReranker(name, sampling=encoder.sampling, device=device or str(encoder.device), **how)
        except OSError as error:
            raise ValueError(f"reranker: {name!r} cannot be loaded: {error}") from error
    known = reranker.first_stage
    if known is not None and not reranker.can_fuse and known.fingerprint == encoder.fingerprint:
        reranker.use_first_stage(encoder)
    return reranker


def _reranker_of(encoder: VideoEncoder, model: str) -> str:
    beside = model + "-rerank"
    if model.startswith(NAMESPACE) and find_model(beside) is not None:
        return beside
    source = encoder.checkpoint_config.source if encoder.checkpoint_config else ""
    if source.count("/") == 1:  # a name on the Hub; of a folder only the last part was kept
        return source
    raise ValueError(
        f"reranker: {model!r} holds no head, and it does not say which model it was built from ({source!r} is no name "
        "that can be loaded). Give --reranker: the video MLLM, or a saved reranker."
    )


class Fingerprinted(Protocol):
    """A model that says what made its vectors."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that makes the vectors, hex."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the same, readable."""


class QueryEncoder(Fingerprinted, Protocol):
    """A model that gives the vector of a query."""

    def encode_query(self, inputs: Any, /) -> Any:
        """Return the vector of a query."""


class Item(Protocol):
    """One result of `StreamEncoder.encode_stream`."""

    @property
    def index(self) -> int:
        """Position of the input, from 0."""

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """Vector, shape (D,), or None where there is an error."""

    @property
    def error(self) -> Exception | None:
        """Why there is no vector."""


class IndexedModel(Fingerprinted, Protocol):
    """A model that an index can be made with."""

    @property
    def sampling(self) -> Sampling:
        """How frames are chosen."""

    def get_embedding_dimension(self) -> int | None:
        """Return the length of a vector."""


class StreamEncoder(IndexedModel, QueryEncoder, Protocol):
    """A model that gives the vectors of videos, one after the other."""

    video_backend: str

    def encode_stream(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 32,
        on_error: Literal["raise", "skip"] = "raise",
        show_progress_bar: bool | None = None,
    ) -> Iterator[Item]:
        """Yield a vector or an error for each input, in order."""
