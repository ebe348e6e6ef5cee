"""The two stages on a cluster: files in, rows with vectors out, in any order."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vidembed.errors import ClusterError
from vidembed.ray.cluster import Resources, require_ray
from vidembed.ray.decode import DecodeVideos
from vidembed.ray.embed import EmbedVideos, ModelFacts
from vidembed.ray.stores import clean
from vidembed.video.segments import Scenes

if TYPE_CHECKING:
    import pyarrow as pa

    from vidembed.ray.collect import KnownContents
    from vidembed.ray.indexer import Work
    from vidembed.video.sampling import Sampling
    from vidembed.video.segments import Cut

FILES_A_TASK: Final = 8
"""Files of one decoding task at most: few, since a task that is killed is done again (our choice)."""
CALL_BYTES: Final = 512 * 2**20
"""Frames of one call of the forward stage at most; they lie in Ray's object store together (our choice)."""
BLOCK_BYTES: Final = 32 * 2**20
"""Frames at which a decoding task hands over what it has (our choice; Ray Data's 128 MiB is most of a small store)."""

_UNBOUNDED_PIXELS = 1920 * 1080  # of a frame, where the sampling sets no limit


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How files become rows.

    Attributes:
        model: Settings of `EmbedVideos`.
        decoding: Settings of `DecodeVideos`, without sampling and cut.
        resources: What is asked of the cluster.
    """

    model: Mapping[str, Any]
    decoding: Mapping[str, Any]
    resources: Resources

    def rows(
        self, work: Sequence[Work], sampling: Sampling, cut: Cut | None, known: KnownContents | None
    ) -> Generator[pa.Table, None, None]:
        """Decode and embed files; yield tables as `EmbedVideos` returns them, as they are done.

        An actor that is killed is started again by Ray, and its tasks with it, without end.

        Args:
            work: The files.
            sampling: Of the model.
            cut: How files are cut.
            known: Contents that need not be decoded.

        Raises:
            ClusterError: The cluster has failed.
        """
        ray = require_ray()
        import pyarrow as pa  # noqa: PLC0415 - it takes a while

        files = pa.table(
            {
                "uri": pa.array([each.job.uri for each in work], pa.string()),
                "size": pa.array([each.state and each.state.size for each in work], pa.int64()),
                "mtime_ns": pa.array([each.state and each.state.mtime_ns for each in work], pa.int64()),
            }
        )
        size = max(1, min(FILES_A_TASK, len(work) // (16 * self.resources.decoders)))
        blocks = [files.slice(first, size).combine_chunks() for first in range(0, len(work), size)]
        decoders, workers = (
            ray.data.ActorPoolStrategy(size=min(most, len(blocks)))
            for most in (self.resources.decoders, self.resources.workers)
        )
        with _settings(ray), _cluster_errors(ray):
            dataset = ray.data.from_arrow(blocks)
            dataset = dataset.map_batches(
                DecodeVideos,
                batch_format="pyarrow",
                batch_size=None,
                fn_constructor_args=(sampling,),
                fn_constructor_kwargs={"cut": cut, "known": known, **self.decoding},
                compute=decoders,
                num_cpus=1,
            )
            dataset = dataset.map_batches(
                EmbedVideos,
                batch_format="pyarrow",
                batch_size=segments_a_call(sampling, cut, int(self.model["batch_size"])),
                fn_constructor_kwargs=dict(self.model),
                compute=workers,
                num_cpus=self.resources.num_cpus,
                num_gpus=self.resources.num_gpus,
            )
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def segments_a_call(sampling: Sampling, cut: Cut | None, batch_size: int) -> int:
    """Return how many segments one call of the forward stage gets: `batch_size`, less if their frames are many.

    Args:
        sampling: How many frames a segment has at most, and how large.
        cut: How long a segment is at most.
        batch_size: Segments handed to the model at once.
    """
    longest = None if cut is None else cut.max_length_s if isinstance(cut, Scenes) else cut.length
    frames = sampling.max_frames if longest is None else min(sampling.max_frames, int(longest * sampling.fps) + 1)
    return max(1, min(batch_size, CALL_BYTES // (frames * 3 * (sampling.max_pixels or _UNBOUNDED_PIXELS))))


class RemoteModel:
    """The model of a run, on a worker, as the index needs it here: its facts, and vectors of queries.

    It holds an actor of the forward stage's size while it is asked, and none between.

    Args:
        model: Settings of `EmbedVideos`.
        resources: What is asked of the cluster.

    Attributes:
        facts: What the worker says of it.
        sampling: Which frames it looks at.
        video_backend: What decodes for it.

    Raises:
        ValueError: There is no such model, it takes no video, or an argument is out of range.
        ClusterError: The cluster has failed.
    """

    def __init__(self, model: Mapping[str, Any], resources: Resources) -> None:
        self._model = model
        self._resources = resources
        self.facts: ModelFacts = self._ask("tell")
        self.sampling = self.facts.sampling
        self.video_backend = "pyav"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that makes the vectors, hex."""
        return self.facts.fingerprint

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the same, readable."""
        return self.facts.fields

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector."""
        return self.facts.dimension

    def encode_query(self, inputs: Any, /) -> Any:
        """Return the vector of a query, shape (D,), or of several, shape (Q, D)."""
        return self._ask("encode_query", inputs)

    def _ask(self, what: str, *args: Any) -> Any:
        ray = require_ray()
        kind = ray.remote(num_cpus=self._resources.num_cpus, num_gpus=self._resources.num_gpus)(_Model)
        with _cluster_errors(ray):
            actor = kind.remote(EmbedVideos, dict(self._model))
            try:
                return ray.get(getattr(actor, what).remote(*args))
            finally:
                ray.kill(actor)


class _Model:
    """What runs on the worker for `RemoteModel`."""

    def __init__(self, kind: type[EmbedVideos], settings: dict[str, Any]) -> None:
        self._embed = kind(**settings)

    def tell(self) -> ModelFacts:
        return self._embed.facts

    def encode_query(self, inputs: Any) -> Any:
        return self._embed.encoder.encode_query(inputs)


@contextmanager
def _settings(ray: Any) -> Iterator[None]:
    """Have Ray Data make small blocks and leave progress to us, within the block."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "target_max_block_size": BLOCK_BYTES,
        "raise_original_map_exception": True,
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name, value in wanted.items():
        setattr(context, name, value)
    logger.setLevel(logging.ERROR)  # it tells of every execution, and of options that were set here
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _cluster_errors(ray: Any) -> Iterator[None]:
    """Turn what Ray raises into the error of a user where it is one, else into one that says what to do.

    Raises:
        ClusterError: The cluster, or the code of a worker, has failed.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and isinstance(cause, ray.exceptions.RayError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, (ValueError, ImportError)):
            raise cause from error
        text = clean(str(cause or error).partition("\nFailed to apply UDF")[0])  # the rest is about options of Ray
        raise ClusterError(
            f"ray: {type(cause or error).__name__}: {text}. What was committed stays; run again"
        ) from error
