"""The Ray cluster of a run: joined or started, and the two stages at work on it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import ClusterError, MissingExtraError
from vidembed.index.files import clean
from vidembed.ray.decode import DecodeVideos, DecodingOptions
from vidembed.ray.embed import EmbeddingOptions, EmbedVideos
from vidembed.video.clip import FileState, Sampling, core_count
from vidembed.video.segments import Cut, Scenes

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

T = TypeVar("T")

FILES_A_TASK: Final = 8
"""Files of one decoding task at most: few, since a task that is killed is done again (our choice)."""
CALL_BYTES: Final = 512 * 2**20
"""Frames of one call of the forward stage at most; they lie in Ray's object store together (our choice)."""
BLOCK_BYTES: Final = 32 * 2**20
"""Frames at which a decoding task hands over what it has (our choice; Ray Data's 128 MiB is most of a small store)."""
UNBOUNDED_PIXELS: Final = 1920 * 1080
"""Pixels of a frame to expect where the sampling sets no limit (our choice)."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run asks of a cluster."""

    workers: int  # actors that embed, at most, each with the model
    decoders: int  # actors that decode, at most, each with one CPU
    num_cpus: float  # of an actor that embeds
    num_gpus: float  # likewise; a fraction shares one

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is out of range."""
        for name, least in {"workers": 1, "decoders": 1, "num_cpus": 0, "num_gpus": 0}.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: got {value}; at least {least} is needed")

    @property
    def total(self) -> dict[str, float]:
        """CPUs and GPUs of all actors together, by Ray's names for them."""
        return {"CPU": self.workers * self.num_cpus + self.decoders, "GPU": self.workers * self.num_gpus}


@contextmanager
def connected(address: str | None, resources: Resources) -> Iterator[None]:
    """Join a cluster for the length of a block, or start one that ends with it; see `index_videos_ray`.

    ClusterError if it cannot be reached or started, ValueError if one that is started here has too few GPUs.
    """
    ray = require_ray()
    if ray.is_initialized():
        if address is not None:
            logger.info("address: this process is already connected to a cluster, which is used")
        _warn_if_small(ray, resources)
        yield
        return
    own = address is None and not os.environ.get("RAY_ADDRESS")
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is sent what this command starts
        # CPUs are counted and not bound: a small machine runs more actors than it has cores, only slower.
        options |= {"num_cpus": max(core_count(), math.ceil(resources.total["CPU"])), "include_dashboard": False}
    try:
        with warnings.catch_warnings():
            # Ray starts its processes by fork and exec, which uses nothing of LanceDB's between the two.
            warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
            ray.init(address="local" if own else address, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"address: no Ray cluster at {address or 'this machine'!r}: {error}") from error
    try:
        if own and (there := ray.cluster_resources().get("GPU", 0)) < (wanted := resources.total["GPU"]):
            raise ValueError(
                f"num_gpus: {resources.workers} workers with {resources.num_gpus:g} each need {wanted:g} GPUs, "
                f"and this machine has {there:g}; ask for fewer, or give the address of a cluster"
            )
        _warn_if_small(ray, resources)
        yield
    finally:
        ray.shutdown()


def _warn_if_small(ray: ModuleType, resources: Resources) -> None:
    """Warn where the cluster has too little by now; one that grows may have more soon."""
    short = "the cluster has %g %ss and %g are asked for: indexing starts with fewer actors, or waits for more"
    for kind, wanted in resources.total.items():
        if (there := ray.cluster_resources().get(kind, 0)) < wanted:
            logger.warning(short, there, kind, wanted)


def require_ray() -> ModuleType:
    """Return Ray with Ray Data, imported; `MissingExtraError` if it is not installed."""
    try:
        import ray  # noqa: PLC0415 - it takes a second, which --help need not wait for
        import ray.data  # noqa: F401, PLC0415 - it makes `ray.data`
    except ImportError as error:
        raise MissingExtraError(f'Ray is needed ({error}); install it with: pip install "vidembed[ray]"') from error
    module: ModuleType = ray
    return module


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How files become rows on a cluster."""

    model: EmbeddingOptions
    decoding: DecodingOptions
    sampling: Sampling
    cut: Cut | None
    resources: Resources

    def rows(
        self, files: Sequence[tuple[str, FileState | None]], known: Callable[[str], bool] | None
    ) -> Generator[pa.Table, None, None]:
        """Decode and embed files, URIs with their states; yield tables as `EmbedVideos` returns them, in any order."""
        ray = require_ray()
        import pyarrow as pa  # noqa: PLC0415 - it takes a while

        table = pa.table(
            {
                "uri": pa.array([uri for uri, _ in files], pa.string()),
                "size": pa.array([state and state.size for _, state in files], pa.int64()),
                "mtime_ns": pa.array([state and state.mtime_ns for _, state in files], pa.int64()),
            }
        )
        size = max(1, min(FILES_A_TASK, len(files) // (16 * self.resources.decoders)))
        blocks = [table.slice(first, size).combine_chunks() for first in range(0, len(files), size)]
        decoders, workers = (
            ray.data.ActorPoolStrategy(size=min(most, len(blocks)))
            for most in (self.resources.decoders, self.resources.workers)
        )
        data_logger = logging.getLogger("ray.data")
        with _cluster_errors(ray), ExitStack() as stack:
            stack.callback(data_logger.setLevel, data_logger.level)
            data_logger.setLevel(logging.ERROR)  # it logs every execution, and options that were set here
            dataset = ray.data.from_arrow(blocks)
            dataset.context.target_max_block_size = BLOCK_BYTES
            dataset.context.raise_original_map_exception = True
            dataset.context.enable_progress_bars = False
            dataset.context.print_on_execution_start = False
            dataset = dataset.map_batches(  # an actor that is killed is started again, and its tasks with it
                DecodeVideos,
                batch_format="pyarrow",
                batch_size=None,
                fn_constructor_args=(self.sampling,),
                fn_constructor_kwargs={"cut": self.cut, "known": known, **self.decoding},
                compute=decoders,
                num_cpus=1,
            )
            dataset = dataset.map_batches(
                EmbedVideos,
                batch_format="pyarrow",
                batch_size=segments_a_call(self.sampling, self.cut, self.model["batch_size"]),
                fn_constructor_kwargs=dict(self.model),
                compute=workers,
                num_cpus=self.resources.num_cpus,
                num_gpus=self.resources.num_gpus,
            )
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def segments_a_call(sampling: Sampling, cut: Cut | None, batch_size: int) -> int:
    """Return how many segments one call of the forward stage gets: `batch_size`, less if their frames are many."""
    longest = None if cut is None else cut.max_length_s if isinstance(cut, Scenes) else cut.length
    frames = sampling.max_frames if longest is None else min(sampling.max_frames, int(longest * sampling.fps) + 1)
    return max(1, min(batch_size, CALL_BYTES // (frames * 3 * (sampling.max_pixels or UNBOUNDED_PIXELS))))


class RemoteModel:
    """The model of a run, on a worker that it holds while it is asked: its facts, and vectors of queries."""

    def __init__(self, model: EmbeddingOptions, resources: Resources) -> None:
        self._model = model
        self._resources = resources
        self.facts = self._ask(lambda stage: stage.facts)
        self.fingerprint, self.sampling = self.facts.fingerprint, self.facts.sampling

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the same, readable."""
        return self.facts.fields

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector."""
        return self.facts.dimension

    def encode_query(self, inputs: object, /) -> NDArray[np.float32]:
        """Return the vector of a query, shape (D,), or of several, shape (Q, D)."""
        vectors: NDArray[np.float32] = self._ask(lambda stage: stage.encoder.encode_query(inputs))
        return vectors

    def _ask(self, question: Callable[[EmbedVideos], T]) -> T:
        ray, needs = require_ray(), self._resources
        # The process of the worker ends with its one task, and with it the model's hold on a GPU.
        task = ray.remote(max_calls=1, num_cpus=needs.num_cpus, num_gpus=needs.num_gpus)(question)
        with _cluster_errors(ray):
            answer: T = ray.get(task.remote(EmbedVideos(**self._model)))
            return answer


@contextmanager
def _cluster_errors(ray: ModuleType) -> Iterator[None]:
    """Turn what Ray raises into the error of a user where it is one, else into a `ClusterError` that names a remedy."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and isinstance(cause, ray.exceptions.RayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, (ValueError, ImportError)):
            raise cause from error
        text = clean(str(cause or error).partition("\nFailed to apply UDF")[0])  # the rest is about options of Ray
        kind = type(cause or error).__name__
        raise ClusterError(f"ray: {kind}: {text}. Finished files are kept; run again") from error
