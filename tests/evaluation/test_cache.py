from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidembed.evaluation.cache import FILE_NAME, Answer, ScoreCache, model_key, text_key, video_key

VECTOR = np.arange(4, dtype=np.float32)


def test_what_was_put_is_found_in_another_process_life(tmp_path: Path) -> None:
    with ScoreCache(tmp_path / "deep" / "cache") as cache:
        cache.put_vectors("m", [("a", VECTOR), ("b", 2 * VECTOR)])
        cache.put_answers("m", [("v", "t", Answer(-1.5, 2.25)), ("v", "u", Answer(0.0, 1.0))])
        cache.put_priors("m", [("v", 0.5)])
    with ScoreCache(tmp_path / "deep" / "cache") as cache:
        found = cache.vectors("m", ["a", "b", "c"])
        assert {name: vector.tolist() for name, vector in found.items()} == {"a": [0, 1, 2, 3], "b": [0, 2, 4, 6]}
        assert found["a"].dtype == np.float32
        assert cache.answers("m", "v", ["t", "x"]) == {"t": Answer(-1.5, 2.25)}
        assert cache.priors("m", ["v", "t"]) == {"v": 0.5}


def test_another_model_or_input_finds_nothing(tmp_path: Path) -> None:
    with ScoreCache(tmp_path) as cache:
        cache.put_vectors("m", [("a", VECTOR)])
        cache.put_answers("m", [("v", "t", Answer(1.0, 1.0))])
        cache.put_priors("m", [("v", 1.0)])
        assert cache.vectors("n", ["a"]) == {}
        assert cache.answers("n", "v", ["t"]) == cache.answers("m", "w", ["t"]) == {}
        assert cache.priors("n", ["v"]) == {}


def test_later_values_replace_earlier_ones() -> None:
    with ScoreCache(None) as cache:
        cache.put_vectors("m", [("a", VECTOR)])
        cache.put_vectors("m", [("a", VECTOR + 1)])
        assert cache.vectors("m", ["a"])["a"].tolist() == [1, 2, 3, 4]


def test_a_written_file_has_another_key(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"1234")
    os.utime(file, ns=(1, 1))
    first = video_key(file)
    assert video_key(tmp_path / "." / "a.mp4") == first
    os.utime(file, ns=(1, 2))
    assert video_key(file) != first
    os.utime(file, ns=(1, 1))
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1))
    assert video_key(file) != first
    with pytest.raises(OSError, match="none"):
        video_key(tmp_path / "none.mp4")


def test_keys_do_not_run_into_one_another() -> None:
    assert len({text_key("a"), text_key("b"), model_key("a"), model_key("a", "b"), model_key("ab")}) == 5


def test_a_commit_that_fails_leaves_nothing_and_the_cache_works_on(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    class Bad:
        def __float__(self) -> float:
            raise StopError

    with ScoreCache(tmp_path) as cache:
        with pytest.raises(StopError):
            cache.put_priors("m", [("a", 1.0), ("b", Bad())])  # type: ignore[list-item]
        assert cache.priors("m", ["a"]) == {}
        cache.put_priors("m", [("a", 3.0)])
        assert cache.priors("m", ["a"]) == {"a": 3.0}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_kill_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from vidembed.evaluation.cache import ScoreCache
cache = ScoreCache(Path({str(tmp_path)!r}))
cache.put_priors("m", [("whole", 1.0)])
class Kill:
    def __float__(self):
        os.kill(os.getpid(), signal.SIGKILL)
cache.put_priors("m", [("half", 2.0), ("other", Kill())])
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with ScoreCache(tmp_path) as cache:
        assert cache.priors("m", ["whole", "half"]) == {"whole": 1.0}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(ValueError, match=r"scores\.sqlite is damaged .* remove it"):
        ScoreCache(tmp_path)


@pytest.mark.parametrize("blob", [b"", np.array([1.0, np.nan], dtype="<f4").tobytes(), b"123"])
def test_a_vector_that_is_none_is_not_served(tmp_path: Path, blob: bytes) -> None:
    with ScoreCache(tmp_path) as cache:
        cache.put_vectors("m", [("a", VECTOR)])
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("UPDATE entries SET value = ?", (blob,))
    with ScoreCache(tmp_path) as cache, pytest.raises(ValueError, match="is damaged"):
        cache.vectors("m", ["a"])


def test_another_version_is_refused(tmp_path: Path) -> None:
    ScoreCache(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="version 99; this vidembed reads 2"):
        ScoreCache(tmp_path)


def test_it_does_not_load_torch() -> None:
    script = "import sys; import vidembed.evaluation.cache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], timeout=120, check=True)
