"""The decoding process of a pool, and the messages between the two: lines of JSON; a clip's arrays follow as bytes.

The answers to a request: ``begun`` (whether memory is limited as asked), ``layout``, and for each segment ``clip`` or
``error``. An error in place of the layout ends the file; one with ``rest`` stands for all segments that are left. The
parent believes nothing that a decoder broken by its input could send: lines are bounded, and what they hold is checked.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, Final, NoReturn, TypeAlias

import numpy as np

from vidembed import errors
from vidembed.errors import DecoderCrashed, VideoError, VideoTooLarge
from vidembed.video import decord
from vidembed.video.clip import Clip, Sampling, Segment, VideoSegment, core_count, item_name, ordered_segments
from vidembed.video.picture import MAX_AREA, MAX_SIDE, is_memory_error
from vidembed.video.segments import (
    MAX_WINDOWS,
    Cut,
    Layout,
    Scenes,
    Windows,
    cut_from_dict,
    cut_to_dict,
    lay_out,
    require_scenedetect,
)
from vidembed.video.still import read_still

MAX_LINE: Final = 2**24  # bytes of one line. `MAX_WINDOWS` segments of two numbers take under a half of that
MAX_NOTES: Final = 100  # log records and warnings with one answer; what comes after is counted
MAX_TEXT: Final = 2000  # characters of a note or reason
MAX_NUMBER: Final = 1e15  # of any number of a clip; above all that this package lets a video have
MAX_FAILURES: Final = 8  # segments of a file that may fail one by one; those after that fail with the last

Message: TypeAlias = dict[str, Any]  # JSON values
ReadWindows: TypeAlias = Callable[..., Iterator[Clip]]  # `vidembed.video.load.read_windows`
Note: TypeAlias = tuple[str, int, str]  # logger, level and text of a log record; or class, 0 and text of a warning

_ERRORS: Final = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, VideoError)
}
_FIELDS: Final = {
    **dict.fromkeys(["fps", "duration", "start_s"], float),
    **dict.fromkeys(["damaged", "truncated"], bool),
    **dict.fromkeys(["item", "video_backend"], str),
    "total_num_frames": int,
}
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def worker_count(reserved: float = 0) -> int:
    """Workers that decode by default: one a core, less those `reserved` for models on GPUs, and one a GiB of memory.

    A worker holds some clips, of 20 to 130 MB each, and its process 0.2 GB: the memory of the machine bounds them.
    """
    workers = int(core_count() - reserved)
    try:
        workers = min(workers, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30)
    except (AttributeError, OSError, ValueError):  # a system that does not say
        workers = min(workers, 8)
    return max(1, workers)


def send(stream: IO[bytes], message: Message, arrays: Sequence[memoryview] = ()) -> None:
    """Write a message and the arrays that follow it."""
    stream.write(json.dumps(message).encode() + b"\n")
    for array in arrays:
        stream.write(array)
    stream.flush()


def receive(stream: BufferedIOBase) -> Message:
    """Read a message. Raises EOFError if the other end is gone, ValueError for what is none."""
    line = stream.readline(MAX_LINE)
    if len(line) == MAX_LINE:
        raise ValueError(f"a line of over {MAX_LINE} bytes")
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a line that is no JSON ({error})") from error
    if not isinstance(message, dict):
        raise ValueError("a line that is no JSON object")  # noqa: TRY004 - as for every malformed message
    return message


def read_error(message: Message, rename: Callable[[str], str]) -> VideoError:
    """Return the error of a message, with its item renamed. Raises ValueError if it is malformed."""
    match message.get("error"):
        case [str(name), str(item), str(reason)] if name in _ERRORS:
            return _ERRORS[name](rename(item), rename(reason[: 2 * MAX_TEXT]))
    raise ValueError("a malformed error")


def read_notes(message: Message, rename: Callable[[str], str]) -> list[Note]:
    """Return the notes of a message, with the item renamed. Raises ValueError if they are malformed."""
    match message.get("notes", []):
        case [*notes] if len(notes) <= MAX_NOTES + 1:
            if all(isinstance(note, list) and [type(value) for value in note] == [str, int, str] for note in notes):
                limit = logging.CRITICAL
                return [(name[:100], min(max(level, 0), limit), rename(text[:MAX_TEXT])) for name, level, text in notes]
    raise ValueError("malformed notes")


def repeat_notes(notes: list[Note]) -> None:
    """Log and warn as the decoding process did."""
    for source, level, text in notes:
        if level:
            logging.getLogger(source).log(level, "%s", text)
        else:
            errors.warn((errors.VideoTruncated if source == "VideoTruncated" else RuntimeWarning)(text))


def read_layout(message: Message) -> Layout:
    """Return the layout of a message. Raises ValueError if it is malformed."""
    match message.get("layout"):
        case [duration, [*pairs]] if len(pairs) <= MAX_WINDOWS + 1 and all(isinstance(pair, list) for pair in pairs):
            times, are_pairs = [duration, *chain.from_iterable(pairs)], set(map(len, pairs)) <= {2}
            if are_pairs and all(type(time) in (float, int) and 0 <= time <= MAX_NUMBER for time in times):
                return Layout(float(duration), [(float(start), float(end)) for start, end in pairs])
    raise ValueError("a malformed layout")


def clip_message(clip: Clip) -> tuple[dict[str, Any], list[memoryview]]:
    """Return a clip as JSON values, without its sampling, and as the bytes that `read_clip` needs besides."""
    fields = {name: kind(getattr(clip, name)) for name, kind in _FIELDS.items()}
    arrays = [np.ascontiguousarray(array) for array in (clip.timestamps, clip.frames_indices, clip.frames)]
    return {"clip": fields, "shape": list(clip.frames.shape)}, [array.data.cast("B") for array in arrays]


def read_clip(
    message: dict[str, Any], stream: BufferedIOBase, sampling: Sampling, rename: Callable[[str], str] = str
) -> Clip:
    """Return the clip of a message and the bytes after it. Raises EOFError, or ValueError if `sampling` forbids it."""
    fields, shape = message.get("clip"), message.get("shape")
    if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _FIELDS:
        raise ValueError("a malformed clip")
    numbers = [value for value in fields.values() if isinstance(value, (int, float))]
    if not all(0 <= number <= MAX_NUMBER for number in numbers) or 0 in (fields["fps"], fields["total_num_frames"]):
        raise ValueError("a malformed clip, with numbers that no video has")
    if not isinstance(shape, list) or [type(length) for length in shape] != 4 * [int] or shape[3] != 3:
        raise ValueError("a malformed clip, without a shape")
    count, height, width, _ = shape
    largest = MAX_AREA if sampling.max_pixels is None else sampling.max_pixels
    fits = 1 <= count <= sampling.max_frames and min(height, width) >= 1 and height * width <= largest
    if not fits or max(height, width) > MAX_SIDE:
        raise ValueError(f"a malformed clip of shape {shape}, for {sampling}")
    times = np.empty(count, dtype=np.float64)  # (T,)
    indices = np.empty(count, dtype=np.int64)  # (T,)
    frames = np.empty(shape, dtype=np.uint8)  # (T, H, W, 3)
    for array in (times, indices, frames):
        rest = array.data.cast("B")
        while rest:  # a pipe gives it in pieces
            if not (length := stream.readinto(rest)):
                raise EOFError
            rest = rest[length:]
    if not (np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] >= 0 and indices.min() >= 0):
        raise ValueError("a malformed clip, with times or indices that no frames have")
    fields = {**fields, "item": rename(fields["item"])}
    return Clip(frames=frames, timestamps=times, frames_indices=indices, sampling=sampling, **fields)


_START: Final = """
import json, sys
sys.path.insert(0, sys.argv[1])
try:
    from vidembed.video.load import read_windows
    from vidembed.video.worker import main
except Exception as error:
    print(json.dumps({"failed": f"{type(error).__name__}: {error}"[:1000]}))
    sys.exit(1)
main(read_windows, **json.loads(sys.argv[2]))
"""
# Starts a decoding process, of the package that this program has. Other arguments of `worker.main` follow, as JSON.
COMMAND: Final = (sys.executable, "-P", "-c", _START, str(Path(__file__).parents[2]))


def start(command: Sequence[str], settings: Message) -> subprocess.Popen[bytes]:
    """Start a decoding process by `COMMAND` or another; `settings` are arguments of `main`."""
    return subprocess.Popen(  # noqa: S603 - this interpreter and package, no shell
        [*command, json.dumps({**settings, "parent": os.getpid()})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Each thread of BLAS reserves address space. What is bound late could be bound to the FFmpeg of decord.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LD_BIND_NOW": "1"},
        process_group=0 if os.name == "posix" else None,  # Ctrl-C does not reach it
    )


def ending(status: int) -> str:
    """Return in words what a process ended with, such as ``signal SIGSEGV``."""
    if status >= 0:
        return f"status {status}"
    name = next((each.name for each in signal.Signals if each == -status), str(-status))
    return f"signal {name}" + (", which systems send when memory runs out" if name == "SIGKILL" else "")


def request_for(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str] | VideoSegment,
    sampling: Sampling,
    cut: Cut | Sequence[tuple[float, float | None]] | None,
    *,
    item: str,
    pictures: bool,
) -> Message:
    """Return the request of a file; the arguments and errors are those of `vidembed.video.DecodePool.submit`."""
    request: Message = {"path": os.fsdecode(file), "is_path": not isinstance(file, str)}
    request |= {"item": item_name(path), "sampling": sampling.as_dict(), "pictures": pictures}
    with suppress(OSError):  # it was removed
        request["cwd"] = os.getcwd()  # noqa: PTH109 - Path cannot hold every name a string can
    if isinstance(cut, (Windows, Scenes)):
        if isinstance(cut, Scenes):
            require_scenedetect(item)
        request["cut"] = cut_to_dict(cut)
    elif cut is not None:
        segments = ordered_segments(file, cut)
        if len(segments) > MAX_WINDOWS:
            found = f"{len(segments)} segments; at most {MAX_WINDOWS} per file are allowed; cut longer segments"
            raise errors.InvalidVideoInput(item_name(file), found)
        request["segments"] = [(segment.start, segment.end) for segment in segments]
    elif isinstance(path, VideoSegment):
        request["segment"] = path.start, path.end
    return request


def main(
    read_windows: ReadWindows, *, backend: str, threads: int, max_memory_bytes: int | None, parent: int
) -> NoReturn:
    """Answer requests on standard input until the parent, a process of this number, is gone.

    `read_windows` is that of `vidembed.video.load`, which starts these processes, so that this module cannot import it.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    if sys.platform == "linux":  # native code may keep `_listen` from running: have the kernel end it with its parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)  # it was too late for that
    notes = _Notes()
    logging.getLogger().addHandler(notes)
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, kind, *_, **__: notes.add(kind.__name__, 0, str(message))
    is_limited = _limit_memory(max_memory_bytes)
    while True:
        request = json.loads(requests.get())
        send(answers, {"begun": is_limited})
        try:
            for found in read_file(request, read_windows, backend=backend, threads=threads):
                arrays: Sequence[memoryview] = ()
                if isinstance(found, Layout):
                    message: Message = {"layout": [found.duration, found.segments]}
                elif isinstance(found, Clip):
                    message, arrays = clip_message(found)
                else:
                    message = {"error": _error_fields(found, request["item"], max_memory_bytes)}
                send(answers, {**message, "notes": notes.take()}, arrays)
                del found, arrays  # the next clip comes while nothing holds this one
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - a decoder can raise anything; the parent gives it to the user
            message = {"error": _error_fields(error, request["item"], max_memory_bytes), "rest": True}
            send(answers, {**message, "notes": notes.take()})


def _listen(requests: SimpleQueue[bytes]) -> None:
    """Hand on requests. When there can be no more, end, whatever the main thread is doing."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _limit_memory(limit: int | None) -> bool:
    """Set a limit on the address space; return whether it holds."""
    if limit is None:
        return True
    try:
        import resource  # noqa: PLC0415 - not on Windows

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    except (ImportError, ValueError, OSError):
        return False
    return True


class _Notes(logging.Handler):
    """Keeps log records and warnings for the next answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[Note] = []
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.name, record.levelno, record.getMessage())

    def add(self, source: str, level: int, text: str) -> None:
        self._count += 1
        if self._count <= MAX_NOTES:
            self._kept.append((source, level, text[:MAX_TEXT]))

    def take(self) -> list[Note]:
        """Return what was kept, and keep it no longer."""
        notes, more = self._kept, self._count - MAX_NOTES
        self._kept, self._count = [], 0
        if more > 0:
            notes.append((__name__, logging.WARNING, f"{more} more log entries and warnings, not shown"))
        return notes


def _error_fields(error: Exception, item: str, limit: int | None) -> list[str]:
    """Return the kind, item and reason of the error that the parent is to raise."""
    cause: BaseException | None = error
    if isinstance(error, VideoError):
        cause, item = error.__cause__, error.item
    if is_memory_error(cause) and not isinstance(error, VideoTooLarge):
        found = "there is" if limit is None else f"max_memory_bytes={limit}"
        more = "raise the limit, lower Sampling.max_frames or max_pixels, or scale the video down"
        error = VideoTooLarge(item, f"reading it needs more memory than {found}; {more}")
    elif not isinstance(error, VideoError):
        found = f"{type(error).__name__} ({' '.join(str(error).split())[:300]})"
        error = DecoderCrashed(item, f"the decoder ended with {found}; get an intact copy, or convert it")
    return [type(error).__name__, item, error.reason[:MAX_TEXT]]


def read_file(
    request: Message, read_windows: ReadWindows, *, backend: str, threads: int
) -> Iterator[Layout | Clip | VideoError]:
    """Yield the layout of a file, then a clip or an error for each segment; one that fails begins a new pass."""
    if "cwd" in request:
        os.chdir(request["cwd"])
    source: str | Path = Path(request["path"]) if request["is_path"] else request["path"]
    sampling = Sampling(**request["sampling"])

    def read(windows: list[Segment]) -> Iterator[Clip]:
        if backend == "decord":
            return (decord.read(source, sampling, item=item, start=start, end=end) for start, end, item in windows)
        return read_windows(source, windows, sampling, item=item_name(source), threads=threads)

    if "cut" not in request and "segments" not in request:  # one segment, whose frames say where it lies
        clips = read([(*request.get("segment", (0.0, None)), request["item"])])
        for clip in _or_still(clips, request, source, sampling) if request.get("pictures") else clips:
            end = clip.start_s + clip.duration
            yield Layout(end, [(clip.start_s, round(end, 6))])
            yield clip
        return
    layout = lay_out(source, cut_from_dict(request["cut"]) if "cut" in request else None, threads=threads)
    end = layout.duration
    segments: Sequence[tuple[float, float | None]] = request.get("segments", layout.segments)
    yield Layout(end, [(start, max(start, end) if stop is None else stop) for start, stop in segments])
    windows = [(start, stop, item_name(VideoSegment(source, start, stop))) for start, stop in segments]
    done = failures = 0
    while done < len(windows):
        try:
            for clip in read(windows[done:]):
                done += 1
                yield clip
                del clip
        except VideoError as error:
            done += 1
            failures += 1
            yield error
            if error.item == item_name(source) or failures == MAX_FAILURES:
                yield from (type(error)(item, error.reason) for _, _, item in windows[done:])
                return


def _or_still(clips: Iterator[Clip], request: Message, source: str | Path, sampling: Sampling) -> Iterator[Clip]:
    """Yield the clips of a video, or a picture as one."""
    try:
        yield from clips
    except errors.NotAVideo:
        yield read_still(source, sampling, item=request["item"])
