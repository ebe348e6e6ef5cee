"""Models that stand in for the bundled ones: they note their inputs, and can be stopped in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidembed.evaluation.benchmark import Benchmark


class Counting:
    """A `VideoEncoder` that notes the videos and texts it embeds, and stops before the next one after `stop_after`."""

    def __init__(self, model: Any, *, stop_after: int | None = None) -> None:
        self.model = model
        self.stop_after = stop_after
        self.videos: list[str] = []
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode_stream(self, inputs: list[dict[str, Path]], **how: Any) -> Iterator[Any]:
        for item in self.model.encode_stream(inputs, **{**how, "batch_size": 1}):
            if self.stop_after is not None and len(self.videos) >= self.stop_after:
                raise KeyboardInterrupt
            self.videos.append(inputs[item.index]["video"].name)
            yield item

    def encode_query(self, inputs: list[dict[str, str]], **how: Any) -> Any:
        self.texts += [one["text"] for one in inputs]
        return self.model.encode_query(inputs, **how)


class CountingHead:
    """A `VideoReranker` that notes the pairs it scores, and stops at a call after `stop_after`."""

    def __init__(self, model: Any, *, stop_after: int | None = None) -> None:
        self.model = model
        self.stop_after = stop_after
        self.calls: list[list[tuple[str, str]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [pair for call in self.calls for pair in call]

    def answers(self, inputs: list[dict[str, Any]], **how: Any) -> Any:
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append([(one["text"], one["video"].name) for one in inputs])
        return self.model.answers(inputs, **how)


def plain_benchmark(videos: list[Path], texts: list[str], owners: list[tuple[int, ...]], **facts: Any) -> Benchmark:
    """A benchmark with short facts."""
    return Benchmark(
        **{
            "name": "custom",
            "title": "a test",
            "split": "all",
            "protocol": "any",
            "source": "here",
            "video_ids": tuple(path.stem for path in videos),
            "videos": tuple(videos),
            "texts": tuple(texts),
            "owners": tuple(owners),
            **facts,
        }
    )


def random_scores(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))
