"""A file on its way into the index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vidembed.index.files import IndexedFile, Listing, is_gone, is_local, path_of, uri_of
from vidembed.index.table import Segment
from vidembed.video.sampling import FileState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed.video.pool import Reading


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that must be read to know what to do with it.

    Attributes:
        path: Where it is.
        uri: Its `file://` URI.
        previous: The file as indexed, or None where it is not in the index.
    """

    path: Path
    uri: str
    previous: IndexedFile | None


@dataclass(slots=True)
class Plan:
    """The files of a run.

    Attributes:
        unchanged: In the index, and neither size nor time of last write has changed.
        candidates: New, or written to since; in the order of their paths.
        gone: In the index, under a folder of this run, and no longer on disk.
        listing: The files on disk.
    """

    listing: Listing
    unchanged: list[IndexedFile] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    gone: list[IndexedFile] = field(default_factory=list)

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer on disk."""
        return is_local(uri) and self.listing.knows(path := path_of(uri)) and is_gone(path)


def make_plan(listing: Listing, indexed: Mapping[str, IndexedFile], *, rehash: bool = False) -> Plan:
    """Sort the files of a run by what must be done with them.

    A file whose size and time of last write are those stored is taken to be unchanged, as git and rsync do. Content
    decides for the others, once they are read. A file of the index that the walk left out (its name has no video
    suffix, say) but that is on disk is treated as found.

    Args:
        listing: The files on disk.
        indexed: The files in the index, by URI.
        rehash: Read every file, whatever its size and time of last write.
    """
    plan = Plan(listing)
    paths = {uri_of(path): path for path in listing.files}
    for uri, file in indexed.items():
        if uri in paths or not is_local(uri) or not listing.knows(path := path_of(uri)):
            continue
        if is_gone(path):
            plan.gone.append(file)
        else:
            paths[uri] = path
    for uri, path in sorted(paths.items(), key=lambda item: item[1]):
        previous = indexed.get(uri)
        if previous is not None and not rehash and _state(path) == previous.state:
            plan.unchanged.append(previous)
        else:
            plan.candidates.append(Candidate(path, uri, previous))
    plan.gone.sort(key=lambda file: file.uri)
    return plan


def _state(path: Path) -> FileState | None:
    try:
        return FileState.of(path)
    except OSError:
        return None  # reported when the file is read


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


@dataclass(slots=True)
class Job:
    """A candidate on its way into the index.

    Attributes:
        candidate: The file.
        state: Size and time of last write, taken before the file was read.
        content: SHA-256 of the file, hex; empty until it is known.
        duration: Seconds.
        windows: Start and end of each segment that the model must see, seconds.
        vectors: What the model gave, by position in `windows`; each float32, shape (D,).
        reading: Its decoding, where the model must see it.
        twin: An earlier job of this run with the same content.
        stored: Segments that the index had for this content when the job was prepared.
        moved_from: The file of the index that has this content and is gone from disk.
        problem: Why the file cannot be indexed.
        undecodable: Whether the problem is the content's, so that the file belongs in quarantine.
    """

    candidate: Candidate
    state: FileState = field(default_factory=lambda: FileState(0, 0))
    content: str = ""
    duration: float = 0.0
    windows: list[tuple[float, float]] = field(default_factory=list)
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    reading: Reading | None = None
    twin: Job | None = None
    stored: list[Segment] | None = None
    moved_from: IndexedFile | None = None
    problem: Problem | None = None
    undecodable: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing more is awaited from the model."""
        return self.problem is not None or len(self.vectors) == len(self.windows)

    @property
    def content_is_new(self) -> bool:
        """Whether the file is known to hold other content than what the index has under its name."""
        previous = self.candidate.previous
        return previous is not None and self.content not in {"", previous.content_fingerprint}

    def fail(self, kind: str, message: str) -> None:
        """Note the first problem."""
        if self.problem is None:
            self.problem = Problem(self.candidate.uri, kind, message)

    def is_as_it_was(self) -> bool:
        """Whether the file has not been written to since the job began."""
        try:
            return FileState.of(self.candidate.path) == self.state
        except OSError:
            return False

    def embedded(self) -> list[Segment]:
        """Return the segments that the model has seen, with their vectors."""
        return [Segment(start, end, self.vectors[i]) for i, (start, end) in enumerate(self.windows)]
