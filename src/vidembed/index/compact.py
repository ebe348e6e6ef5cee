"""Smaller copies of the vectors for a coarse search: int8, binary or truncated, rescored from the vectors themselves.

A copy is a file that was derived from one version of the table. For any other it is stale, and never used.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm.auto import tqdm

from vidembed.errors import IndexMismatchError
from vidembed.index.ann import (
    DERIVED_FOLDER,
    MAX_K,
    SEED,
    TARGET_RECALL,
    Sample,
    draw,
    read_record,
    recalls,
    replacing,
    write_record,
)
from vidembed.index.exact import Row, matrix, rank
from vidembed.index.table import PLACE, ROW_ID, VideoIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


_QUERY_BITS = 4  # of a query against binary vectors; as RaBitQ has it (arXiv 2405.12497, section 3.3.1)
_BLOCK_ROWS = 4096  # made float at once
_BLOCK_QUERIES = 64
NAME = re.compile(r"(int8|binary|float32)(?:-([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of copy.

    Attributes:
        precision: `int8` is a byte a dimension, `binary` a bit, `float32` four bytes.
        truncate_dim: Leading dimensions that are kept, or None for all. `float32` needs it.
    """

    precision: Literal["int8", "binary", "float32"]
    truncate_dim: int | None = None

    @classmethod
    def parse(cls, name: str, dimension: int | None = None) -> Spec:
        """Read a name such as `int8`, `binary` or `float32-512`.

        Args:
            name: What to read.
            dimension: Of the vectors, if it is known.

        Raises:
            ValueError: It is none, or keeps as many dimensions as there are.
        """
        match = NAME.fullmatch(name)
        if match is None or name == "float32":
            raise ValueError(
                f"compact: got {name!r}; int8, binary, or one of int8-N, binary-N and float32-N, which keep the first "
                "N dimensions, is needed"
            )
        precision, size = match.groups()
        truncate_dim = int(size) if size else None
        if truncate_dim is not None and dimension is not None and truncate_dim >= dimension:
            raise ValueError(
                f"compact: got {name!r} for vectors of {dimension} dimensions; keep fewer, or leave it out"
            )
        return cls(precision, truncate_dim)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """What the copy is called."""
        return self.precision + (f"-{self.truncate_dim}" if self.truncate_dim else "")

    def shorten(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors cut to their leading dimensions, at length one, shape (N, d); zero stays zero."""
        kept = vectors[:, : self.truncate_dim]
        length = np.sqrt(np.einsum("nd,nd->n", kept, kept))[:, None]  # (N, 1)
        return np.asarray(kept / np.where(length > 0, length, 1), dtype=np.float32)


def best_places(
    spec: Spec, arrays: Mapping[str, NDArray[Any]], queries: NDArray[np.float64], count: int
) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of the `count` rows that seem best for each query, best first.

    Args:
        spec: Kind of the codes.
        arrays: `codes` of the rows, shape (N, W); with int8 the `steps`, shape (d,); with binary the `factors`,
            shape (N,).
        queries: Unit vectors, shape (Q, D).
        count: Rows for each query, at most N.
    """
    codes = arrays["codes"]
    short = spec.shorten(queries.astype(np.float32))  # (Q, d)
    if spec.precision == "binary":
        for query in short:
            yield _greatest(_binary_scores(codes, arrays["factors"], query), count)
        return
    if spec.precision == "int8":
        short = short * arrays["steps"]  # what all rows have in common does not order them
    for first in range(0, len(short), _BLOCK_QUERIES):
        block = short[first : first + _BLOCK_QUERIES].T  # (d, q)
        scores = np.concatenate(
            [
                np.asarray(codes[at : at + _BLOCK_ROWS], dtype=np.float32) @ block
                for at in range(0, len(codes), _BLOCK_ROWS)
            ]
        )  # (N, q)
        for column in scores.T:
            yield _greatest(column, count)


def _binary_scores(
    codes: NDArray[np.uint64], factors: NDArray[np.float32], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Estimate the inner product of a query with each row, from the signs of the row about the mean.

    The query is rounded to `_QUERY_BITS` bits a dimension, so that the sum over its bits is of counted bits.

    Args:
        codes: Packed signs, shape (N, W) of 64 each.
        factors: Scale of each row, shape (N,).
        query: Shape (d,).

    Returns:
        Shape (N,).
    """
    least = float(query.min())
    step = (float(query.max()) - least) / (2**_QUERY_BITS - 1) or 1.0
    levels = np.rint((query - least) / step).astype(np.uint8)  # (d,), 0 to 15
    scores = np.empty(len(codes), dtype=np.float32)
    planes = [pack((levels >> bit & 1)[None].astype(np.bool_), codes.shape[1])[0] for bit in range(_QUERY_BITS)]
    total = float(levels.sum()) * step + least * len(query)  # of the rounded query
    for at in range(0, len(codes), _BLOCK_ROWS):
        rows = np.asarray(codes[at : at + _BLOCK_ROWS])  # (n, W)
        ones = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)  # (n,)
        inner = sum(
            (np.bitwise_count(rows & plane).sum(axis=1, dtype=np.int64) << bit for bit, plane in enumerate(planes)),
            start=np.zeros(len(rows), dtype=np.int64),
        )
        scores[at : at + _BLOCK_ROWS] = 2 * (least * ones + step * inner) - total  # query times signs of +-1
    return scores * factors


def pack(bits: NDArray[np.bool_] | NDArray[np.uint8], words: int) -> NDArray[np.uint64]:
    """Return rows of bits, or of bytes packed already, as words of 64, shape (N, words), filled up with zeros."""
    packed = np.packbits(bits, axis=-1) if bits.dtype == np.bool_ else bits
    full = np.zeros((len(packed), words * 8), dtype=np.uint8)
    full[:, : packed.shape[1]] = packed
    return full.view(np.uint64)


def _greatest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    places = np.argpartition(scores, -count)[-count:] if count < len(scores) else np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")]


MULTIPLIERS = (2, 4, 8, 16, 32, 64)
"""Times `k` rows that are rescored; the first at which recall reaches `TARGET_RECALL` is used, else the last."""

_KEYS = {"codes", "ids", "steps", "ranges", "factors"}
CALIBRATION_ROWS = 8192  # whose ranges and mean stand for all


class Compact:
    """An open copy.

    Attributes:
        spec: Its kind.
        record: What its file says: multiplier, recall, rows, bytes.
    """

    def __init__(self, spec: Spec, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.spec = spec
        self.record = record
        self._arrays = arrays

    @property
    def recall(self) -> dict[str, float]:
        """Measured recall against the exact search, by k as text."""
        return dict(self.record["recall"])

    def find(
        self, index: VideoIndex, queries: NDArray[np.float64], k: int, *, multiplier: int | None = None
    ) -> list[list[Row]]:
        """Return the best rows of each query by exact cosine, of those that the coarse search brings.

        Args:
            index: The index that the copy is of.
            queries: Unit vectors, shape (Q, D).
            k: Most rows of each.
            multiplier: Times `k` rows that are rescored. Default: the measured one.
        """
        count = k * (multiplier or self.record["rescore_multiplier"])
        coarse = self.places(queries, count)
        return [self.rescore(index, query, places, k) for query, places in zip(queries, coarse, strict=True)]

    def places(self, queries: NDArray[np.float64], count: int) -> Iterator[NDArray[np.intp]]:
        """Yield the positions of the `count` rows that seem best for each query, best first."""
        return best_places(self.spec, self._arrays, queries, min(count, len(self._arrays["ids"])))

    def rescore(self, index: VideoIndex, query: NDArray[np.float64], places: NDArray[np.intp], k: int) -> list[Row]:
        """Return the `k` best of the rows at these positions by their exact cosines."""
        rows = index.take(self._arrays["ids"][places], [*PLACE, "vector"])
        return rank(rows.combine_chunks().to_batches(), query[None], k=k)[0]


def refresh(index: VideoIndex, names: Iterable[str] = (), *, progress: bool = True) -> bool:
    """Make the copies that are asked for, and make again those that are there and stale.

    Args:
        index: The index; nobody else may be writing to it.
        names: Copies to have, such as `int8`.
        progress: Show a bar over rows, on stderr.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: A name is none.
    """
    specs = {Spec.parse(name, index.meta.dimension).name for name in names} | set(stored(index))
    index.latest()
    stale = sorted(name for name in specs if not _is_fresh(index, read_record(_file(index, name))))
    if not stale or not len(index):
        return False
    sample = draw(index)
    for name in stale:
        _build(index, Spec.parse(name, index.meta.dimension), sample, progress=progress)
    return True


def stored(index: VideoIndex) -> list[str]:
    """Return the names of the copies in an index, fresh or stale."""
    folder = index.folder / DERIVED_FOLDER
    names = [file.stem.removeprefix("compact-") for file in sorted(folder.glob("compact-*.json"))]
    return [name for name in names if NAME.fullmatch(name)]


def open_compact(index: VideoIndex, name: str) -> Compact:
    """Open a copy of the version at hand.

    Raises:
        ValueError: There is no such copy, or `name` is none.
        IndexMismatchError: The copy is of another version of the index, or of vectors of another model.
    """
    spec = Spec.parse(name, index.meta.dimension)
    remedy = f"run `vidembed index` again with --compact {spec.name}, or search without it"
    record = read_record(_file(index, spec.name))
    if record is None:
        raise ValueError(f"compact: the index has no {spec.name} copy; {remedy}")
    if not _is_fresh(index, record):
        raise IndexMismatchError(f"compact: the {spec.name} copy was made of another state of the index; {remedy}")
    folder = index.folder / DERIVED_FOLDER
    arrays: dict[str, NDArray[Any]] = {}
    try:
        token = uuid.UUID(record["token"]).hex  # nothing else becomes part of a path
        for key in _KEYS & set(record["arrays"]):
            file = folder / f"compact-{spec.name}-{token}-{key}.npy"
            arrays[key] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexMismatchError(f"compact: the {spec.name} copy is damaged ({error}); {remedy}") from error
    if wrong := [key for key, array in arrays.items() if list(array.shape) != record["arrays"][key]]:
        raise IndexMismatchError(f"compact: the {spec.name} copy is damaged (shape of {wrong[0]}); {remedy}")
    return Compact(spec, record, arrays)


def facts(index: VideoIndex) -> list[dict[str, Any]]:
    """Return what `vidembed info` says of the copies of an index."""
    result = []
    for name in stored(index):
        record = read_record(_file(index, name)) or {}
        said = {key: record.get(key) for key in ("rows", "bytes", "rescore_multiplier", "recall", "sample", "seed")}
        result.append({"name": name, "fresh": _is_fresh(index, record), **said})
    return result


def _is_fresh(index: VideoIndex, record: dict[str, Any] | None) -> bool:
    return (
        record is not None
        and record.get("stamp") == index.stamp()
        and record.get("model_fingerprint") == index.meta.model_fingerprint
    )


def _build(index: VideoIndex, spec: Spec, sample: Sample, *, progress: bool) -> None:
    folder = index.folder / DERIVED_FOLDER
    token = uuid.uuid4().hex  # each making has files of its own, so a search never reads half of one
    arrays = dict(_small_arrays(index, spec))
    width = spec.truncate_dim or index.meta.dimension
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "int8": ((len(index), width), np.dtype(np.int8)),
        "binary": ((len(index), -(-width // 64)), np.dtype(np.uint64)),
        "float32": ((len(index), width), np.dtype(np.float32)),
    }
    shape, kind = kinds[spec.precision]
    files = {}
    with replacing(_array_file(index, spec, token, "codes")) as draft:
        codes = np.lib.format.open_memmap(draft, mode="w+", dtype=kind, shape=shape)
        ids, factors = _fill(index, spec, codes, arrays, progress=progress)
        codes.flush()
    arrays["ids"] = ids
    if spec.precision == "binary":
        arrays["factors"] = factors
        del arrays["mean"]  # a query is taken as it is
    for key, array in arrays.items():
        with replacing(_array_file(index, spec, token, key)) as draft, draft.open("wb") as target:
            np.save(target, array, allow_pickle=False)
    arrays = {"codes": codes, **arrays}
    for key in arrays:
        files[key] = _array_file(index, spec, token, key)
    multiplier, recall = _multiplier(index, Compact(spec, {}, arrays), sample)
    record = {
        **asdict(spec),
        "token": token,
        "stamp": index.stamp(),
        "model_fingerprint": index.meta.model_fingerprint,
        "rows": len(index),
        "bytes": sum(file.stat().st_size for file in files.values()),
        "arrays": {key: list(array.shape) for key, array in arrays.items()},
        "rescore_multiplier": multiplier,
        "recall": recall,
        "sample": len(sample.queries),
        "seed": SEED,
    }
    write_record(_file(index, spec.name), record)
    for old in folder.glob(f"compact-{spec.name}-*.npy"):
        if old.name.startswith(f"compact-{spec.name}-{token}-") or not _is_array_of(spec, old.name):
            continue
        old.unlink()


def _small_arrays(index: VideoIndex, spec: Spec) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield what a sample of the rows says about all: the ranges of int8, the mean of binary."""
    if spec.precision == "float32":
        return
    ids = np.sort(np.concatenate([batch.column(ROW_ID).to_numpy() for batch in index.scan(["start_s"])]))  # (N,)
    chosen = np.random.default_rng(SEED).choice(ids, size=min(CALIBRATION_ROWS, len(ids)), replace=False)
    taken = index.take(np.sort(chosen), ["vector"]).combine_chunks()
    rows = spec.shorten(np.concatenate([matrix(batch) for batch in taken.to_batches()]))  # (C, d)
    if spec.precision == "binary":
        yield "mean", rows.mean(axis=0, dtype=np.float64).astype(np.float32)  # (d,)
        return
    ranges = np.stack([rows.min(axis=0), rows.max(axis=0)])  # (2, d)
    yield "ranges", ranges
    steps = (ranges[1] - ranges[0]) / 255  # as sentence-transformers' quantize_embeddings has it
    yield "steps", np.where(steps == 0, 1, steps).astype(np.float32)  # (d,)


def _fill(
    index: VideoIndex, spec: Spec, codes: NDArray[Any], arrays: Mapping[str, NDArray[Any]], *, progress: bool
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Write the codes of all rows; return row ids, shape (N,), and scales of binary rows, shape (N,)."""
    from sentence_transformers.util import quantize_embeddings  # noqa: PLC0415 - loads torch

    ids = np.empty(len(codes), dtype=np.uint64)
    factors = np.ones(len(codes), dtype=np.float32)
    at = 0
    with tqdm(total=len(codes), desc=f"Copying as {spec.name}", unit="row", disable=not progress) as bar:
        for batch in index.scan(["vector"]):
            rows = spec.shorten(matrix(batch))  # (n, d)
            here = slice(at, at + len(rows))
            if spec.precision == "float32":
                codes[here] = rows
            elif spec.precision == "int8":
                codes[here] = quantize_embeddings(rows, "int8", ranges=arrays["ranges"])
            else:
                about = rows - arrays["mean"]  # (n, d)
                codes[here] = pack(np.asarray(quantize_embeddings(about, "ubinary")), codes.shape[1])
                # Times its signs, the row gives the sum of its magnitudes; scaled so, it gives its squared length.
                size = np.abs(about).sum(axis=1)
                factors[here] = np.einsum("nd,nd->n", about, about) / np.where(size > 0, size, 1)
            ids[here] = batch.column(ROW_ID).to_numpy()
            at += len(rows)
            bar.update(len(rows))
    return ids, factors


def _multiplier(index: VideoIndex, copy: Compact, sample: Sample) -> tuple[int, dict[str, float]]:
    places = list(copy.places(sample.queries, max(MULTIPLIERS) * MAX_K))  # one pass serves all multipliers
    for multiplier in MULTIPLIERS:

        def find(number: int, k: int, times: int = multiplier) -> list[Row]:
            return copy.rescore(index, sample.queries[number], places[number][: times * k], k)

        recall = recalls(sample, find)
        if min(recall.values()) >= TARGET_RECALL:
            break
    return multiplier, recall


def check_k(k: int) -> None:
    """Refuse more hits than recall was measured at.

    Raises:
        ValueError: `k` is more than that.
    """
    if k > MAX_K:
        raise ValueError(
            f"k: got {k} for a search of a compact copy, whose recall is known up to {MAX_K}; ask for less"
        )


def _is_array_of(spec: Spec, name: str) -> bool:
    return re.fullmatch(rf"compact-{spec.name}-[0-9a-f]{{32}}-\w+\.npy", name) is not None


def _array_file(index: VideoIndex, spec: Spec, token: str, key: str) -> Path:
    return index.folder / DERIVED_FOLDER / f"compact-{spec.name}-{token}-{key}.npy"


def _file(index: VideoIndex, name: str) -> Path:
    return index.folder / DERIVED_FOLDER / f"compact-{name}.json"
