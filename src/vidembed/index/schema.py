"""What the table of segments holds: its description, its columns, and the rows of a file."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexDamagedError, IndexMismatchError, MissingExtraError
from vidembed.video.clip import FileState
from vidembed.video.segments import Cut, Scenes, Windows, cut_from_dict, cut_to_dict

if TYPE_CHECKING:
    import pyarrow as pa

    from vidembed.backbone.options import ModelOptions
    from vidembed.encoder import VideoEncoder
    from vidembed.video import Sampling

FORMAT_VERSION = 1  # of the files beside the table
SCHEMA_VERSION = 2  # of the description and the columns; 1 where there are no scenes
NO_VECTOR = "the model gave a vector that is zero, not finite or of the wrong length"


def require_index_extra() -> tuple[ModuleType, ModuleType]:
    """Return lancedb and pyarrow, imported here since they take a second; MissingExtraError if they cannot be."""
    try:
        return importlib.import_module("lancedb"), importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtraError(
            f'the index needs LanceDB ({error}); install it with: pip install "vidembed[index]"'
        ) from error


class QueryEncoder(Protocol):
    """What a search needs of a model; `VideoEncoder` is one."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that makes the vectors, hex."""

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the same, readable."""

    def encode_query(self, inputs: Any, /) -> Any:
        """Return the vector of a query, shape (D,), or of several, shape (Q, D)."""


class IndexedModel(QueryEncoder, Protocol):
    """What an index needs of the model that makes it; `VideoEncoder` is one."""

    @property
    def sampling(self) -> Sampling:
        """How frames are chosen."""

    def get_embedding_dimension(self) -> int | None:
        """Return the length of a vector."""


@dataclass(frozen=True, slots=True)
class IndexMeta:
    """The description stored in an index, written once, with the table."""

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
    schema_version: int = 1

    @classmethod
    def of(cls, encoder: IndexedModel, name: str, *, layer: int | None, cut: Cut | None) -> IndexMeta:
        """Describe a new index of a model that `name` and `layer` load again."""
        if (dimension := encoder.get_embedding_dimension()) is None:
            raise RuntimeError(f"model: {name!r} does not report the length of its vectors")
        windows = cut if isinstance(cut, Windows) else None
        scenes = cut_to_dict(cut) if isinstance(cut, Scenes) else None
        return cls(
            model=name,
            layer=layer,
            sampling=encoder.sampling.as_dict(),
            model_fingerprint=encoder.fingerprint,
            fingerprint_fields=encoder.fingerprint_fields(),
            dimension=dimension,
            segment_s=windows.length if windows else None,
            overlap_s=windows.overlap if windows else 0.0,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            scenes=scenes,
            schema_version=SCHEMA_VERSION if scenes else 1,
        )

    @property
    def cut(self) -> Cut | None:
        """How files are cut, or None where a file is one row."""
        if self.scenes is not None:
            return cut_from_dict(self.scenes)
        return None if self.segment_s is None else Windows(self.segment_s, self.overlap_s)

    def load_encoder(self, name: str | None = None, options: ModelOptions | None = None) -> VideoEncoder:
        """Load the model again, from `name` if it lies elsewhere now; raises as `vidembed.encoder.load_encoder`."""
        from vidembed.encoder import load_encoder  # noqa: PLC0415 - it brings torch, which an index does not need

        return load_encoder(name or self.model, layer=self.layer, sampling=self.sampling, options=options)

    def to_json(self) -> str:
        """Return the description as JSON. Without scenes, it is one that version 1 reads."""
        fields = asdict(self)
        if self.scenes is None:
            del fields["scenes"]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> IndexMeta:
        """Read what `to_json` wrote; IndexDamagedError if it is not that, IndexMismatchError for a later version's."""
        try:
            fields = json.loads(text)
            if fields["schema_version"] <= SCHEMA_VERSION:
                return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise IndexDamagedError(
                f"index: its description cannot be read ({error}); remove the folder and index again"
            ) from error
        raise IndexMismatchError(
            f"index: its format is version {fields['schema_version']}, and this vidembed reads up to {SCHEMA_VERSION}; "
            "update vidembed"
        )

    def require_model(self, model: QueryEncoder, *, name: str) -> None:
        """Refuse, with IndexMismatchError, a model loaded as `name` of another fingerprint than that of the vectors."""
        if (fingerprint := model.fingerprint) == self.model_fingerprint:
            return
        now = json.loads(json.dumps(model.fingerprint_fields()))  # as the index has them: tuples are lists
        stored = self.fingerprint_fields
        differing = [
            f"{key} {stored.get(key)!r} in the index, {now.get(key)!r} now"
            for key in sorted({*now, *stored})
            if now.get(key) != stored.get(key)
        ]
        raise IndexMismatchError(
            f"model: the index was made by {self.model!r} (fingerprint {self.model_fingerprint[:12]}) and {name!r} has "
            f"fingerprint {fingerprint[:12]}; their vectors cannot be compared "
            f"({'; '.join(differing) or 'no field differs'}). Use the model of the index, or make another index"
        )


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as the index has it."""

    uri: str
    content_fingerprint: str  # SHA-256 of its bytes, hex
    state: FileState  # when it was indexed
    segments: int  # rows it has


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video, seconds on the clock of a player, and its vector."""

    start_s: float
    end_s: float
    vector: NDArray[np.float32]  # (D,)


@dataclass(frozen=True, slots=True)
class FileRows:
    """All rows of one file."""

    uri: str
    segments: Sequence[Segment]  # all of them, at least one
    duration: float  # where the video ends, seconds on the clock of a player
    content_fingerprint: str  # SHA-256 of its bytes, hex
    state: FileState  # size and time of last write
    table: pa.Table | None = None  # the rows as `own_rows` returns them, where they were built before


def segment_id(uri: str, start_s: float, end_s: float) -> str:
    """Return the id of a row: the UUID version 5 of the segment's media fragment URI, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}#t={start_s:.6f},{end_s:.6f}"))


def is_vector(vector: NDArray[np.float32], dimension: int) -> bool:
    """Whether a row can have this vector: of the right length, finite and not zero."""
    return vector.shape == (dimension,) and bool(np.isfinite(vector).all() and vector.any())


def own_schema(dimension: int) -> pa.Schema:
    """Return the columns of vidembed, for vectors of `dimension` numbers."""
    _, pa = require_index_extra()
    text, whole, number = pa.string(), pa.int64(), pa.float64()
    types = {"id": text, "uri": text, "start_s": number, "end_s": number, "duration": number}
    types |= {"content_fingerprint": text, "size": whole, "mtime_ns": whole, "model_fingerprint": text}
    types["vector"] = pa.list_(pa.float32(), dimension)
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def own_rows(file: FileRows, meta: IndexMeta) -> pa.Table:
    """Return the rows of a file in the columns of vidembed; RuntimeError for vectors of the wrong length."""
    if file.table is not None:
        return file.table
    _, pa = require_index_extra()
    vectors = np.stack([segment.vector for segment in file.segments]).astype(np.float32, copy=False)  # (S, D)
    if vectors.shape[1] != meta.dimension:
        raise RuntimeError(f"{file.uri}: vectors of length {vectors.shape[1]} for an index of {meta.dimension}")
    same = {"uri": file.uri, "duration": file.duration, "content_fingerprint": file.content_fingerprint}
    same |= {**asdict(file.state), "model_fingerprint": meta.model_fingerprint}
    columns = {name: [value] * len(file.segments) for name, value in same.items()}
    columns |= {
        "id": [segment_id(file.uri, segment.start_s, segment.end_s) for segment in file.segments],
        "start_s": [segment.start_s for segment in file.segments],
        "end_s": [segment.end_s for segment in file.segments],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), meta.dimension),
    }
    return pa.table(columns, schema=own_schema(meta.dimension))


def user_columns(schema: pa.Schema, dimension: int, *, nullable: bool) -> list[pa.Field]:
    """Return the columns that the user added; with `nullable`, refuse one that new rows cannot leave empty.

    Raises:
        IndexDamagedError: A column of vidembed is gone, or is of another type.
        IndexMismatchError: With `nullable`, a column must have a value.
    """
    own = own_schema(dimension)
    for column in own:
        found = schema.field(column.name) if column.name in schema.names else None
        if found is None or found.type != column.type:
            state = "is gone" if found is None else f"is of type {found.type} and not {column.type}"
            raise IndexDamagedError(f"index: its column {column.name!r} {state}; remove the folder and index again")
    users = [column for column in schema if column.name not in own.names]
    if nullable and (strict := [column.name for column in users if not column.nullable]):
        raise IndexMismatchError(
            f"index: the column {strict[0]!r}, which was added to the table, must have a value in every row, and "
            f'new rows have none. Allow it to be empty, with table.alter_columns({{"path": "{strict[0]}", '
            '"nullable": True}) of LanceDB, or drop it'
        )
    return users
