"""Add captions to an index: each is embedded and stored once, for the segments with the same bytes and times."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexMismatchError
from vidembed.index.captions import KEY, META_KEY, CaptionMeta, Key, keys_of, open_captions, open_table, refresh
from vidembed.index.commit import locked, writing_to
from vidembed.index.files import Problem
from vidembed.index.schema import NO_VECTOR, QueryEncoder, is_vector, require_index_extra
from vidembed.index.table import CAPTIONS, VideoIndex
from vidembed.interrupt import uninterrupted
from vidembed.progress import progress_bar

if TYPE_CHECKING:
    from lancedb.table import LanceTable

    from vidembed.captions import CaptionRecord

BATCH = 256  # captions of one commit; a run that is killed embeds at most so many again


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
        table = open_table(index)
        if meta is not None:
            table = _table_for(index, table, meta, replace=replace)
            had = dict(keys_of(table.search().select([*KEY]).with_row_id(True).to_batches()))
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


def _fitting(
    index: VideoIndex, records: Iterable[CaptionRecord], report: CaptionReport, *, kind: str, marked: bool
) -> tuple[dict[Key, tuple[str, str]], CaptionMeta | None]:
    """Return caption and name of the video by key, of the records that fit, and what they have in common."""
    is_whole = index.meta.cut is None
    keys: dict[tuple[str, int | None, int | None], Key] = {}
    for key, _ in keys_of(index.scan(KEY)):
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
        if known == meta:
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
        metadata={META_KEY: json.dumps(asdict(meta), sort_keys=True).encode()},
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
