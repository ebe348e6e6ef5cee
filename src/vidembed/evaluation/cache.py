"""Vectors and answers of models, kept on disk so that an interrupted run goes on where it was.

One SQLite file. Entries are named by the model's fingerprint and the file's state or the text, so another model or a
changed file finds nothing. A commit is whole or not there, also after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.video.clip import FileState

FILE_NAME: Final = "scores.sqlite"
SCHEMA: Final = 2
_WAIT_S = 60.0  # for another process's commit
_TABLE = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;"


@dataclass(frozen=True)
class Answer:
    """The answer of the head about one pair: log-odds of Yes against the rest of the vocabulary, and against No."""

    yes: float
    yes_no: float


def video_key(path: Path) -> str:
    """Name the state that a video file is in: its absolute path, its size and the time of its last write."""
    state = FileState.of(path)
    return _digest("video", os.fsencode(path.resolve()).hex(), str(state.size), str(state.mtime_ns))


def text_key(text: str) -> str:
    """Name a text."""
    return _digest("text", text)


def model_key(fingerprint: str, *how: str) -> str:
    """Name a model, with what else decides its results, such as the video decoder."""
    return _digest("model", fingerprint, *how)


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ScoreCache(AbstractContextManager["ScoreCache"]):
    """Vectors and answers by model and input, in a folder, which is made if missing, or else in memory for one run.

    Raises:
        ValueError: The file there is damaged, or of another version.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else folder / FILE_NAME
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._database = sqlite3.connect(":memory:" if self.file is None else self.file, timeout=_WAIT_S)
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA):
                self._database.close()
                raise ValueError(f"cache: {self.file} is of version {version}; this vidembed reads {SCHEMA}. Remove it")
            with self._database:
                self._database.executescript(f"{_TABLE}PRAGMA user_version = {SCHEMA};")

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; what was put is there already."""
        self._database.close()

    def vectors(self, model: str, inputs: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors that are there, by input, ``(D,)`` each; a ValueError if the file is damaged."""
        found: dict[str, NDArray[np.float32]] = {}
        with self._explained():
            for key, blob in self._there(("vector", model), inputs):
                vector = np.frombuffer(blob if len(blob) % 4 == 0 else b"", dtype="<f4")
                if not vector.size or not np.isfinite(vector).all():
                    raise sqlite3.DatabaseError("a vector is cut off or not finite")
                found[key] = vector
        return found

    def put_vectors(self, model: str, vectors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Keep vectors, ``(D,)`` each, in one commit."""
        self._put((("vector", model, key), np.asarray(vector, dtype="<f4").tobytes()) for key, vector in vectors)

    def answers(self, model: str, video: str, texts: Iterable[str]) -> dict[str, Answer]:
        """The answers about one video that are there, by text."""
        with self._explained():
            found = self._there(("answer", model, video), texts)
            return {text: Answer(*struct.unpack("<2d", blob)) for text, blob in found}

    def put_answers(self, model: str, answers: Iterable[tuple[str, str, Answer]]) -> None:
        """Keep answers, each of a video and a text, in one commit."""
        packed = ((video, text, struct.pack("<2d", one.yes, one.yes_no)) for video, text, one in answers)
        self._put((("answer", model, video, text), value) for video, text, value in packed)

    def priors(self, model: str, inputs: Iterable[str]) -> dict[str, float]:
        """The log-odds of Yes of videos without a text, and of texts without a video, that are there."""
        with self._explained():
            return {key: struct.unpack("<d", blob)[0] for key, blob in self._there(("prior", model), inputs)}

    def put_priors(self, model: str, priors: Iterable[tuple[str, float]]) -> None:
        """Keep priors in one commit."""
        self._put((("prior", model, key), struct.pack("<d", float(value))) for key, value in priors)

    def _there(self, names: tuple[str, ...], last: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the entries that are there, each by the last of its names."""
        for key in last:
            found = self._database.execute("SELECT value FROM entries WHERE key = ?", (_entry((*names, key)),))
            yield from ((key, value) for (value,) in found)

    def _put(self, entries: Iterable[tuple[tuple[str, ...], bytes]]) -> None:
        rows = ((_entry(names), value) for names, value in entries)
        with self._explained(), self._database:  # whole or not at all
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite as errors that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a folder without leave to write, a lock
            raise OSError(f"cache: {self.file}: {error}") from error
        except (sqlite3.DatabaseError, struct.error) as error:
            raise ValueError(
                f"cache: {self.file} is damaged ({error}); remove it, and the next run writes it again"
            ) from error


def _entry(names: tuple[str, ...]) -> bytes:
    """The key of an entry: half of a SHA-256, so different ones do not meet in practice."""
    return bytes.fromhex(_digest(*names))[:16]
