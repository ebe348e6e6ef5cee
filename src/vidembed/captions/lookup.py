"""Captions by the bytes of a video and the times of a segment, so that none comes to belong to another clip."""

from __future__ import annotations

import logging
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from vidembed.captions.records import CaptionRecord, read_captions
from vidembed.text import printable

SAME_S: Final = 0.001  # two times are one within it (ours): a millisecond is less than any frame lasts
_NO_TEXT: Final = frozenset({"Cc", "Cs"})  # Unicode's categories of control characters and of halves of pairs
logger = logging.getLogger(__name__)


class TimedCaption(NamedTuple):
    """A caption of a stretch of one video."""

    start: float  # seconds on the clock of a player
    end: float  # seconds likewise
    text: str | None  # one line (`caption_line`), or None where what was said is not to be used


def caption_line(text: str) -> str:
    """A caption on one line: runs of white space as one space, control characters written as escapes.

    So it cannot pass for the next entry of a list, nor steer a terminal. All else stays, of any length.
    """
    line = " ".join(text.split())
    return "".join(printable(c) if unicodedata.category(c) in _NO_TEXT else c for c in line)


def caption_at(captions: Sequence[TimedCaption], start: float, end: float) -> TimedCaption | None:
    """Return the caption of exactly these times, in seconds, to `SAME_S`; `captions` are ordered by their start."""
    fitting: TimedCaption | None = None
    for place in range(bisect_left(captions, start - SAME_S, key=lambda caption: caption.start), len(captions)):
        if captions[place].start > start + SAME_S:
            break
        if abs(captions[place].end - end) <= SAME_S:
            fitting = captions[place]
    return fitting


def _path_of(video: str) -> str:
    """The path that a record names, which is compared and never looked up: it could be on another machine."""
    rest = video.removeprefix("file://")
    return video if rest == video else os.fsdecode(unquote_to_bytes(rest))


class CaptionLookup:
    """Finds the captions of a video by the SHA-256 of its bytes.

    Of several records of the same bytes and times the last one counts. Records of videos that could not be described
    say nothing, and neither do those that hold no text of the kind. The log says how many texts are left out as marked,
    and how many records as they do not say which bytes they are about.

    Args:
        captions: A ``.jsonl`` file that ``vidembed caption`` wrote, which is read at once, or records.
        kind: Which text of a record is taken.
        marked: Whether texts that are marked as not to be used (`CaptionRecord.problems`) are taken too.

    Raises:
        AnnotationError: The file cannot be read, or a line is damaged; it is named.
        ValueError: There are texts, and none is of this kind; or a record has one of its two times only.
        TypeError: `captions` holds something else than records.
    """

    def __init__(
        self, captions: str | os.PathLike[str] | Iterable[CaptionRecord], *, kind: str = "dense", marked: bool = False
    ) -> None:
        self.path: Path | None = None
        if isinstance(captions, (str, os.PathLike)):
            self.path = Path(captions).expanduser()
            captions = read_captions(self.path)
        self.kind, self.marked = kind, marked
        self._texts: dict[str, dict[tuple[float | None, float | None], str | None]] = {}  # by content, by start and end
        self._captioned: set[str] = set()  # paths of videos that records name
        folder = os.path.realpath(self.path.parent if self.path else ".")  # as files are listed: folders without links
        left_out = nameless = 0
        kinds: set[str] = set()
        for place, record in enumerate(captions):
            if not isinstance(record, CaptionRecord):
                raise TypeError(f"captions: at position {place} is a {type(record).__name__}; expected a CaptionRecord")
            if (record.start_s is None) != (record.end_s is None):
                times = f"start_s={record.start_s}, end_s={record.end_s}"
                raise ValueError(f"captions: at position {place}, {times}; give both times or neither")
            kinds |= set(record.texts)
            if record.error is not None or kind not in record.texts:
                continue
            if record.content is None:
                nameless += 1
                continue
            text = record.texts[kind] if self.marked or record.usable(kind) else ""
            left_out += not text
            of_bytes = self._texts.setdefault(record.content.lower(), {})
            of_bytes[record.start_s, record.end_s] = caption_line(text) or None
            self._captioned.add(os.path.normpath(os.path.join(folder, _path_of(record.video))))  # noqa: PTH118 - of any text
        if kinds and kind not in kinds:
            raise ValueError(f"kind={kind!r}: {self} has no such text; it has {', '.join(sorted(kinds))}")
        for count, why in (
            (left_out, "texts that are marked as not to be used"),
            (nameless, "records that do not say which bytes they are about (content)"),
        ):
            if count:
                logger.warning("%s: left out %d %s", self, count, why)

    def __str__(self) -> str:
        """How messages call it."""
        return "captions" if self.path is None else printable(str(self.path))

    @classmethod
    def of(cls, captions: CaptionLookup | str | os.PathLike[str] | Iterable[CaptionRecord]) -> CaptionLookup:
        """Return what is one already, or make one with the default kind of text."""
        return captions if isinstance(captions, CaptionLookup) else cls(captions)

    def of_video(self, content: str, start: float, end: float) -> list[TimedCaption]:
        """Return the captions of a video and of its segments, ordered by their start.

        Args:
            content: SHA-256 of the bytes of the video, hex.
            start: Where its first frame is, seconds; a caption of the whole video gets this time.
            end: Where it ends, seconds, likewise.
        """
        found = (
            TimedCaption(start if first is None else first, end if last is None else last, text)
            for (first, last), text in self._texts.get(content, {}).items()
        )
        return sorted(found, key=lambda caption: caption.start)

    def is_of_other_bytes(self, path: Path, content: str) -> bool:
        """Whether records name this file, absolute and canonical, and are all about other bytes than `content`."""
        return content not in self._texts and str(path) in self._captioned


class CaptionMatches:
    """What of some captions belongs to the documents of one run; counts what does not.

    Args:
        lookup: Where captions of videos are looked up; None where they are at hand.
    """

    def __init__(self, lookup: CaptionLookup | None = None) -> None:
        self.lookup = lookup
        self._others: list[Path] = []
        self._untimed = 0

    def of_video(self, path: Path, content: str, start: float, end: float) -> list[TimedCaption]:
        """As `CaptionLookup.of_video`; none without a lookup."""
        if self.lookup is None:
            return []
        if self.lookup.is_of_other_bytes(path, content):
            self._others.append(path)
        return self.lookup.of_video(content, start, end)

    def at(self, captions: Sequence[TimedCaption], start: float, end: float) -> str | None:
        """Return the text of `caption_at`, if there is one that is to be used."""
        fitting = caption_at(captions, start, end)
        self._untimed += bool(captions) and fitting is None
        return fitting.text if fitting else None

    def log(self) -> None:
        """Say once what was left out, if anything was."""
        if self._others:
            example = printable(str(self._others[0]))
            logger.warning(
                "%s: left out the captions of %d videos whose files have changed, such as %s; caption them again",
                self.lookup,
                len(self._others),
                example,
            )
        if self._untimed:
            logger.warning(
                "%d videos or segments have no caption: the file has captions of other segments of them; caption them "
                "with the same segments",
                self._untimed,
            )
