"""Vectors and answers of models, kept on disk so that an interrupted run goes on where it was.

One SQLite file. Every entry is named by the fingerprint of the model and by the state of the file or the words of the
text, so another model or a changed file finds nothing. A commit is whole or not there, also after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidembed.video.clip import FileState

FILE_NAME: Final = "scores.sqlite"
SCHEMA: Final = 1
_WAIT_S = 60.0  # for another process's commit
_TABLES = """
CREATE TABLE IF NOT EXISTS keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS vectors (
    model INTEGER NOT NULL, input INTEGER NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (model, input)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    model INTEGER NOT NULL, video INTEGER NOT NULL, text INTEGER NOT NULL, yes REAL NOT NULL, yes_no REAL NOT NULL,
    PRIMARY KEY (model, video, text)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS priors (
    model INTEGER NOT NULL, input INTEGER NOT NULL, log_odds REAL NOT NULL, PRIMARY KEY (model, input)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Answer:
    """The answer of the head about one pair: log-odds of Yes against the rest of the vocabulary, and against No."""

    yes: float
    yes_no: float


def video_key(path: Path) -> str:
    """Name the state that a video file is in: its absolute path, its size and the time of its last write.

    Raises:
        OSError: The file cannot be reached.
    """
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


class ScoreCache:
    """Vectors and answers by model and input.

    Args:
        folder: Where the file lies; made if missing. None keeps everything in memory, for one run.

    Raises:
        ValueError: The file there is damaged, or of another version.
    """

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else folder / FILE_NAME
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._ids: dict[str, int] = {}
        with self._explained():
            self._database = sqlite3.connect(":memory:" if self.file is None else self.file, timeout=_WAIT_S)
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA):
                self._database.close()
                raise ValueError(f"cache: {self.file} is of version {version}; this vidembed reads {SCHEMA}. Remove it")
            with self._database:
                self._database.executescript(f"{_TABLES}PRAGMA user_version = {SCHEMA};")

    def __enter__(self) -> ScoreCache:
        """Return the cache."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; what was put is there already."""
        self._database.close()

    def vectors(self, model: str, inputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors that are there, by input, ``(D,)`` each; a ValueError if the file is damaged."""
        found: dict[str, NDArray[np.float32]] = {}
        with self._explained():
            for key, blob in self._select("vectors", "vector", model, inputs):
                vector = np.frombuffer(blob if len(blob) % 4 == 0 else b"", dtype="<f4")
                if not vector.size or not np.isfinite(vector).all():
                    raise sqlite3.DatabaseError("a vector is cut off or not finite")
                found[key] = vector
        return found

    def put_vectors(self, model: str, vectors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Keep vectors, ``(D,)`` each, in one commit."""
        rows = [(key, np.ascontiguousarray(vector, dtype="<f4").tobytes()) for key, vector in vectors]
        self._insert("vectors", "model, input, vector", [(model, key, blob) for key, blob in rows], keys=2)

    def answers(self, model: str, video: str, texts: Iterable[str]) -> dict[str, Answer]:
        """The answers about one video that are there, by text."""
        wanted = set(texts)
        with self._explained():
            rows = self._database.execute(
                "SELECT t.key, a.yes, a.yes_no FROM answers a JOIN keys t ON t.id = a.text"
                " WHERE a.model = (SELECT id FROM keys WHERE key = ?)"
                " AND a.video = (SELECT id FROM keys WHERE key = ?)",
                (model, video),
            )
            return {key: Answer(yes, yes_no) for key, yes, yes_no in rows if key in wanted}

    def put_answers(self, model: str, answers: Iterable[tuple[str, str, Answer]]) -> None:
        """Keep answers, each of a video and a text, in one commit."""
        rows = [(model, video, text, one.yes, one.yes_no) for video, text, one in answers]
        self._insert("answers", "model, video, text, yes, yes_no", rows, keys=3)

    def priors(self, model: str, inputs: Sequence[str]) -> dict[str, float]:
        """The log-odds of Yes of videos without a text, and of texts without a video, that are there."""
        with self._explained():
            return {key: float(value) for key, value in self._select("priors", "log_odds", model, inputs)}

    def put_priors(self, model: str, priors: Iterable[tuple[str, float]]) -> None:
        """Keep priors in one commit."""
        self._insert("priors", "model, input, log_odds", [(model, key, value) for key, value in priors], keys=2)

    def _select(self, table: str, column: str, model: str, inputs: Sequence[str]) -> Iterator[tuple[str, Any]]:
        query = (
            f"SELECT k.key, r.{column} FROM {table} r JOIN keys k ON k.id = r.input"  # noqa: S608 - names of this module
            " WHERE r.model = (SELECT id FROM keys WHERE key = ?) AND k.key = ?"
        )
        for key in inputs:
            yield from self._database.execute(query, (model, key))

    def _insert(self, table: str, columns: str, rows: Sequence[tuple[object, ...]], *, keys: int) -> None:
        if not rows:
            return
        marks = ", ".join("?" * len(rows[0]))
        statement = f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - names of this module
        try:
            with self._explained(), self._database:
                self._database.execute("BEGIN IMMEDIATE")  # before ids are looked up: another process may add them too
                named = [(*(self._id(str(key)) for key in row[:keys]), *row[keys:]) for row in rows]
                self._database.executemany(statement, named)
        except BaseException:
            self._ids.clear()  # ids that were new went back with the rest
            raise

    def _id(self, key: str) -> int:
        if key not in self._ids:
            self._database.execute("INSERT OR IGNORE INTO keys (key) VALUES (?)", (key,))
            (self._ids[key],) = self._database.execute("SELECT id FROM keys WHERE key = ?", (key,)).fetchone()
        return self._ids[key]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite as errors that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a folder without leave to write, a lock
            raise OSError(f"cache: {self.file}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"cache: {self.file} is damaged ({error}); remove it, it is made again") from error
