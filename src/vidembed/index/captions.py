"""Captions of the segments of an index: a table of their own, keyed by the bytes of the video and the segment's times.

Rows of the index are not written to, so that ANN index, mirror and query bank stay as they are, and earlier versions
read the index. A file that is moved, copied or indexed again has its captions as long as its bytes are the same, and a
caption cannot come to belong to another clip. What this package compares with a query is the vector of the caption, as
the encoder of the index makes it of a query of the same words, and BM25 of its words, by LanceDB's full-text index.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexDamagedError, IndexMismatchError
from vidembed.index.commit import Problem, locked, writing_to
from vidembed.index.rows import cosines
from vidembed.index.table import (
    CAPTIONS,
    CAPTIONS_FOLDER,
    FORMAT_VERSION,
    KEEP_VERSIONS,
    NO_VECTOR,
    ROW_ID,
    Block,
    QueryEncoder,
    VideoIndex,
    is_vector,
    quoted,
    require_index_extra,
    stamp_of,
)
from vidembed.interrupt import uninterrupted
from vidembed.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import LanceTable

    from vidembed.captions import CaptionRecord

WORDS_NAME = "words"  # of the full-text index
KEY = ("content_fingerprint", "start_s", "end_s")
REMEDY = (
    "describe the videos with `vidembed caption VIDEOS --out captions.jsonl` (with the segments of the index), then "
    "run "
    "`vidembed index VIDEOS --to INDEX --captions captions.jsonl`"
)
_META_KEY = b"vidembed-captions"
BATCH = 256  # captions of one commit; a run that is killed embeds at most so many again
AT_ONCE = 500  # values of an SQL list
ROWS_AT_ONCE = 4096  # whose vectors are taken: at 3584 dimensions 59 MB
_WORD = re.compile(r"\w+")

Key = tuple[str, float, float]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptionMeta:
    """What all captions of an index have in common.

    Attributes:
        fingerprint: `CaptionRecord.fingerprint`: of all that decided the texts.
        kind: Which text of the records it is.
        model: Name of the model that wrote them.
        model_fingerprint: Of the encoder of the vectors, which is that of the index.
    """

    fingerprint: str
    kind: str
    model: str
    model_fingerprint: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, table: LanceTable, folder: Path) -> Self:
        """Read it of a table; IndexDamagedError if there is none, IndexMismatchError for one of a later version."""
        try:
            found = json.loads((table.schema.metadata or {})[_META_KEY])
            if (version := found["format_version"]) == FORMAT_VERSION:
                return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise IndexDamagedError(
                f"captions: the table {str(folder / CAPTIONS_FOLDER)!r} cannot be read ({error!r}); remove it and add "
                "the captions again"
            ) from error
        raise IndexMismatchError(
            f"captions: their format is version {version}, and this vidembed reads {FORMAT_VERSION}; update vidembed"
        )


@dataclass(slots=True)
class CaptionReport:
    """What became of the records that `add_captions` was given.

    Attributes:
        added: Captions embedded and stored.
        unchanged: Captions that were in the index already.
        marked: Records whose text is marked (`CaptionRecord.problems`), left out.
        without_text: Records of an error, or without a text of the kind that was asked for.
        unmatched: Records that fit no segment: of other bytes or other times.
        refused: Captions that the model gives no vector for, by the name of their video; why.
        captioned: Segments of the index that have a caption afterwards.
        segments: Segments of the index.
    """

    added: int = 0
    unchanged: int = 0
    marked: int = 0
    without_text: int = 0
    unmatched: int = 0
    refused: list[Problem] = field(default_factory=list)
    captioned: int = 0
    segments: int = 0

    def to_dict(self) -> dict[str, object]:
        """Return the report as it stands in JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions of one version of an index, and which of its rows they belong to."""

    meta: CaptionMeta
    table: LanceTable
    stamps: tuple[str, str]  # of the tables of segments and of captions
    row_ids: NDArray[np.uint64]  # (C,), rows of the index that have a caption; several where files are copies
    caption_ids: NDArray[np.uint64]  # (C,), the row of `table` that each has, rising
    by_row: NDArray[np.intp]  # (C,), places of `row_ids` in their order

    def _rows(self, captions: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """Rows of the index that have these captions (M,): the places of the captions (E,), and the row ids (E,)."""
        first = np.searchsorted(self.caption_ids, captions, side="left")  # (M,)
        count = np.searchsorted(self.caption_ids, captions, side="right") - first  # (M,)
        places = np.repeat(np.arange(len(captions)), count)  # (E,)
        within = np.arange(len(places)) - np.repeat(np.cumsum(count) - count, count)  # (E,)
        return places, self.row_ids[first[places] + within]

    def blocks(self, allowed: NDArray[np.uint64] | None = None) -> Iterator[Block]:
        """Yield the vectors of all captions by the row ids of the index, or those of the rows that are allowed."""
        for batch in self.table.search().select(["vector"]).with_row_id(True).to_batches():
            if not len(batch):
                continue
            found = Block.of(batch)
            places, row_ids = self._rows(found.row_ids)
            if allowed is not None:
                fits = np.isin(row_ids, allowed)
                places, row_ids = places[fits], row_ids[fits]
            if len(places):
                yield Block(row_ids, found.vectors[places], found.lengths[places])

    def cosines(
        self, row_ids: NDArray[np.uint64], query: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return which of these rows (U,) have a caption: their places (E,), and its cosine with a unit vector (E,)."""
        at = np.searchsorted(self.row_ids, row_ids, sorter=self.by_row).clip(max=max(0, len(self.by_row) - 1))  # (U,)
        at = self.by_row[at] if len(self.by_row) else at[:0]
        places = np.flatnonzero(self.row_ids[at] == row_ids[: len(at)])
        wanted, back = np.unique(self.caption_ids[at[places]], return_inverse=True)
        scores = np.empty(len(wanted))
        for first in range(0, len(wanted), ROWS_AT_ONCE):
            some = wanted[first : first + ROWS_AT_ONCE]
            found = self.table.take_row_ids(some.tolist()).select(["vector"]).with_row_id().to_arrow().combine_chunks()
            for batch in found.to_batches():
                block = Block.of(batch)
                scores[np.searchsorted(wanted, block.row_ids)] = cosines(block.vectors, query)
        return places, scores[back]

    def bm25(self, query: str) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Return the rows (E,) whose caption has a word of the query, and BM25 of each (E,), in order of their ids.

        Words alone count, each once: signs of a query's syntax mean nothing. LanceDB drops words such as "the", reduces
        others to their English stem, and takes accents off.
        """
        words = dict.fromkeys(_WORD.findall(query.casefold()))
        if not words or not len(self.row_ids):
            return np.empty(0, np.uint64), np.empty(0)
        asked = self.table.search(" ".join(words), query_type="fts", fts_columns="caption").select(["_score"])
        found = asked.with_row_id(True).limit(self.table.count_rows()).to_arrow()
        places, row_ids = self._rows(found.column(ROW_ID).to_numpy())
        scores = np.round(found.column("_score").to_numpy().astype(np.float64), 6)[places]
        order = np.argsort(row_ids)
        return row_ids[order], scores[order]

    def require_words(self) -> None:
        """Refuse, with IndexMismatchError, a full-text index that is not of all captions: a run was interrupted."""
        if not _words_are_whole(self.table):
            raise IndexMismatchError(
                "by: some captions are missing in the full-text index, because a run was interrupted; run `vidembed "
                "index` again"
            )


_opened: WeakKeyDictionary[VideoIndex, Captions] = WeakKeyDictionary()


def open_captions(index: VideoIndex) -> Captions:
    """Return the captions of the version at hand; IndexMismatchError, which says what to run, if there are none."""
    table = _open_table(index)
    if table is None or not table.count_rows():
        raise IndexMismatchError(f"by: the index {str(index.folder)!r} has no captions; {REMEDY}")
    stamps = index.stamp(), stamp_of(index.folder / CAPTIONS_FOLDER, int(table.version))
    known = _opened.get(index)
    if known is not None and known.stamps == stamps:
        return known
    meta = CaptionMeta.of(table, index.folder)
    if meta.model_fingerprint != index.meta.model_fingerprint:
        raise IndexMismatchError(
            f"by: the captions in {str(index.folder)!r} were embedded with another model than the videos; add them "
            f"again with --captions FILE --replace-captions"
        )
    ids = dict(_keys(table.search().select([*KEY]).with_row_id(True).to_batches()))
    pairs = [(ids[key], row_id) for key, row_id in _keys(index.scan(KEY)) if key in ids]
    caption_ids, row_ids = np.array(sorted(pairs), dtype=np.uint64).reshape(-1, 2).T  # (C,) each
    _opened[index] = found = Captions(meta, table, stamps, row_ids.copy(), caption_ids.copy(), np.argsort(row_ids))
    return found


def texts_of(index: VideoIndex, contents: Iterable[str]) -> dict[Key, str]:
    """Return the captions of files with these contents, by content, start and end."""
    if (table := _open_table(index)) is None:
        return {}
    found: dict[Key, str] = {}
    wanted = sorted(set(contents))
    for first in range(0, len(wanted), AT_ONCE):
        where = f"content_fingerprint IN ({', '.join(map(quoted, wanted[first : first + AT_ONCE]))})"
        for row in table.search().where(where).select([*KEY, "caption"]).to_arrow().to_pylist():
            found[row["content_fingerprint"], row["start_s"], row["end_s"]] = row["caption"]
    return found


def add_captions(
    folder: str | Path,
    encoder: QueryEncoder,
    records: Iterable[CaptionRecord],
    *,
    name: str = "this model",
    kind: str = "dense",
    marked: bool = False,
    replace: bool = False,
    wait: bool = False,
    progress: bool = True,
) -> CaptionReport:
    """Add captions to an index, each to the segments with the same bytes and times; those it has are not embedded anew.

    A record of a whole video belongs to an index of whole videos; one of a segment, to the segment whose start and end
    are the same to a millisecond. If two records are of one segment, the last one counts.

    Args:
        folder: Of the index.
        encoder: The model that made the index.
        records: Such as `vidembed.captions.read_captions` reads. Their relative order does not matter.
        name: What the model was loaded as, for messages.
        kind: Which text of a record is the caption.
        marked: Also add texts that are marked as not to be used.
        replace: Where the index has captions of another model or other prompts, remove those.
        wait: Where another run is writing to the index, wait for its end. Otherwise, refuse.
        progress: Show a bar, on stderr.

    Returns:
        What became of the records. Those that fit no segment are counted.

    Raises:
        ValueError: There is no index.
        IndexMismatchError: The index is of another model, has captions of another fingerprint, or the records are of
            several.
        IndexBusyError: Another run is writing to the index, and `wait` is False.
        IndexWriteError: It cannot be written. What was committed stays.
    """
    folder = Path(folder)
    if not VideoIndex.exists(folder):
        VideoIndex.open(folder)  # which says so, before a lock is written
    report = CaptionReport()
    with locked(folder, wait=wait):
        index = VideoIndex.open(folder)
        index.meta.require_model(encoder, name=name)
        wanted, meta = _fitting(index, records, report, kind=kind, marked=marked)
        table = _open_table(index)
        if meta is not None:
            table = _table_for(index, table, meta, replace=replace)
            had = dict(_keys(table.search().select([*KEY]).with_row_id(True).to_batches()))
            report.unchanged = sum(key in had for key in wanted)
            new = [(key, *rest) for key, rest in wanted.items() if key not in had]
            with progress_bar("Embedding captions", "captions", total=len(new), shown=progress) as bar:
                for first in range(0, len(new), BATCH):
                    _add(index, table, encoder, new[first : first + BATCH], report)
                    bar.update(len(new[first : first + BATCH]))
        with uninterrupted(), writing_to(folder):
            refresh(index)
            index.flush()
        report.segments = len(index)
        if table is not None and table.count_rows():
            index.latest()
            report.captioned = len(open_captions(index).row_ids)
    return report


def refresh(index: VideoIndex) -> bool:
    """Remove captions of contents that the index no longer has, and bring the full-text index up to date.

    Nobody else may be writing to the index. Returns whether anything was written.
    """
    if (table := _open_table(index)) is None:
        return False
    contents = {file.content_fingerprint for file in index.files().values()}
    gone = sorted({key[0] for key, _ in _keys(table.search().select([*KEY]).with_row_id(True).to_batches())} - contents)
    for first in range(0, len(gone), AT_ONCE):
        table.delete(f"content_fingerprint IN ({', '.join(map(quoted, gone[first : first + AT_ONCE]))})")
    if not table.count_rows() or (not gone and _words_are_whole(table)):
        return bool(gone)
    from lancedb.index import FTS  # noqa: PLC0415 - takes a second

    table.optimize(cleanup_older_than=KEEP_VERSIONS)
    # Built anew, since counts of words would otherwise be of removed captions too. ICU finds words in any script.
    table.create_index("caption", config=FTS(base_tokenizer="icu/split"), name=WORDS_NAME, replace=True)
    return True


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the captions of the version at hand, or None where there are none."""
    table = _open_table(index)
    if table is None or not table.count_rows():
        return None
    captions = open_captions(index)
    about = {name: getattr(captions.meta, name) for name in ("model", "kind", "fingerprint")}
    return {"segments": len(captions.row_ids), **about, "words_fresh": _words_are_whole(table)}


def _open_table(index: VideoIndex) -> LanceTable | None:
    if not index.has_captions:
        return None
    lancedb, _ = require_index_extra()
    try:
        table: LanceTable = lancedb.connect(index.folder).open_table(CAPTIONS)
    except (RuntimeError, OSError, ValueError) as error:
        raise IndexDamagedError(
            f"captions: {str(index.folder / CAPTIONS_FOLDER)!r} cannot be read; remove it and add the captions again. "
            f"Error of LanceDB: {error}"
        ) from error
    return table


def _keys(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Key, int]]:
    """Yield the key and the row id of rows with the columns `KEY` and `ROW_ID`."""
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in (*KEY, ROW_ID)]
        for content, start, end, row_id in zip(*columns, strict=True):
            yield (content, start, end), row_id


def _words_are_whole(table: LanceTable) -> bool:
    return any(each.name == WORDS_NAME and not each.num_unindexed_rows for each in table.list_indices())


def _fitting(
    index: VideoIndex, records: Iterable[CaptionRecord], report: CaptionReport, *, kind: str, marked: bool
) -> tuple[dict[Key, tuple[str, str]], CaptionMeta | None]:
    """Return caption and name of the video by key, of the records that fit, and what they have in common."""
    is_whole = index.meta.cut is None
    keys: dict[tuple[str, int | None, int | None], Key] = {}
    for key, _ in _keys(index.scan(KEY)):
        content, start, end = key
        keys[content, _milliseconds(start), _milliseconds(end)] = key
        if is_whole:
            keys[content, None, None] = key
    wanted: dict[Key, tuple[str, str]] = {}
    meta: CaptionMeta | None = None
    for record in records:
        text = record.texts.get(kind, "").strip()
        if record.error is not None or not text:
            report.without_text += 1
            continue
        about = CaptionMeta(record.fingerprint, kind, record.model, index.meta.model_fingerprint)
        if meta is not None and about.fingerprint != meta.fingerprint:
            raise IndexMismatchError(
                f"captions: the records are of two models or prompts, {_shown(meta)} and {_shown(about)}; give a file "
                f"with one model and prompt"
            )
        meta = about
        if kind in record.problems and not marked:
            report.marked += 1
            continue
        found = keys.get((record.content or "", _milliseconds(record.start_s), _milliseconds(record.end_s)))
        if found is None:
            report.unmatched += 1
        else:
            wanted[found] = text, record.video
    return wanted, meta if wanted else None


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)


def _shown(meta: CaptionMeta) -> str:
    return f"{meta.model!r} (fingerprint {meta.fingerprint[:12]}, {meta.kind})"


def _table_for(index: VideoIndex, table: LanceTable | None, meta: CaptionMeta, *, replace: bool) -> LanceTable:
    """Return the table to add captions to, made where there is none, or where the one at hand is to be replaced."""
    if table is not None:
        known = CaptionMeta.of(table, index.folder)
        if (known.fingerprint, known.kind, known.model_fingerprint) == (
            meta.fingerprint,
            meta.kind,
            meta.model_fingerprint,
        ):
            return table
        if table.count_rows() and not replace:
            raise IndexMismatchError(
                f"captions: the index has those of {_shown(known)}, and these are of {_shown(meta)}; their scores "
                "cannot be compared. Use --replace-captions (replace=True) to replace the captions in the index"
            )
    lancedb, pa = require_index_extra()
    schema = pa.schema(
        [
            pa.field("content_fingerprint", pa.string(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("caption", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), index.meta.dimension), nullable=False),
        ],
        metadata={_META_KEY: json.dumps(asdict(meta), sort_keys=True).encode()},
    )
    how = "create" if table is None else "overwrite"
    with writing_to(index.folder):
        made: LanceTable = lancedb.connect(index.folder).create_table(CAPTIONS, schema=schema, mode=how)
    return made


def _add(
    index: VideoIndex,
    table: LanceTable,
    encoder: QueryEncoder,
    new: list[tuple[Key, str, str]],
    report: CaptionReport,
) -> None:
    """Embed captions and store them in one commit; those that the model gives no vector for are reported."""
    kept: list[dict[str, Any]] = []
    for (key, text, video), vector in zip(new, _embedded(encoder, [text for _, text, _ in new]), strict=True):
        if isinstance(vector, Exception):
            report.refused.append(Problem(video, type(vector).__name__, str(vector)))
        elif not is_vector(vector, index.meta.dimension):
            report.refused.append(Problem(video, "InternalError", NO_VECTOR))
        else:
            kept.append({**dict(zip(KEY, key, strict=True)), "caption": text, "vector": vector})
    if kept:
        _, pa = require_index_extra()
        with uninterrupted(), writing_to(index.folder):
            table.add(pa.Table.from_pylist(kept, schema=table.schema))
        report.added += len(kept)


def _embedded(encoder: QueryEncoder, texts: list[str]) -> list[NDArray[np.float32] | Exception]:
    """Return the vectors (D,) of texts, or why one has none."""
    try:  # dicts, since a bare string could be taken for the path of a video
        vectors = np.asarray(encoder.encode_query([{"text": text} for text in texts]), dtype=np.float32)  # (N, D)
    except ValueError as error:  # such as a marker of the model's own among the words
        if len(texts) == 1:
            return [error]
        return [each for text in texts for each in _embedded(encoder, [text])]  # find the one that fails
    return list(vectors)
