"""What a decoding process does: it answers one request after another, and ends with its parent."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vidembed.errors import DecoderCrashed, VideoError, VideoTooLarge
from vidembed.video import memory
from vidembed.video.clip import Clip
from vidembed.video.load import load_segments, load_video
from vidembed.video.process import wire
from vidembed.video.sampling import Sampling
from vidembed.video.segments import Layout, cut_from_dict, lay_out
from vidembed.video.source import VideoSegment, item_name

MAX_FAILURES = 8
"""Segments of one file that may fail one by one. Each costs a new pass; those after that fail with the last."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Settings:
    """How a process decodes.

    Attributes:
        backend: As in `load_video`.
        threads: As in `load_video`.
        max_memory_bytes: Limit on its address space, or ``None``.
        parent: Process number of the parent.
    """

    backend: str
    threads: int
    max_memory_bytes: int | None
    parent: int


def serve(stdin: BinaryIO, stdout: BinaryIO, settings: Settings) -> None:
    """Answer requests until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(stdin, requests), daemon=True).start()
    _die_with_parent(settings)
    wire.send(stdout, {"ready": _limit_memory(settings.max_memory_bytes)})
    while True:
        answer = _Answer(stdout, settings)
        with _recording(answer.note):
            answer.give(json.loads(requests.get()))


def _listen(stdin: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    """Hand on requests. When there can be no more, end, whatever the main thread is doing, with all children."""
    for line in stdin:
        requests.put(line)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _die_with_parent(settings: Settings) -> None:
    """Have the kernel end this process with its parent, even in native code that lets no other thread run.

    Not with decord, which works in a child of this process: it would be left behind. There, `_listen` ends both, and
    no native code runs here that could keep it from that.
    """
    if sys.platform == "linux" and settings.backend != "decord":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(os, "getppid") and os.getppid() != settings.parent:
        os._exit(0)  # it died before


def _limit_memory(limit: int | None) -> bool:
    """Set the limit; return whether it holds."""
    if limit is None:
        return True
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return False
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ValueError, OSError):
        return False
    return True


class _Answer:
    """The answer to one request.

    Args:
        stdout: Where it goes.
        settings: How to decode.
    """

    def __init__(self, stdout: BinaryIO, settings: Settings) -> None:
        self._stdout = stdout
        self._settings = settings
        self._notes: list[tuple[str, int, str]] = []
        self._unsaid = 0

    def note(self, source: str, level: int, text: str) -> None:
        """Take down a log entry, or a warning (level 0)."""
        if len(self._notes) < wire.MAX_NOTES:
            self._notes.append((source, level, text[: wire.MAX_TEXT]))
        else:
            self._unsaid += 1

    def give(self, request: dict[str, Any]) -> None:
        """Decode what is asked for and send it. Whatever goes wrong with the file is an answer too."""
        source: str | Path = Path(request["path"]) if request["is_path"] else request["path"]
        item = item_name(source)
        try:
            self._send({"begun": True})
            if request["cwd"] is not None:
                os.chdir(request["cwd"])
            for line in self._lines(source, request):
                if isinstance(line, Clip):
                    self._send(wire.clip_fields(line), wire.clip_bytes(line))
                elif isinstance(line, VideoError):
                    self._send_error(line)
                else:
                    self._send(line)
                del line  # the next clip comes while nothing holds this one
        except VideoError as error:
            self._send_error(error, rest=True)
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - a decoder can raise anything; the parent gives it to the user
            self._send_error(self._unexpected(error, item), rest=True, spent=True)

    def _lines(self, source: str | Path, request: dict[str, Any]) -> Iterator[Clip | VideoError | dict[str, Any]]:
        sampling = Sampling(**request["sampling"])
        threads = self._settings.threads
        segments: list[tuple[float, float | None]]
        if "segments" in request:
            segments = request["segments"]
            duration = lay_out(source, None, threads=threads).duration
            layout = Layout(duration, [(a, max(a, duration) if b is None else b) for a, b in segments])
        elif "cut" in request:
            layout = lay_out(source, cut_from_dict(request["cut"]), threads=threads)
            segments = list(layout.segments)
        else:
            yield from self._whole(source, sampling)
            return
        yield {"layout": [layout.duration, layout.segments]}
        yield from read_segments(source, segments, sampling, backend=self._settings.backend, threads=threads)

    def _whole(self, source: str | Path, sampling: Sampling) -> Iterator[Clip | dict[str, Any]]:
        settings = self._settings
        clip = load_video(source, sampling, backend=settings.backend, timeout_s=None, threads=settings.threads)
        end = clip.start_s + clip.duration
        yield {"layout": [end, [(clip.start_s, round(end, 6))]]}
        yield clip

    def _unexpected(self, error: Exception, item: str) -> VideoError:
        if memory.is_want(error):
            return VideoTooLarge(item, no_memory(self._settings.max_memory_bytes))
        text = " ".join(str(error).split())[:300]
        return DecoderCrashed(
            item, f"the decoder ended with {type(error).__name__} ({text}); get an intact copy, or convert it"
        )

    def _send_error(self, error: VideoError, *, rest: bool = False, spent: bool = False) -> None:
        if memory.is_want(error.__cause__) and not isinstance(error, VideoTooLarge):
            error, spent = VideoTooLarge(error.item, no_memory(self._settings.max_memory_bytes)), True
        fields = [type(error).__name__, error.item, error.reason[: wire.MAX_TEXT]]
        self._send({"error": fields, "rest": rest, "spent": spent})

    def _send(self, line: dict[str, Any], arrays: Any = ()) -> None:
        notes = list(self._notes)
        if self._unsaid:
            notes.append((__name__, logging.WARNING, f"{self._unsaid} more log entries and warnings, not shown"))
        self._notes.clear()
        self._unsaid = 0
        wire.send(self._stdout, {**line, "notes": notes}, arrays)


def no_memory(limit: int | None) -> str:
    """Return the reason of a `VideoTooLarge` for want of memory."""
    found = "reading it needs more memory than there is"
    if limit is not None:
        found = f"reading it needs more memory than max_memory_bytes={limit}"
    return f"{found}; raise the limit, lower Sampling.max_frames or max_pixels, or scale the video down"


def read_segments(
    source: str | Path,
    segments: list[tuple[float, float | None]],
    sampling: Sampling,
    *,
    backend: str,
    threads: int,
) -> Iterator[Clip | VideoError]:
    """Read segments in one pass; a segment that fails leaves the others to a new one.

    Yields:
        A clip, or what `load_video` raises, for each segment, in order. After `MAX_FAILURES` failures, or an error
        that is the file's, the last error stands for all that are left.
    """
    done = failures = 0
    while done < len(segments):
        try:
            for clip in load_segments(
                source, segments[done:], sampling, backend=backend, timeout_s=None, threads=threads
            ):
                done += 1
                yield clip
                del clip
        except VideoError as error:
            done += 1
            failures += 1
            yield error
            if error.item == item_name(source) or failures == MAX_FAILURES:
                for start, end in segments[done:]:
                    yield type(error)(item_name(VideoSegment(source, start, end)), error.reason)
                return


@contextmanager
def _recording(note: Any) -> Iterator[None]:
    """Hand warnings and log entries to ``note(source, level, text)``."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.name[:100], min(record.levelno, logging.CRITICAL), record.getMessage())

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        note(category.__name__, 0, str(message))

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show  # type: ignore[assignment]  # takes what it is called with
            yield
    finally:
        logging.getLogger().removeHandler(handler)
