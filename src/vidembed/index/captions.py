"""Captions of the segments of an index: a table of their own, keyed by the bytes of the video and the segment's times.

Rows of the index are not written to, so that ANN index, mirror and query bank stay as they are, and earlier versions
read the index. A file that is moved, copied or indexed again has its captions as long as its bytes are the same, and a
caption cannot come to belong to another clip. What this package compares with a query is the vector of the caption, as
the encoder of the index makes it of a query of the same words, and BM25 of its words, by LanceDB's full-text index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexDamagedError, IndexMismatchError
from vidembed.index.rows import cosines
from vidembed.index.schema import FORMAT_VERSION, require_index_extra
from vidembed.index.table import (
    AT_ONCE,
    CAPTIONS,
    CAPTIONS_FOLDER,
    KEEP_VERSIONS,
    ROW_ID,
    Block,
    VideoIndex,
    quoted,
    stamp_of,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import LanceTable

WORDS_NAME = "words"  # of the full-text index
KEY = ("content_fingerprint", "start_s", "end_s")
REMEDY = (
    "describe the videos with `vidembed caption VIDEOS --out captions.jsonl` (with the segments of the index), then "
    "run `vidembed index VIDEOS --to INDEX --captions captions.jsonl`"
)
META_KEY = b"vidembed-captions"
ROWS_AT_ONCE = 4096  # whose vectors are taken: at 3584 dimensions 59 MB
_WORD = re.compile(r"\w+")

Key = tuple[str, float, float]


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
    model: str = field(compare=False)  # a name says nothing of what decided the texts
    model_fingerprint: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, table: LanceTable, folder: Path) -> Self:
        """Read it of a table; IndexDamagedError if there is none, IndexMismatchError for one of a later version."""
        try:
            found = json.loads((table.schema.metadata or {})[META_KEY])
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
    table = open_table(index)
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
    ids = dict(keys_of(table.search().select([*KEY]).with_row_id(True).to_batches()))
    pairs = [(ids[key], row_id) for key, row_id in keys_of(index.scan(KEY)) if key in ids]
    caption_ids, row_ids = np.array(sorted(pairs), dtype=np.uint64).reshape(-1, 2).T  # (C,) each
    _opened[index] = found = Captions(meta, table, stamps, row_ids.copy(), caption_ids.copy(), np.argsort(row_ids))
    return found


def texts_of(index: VideoIndex, contents: Iterable[str]) -> dict[Key, str]:
    """Return the captions of files with these contents, by content, start and end."""
    if (table := open_table(index)) is None:
        return {}
    found: dict[Key, str] = {}
    wanted = sorted(set(contents))
    for first in range(0, len(wanted), AT_ONCE):
        where = f"content_fingerprint IN ({', '.join(map(quoted, wanted[first : first + AT_ONCE]))})"
        for row in table.search().where(where).select([*KEY, "caption"]).to_arrow().to_pylist():
            found[row["content_fingerprint"], row["start_s"], row["end_s"]] = row["caption"]
    return found


def refresh(index: VideoIndex) -> bool:
    """Remove captions of contents that the index no longer has, and bring the full-text index up to date.

    Nobody else may be writing to the index. Returns whether anything was written.
    """
    if (table := open_table(index)) is None:
        return False
    contents = {file.content_fingerprint for file in index.files().values()}
    gone = sorted(
        {key[0] for key, _ in keys_of(table.search().select([*KEY]).with_row_id(True).to_batches())} - contents
    )
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
    table = open_table(index)
    if table is None or not table.count_rows():
        return None
    captions = open_captions(index)
    about = {name: getattr(captions.meta, name) for name in ("model", "kind", "fingerprint")}
    return {"segments": len(captions.row_ids), **about, "words_fresh": _words_are_whole(table)}


def open_table(index: VideoIndex) -> LanceTable | None:
    """Return the table of captions, or None where there is none; IndexDamagedError if it cannot be read."""
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


def keys_of(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Key, int]]:
    """Yield the key and the row id of rows with the columns `KEY` and `ROW_ID`."""
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in (*KEY, ROW_ID)]
        for content, start, end, row_id in zip(*columns, strict=True):
            yield (content, start, end), row_id


def _words_are_whole(table: LanceTable) -> bool:
    return any(each.name == WORDS_NAME and not each.num_unindexed_rows for each in table.list_indices())
