"""A server of quick models for most tests, and one real process for the clients and the browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from tools.server import serving, vidembed

from tests.index.fakes import FakeEncoder, write_video
from vidembed.calibration import Ranking
from vidembed.index import VideoIndex, Windows, index_videos
from vidembed.serve import Engine, Limits, create_app
from vidembed.shapes import ClipRecord, write_clips
from vidembed.uri import video_uri
from vidembed.video import Clip, Sampling, VideoError, load_video


@dataclass
class ServedEncoder(FakeEncoder):
    """The fake of the index with what the server asks too. A text of `marker` cannot be prepared."""

    batches: list[int] = field(default_factory=list)
    hold: Callable[[], None] = lambda: None

    def encode_query(self, inputs: Any, *, show_progress_bar: bool = False) -> np.ndarray:
        self.hold()
        if isinstance(inputs, list):
            self.batches.append(len(inputs))
            if any(each["text"] == "marker" for each in inputs):
                raise ValueError("a marker at /secret/place")
            if any(each["text"] == "crash" for each in inputs):
                raise RuntimeError("a crash at /secret/place")
        return super().encode_query(inputs)

    def encode_document(self, inputs: Any, *, show_progress_bar: bool = False) -> np.ndarray:
        """Another vector than that of a query, as with a model that has prompts."""
        return np.roll(self.encode_query(inputs, show_progress_bar=show_progress_bar), 1, axis=-1)

    def tokenizer(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[0] * len(text.split()) for text in texts]}


class FakeReranker:
    """The probability of a video is its redness."""

    sampling = Sampling(fps=3.0)
    fusion = first_stage = None

    def predict(
        self, pairs: list[Any], *, on_error: str, show_progress_bar: bool = False
    ) -> np.ma.MaskedArray[Any, Any]:
        assert on_error == "skip"
        assert all(set(query) == {"text"} and isinstance(clip, Clip) for query, clip in pairs)
        scores = [self._score(video) for _, video in pairs]
        return np.ma.MaskedArray([score or 0 for score in scores], mask=[score is None for score in scores])

    def rank(self, query: Any, documents: list[Any], **_how: Any) -> Ranking:
        scores = [self._score(video) for video in documents]
        found = [{"corpus_id": n, "score": score} for n, score in enumerate(scores) if score is not None]
        found.sort(key=lambda entry: -entry["score"])
        return Ranking(found, asked=len(documents), candidates=len(documents))

    @staticmethod
    def _score(video: Any) -> float | None:
        try:
            mean = load_video(video, FakeReranker.sampling).frames.mean(axis=(0, 1, 2))
        except VideoError:
            return None
        return float(mean[0] / mean.sum())


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a red, a green and a blue video, and one of three seconds that ends in red."""
    folder = tmp_path_factory.mktemp("served") / "videos"
    folder.mkdir()
    for name, colour in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        write_video(folder / f"{name}.mp4", [colour])
    write_video(folder / "long <b>.mp4", [(90, 90, 90), (90, 90, 90), (190, 60, 40)])
    return folder


@pytest.fixture(scope="session")
def index_folder(videos: Path) -> Path:
    folder = videos.parent / "index"
    index_videos([videos], folder, ServedEncoder(), model="fake", cut=Windows(1.0), progress=False)
    return folder


@pytest.fixture
def serve(index_folder: Path, videos: Path) -> Iterator[Callable[..., SimpleNamespace]]:
    """Starts a server in this process: `client`, `engine` and `encoder`."""
    clients: list[TestClient] = []

    def start(
        *,
        api_key: str | None = None,
        hosts: list[str] | None = None,
        cors_origins: list[str] | None = None,
        **how: Any,
    ) -> SimpleNamespace:
        limits = Limits(**{"batch_wait_ms": 1.0, "timeout_s": 20.0, **how.pop("limits", {})})
        encoder = how.pop("encoder", None) or ServedEncoder()
        options: dict[str, Any] = {
            "model": "fake",
            "aliases": ["alias"],
            "reranker_aliases": ["rerank-alias"],
            "reranker": FakeReranker(),
            "index": VideoIndex.open(index_folder),
            "root": videos,
            **how,
        }
        engine = Engine(encoder, limits=limits, **options)
        client = TestClient(create_app(engine, api_key=api_key, hosts=hosts, cors_origins=cors_origins or ()))
        client.__enter__()
        clients.append(client)
        return SimpleNamespace(client=client, engine=engine, encoder=encoder)

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Callable[..., SimpleNamespace]) -> TestClient:
    return serve().client  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def uri(videos: Path) -> Callable[..., str]:
    """The URI of a video of the folder, by its name without the suffix."""
    return lambda name, *times: video_uri(videos / f"{name}.mp4", *times)


@dataclass(frozen=True)
class Served:
    """`vidembed serve` with the bundled models."""

    address: str
    clips: list[tuple[Path, ClipRecord]]
    log: Path


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One real process for the session: the bundled models, and an index of four drawn clips in parts of 2 seconds."""
    folder = tmp_path_factory.mktemp("process")
    clips = write_clips(folder / "clips", 4, "test", 4)
    of_index: list[str | Path] = [
        "--to",
        folder / "index",
        "--model",
        "vidembed/shapes",
        "--segment",
        "2",
        "--device",
        "cpu",
    ]
    vidembed("index", folder / "clips", *of_index)
    options: list[str | Path] = ["--root", folder / "clips", "--alias", "text-embedding-3-small", "--device", "cpu"]
    with serving(["--in", folder / "index", "--rerank", *options], folder / "log") as address:
        yield Served(address, clips, folder / "log")
