"""Readers of retrieval benchmarks: the published annotation files, and the videos that they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._published import Request
from vidembed.evaluation.benchmarks.activitynet import read_activitynet
from vidembed.evaluation.benchmarks.custom import read_custom
from vidembed.evaluation.benchmarks.didemo import read_didemo
from vidembed.evaluation.benchmarks.msrvtt import read_msrvtt
from vidembed.evaluation.benchmarks.msvd import read_msvd
from vidembed.evaluation.benchmarks.vatex import read_vatex

__all__ = ["BENCHMARKS", "read_benchmark"]

_READERS: Final[dict[str, Callable[[Request], Benchmark]]] = {
    "msrvtt": read_msrvtt,
    "msvd": read_msvd,
    "vatex": read_vatex,
    "didemo": read_didemo,
    "activitynet": read_activitynet,
}

BENCHMARKS: Final = (*_READERS, "custom")
"""What `read_benchmark` reads, by name."""


def read_benchmark(
    name: str,
    *,
    annotations: str | Path,
    videos: str | Path | None = None,
    split: str | Path | None = None,
    allow_missing: bool = False,
    check_counts: bool = True,
) -> Benchmark:
    """Read a benchmark: its texts, its videos' files, and which belong together. No video is opened.

    Each module of this package says what its files hold and where they are published. The folder of the videos may hold
    more than the split has, in folders of any depth; a file's name is the id with any suffix of
    `vidembed.uri.VIDEO_SUFFIXES`, in either case.

    Args:
        name: One of `BENCHMARKS`.
        annotations: The annotation file, or a folder that holds it under the name that it is published under. For
            ``msvd``, ``vatex`` and ``didemo`` the folder also holds the list of the split's ids.
        videos: The folder of the videos. Only ``custom`` does without: its paths are then relative to the annotations.
        split: A list of ids, one a line (or ``.json``, ``.npy``), or a folder that holds it: only these videos, in this
            order. Needed for ``msvd`` where `annotations` is a file; not for ``custom``.
        allow_missing: Leave out videos without a file, with their texts, instead of stopping. They are in
            `Benchmark.missing`. Not for ``custom``, whose file can be changed. Default: no.
        check_counts: Stop where the annotations do not have the published number of videos and texts. Otherwise there
            is a note. Without meaning for ``custom``. Default: yes.

    Raises:
        ValueError: The name is none of `BENCHMARKS`, or an argument does not go with it.
        AnnotationError: A file is missing, is not what is published, or names videos that are not there.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(BENCHMARKS)}")
    file = Path(annotations).expanduser()
    folder = None if videos is None else Path(videos).expanduser()
    if name == "custom":
        if split is not None or allow_missing:
            which = "split" if split is not None else "allow_missing"
            raise ValueError(f"{which}: not for 'custom'; write the rows that are wanted into the file")
        return read_custom(file, folder)
    if folder is None:
        raise ValueError(f"videos: needed for {name!r}; give the folder of its videos")
    return _READERS[name](
        Request(file, folder, None if split is None else Path(split).expanduser(), allow_missing, check_counts)
    )
