"""What an index says of itself: the model that made it and how files were cut. Written once, with the table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vidembed.index.errors import IndexDamagedError, IndexMismatchError
from vidembed.video.cutting import Cut, cut_from_dict, cut_to_dict
from vidembed.video.scenes import Scenes
from vidembed.video.windows import Windows

if TYPE_CHECKING:
    from vidembed.index.protocols import Fingerprinted

SCHEMA_VERSION = 2
_WITHOUT_SCENES = 1


@dataclass(frozen=True, slots=True)
class IndexMeta:
    """The description stored in an index.

    Attributes:
        model: Name or path that loads the model again.
        layer: Decoder layer that was asked for on loading, or None for the checkpoint's own.
        sampling: Settings of frame sampling on loading, by name.
        model_fingerprint: SHA-256 of all that made the vectors, hex.
        fingerprint_fields: The same, readable.
        dimension: Length of a vector.
        segment_s: Length of the windows, seconds, or None where a file is one row.
        overlap_s: Overlap of the windows, seconds.
        created: When the index was made, ISO 8601 with offset.
        scenes: How files are cut by their content, as `vidembed.video.cutting.cut_to_dict` writes it; or None.
        schema_version: Version of this description and of the columns: 2 where there are scenes, else 1.
    """

    model: str
    layer: int | None
    sampling: dict[str, Any]
    model_fingerprint: str
    fingerprint_fields: dict[str, Any]
    dimension: int
    segment_s: float | None
    overlap_s: float
    created: str
    scenes: dict[str, Any] | None = None
    schema_version: int = _WITHOUT_SCENES

    @property
    def cut(self) -> Cut | None:
        """How files are cut, or None where a file is one row."""
        if self.scenes is not None:
            return cut_from_dict(self.scenes)
        return None if self.segment_s is None else Windows(self.segment_s, self.overlap_s)

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
        """Refuse a model other than the one that made the vectors, or that model with other weights.

        Args:
            model: The model at hand.
            name: What it was loaded as.

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
