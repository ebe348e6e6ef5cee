"""A video, or a timed part of one, as one line of text, for frameworks that pass nothing but text.

``video+file:///abs/a.mp4#t=10,20`` is the file's own URI behind ``video+``, with a W3C media fragment for the times.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePath, PureWindowsPath
from typing import Final
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

from vidembed.errors import VideoUriError
from vidembed.video import VIDEO_SUFFIXES, VideoSegment, item_name
from vidembed.video.clip import content_fingerprint, is_finite_number
from vidembed.video.segments import Windows

__all__ = ["VIDEO_SUFFIXES", "VideoRef", "VideoUriError", "content_fingerprint", "decoded_path", "document_video"]
__all__ += ["is_video_path", "names_video", "parse_video_uri", "segment_times", "video_uri"]

SCHEMES: Final = ("file", "http", "https")  # what can stand behind ``video+``
MAX_URI_LENGTH: Final = (
    16_384  # characters. The longest path of Linux, percent-encoded, has 12,288; longer text is text
)

_URI = re.compile(r"video\+([a-z][a-z0-9+.-]{0,31})://([^\s#]*)(?:#(\S*))?", re.IGNORECASE)
_RANGE = re.compile(r"t=([0-9]+(?:\.[0-9]*)?)?(?:,([0-9]+(?:\.[0-9]*)?))?")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:\\")
_ABSOLUTE = re.compile(r"[/\\]|~[^\s/\\]*[/\\]|[A-Za-z]:[/\\]|file:/", re.IGNORECASE)
_URL_SAFE = "/:@!$&'()*+,;=?[]%~"  # what has a meaning in an address, and escapes that are there already


@dataclass(frozen=True, slots=True)
class VideoRef:
    """What a video URI names: the file or the http(s) address, and seconds on the clock of a player."""

    source: Path | str
    start: float = 0.0
    end: float | None = None  # the end of the video

    @property
    def uri(self) -> str:
        """The URI of it, in the one form that `video_uri` writes."""
        return video_uri(self.source, self.start or None, self.end)

    def segment(self) -> VideoSegment:
        """Return it as `VideoEncoder` takes it: as a plain string without a video's suffix it would be words."""
        return VideoSegment(self.source, self.start, self.end)


def video_uri(path: str | os.PathLike[str], start: float | None = None, end: float | None = None) -> str:
    r"""Write a video, or a timed part of one, as text that reads back as the same path and the same floats.

    It is ASCII without white space, such as ``video+file:///abs/a.mp4#t=10,20``: without a fragment for the whole
    video, ``#t=10`` to its end, ``#t=,20`` from its beginning.

    Args:
        path: A file, which need not exist; ``~`` is expanded, and it is made absolute without resolving links. A
            `PureWindowsPath`, or a string that begins like ``C:\\``, is a Windows path on any system. Or an http(s)
            address without a fragment.
        start: Seconds on the clock of a player; None is the beginning.
        end: Seconds likewise; None is the end of the video.

    Raises:
        VideoUriError: The path is empty, holds a NUL or names another machine, an address has a fragment, or a time
            is not a finite number, negative, or `end` not above `start`.
    """
    text = os.fsdecode(path)
    if isinstance(path, str) and text[:8].lower().startswith(("http://", "https://")):
        if "#" in text:
            raise VideoUriError(f"path: {item_name(text)} has a fragment; give the times as start and end instead")
        location = quote(text, safe=_URL_SAFE)
    else:
        location = f"file://{_encoded(path, text)}"
    uri = f"video+{location}{_fragment(start, end)}"
    if len(uri) > MAX_URI_LENGTH:
        raise VideoUriError(f"path: {item_name(text)} is too long; a URI may have {MAX_URI_LENGTH} characters")
    return uri


def parse_video_uri(
    text: str, *, allowed_schemes: Collection[str] = ("file",), root: str | os.PathLike[str] | None = None
) -> VideoRef | None:
    """Read a video URI; None for anything but one: words, words around one, two of them.

    Args:
        text: Any text, of any length.
        allowed_schemes: Of `SCHEMES`; only ``file`` by default. With ``http`` or ``https``, text can make this machine
            fetch an address.
        root: The folder that files must be in, links resolved on both sides; None is anywhere. It does not bind
            http(s) addresses.

    Raises:
        VideoUriError: Its scheme is not allowed, its time range is malformed, it names another machine, or its file is
            outside `root`.
        ValueError: `allowed_schemes` holds something else.
    """
    if isinstance(allowed_schemes, str) or not set(allowed_schemes) <= set(SCHEMES):
        names = ", ".join(map(repr, SCHEMES))
        raise ValueError(f"allowed_schemes: got {allowed_schemes!r}; a collection of {names} is needed")
    if len(text) > MAX_URI_LENGTH or (found := _URI.fullmatch(text)) is None:
        return None
    scheme, rest, fragment = found[1].lower(), found[2], found[3]
    shown = f"video+{item_name(text[len('video+') :])}"
    if scheme not in allowed_schemes:
        allowed = ", ".join(sorted(allowed_schemes))
        raise VideoUriError(f"{shown}: scheme {scheme!r} is not allowed; allowed_schemes is {allowed}")
    start, end = _times(fragment, shown)
    if scheme != "file":
        if not urlsplit(f"{scheme}://{rest}").netloc:
            raise VideoUriError(f"{shown}: the address names no host")
        return VideoRef(f"{scheme}://{rest}", start, end)
    host, slash, path = rest.partition("/")
    if host.lower() not in {"", "localhost"}:
        reason = f"it names the machine {host!r}; only files on this machine are read, as video+file:///path"
        raise VideoUriError(f"{shown}: {reason}")
    source = Path(decoded_path(slash + path, windows=os.name == "nt", shown=shown))
    if root is not None:
        folder = os.path.realpath(Path(root).expanduser())  # Path.resolve() raises on a link that points to itself
        if not Path(os.path.realpath(source)).is_relative_to(folder):
            raise VideoUriError(f"{shown}: its file is outside root={str(root)!r} (links resolved)")
    return VideoRef(source, start, end)


def is_video_path(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends in one of `VIDEO_SUFFIXES`, in either case. The file need not exist."""
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def names_video(text: str) -> bool:
    """Whether a text is nothing but the path or the address of a video, as `VideoEncoder` takes a string for a file.

    White space around it, the query of an address and a time range do not count. The file need not exist, unless the
    text has spaces and does not begin as an absolute path: words that end in the name of a file are words.
    """
    line = text.strip()
    if len(line) > MAX_URI_LENGTH or len(line.splitlines()) != 1:
        return False
    name, _, fragment = line.rpartition("#")
    name = name if _RANGE.fullmatch(fragment) else line
    if re.search(r"\s", line):
        # only a relative path is looked for: looking up \\machine\folder makes Windows log in there
        return is_video_path(name) and (_ABSOLUTE.match(name) is not None or os.path.isfile(name))  # noqa: PTH113 - never raises
    return is_video_path(re.split("[?#]", name, maxsplit=1)[0] if "://" in name else name)


def document_video(
    text: str,
    *,
    name: str,
    loader: str,
    allowed_schemes: Collection[str] = ("file",),
    root: str | os.PathLike[str] | None = None,
) -> VideoRef | None:
    """Read the text of a document, white space around it left out: the video of one video URI, or None for words.

    Args:
        text: The text.
        name: What messages call the text, such as ``texts[3]``.
        loader: What makes documents of videos, for messages.
        allowed_schemes: See `parse_video_uri`, as for `root`.
        root: See there.

    Raises:
        TypeError: It is no string.
        VideoUriError: It is a video URI that is not allowed, or the bare path or address of a video (`names_video`),
            which is not read, since text from elsewhere could name any file, and is not embedded as words either.
        ValueError: It is empty.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: got {reprlib.repr(text)}; a string is needed")
    if not text.strip():
        raise ValueError(f"{name}: got {text!r}; expected some words or a video URI")
    found = parse_video_uri(text.strip(), allowed_schemes=allowed_schemes, root=root)
    if found is None and names_video(text):
        raise VideoUriError(
            f"{name}: {item_name(text.strip())!r} is the path or address of a video, not text. To embed the video, "
            f"make the document with {loader}, or write its text with vidembed.uri.video_uri(path)."
        )
    return found


def segment_times(duration: float, segment_s: float, overlap_s: float = 0.0) -> list[tuple[float, float]]:
    """Return the ``(start, end)`` of each of the `Windows` of a duration. Seconds. Raises ValueError as that does."""
    return Windows(segment_s, overlap_s).split(duration)


def _encoded(path: str | os.PathLike[str], text: str) -> str:
    if not text or "\0" in text:
        raise VideoUriError(f"path: got {item_name(text)}; a path without NUL characters is needed")
    if isinstance(path, PureWindowsPath) or (isinstance(path, str) and _WINDOWS_DRIVE.match(text)):
        return _encoded_windows(PureWindowsPath(path))
    absolute = os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - Path keeps ".."
    if os.name == "nt":
        return _encoded_windows(PureWindowsPath(absolute))
    try:
        return quote_from_bytes(os.fsencode(absolute))
    except UnicodeEncodeError as error:
        raise VideoUriError(
            f"path: {item_name(text)} contains a character that is not allowed in file names"
        ) from error


def _encoded_windows(path: PureWindowsPath) -> str:
    if not re.fullmatch(r"[A-Za-z]:", path.drive) or not path.root:
        needed = "an absolute path on a drive, such as C:\\a.mp4, is needed"
        raise VideoUriError(f"path: got {item_name(str(path))}; {needed}")
    return f"/{path.drive}{quote(path.as_posix()[2:], errors='surrogatepass')}"


def _fragment(start: float | None, end: float | None) -> str:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (is_finite_number(value) and value >= 0):
            raise VideoUriError(f"{name}={value!r}: expected finite seconds, at least 0, or None")
    if end is not None and end <= (start or 0.0):
        raise VideoUriError(f"end={end!r} is not above start={start!r} (both in seconds)")
    if not start and end is None:
        return ""
    return f"#t={_seconds(start) if start else ''}{'' if end is None else ',' + _seconds(end)}"


def _seconds(value: float) -> str:
    digits = format(Decimal(repr(float(value))), "f")  # the shortest that reads back as the same float, no exponent
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _times(fragment: str | None, shown: str) -> tuple[float, float | None]:
    if fragment is None:
        return 0.0, None
    found = _RANGE.fullmatch(fragment)
    if found is None or (found[1] is None and found[2] is None):
        raise VideoUriError(f"{shown}: expected a time range in seconds after '#', such as t=10,20 or t=10 or t=,20")
    start, end = float(found[1] or 0), None if found[2] is None else float(found[2])
    if not math.isfinite(start) or (end is not None and not (math.isfinite(end) and end > start)):
        raise VideoUriError(f"{shown}: the end of the time range must be above its start, and both finite")
    return start, end


def decoded_path(encoded: str, *, windows: bool, shown: str) -> str:
    """Return the path that the path of a file URI stands for. `shown` is the URI, in the VideoUriErrors it raises."""
    raw = unquote_to_bytes(encoded)
    if not raw or b"\0" in raw:
        raise VideoUriError(f"{shown}: it has no file; expected an absolute path, such as video+file:///abs/a.mp4")
    if not windows:
        return os.fsdecode(raw)
    path = PureWindowsPath(raw.decode("utf-8", "surrogatepass").removeprefix("/"))
    if not re.fullmatch(r"[A-Za-z]:", path.drive) or not path.root:
        raise VideoUriError(f"{shown}: it has no drive; expected an absolute path, such as video+file:///C:/a.mp4")
    return str(path)
