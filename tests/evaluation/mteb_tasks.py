"""Small video retrieval tasks of mteb, on drawn clips, and a decoder for machines without torchcodec."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import datasets
import numpy as np
import torch
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

Pairs = list[tuple[Path, str]]

_UNKNOWN = [
    "reference",
    "date",
    "domains",
    "task_subtypes",
    "license",
    "annotations_creators",
    "dialect",
    "sample_creation",
    "bibtex_citation",
]
metadata = partial(
    TaskMetadata,
    description="Drawn clips and their sentences.",
    dataset={"path": "vidembed/no-such-dataset", "revision": "1"},
    type="Any2AnyRetrieval",
    eval_langs=["eng-Latn"],
    eval_splits=["test"],
    main_score="ndcg_at_10",
    modalities=["text", "video"],
    **dict.fromkeys(_UNKNOWN),
)


class HubRetrieval(AbsTaskRetrieval):
    """A task whose data are on a hub, and so nowhere."""

    metadata = metadata(name="NowhereT2V", category="t2v")


class ClipRetrieval(AbsTaskRetrieval):
    """One text a clip; `as_bytes` keeps the files in the table, as tasks of the hub do."""

    pairs: Pairs
    as_bytes: bool

    @classmethod
    def of(cls, pairs: Pairs, *, as_bytes: bool = False) -> ClipRetrieval:
        task = cls()
        task.pairs, task.as_bytes = pairs, as_bytes
        return task

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        if self.data_loaded:
            return
        ids = [f"id{place}" for place in range(len(self.pairs))]
        videos = [
            {"bytes": path.read_bytes(), "path": path.name} if self.as_bytes else {"bytes": None, "path": str(path)}
            for path, _ in self.pairs
        ]
        sides = [
            datasets.Dataset.from_dict({"id": ids, "text": [text for _, text in self.pairs]}),
            datasets.Dataset.from_dict(
                {"id": ids, "video": videos},
                features=datasets.Features(id=datasets.Value("string"), video=datasets.Video()),
            ),
        ]
        queries, corpus = sides if self.metadata.category == "t2v" else sides[::-1]
        found = {name: {name: 1} for name in ids}
        split = {"queries": queries, "corpus": corpus, "relevant_docs": found, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class ClipsT2V(ClipRetrieval):
    metadata = metadata(name="ClipsT2V", category="t2v")


class ClipsV2T(ClipRetrieval):
    metadata = metadata(name="ClipsV2T", category="v2t", modalities=["video", "text"])


def has_torchcodec() -> bool:
    """Whether mteb's own decoder works here; it needs a system's FFmpeg."""
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(b"")
    except (ImportError, OSError):
        return False
    except (ValueError, RuntimeError) as error:
        return "Could not load libtorchcodec" not in str(error)
    return True


class StandInDecoder:
    """What of torchcodec's VideoDecoder mteb asks for, by PyAV."""

    def __init__(self, path: str) -> None:
        with av.open(path) as container:
            rate = float(container.streams.video[0].average_rate)
            self.frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        self.metadata = SimpleNamespace(num_frames=len(self.frames), end_stream_seconds=len(self.frames) / rate)

    def get_frames_at(self, indices: list[int]) -> Any:
        return SimpleNamespace(data=torch.from_numpy(self.frames[indices]).permute(0, 3, 1, 2))  # (T, C, H, W)


def decode_by_pyav(_: Any, value: dict[str, Any], token_per_repo_id: Any = None) -> StandInDecoder:
    """In place of ``datasets.Video.decode_example``."""
    return StandInDecoder(value["path"])
