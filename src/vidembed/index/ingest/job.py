"""A file on its way into the index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vidembed.index.files import IndexedFile
from vidembed.index.ingest.plan import Candidate
from vidembed.index.ingest.report import Problem
from vidembed.index.store import Segment
from vidembed.video.fingerprint import FileState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed.video.pool import Reading


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
