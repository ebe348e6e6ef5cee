"""One thread of a pool and the process that it has."""

from __future__ import annotations

import logging
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from vidembed.errors import BackendUnavailable, DecoderCrashed, DecodeTimeout, VideoError, VideoTooLarge
from vidembed.video.process import wire
from vidembed.video.process.worker import Allowance, Worker, WorkerEndedError

if TYPE_CHECKING:
    from vidembed.video.clip import Clip
    from vidembed.video.process.desk import Desk, Task

logger = logging.getLogger(__name__)


class Lane:
    """One thread and its process.

    Args:
        settings: Of `Worker`.
        timeout_s: For each file.

    Attributes:
        worker: Its process. Guarded by `Desk.lock`, as what follows.
        task: What it is at.
        held: Clips that came from here and nobody has taken.
    """

    def __init__(self, settings: dict[str, Any], timeout_s: float | None) -> None:
        self.worker: Worker | None = None
        self.task: Task | None = None
        self.held = 0
        self._settings = settings
        self._timeout_s = timeout_s

    def run(self, desk: Desk) -> None:
        """Do tasks until the pool is closed."""
        try:
            while (task := desk.next_task(self)) is not None:
                self._do(desk, task)
                del task
        finally:
            self._discard(desk)

    def _do(self, desk: Desk, task: Task) -> None:
        """Do one task. Whatever happens, whoever waits for its clips hears of it."""
        is_usable = is_begun = False
        allowance = Allowance(self._timeout_s)
        try:
            worker = self._begin(desk, task, allowance)
            is_begun = True
            is_usable = self._read(desk, task, worker, allowance)
        except WorkerEndedError as ended:
            desk.break_off(task, self._error(task.item, ended, is_begun=is_begun))
        except wire.MalformedError as error:
            reason = f"the decoder sent {error}; get an intact copy, or convert it"
            desk.break_off(task, DecoderCrashed(task.item, reason))
        except MemoryError:
            reason = "its frames do not fit into memory; lower Sampling.max_frames or max_pixels"
            desk.break_off(task, VideoTooLarge(task.item, reason))
        except BaseException as error:  # noqa: BLE001
            desk.break_off(task, error)
        finally:
            desk.leave(self)
            if not is_usable:
                self._discard(desk)

    def _begin(self, desk: Desk, task: Task, allowance: Allowance) -> Worker:
        """Hand a task to a process. One that died while it had nothing to do is replaced: no file is to blame.

        Raises:
            WorkerEndedError: None can be started, or it was killed from here.
        """
        worker = self.worker
        if worker is not None and worker.is_usable:
            try:
                self._ask(worker, task, allowance)
            except WorkerEndedError as ended:
                if ended.killed is not None:
                    raise
                logger.warning("an idle decoding process ended with %s; another takes its place", ended.found)
            else:
                return worker
        self._discard(desk)
        worker = Worker(**self._settings)
        desk.admit(self, worker)
        worker.greet()
        self._ask(worker, task, allowance)
        return worker

    def _ask(self, worker: Worker, task: Task, allowance: Allowance) -> None:
        with allowance.spent_by(worker):
            worker.send(task.request)
            if "begun" not in worker.receive():
                raise wire.MalformedError("an answer to nothing")

    def _discard(self, desk: Desk) -> None:
        worker = self.worker
        desk.admit(self, None)
        if worker is not None:
            worker.stop()

    def _read(self, desk: Desk, task: Task, worker: Worker, allowance: Allowance) -> bool:
        """Hand on what the process reads. Return whether it can read another file after this."""
        with allowance.spent_by(worker):
            line = worker.receive()
        if "error" in line:
            self._break_off(desk, task, wire.error_of(line, task.rename), wire.notes_of(line, task.rename))
            return not line.get("spent")
        layout = wire.layout_of(line)
        desk.put_layout(task, layout, wire.notes_of(line, task.rename))
        for _ in layout.segments:
            desk.wait_for_room(self, task)
            with allowance.spent_by(worker):
                line = worker.receive()
                notes = wire.notes_of(line, task.rename)
                entry: Clip | VideoError
                if "error" in line:
                    entry = wire.error_of(line, task.rename)
                else:
                    entry = worker.read_clip(wire.announced(line, task.sampling, task.rename), task.sampling)
            if isinstance(entry, VideoError) and line.get("rest"):
                self._break_off(desk, task, entry, notes)
                return not line.get("spent")
            desk.put(self, task, entry, notes)
            del entry
        return True

    def _break_off(self, desk: Desk, task: Task, error: VideoError, notes: list[wire.Note]) -> None:
        for note in notes:
            if note.level:
                note.emit()
        desk.break_off(task, error)

    def _error(self, item: str, ended: WorkerEndedError, *, is_begun: bool) -> Exception:
        if ended.killed == "timeout":
            return DecodeTimeout(item, f"not read within timeout_s={self._timeout_s}; raise the limit or cut the video")
        if ended.killed == "cancelled":
            return CancelledError(f"{item}: the reading was cancelled, or the pool closed")
        if not is_begun:
            reason = f"the decoding process did not start ({ended.found}); check the installation"
            return BackendUnavailable(item, reason)
        return DecoderCrashed(item, f"the decoder ended with {ended.found} on it; get an intact copy, or convert it")
