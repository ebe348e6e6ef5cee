"""What a model says of video files, written to a file as it is generated, so that a run can be taken up again."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Unpack

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from vidembed.captions.describing import (
    BATCH_SIZE,
    Described,
    DescribeKeywords,
    DescribeOptions,
    as_reranker,
    describe_batches,
    one_line,
)
from vidembed.captions.files import MAX_LINE_BYTES
from vidembed.captions.records import CaptionRecord, cut_torn_line, read_captions
from vidembed.errors import CaptionsBusyError, CaptionsMismatchError, ChangedWhileRead, InputError
from vidembed.interrupt import STOPPING, GracefulStop, uninterrupted
from vidembed.pipeline import OnError, check_on_error
from vidembed.progress import progress_bar
from vidembed.registry import portable_name
from vidembed.text import printable, replacing
from vidembed.video import Clip, VideoError, VideoSegment, item_name
from vidembed.video.clip import FileState, check_regular, content_fingerprint
from vidembed.video.pool import DecodePool, Reading
from vidembed.video.segments import Cut

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)

T = TypeVar("T")
Span = tuple[float, float] | tuple[None, None]  # of a segment, seconds, or of a whole video


@dataclass(slots=True)
class CaptionReport:
    """What a run of `write_captions` did.

    Attributes:
        out: The file.
        model: Name of the model, as in the records.
        fingerprint: That of the records.
        described: Videos, or segments, that were described by this run.
        marked: How many of `described` have a text that is not to be used.
        unchanged: Those that were in the file before, or whose bytes are those of another file of this run.
        failed: Why the others could not be described, by name of the video or segment.
        records: Lines of the file after the run.
    """

    out: str
    model: str
    fingerprint: str
    described: int = 0
    marked: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    records: int = 0

    def to_dict(self) -> dict[str, object]:
        """Return the report as it stands in JSON."""
        return asdict(self)


def check_out(out: Path) -> None:
    """Raise ValueError unless a file of captions can be at `out`."""
    if out.suffix.lower() != ".jsonl":
        raise ValueError(f"out: {str(out)!r} does not end in .jsonl; captions are written as one JSON object per line")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(
            f"out: {str(out)!r} is a folder, or its folder does not exist; give a file in a folder that exists"
        )


def write_captions(
    model: VideoReranker | VideoEncoder,
    videos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    cut: Cut | None = None,
    overwrite: bool = False,
    batch_size: int = BATCH_SIZE,
    on_error: OnError = "skip",
    decode_workers: int | None = None,
    progress: bool = True,
    **options: Unpack[DescribeKeywords],
) -> CaptionReport:
    """Describe video files, and write a record of each, or of each segment, to a file of captions.

    What is in the file is not generated again: a run that was interrupted or killed is taken up by the same call. It
    loses at most the batch at hand. Records are known by the bytes of the video, so that a file that was moved or
    renamed keeps its record, which then has its new name. Records of a file that was changed since are removed, and
    those of failures once the file was tried again.

    Args:
        model: As `describe` takes it.
        videos: Files.
        out: File to write or to go on with, ``.jsonl``. While it is written to, ``<out>.lock`` beside it is locked.
        name: Of the model, in the records. Default: what the model was made of.
        cut: How files are cut into segments, as `vidembed.index.index_videos` does. None: a file is described as one.
        overwrite: Remove records of another model or of other settings, which are refused otherwise.
        batch_size: As `describe`.
        on_error: "skip" writes a record of a video that fails, and goes on. "raise" raises after that record.
        decode_workers: Processes that decode. Default: as many threads as `model` prepares videos with.
        progress: Whether to show a bar over files, on stderr.
        **options: Fields of `DescribeOptions`.

    Raises:
        AnnotationError: A line of the file is damaged; it is named. One that a kill cut short is removed, and logged.
        BackboneError: The model has no head.
        CaptionsBusyError: Another run is writing to the file.
        CaptionsMismatchError: The file has records of another model or of other settings.
        InputError: With ``on_error="raise"``, a video could not be described.
        KeyboardInterrupt: Ctrl-C: the batch at hand was finished and written first.
        OSError: The file cannot be written.
        ValueError: An argument is out of range.
        VideoError: With ``on_error="raise"``, a video could not be read.
    """
    asked, path = DescribeOptions(**options), Path(out).expanduser()
    check_out(path)
    check_on_error(on_error)
    reranker = as_reranker(model)
    found = CaptionReport(str(out), name or portable_name(reranker.source), asked.fingerprint(reranker))
    with _locked(path):
        file = _CaptionFile(path, found, asked.kinds, overwrite=overwrite)
        run = _Run(reranker, file, cut, on_error)
        paths = [Path(video) for video in ([videos] if isinstance(videos, (str, os.PathLike)) else videos)]
        workers = decode_workers or reranker.decode_workers
        bar: tqdm[NoReturn] = progress_bar("Describing", "files", total=len(paths), shown=progress)
        with ExitStack() as stack:
            stop = stack.enter_context(GracefulStop(STOPPING if progress else ""))
            pool = stack.enter_context(DecodePool(workers=workers, backend=reranker.video_backend))
            stack.enter_context(bar)
            clips = stack.enter_context(closing(run.clips(paths, pool, stop, bar)))
            batches = describe_batches(reranker, clips, asked, batch_size=batch_size, on_error="skip")
            began = time.perf_counter()
            for batch in stack.enter_context(closing(batches)):
                run.store(batch)
                pace = found.described / (time.perf_counter() - began)
                bar.set_postfix_str(f"{found.described} described, {pace:.2g} segments/s", refresh=False)
                if stop.asked or run.error is not None:
                    break
        run.store([])
        file.tidy()
    if run.error is not None:
        raise run.error
    if stop.asked:
        raise KeyboardInterrupt
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file for one writer."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))  # the system frees it when a process ends, however it ends
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        message = f"out: another run is writing to {str(path)!r}; try again when it has ended, or give another file"
        raise CaptionsBusyError(message) from error
    try:
        yield
    finally:
        lock.release()


def _ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield items in order, `count` of them after they were taken: work on them has begun."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > count:
            yield held.popleft()
    while held:
        yield held.popleft()


@dataclass(slots=True)
class _File:
    """A video file of a run."""

    path: Path
    name: str | None = None  # in the file of captions, or None where it cannot stand there
    content: str | None = None  # SHA-256 of its bytes, hex, or None where they cannot be read
    state: FileState | None = None  # taken before they were read
    problem: Exception | None = None  # why they cannot be read
    reading: Reading | None = None  # its decoding, where the model must see it

    @classmethod
    def identify(cls, path: Path) -> _File:
        """Read the bytes of a file."""
        try:
            check_regular(str(path), item_name(path))  # reading a pipe could wait for ever
            state = FileState.of(path)
            return cls(path, content=content_fingerprint(path), state=state)
        except (VideoError, OSError) as error:
            return cls(path, problem=error)

    def check_unchanged(self) -> None:
        """Raise ChangedWhileRead if the file was written to since."""
        try:
            changed = FileState.of(self.path) != self.state
        except OSError:
            changed = True
        if changed:
            reason = "the file was written to while it was being read; run again"
            raise ChangedWhileRead(item_name(self.path), reason)


class _CaptionFile:
    """A file of captions that is locked for this run."""

    def __init__(self, path: Path, found: CaptionReport, kinds: Sequence[str], *, overwrite: bool) -> None:
        self.report = found
        self.known: set[tuple[str | None, Span]] = set()  # content and segment of what is described
        self.contents: dict[str, str] = {}  # of the videos of this run, by their names here
        self.tried: set[str] = set()  # names and contents of videos that were tried in this run
        self._path, self._folder = path, Path(os.path.realpath(path.parent))
        self._before = 0  # records in the file when the run began
        if not path.exists():
            return
        cut_torn_line(path)
        others = 0
        for record in read_captions(path):
            if record.fingerprint != found.fingerprint:
                if not overwrite:
                    raise CaptionsMismatchError(self._mismatch(record, kinds))
                others += 1
                continue
            self._before += 1
            if record.error is None:
                self.known.add((record.content, _span(record)))
        if others:
            logger.warning("%s: %d records of another model or of other settings are removed", path, others)
            self._rewrite(record for record in read_captions(path) if record.fingerprint == found.fingerprint)

    def _mismatch(self, record: CaptionRecord, kinds: Sequence[str]) -> str:
        """Say by what a record of the file differs from those of this run."""
        if not record.fingerprint:
            what = "without a model (they have no fingerprint)"
        elif record.model != self.report.model:
            what = f"of the model {record.model!r}, but this run uses {self.report.model!r}"
        elif record.texts and set(record.texts) != set(kinds):
            what = f"of the kinds {', '.join(record.texts)}, and {', '.join(kinds)} are requested now"
        else:
            what = "of the same model with other prompts, settings, frame sampling, weights or calibration"
        remedy = "Give another file, or --overwrite (overwrite=True) to remove these records"
        return f"out: {str(self._path)!r} has records {what}. {remedy}"

    def named(self, path: Path) -> str:
        """The name of a video in this file; InputError for one that a reader could not find again."""
        real = Path(os.path.realpath(path.parent), path.name)
        inside = real.is_relative_to(self._folder)
        name = real.relative_to(self._folder).as_posix() if inside else str(real)
        name = f"./{name}" if name[0].isspace() else name
        if name.encode("utf-8", "ignore").decode() != name.rstrip():
            raise InputError(
                f"{item_name(path)}: its name is not valid Unicode or ends with a space, which caption files cannot "
                f"store; rename it"
            )
        return name

    def append(self, records: Sequence[CaptionRecord]) -> None:
        """Write records at the end, to the disk."""
        if not records:
            return
        lines = b"".join(record.to_json().encode("ascii") + b"\n" for record in records)
        with uninterrupted(), self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def tidy(self) -> None:
        """Write the file anew if it has records that no longer hold, or videos that have another name now."""
        if not self._path.exists():
            return
        places = {content: video for video, content in reversed(self.contents.items())}
        changed = False
        for number, record in enumerate(read_captions(self._path)):
            kept = self._kept(number, record, places)
            changed |= kept is not record
            self.report.records += kept is not None
        if changed:
            kept_ones = (self._kept(*each, places) for each in enumerate(read_captions(self._path)))
            self._rewrite(record for record in kept_ones if record is not None)

    def _kept(self, number: int, record: CaptionRecord, places: dict[str, str]) -> CaptionRecord | None:
        """The record as it is to stand in the file, or None."""
        if record.error is not None:
            is_tried = record.video in self.tried or record.content in self.tried
            return None if is_tried and number < self._before else record
        now = self.contents.get(record.video)
        if now == record.content or (now is None and (self._folder / record.video).exists()):
            return record
        if (place := places.get(record.content or "")) is not None:
            return replace(record, video=place)
        return record if now is None else None  # of bytes that are no longer there

    def _rewrite(self, records: Iterable[CaptionRecord]) -> None:
        with replacing(self._path) as draft, draft.open("wb") as file:
            for record in records:
                file.write(record.to_json().encode("ascii") + b"\n")


def _span(record: CaptionRecord) -> Span:
    return (None, None) if record.start_s is None or record.end_s is None else (record.start_s, record.end_s)


class _Run:
    """The state of one run: clips go to the model in order, and what it says of them comes back."""

    def __init__(self, reranker: VideoReranker, file: _CaptionFile, cut: Cut | None, on_error: OnError) -> None:
        self.error: VideoError | InputError | None = None  # which ends the run
        self._sampling, self._file, self._cut, self._on_error = reranker.sampling, file, cut, on_error
        self._awaited: dict[int, tuple[_File, Span]] = {}  # by number of the clip
        self._begun: set[str] = set()  # contents
        self._unwritten: list[CaptionRecord] = []

    def clips(
        self, paths: Sequence[Path], pool: DecodePool, stop: GracefulStop, bar: tqdm[NoReturn]
    ) -> Generator[Clip, None, None]:
        """Yield what the model must see. It ends early once a video failed that ends the run, or after Ctrl-C."""
        number = 0
        executor = ThreadPoolExecutor(pool.workers, thread_name_prefix="vidembed-hash")
        hashed = _ahead((executor.submit(_File.identify, path) for path in paths), 2 * pool.workers)
        begun = _ahead((self._begin(future.result(), pool) for future in hashed), pool.workers)
        try:
            while self.error is None:
                with stop.idle():
                    file = next(begun, None)
                if file is None:
                    return
                clips = self._clips(file)
                while True:
                    with stop.idle():
                        found = next(clips, None)
                    if found is None:
                        break
                    span, clip = found
                    self._awaited[number] = file, span
                    number += 1
                    yield clip
                bar.update()
        except KeyboardInterrupt:
            if not stop.asked:
                raise
            # what the model has is finished; the rest is taken up by the next run
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _begin(self, file: _File, pool: DecodePool) -> _File:
        """Have a file decoded unless it is described already."""
        try:
            file.name = self._file.named(file.path)
        except InputError as error:
            file.problem = error
        if file.content is None or file.name is None:
            return file
        self._file.contents[file.name] = file.content
        is_known = self._cut is None and (file.content, (None, None)) in self._file.known
        if not is_known and file.content not in self._begun:
            self._begun.add(file.content)
            file.reading = pool.submit(file.path, self._sampling, cut=self._cut)
        return file

    def _clips(self, file: _File) -> Iterator[tuple[Span, Clip]]:
        """Yield the clips of a file that are not described yet, up to the first that cannot be decoded."""
        known, reading = self._file.known, file.reading
        self._file.tried.update(each for each in (file.name, file.content) if each is not None)
        if file.problem is not None:
            self._fail(file, file.problem)
            return
        if reading is None:
            self._file.report.unchanged += 1
            return
        try:
            spans: list[Span] = [(None, None)] if self._cut is None else [*reading.layout().segments]
            missing = {span for span in spans if (file.content, span) not in known}
            self._file.report.unchanged += len(spans) - len(missing)
            if not missing:
                return
            for span, found in zip(spans, reading, strict=False):
                if isinstance(found, VideoError):
                    self._fail(file, found, span)
                    return
                if span in missing:
                    file.check_unchanged()
                    yield span, found
        except VideoError as error:
            self._fail(file, error)
        finally:
            reading.cancel()
            file.reading = None

    def store(self, batch: Sequence[Described]) -> None:
        """Write what the model says, and what has failed meanwhile."""
        for one in batch:
            file, span = self._awaited.pop(one.index)
            if one.error is not None:
                self._fail(file, one.error, span)
                continue
            record = self._record(file, span, texts=one.texts, problems=one.problems, match=one.match)
            if len(record.to_json()) >= MAX_LINE_BYTES:
                message = f"{one.name}: its texts take more than {MAX_LINE_BYTES} bytes; lower max_new_tokens"
                self._fail(file, InputError(message), span)
                continue
            self._unwritten.append(record)
            self._file.report.described += 1
            self._file.report.marked += bool(one.problems)
        self._file.append(self._unwritten)
        self._unwritten.clear()

    def _record(self, file: _File, span: Span, **what: Any) -> CaptionRecord:
        found, (start, end) = self._file.report, span
        made = {"model": found.model, "fingerprint": found.fingerprint, **what}
        return CaptionRecord(file.name or "", file.content, start_s=start, end_s=end, **made)

    def _fail(self, file: _File, error: Exception, span: Span = (None, None)) -> None:
        """Note that a video could not be described; it is written with the next batch."""
        name = item_name(file.path if span[0] is None else VideoSegment(file.path, *span))
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        message = printable(one_line(f"{type(error).__name__}: {reason}"))
        self._file.report.failed[name] = message
        if file.name is not None:
            self._unwritten.append(self._record(file, span, error=message))
        if self._on_error == "raise" and self.error is None:
            self.error = error if isinstance(error, (VideoError, InputError)) else InputError(f"{name}: {message}")
