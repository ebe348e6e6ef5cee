"""Visual tokens kept from call to call, so that a live query neither decodes a video nor runs the vision tower.

They are several times smaller than the keys and values of a prefix (8 times for a 7B Qwen2.5-VL).
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vidembed.pipeline import fields_digest
from vidembed.text import replacing
from vidembed.video import Sampling, VideoSegment

logger = logging.getLogger(__name__)

RAM_BYTES = 2 * 2**30  # default bound (ours): about 290 videos of 1,024 tokens for a 7B model in bfloat16
DISK_BYTES = 20 * 2**30  # default bound (ours)
_SUFFIX = ".safetensors"


@dataclass
class CacheStats:
    """How many videos were found by look-ups, and how many were not."""

    hits: int = 0
    misses: int = 0


class VisualTokenCache:
    """Keeps visual tokens in memory and, if a folder is given, on disk; least recently used go first.

    Safe for threads and for several processes on one folder: a file is written aside and moved into place.

    Args:
        folder: Where to keep tokens between processes; made if missing. None keeps them in memory only.
        ram_bytes: Most bytes in memory; 0 keeps nothing there.
        disk_bytes: Most bytes in `folder`.

    Raises:
        ValueError: A bound is negative.
        OSError: `folder` cannot be made.

    Example:
        >>> from vidembed import VideoReranker, VisualTokenCache
        >>> cache = VisualTokenCache()
        >>> reranker = VideoReranker("vidembed/shapes-rerank", visual_cache=cache)
        >>> cache.stats
        CacheStats(hits=0, misses=0)
    """

    def __init__(
        self, folder: str | Path | None = None, *, ram_bytes: int = RAM_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        for name, value in (("ram_bytes", ram_bytes), ("disk_bytes", disk_bytes)):
            if value < 0:
                raise ValueError(f"{name}={value}: expected a number of bytes, 0 or more.")
        self.folder = None if folder is None else Path(folder).expanduser()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.ram_bytes = ram_bytes
        self.disk_bytes = disk_bytes
        self.stats = CacheStats()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """For process pools: the settings; each process starts with an empty memory, and the folder is shared."""
        return functools.partial(type(self), ram_bytes=self.ram_bytes, disk_bytes=self.disk_bytes), (self.folder,)

    @property
    def nbytes(self) -> int:
        """Bytes in memory now."""
        return self._bytes

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Look tokens up; they are on the CPU."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None and (found := self._read(key)) is not None:
            self._remember(key, found)
        with self._lock:
            self.stats.hits += found is not None
            self.stats.misses += found is None
        return None if found is None else dict(found)

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep tokens. Without room on the disk they are kept in memory only, and the log says so."""
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._remember(key, kept)
        if self.folder is None:
            return
        try:
            with replacing(self.folder / (key + _SUFFIX)) as draft:
                save_file(kept, draft)
            self._prune()
        except OSError as error:
            logger.warning("visual tokens are not written to the disk: %s", error)

    def clear(self) -> None:
        """Forget everything, in memory and in the folder."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
        for file in self._files():
            file.unlink(missing_ok=True)

    def _remember(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        with self._lock:
            self._bytes -= _nbytes(self._kept.pop(key, {}))
            self._kept[key] = tensors
            self._bytes += _nbytes(tensors)
            while self._bytes > self.ram_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _nbytes(oldest)

    def _read(self, key: str) -> dict[str, torch.Tensor] | None:
        if self.folder is None:
            return None
        file = self.folder / (key + _SUFFIX)
        try:
            tensors = load_file(file)
            os.utime(file)  # what was used last goes last
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read and is written again: %s", file, error)
            file.unlink(missing_ok=True)
            return None
        return tensors

    def _prune(self) -> None:
        found = []
        for file in self._files():
            with suppress(FileNotFoundError):  # another process was quicker
                found.append(((stat := file.stat()).st_mtime_ns, stat.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.disk_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size

    def _files(self) -> list[Path]:
        return [] if self.folder is None else list(self.folder.glob("[!.]*" + _SUFFIX))  # no drafts


def _nbytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def visual_key(video: object, sampling: Sampling, maker: Mapping[str, object]) -> str | None:
    """SHA-256 hex digest of all that a video's visual tokens depend on; None for what is no local file, and not kept.

    `maker` holds what they depend on beside file, segment and grid: weights, pixels, prompt, decoder.
    """
    segment = video if isinstance(video, VideoSegment) else None
    source = segment.path if segment is not None else video
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    try:
        stat = path.stat()
    except (OSError, ValueError):  # a URL, or a file that decoding will say is missing
        return None
    fields = {
        "path": os.fsencode(path.resolve()).hex(),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "segment": None if segment is None else [segment.start, segment.end],
        "sampling": sampling.as_dict(),
        **maker,
    }
    return fields_digest(fields)
