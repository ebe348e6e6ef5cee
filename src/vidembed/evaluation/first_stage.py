"""The first stage on a benchmark: every video and text embedded once, cached, and compared."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.cache import ScoreCache, text_key, video_key
from vidembed.evaluation.embedding import Embedder, Vector
from vidembed.scoring._checks import FloatArray

logger = logging.getLogger(__name__)

OnFailure = Literal["raise", "count"]
ON_FAILURE: Final = ("raise", "count")

TEXTS_AT_ONCE: Final = 256
"""Texts embedded between two commits of the cache (ours)."""


class VideoFailedError(ValueError):
    """A video of a benchmark could not be used; the message names it and says what may be done."""


@dataclass
class Tally:
    """What was computed, what came from the cache, and how long the computing took.

    Attributes:
        computed: Items.
        cached: Items.
        seconds: Of computing.
    """

    computed: int = 0
    cached: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float | None:
        """Computed items a second; None if nothing was computed."""
        return self.computed / self.seconds if self.computed and self.seconds else None


@dataclass
class Work:
    """The work of a run, by kind."""

    videos: Tally = field(default_factory=Tally)
    texts: Tally = field(default_factory=Tally)
    pairs: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Failure:
    """A video that could not be used.

    Attributes:
        video_id: As the benchmark names it.
        file: Its path.
        reason: What was found.
    """

    video_id: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class FirstStage:
    """Similarities of a benchmark.

    Attributes:
        benchmark: What was embedded.
        readable: ``(V,)``, which videos have a vector.
        scores: ``(T, W)`` similarities of all texts and the W readable videos.
        failures: The other videos.
    """

    benchmark: Benchmark
    readable: NDArray[np.bool_]
    scores: FloatArray
    failures: tuple[Failure, ...]

    def oriented(self, direction: str) -> FloatArray:
        """Similarities with queries as rows: ``(T, W)`` or ``(W, T)``."""
        return self.scores if direction == "t2v" else self.scores.T


def first_stage(
    benchmark: Benchmark,
    embedder: Embedder,
    cache: ScoreCache,
    *,
    on_error: OnFailure = "raise",
    batch_size: int = 32,
    work: Work | None = None,
    show_progress_bar: bool = False,
) -> FirstStage:
    """Embed what the cache does not hold, and compare all texts with all videos.

    Args:
        benchmark: Videos and texts.
        embedder: The model.
        cache: Where vectors are kept, each video's in a commit of its own.
        on_error: "raise", or "count" to go on without a video that fails.
        batch_size: Inputs embedded at once.
        work: Counts what is done.
        show_progress_bar: Whether to show bars.

    Raises:
        VideoFailedError: A video cannot be read, or none can.
        ValueError: A text cannot be embedded.
    """
    work = work or Work()
    videos, failures = _videos(benchmark, embedder, cache, on_error, batch_size, work.videos, show_progress_bar)
    readable = np.array([vector is not None for vector in videos])
    if not readable.any():
        raise VideoFailedError(f"videos: none of {len(videos)} can be read; the first: {failures[0].reason}")
    texts = _texts(benchmark, embedder, cache, batch_size, work.texts, show_progress_bar)
    vectors = np.stack([vector for vector in videos if vector is not None]).astype(np.float64)  # (W, D)
    return FirstStage(benchmark, readable, embedder.similarity(texts, vectors), tuple(failures))


def _videos(
    benchmark: Benchmark,
    embedder: Embedder,
    cache: ScoreCache,
    on_error: OnFailure,
    batch_size: int,
    tally: Tally,
    show_progress_bar: bool,
) -> tuple[list[Vector | None], list[Failure]]:
    """Vectors of all videos, None of those that failed, and why."""
    model = embedder.key
    keys = [_key(path) for path in benchmark.videos]
    known = cache.vectors(model, [key for key in keys if key is not None])
    vectors: list[Vector | None] = [None if key is None else known.get(key) for key in keys]
    missing = [place for place, vector in enumerate(vectors) if vector is None]
    tally.cached += len(keys) - len(missing)
    failures: list[Failure] = []
    before = time.monotonic()
    with tqdm(total=len(missing), desc="Embedding videos", unit="video", disable=not show_progress_bar) as bar:
        stream = embedder.videos([benchmark.videos[place] for place in missing], batch_size=batch_size)
        for index, found in stream:
            place = missing[index]
            result = _unchanged(benchmark.videos[place], keys[place], found)
            if isinstance(result, Exception):
                failures.append(_failure(benchmark, place, result, on_error))
            else:
                key = keys[place]
                if key is not None:
                    cache.put_vectors(model, [(key, result)])
                vectors[place] = result
                tally.computed += 1
            tally.seconds += time.monotonic() - before
            before = time.monotonic()
            bar.update()
    return vectors, failures


def _key(path: Path) -> str | None:
    try:
        return video_key(path)
    except OSError:  # what reading it will say
        return None


def _unchanged(path: Path, key: str | None, found: Vector | Exception) -> Vector | Exception:
    """What was found, unless the file was written to meanwhile."""
    if isinstance(found, Exception) or _key(path) == key:
        return found
    return ValueError("the file was written to while it was being read")


def _failure(benchmark: Benchmark, place: int, error: Exception, on_error: OnFailure) -> Failure:
    reason = str(getattr(error, "reason", None) or error)
    name, file = benchmark.video_ids[place], str(benchmark.videos[place])
    if on_error == "raise":
        raise VideoFailedError(
            f"video {name!r} ({file}): {reason}. Replace the file, or count such videos against the model (--on-error "
            "count, on_error='count')."
        ) from error
    logger.warning("counted against: %s (%s): %s", name, file, reason)
    return Failure(name, file, f"{type(error).__name__}: {reason}")


def _texts(
    benchmark: Benchmark, embedder: Embedder, cache: ScoreCache, batch_size: int, tally: Tally, show_progress_bar: bool
) -> FloatArray:
    """Vectors of all texts ``(T, D)``; equal ones are embedded once."""
    model = embedder.key
    keys = {text: text_key(text) for text in benchmark.texts}
    known = cache.vectors(model, list(keys.values()))
    missing = [text for text, key in keys.items() if key not in known]
    tally.cached += len(keys) - len(missing)
    with tqdm(total=len(missing), desc="Embedding texts", unit="text", disable=not show_progress_bar) as bar:
        for start in range(0, len(missing), TEXTS_AT_ONCE):
            chunk = missing[start : start + TEXTS_AT_ONCE]
            before = time.monotonic()
            vectors = embedder.texts(chunk, batch_size=batch_size)  # (C, D)
            tally.seconds += time.monotonic() - before
            finite = np.isfinite(vectors).all(axis=1)  # (C,)
            if not finite.all():
                raise ValueError(f"text {chunk[int(np.argmin(finite))]!r}: the model gave a vector that is not finite")
            fresh = {keys[text]: vector for text, vector in zip(chunk, vectors, strict=True)}
            cache.put_vectors(model, fresh.items())
            known |= fresh
            tally.computed += len(chunk)
            bar.update(len(chunk))
    return np.stack([known[keys[text]] for text in benchmark.texts]).astype(np.float64)
