"""What an MP4 or QuickTime file declares in its boxes, added up before FFmpeg allocates for it.

A box of 20 bytes can say that a track has a hundred million samples of one size, and FFmpeg then makes an entry of 37
bytes (as measured) for each. So the boxes are walked first, the way FFmpeg's demuxer does: whatever their parents are.
Files of other formats end the walk at their first bytes. What FFmpeg still allocates may be more than there is.
"""

from __future__ import annotations

import errno
import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from vidembed.errors import EncryptedVideo, VideoTooLarge

MAX_FRAMES = 2**25
"""Frames (33,554,432) of a video, or samples that an MP4 file declares for all of its tracks: 6 days at 60 a second
(our choice). FFmpeg needs 1.2 GB for the index of so many."""
MAX_HEADER_BYTES = 2**26
"""Bytes (64 MiB) of a compressed QuickTime header when inflated (our choice)."""
MAX_ENTRIES = 2**16
"""Items or metadata keys that a file declares (our choice)."""
MAX_STREAMS = 256
"""Streams of a file of any format. FFmpeg looks into each of them (our choice; its own limit is 1000)."""
MEMORY_HEADROOM_BYTES = 2**31
"""Bytes. FFmpeg allocates no more at once (``av_max_alloc``, by default ``INT_MAX``): what fails while the limit on
memory leaves this much was refused for its size."""
ENCRYPTED = (
    "encrypted (DRM): its pictures cannot be decoded without a key, and none is taken here; give a copy that is not"
)
"""Reason of an error."""

_ENCRYPTED = frozenset([b"encv", b"drmi"])  # sample entries of ISO/IEC 23001-7 (Common Encryption), and of FairPlay
_MAX_DEPTH = 10  # FFmpeg's
_CONTAINERS = frozenset(
    b"moov trak mdia minf stbl edts dinf udta mvex moof traf wave tref ilst sinf schi iprp ipco free hoov".split()
)
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"keys": 4, b"iinf": 4, b"iloc": 6}  # where each holds its count


def check_boxes(handle: BinaryIO, item: str) -> None:
    """Check what a file declares, and rewind it.

    Raises:
        VideoTooLarge: It declares more than a limit of this module.
        EncryptedVideo: All of its video tracks are encrypted.
    """
    size = handle.seek(0, os.SEEK_END)
    declared = _Declared(item, size)
    declared.walk(handle, 0, size, 0)
    declared.end_track()
    handle.seek(0)
    if declared.encrypted and not declared.clear:
        raise EncryptedVideo(item, ENCRYPTED)


def check_streams(count: int, item: str) -> None:
    """Raise :class:`VideoTooLarge` for a file of more than :data:`MAX_STREAMS` streams."""
    if count > MAX_STREAMS:
        raise VideoTooLarge(item, f"it has over {MAX_STREAMS} streams; leave out what is no video")


def is_memory_error(error: BaseException | None) -> bool:
    """Whether an error says that there was no memory, for data or (``EAGAIN``) for the stack of a thread."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN)


def check_memory(error: BaseException) -> None:
    """Raise a ``MemoryError`` if `error` says that there was no memory, and the limit on this process is the reason.

    Otherwise it is damage: a length that was garbled asks for more than there could be. The limit is that on the
    address space (``RLIMIT_AS``), and the reason if it leaves under `MEMORY_HEADROOM_BYTES`.
    """
    if not is_memory_error(error):
        return
    try:
        import resource  # noqa: PLC0415 - not on Windows

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit - used < MEMORY_HEADROOM_BYTES:
        raise MemoryError("the limit on the address space of this process is reached") from error


class _Declared:
    """Adds up what boxes declare. `encrypted` and `clear` count the video tracks of either kind."""

    def __init__(self, item: str, size: int) -> None:
        self._item, self._size = item, size  # of the file, in bytes
        self._samples = self._sound = self._tracks = self.encrypted = self.clear = 0
        self._begin_track()

    def _begin_track(self) -> None:
        self._in_track = 0  # samples
        self._handlers: set[bytes] = set()
        self._entries: set[bytes] = set()  # kinds of samples
        self._steady = True  # every sample lasts one tick: of sound, FFmpeg then makes an entry a chunk

    def end_track(self) -> None:
        """Add the samples of the track."""
        if b"vide" in self._handlers:
            is_encrypted = bool(self._entries) and self._entries <= _ENCRYPTED
            self.encrypted += is_encrypted
            self.clear += not is_encrypted
        if self._handlers == {b"soun"} and self._steady:
            self._sound += self._in_track  # PCM: tens of thousands a second, of one byte or more in the file
        else:
            self._samples += self._in_track
        self._begin_track()
        if self._samples > MAX_FRAMES or self._sound > max(self._size, MAX_FRAMES):
            found = f"it declares {self._samples + self._sound} frames or samples; at most {MAX_FRAMES} are read. "
            raise VideoTooLarge(self._item, f"{found}Cut it first, or write it anew if the number is wrong")

    def walk(self, handle: BinaryIO, at: int, end: int, depth: int) -> None:
        """Look at the boxes between two places of a file, and at those inside them."""
        while at + 8 <= end:
            handle.seek(at)
            head = handle.read(16)
            length, kind, begin = int.from_bytes(head[:4], "big"), head[4:8], at + 8
            if length == 0:
                length = end - at
            elif length == 1:
                length, begin = int.from_bytes(head[8:16], "big"), at + 16
            if len(head) < 8 or length < begin - at:
                return
            at = min(at + length, end)
            self._look(handle, kind, begin, at, depth)

    def _look(self, handle: BinaryIO, kind: bytes, begin: int, end: int, depth: int) -> None:
        if kind == b"trak":
            self.end_track()
            self._tracks += 1
            check_streams(self._tracks, self._item)
        handle.seek(begin)
        if depth < _MAX_DEPTH and kind in _CONTAINERS:
            self.walk(handle, begin, end, depth + 1)
        elif depth < _MAX_DEPTH and kind == b"meta":
            found = handle.read(min(end - begin, MAX_ENTRIES)).find(b"hdlr")  # it may have a version before its boxes
            if found >= 4:
                self.walk(handle, begin + found - 4, end, depth + 1)
        elif depth < _MAX_DEPTH and kind == b"cmov":
            self._inflate(handle.read(min(end - begin, MAX_HEADER_BYTES)), depth)
        elif kind == b"stsd":
            self._note_entries(handle, begin + 8, end)
        elif kind in {*_COUNTS, b"hdlr", b"stts"}:
            self._count(kind, handle.read(min(end - begin, 16)))

    def _count(self, kind: bytes, head: bytes) -> None:
        """Take in a box by its first bytes."""
        if kind == b"hdlr":
            self._handlers.add(head[8:12])
        elif kind == b"stts":  # one run, of samples that last one tick each
            self._steady = self._steady and head[4:8] == b"\0\0\0\1" and head[12:16] == b"\0\0\0\1"
        else:
            place = _COUNTS[kind]
            width = 2 if kind in {b"iinf", b"iloc"} and head[:1] < (b"\1" if kind == b"iinf" else b"\2") else 4
            count = int.from_bytes(head[place : place + width], "big")
            if kind in {b"stsz", b"stz2"}:
                self._in_track += count
            elif kind == b"trun":
                self._samples += count
            elif count > MAX_ENTRIES:
                found = f"it declares {count} entries in a box {kind.decode('ascii')!r}"
                raise VideoTooLarge(self._item, f"{found}; at most {MAX_ENTRIES} are read")

    def _note_entries(self, handle: BinaryIO, at: int, end: int) -> None:
        """Note which kinds of samples a track has, by the first of them."""
        for _ in range(_MAX_DEPTH):
            handle.seek(at)
            head = handle.read(8)
            if len(head) < 8 or at + 8 > end:
                return
            self._entries.add(head[4:])
            at += max(8, int.from_bytes(head[:4], "big"))

    def _inflate(self, box: bytes, depth: int) -> None:
        """Walk a compressed header."""
        body = box.partition(b"cmvd")[2]
        declared = int.from_bytes(body[:4], "big")  # FFmpeg inflates so much and no more
        if declared > MAX_HEADER_BYTES:
            found = f"its compressed header has {declared} bytes when inflated"
            raise VideoTooLarge(self._item, f"{found}; at most {MAX_HEADER_BYTES} are read")
        try:
            plain = zlib.decompressobj().decompress(body[4:], declared) if declared else b""
        except zlib.error:  # FFmpeg cannot either
            return
        self.walk(io.BytesIO(plain), 0, len(plain), depth + 1)
