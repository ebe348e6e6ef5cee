"""The forward stage: segments with frames become vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from vidembed.index.schema import NO_VECTOR, is_vector, segment_id
from vidembed.ray.decode import CLIP, ERROR, FRAMES, Batch, DecodeVideos, DecodingOptions, as_table, clip_at, error_text
from vidembed.video.clip import Clip, Sampling

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Unpack

    from vidembed.backbone.options import ModelOptions
    from vidembed.encoder import EncodedItem, VideoEncoder
    from vidembed.video.segments import Cut

logger = logging.getLogger(__name__)

HELD_BYTES = 256 * 2**20
"""Frames that `EmbedVideos` gathers when it decodes by itself, before they go to the model (our choice)."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that a worker has loaded."""

    fingerprint: str  # SHA-256 of all that makes the vectors, hex
    fields: dict[str, Any]  # the same, readable
    dimension: int  # length of a vector
    sampling: Sampling  # which frames it looks at


class EmbeddingOptions(TypedDict, total=False):
    """Arguments of `EmbedVideos` but those of `DecodingOptions`."""

    model: str
    layer: int | None
    sampling: Mapping[str, Any] | None
    model_options: ModelOptions | None
    batch_size: int
    workers: int | None


class EmbedVideos:
    """Callable class for `ray.data.Dataset.map_batches`: segments with frames, or whole videos, get a vector each.

    After `DecodeVideos` it is the forward stage, which may have a GPU. Alone, on a column of paths or URIs, it decodes
    too. The object is small and pickles; the model is loaded where it is first called, once in a process.

    Nothing about a video raises: what is wrong with it stands in the column `error`, as `Kind: message`, and such a row
    has no vector. A model that cannot be loaded, or a GPU that fails, does raise.

    Args:
        model: Name or path, as `VideoEncoder` takes it; a path must be there on every machine.
        layer: Decoder layer, for a model that is not a vidembed checkpoint.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        model_options: How the model is loaded. Default: as the checkpoint has it, on the best device.
        batch_size: Segments handed to the model at once. Default 32; its limit on tokens holds besides.
        workers: Threads that prepare segments for the model. Default: as `VideoEncoder`.
        cut: How files are cut into segments where it decodes by itself. None: a file is one segment.
        column: Name of the column of paths or URIs where it decodes by itself.
        **decoding: `filesystem`, `max_bytes`, `timeout_s`, `max_memory_bytes`, `backend`, as `DecodeVideos` takes them.

    Returns:
        Of a call, a table with the columns of `DecodeVideos` without frames, and: `id` (as in the index; null where
        there is no segment), `model_fingerprint` and `vector` (float32, fixed length D; null where there is an error).
    """

    def __init__(
        self,
        model: str,
        *,
        layer: int | None = None,
        sampling: Sampling | Mapping[str, Any] | None = None,
        model_options: ModelOptions | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        cut: Cut | None = None,
        column: str = "uri",
        **decoding: Unpack[DecodingOptions],
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; at least 1 is needed")
        self.model = model
        self.layer = layer
        self.sampling = sampling.as_dict() if isinstance(sampling, Sampling) else dict(sampling or {})
        self.model_options = model_options
        self.batch_size = batch_size
        self.workers = workers
        # Made here to refuse unknown options; it gets the sampling of the model where that is loaded.
        self._decoder = DecodeVideos(cut=cut, column=column, **decoding)

    def __call__(self, batch: Batch) -> pa.Table:
        """Embed the rows of a batch."""
        import pyarrow as pa  # noqa: PLC0415 - it takes a while

        table = as_table(batch)
        if {CLIP, FRAMES} <= set(table.column_names):
            return self._embedded(table)
        return pa.concat_tables([self._embedded(part) for part in self._decoded(table)])

    @property
    def facts(self) -> ModelFacts:
        """Facts of the model, which is loaded for them."""
        return self._once()[1]

    @property
    def encoder(self) -> VideoEncoder:
        """The model, loaded at first use; objects of one process that ask for the same share it."""
        return self._once()[0]

    def load(self) -> VideoEncoder:
        """Load the model. A subclass may return another one."""
        from vidembed.encoder import load_encoder  # noqa: PLC0415 - it brings torch

        encoder = load_encoder(self.model, layer=self.layer, sampling=self.sampling, options=self.model_options)
        if self.workers is not None:
            encoder.decode_workers = self.workers
        return encoder

    def _once(self) -> tuple[VideoEncoder, ModelFacts]:
        asked = (type(self), self.model, self.layer, sorted(self.sampling.items()), self.model_options, self.workers)
        key = repr(asked)
        if key not in loaded:
            encoder = self.load()
            dimension = encoder.get_embedding_dimension()
            if dimension is None:
                raise ValueError(f"model: {self.model!r} does not report the length of its vectors")
            loaded.clear()
            about = ModelFacts(encoder.fingerprint, encoder.fingerprint_fields(), dimension, encoder.sampling)
            loaded[key] = encoder, about
        return loaded[key]

    def _decoded(self, table: pa.Table) -> Iterator[pa.Table]:
        """Decode the videos of a table, and yield segments by the batch."""
        import pyarrow as pa  # noqa: PLC0415 - it takes a while

        self._decoder.sampling = self.facts.sampling
        held: list[pa.Table] = []
        for row in self._decoder(table):
            held.append(row)
            if len(held) == self.batch_size or sum(part.nbytes for part in held) > HELD_BYTES:
                yield pa.concat_tables(held)
                held = []
        if held or not len(table):
            yield pa.concat_tables(held or [self._decoder.empty(table)])

    def _embedded(self, table: pa.Table) -> pa.Table:
        """Give the rows of a table with frames their vectors."""
        import pyarrow as pa  # noqa: PLC0415 - it takes a while

        facts = self.facts
        errors: list[str | None] = table.column(ERROR).to_pylist()
        vectors: list[NDArray[np.float32] | None] = [None] * len(table)
        uris, starts, ends, segments = (
            table.column(name).to_pylist() for name in ("uri", "start_s", "end_s", "segments")
        )
        places = [place for place, error in enumerate(errors) if error is None and table.column(CLIP)[place].is_valid]
        for place, outcome in self._outcomes(table, places):
            at = f"at {starts[place]:g} to {ends[place]:g} s: " if segments[place] > 1 else ""
            if isinstance(outcome, Exception):
                errors[place] = error_text(outcome, at)
                continue
            vector = np.asarray(outcome, dtype=np.float32).reshape(-1)  # (D,)
            if is_vector(vector, facts.dimension):
                vectors[place] = vector
            else:
                errors[place] = f"InternalError: {at}{NO_VECTOR}"
        rows = zip(uris, starts, ends, strict=True)
        ids = [None if start is None else segment_id(uri, start, end) for uri, start, end in rows]
        made = table.drop_columns([CLIP, FRAMES, ERROR])
        made = made.append_column("id", pa.array(ids, pa.string()))
        made = made.append_column("model_fingerprint", pa.array([facts.fingerprint] * len(table), pa.string()))
        made = made.append_column("vector", pa.array(vectors, pa.list_(pa.float32(), facts.dimension)))
        return made.append_column(ERROR, pa.array(errors, pa.string()))

    def _outcomes(
        self, table: pa.Table, places: list[int]
    ) -> Iterator[tuple[int, NDArray[np.float32] | Exception | None]]:
        """Yield a vector or an exception for each of these rows; together, and alone those that break the batch."""
        done = 0
        try:
            for item in self._stream(clip_at(table, place) for place in places):
                yield places[item.index], item.error or item.embedding
                done += 1
        except Exception as error:  # whatever a clip breaks, the others need not suffer
            if done == len(places) or not self._can_go_on(error):
                raise
            logger.warning("a batch of %d failed (%s): its segments are tried one by one", len(places), error)
        for place in places[done:]:
            try:
                for item in self._stream([clip_at(table, place)]):
                    yield place, item.error or item.embedding
            except Exception as error:
                if not self._can_go_on(error):
                    raise
                yield place, error

    def _stream(self, clips: Iterable[Clip | None]) -> Iterator[EncodedItem]:
        return self.encoder.encode_stream(clips, batch_size=self.batch_size, on_error="skip", show_progress_bar=False)

    def _can_go_on(self, error: Exception) -> bool:
        """Whether the next clip may be tried: not if it is the accelerator that failed, whose process is then lost."""
        import torch  # noqa: PLC0415 - it takes seconds

        device = str(getattr(self.encoder, "device", "cpu"))
        return not isinstance(error, RuntimeError) or device == "cpu" or isinstance(error, torch.OutOfMemoryError)


loaded: dict[str, tuple[VideoEncoder, ModelFacts]] = {}  # of this process, by all that loads it; one at most
