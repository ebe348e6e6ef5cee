"""What a run did, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

VANISHED: Final = "PathVanished"
"""Kind of problem of a path that was named: the index has files of it, and no video is there now."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be indexed.

    Attributes:
        uri: Its `file://` URI.
        kind: The sort of error: the name of a class of `vidembed.video.VideoError` or of another exception, or
            `ChangedWhileRead`, `InvalidDuration`, `InternalError` or `PathVanished`.
        message: What is wrong, and in which segment.
    """

    uri: str
    kind: str
    message: str


@dataclass(slots=True)
class Report:
    """What a run of `index_videos` did.

    Attributes:
        index: Folder of the index.
        model: Model that made the vectors.
        indexed: Files embedded and stored, new ones and changed ones.
        changed: How many of `indexed` took the place of an earlier version.
        copied: Files with the content of another, stored with its vectors.
        moved: Files with the content of one that is gone from disk, whose rows they took over.
        unchanged: Files that were in the index as they are.
        skipped: Files that could not be indexed, and named or inner folders that hold nothing or cannot be read; why.
        quarantined: How many of `skipped` were put on the quarantine list by this run.
        gone: URIs that are in the index, or were, and no longer on disk; without those that were moved.
        pruned: Whether those were removed.
        files: Files in the index after the run.
        segments: Rows in the index after the run.
    """

    index: str
    model: str
    indexed: int = 0
    changed: int = 0
    copied: int = 0
    moved: int = 0
    unchanged: int = 0
    skipped: list[Problem] = field(default_factory=list)
    quarantined: int = 0
    gone: list[str] = field(default_factory=list)
    pruned: bool = False
    files: int = 0
    segments: int = 0

    @property
    def any_in_index(self) -> bool:
        """Whether some file of this run is in the index."""
        return self.indexed + self.copied + self.moved + self.unchanged > 0

    @property
    def vanished(self) -> list[str]:
        """URIs of the paths that were named, of which the index has files and where no video is now; the files stay."""
        return [problem.uri for problem in self.skipped if problem.kind == VANISHED]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as it stands in JSON."""
        return asdict(self)
