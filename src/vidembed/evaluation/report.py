"""A result for people: Markdown, and one HTML file that needs nothing else; both made of the result's own values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from vidembed.evaluation.metrics import Interval, paired_bootstrap
from vidembed.evaluation.result import COLUMNS, DIRECTIONS, BenchmarkFacts, EvaluationResult, Figures
from vidembed.text import printable, write_atomically

PAPER: Final = "VidVec, arXiv 2602.08099v1"
STATEMENT: Final = (
    "The paper ranks with dual-softmax everywhere but in its MMEB-V2 row, so its figures compare with the columns "
    "dual-softmax and + both. Its V2T figures with and without reranking are equal: it reranked T2V only, it "
    "seems. InternVideo2's row is its published protocol."
)


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's tables, in percent.

    Attributes:
        model: As the paper calls it, with what was done.
        direction: "t2v" or "v2t".
        dual_softmax: Whether it is used; None where another paper's protocol is quoted.
        recall_1: R@1.
        recall_5: R@5, None where it is not given here.
        recall_10: R@10, None likewise.
    """

    model: str
    direction: str
    dual_softmax: bool | None
    recall_1: float
    recall_5: float | None = None
    recall_10: float | None = None


_ZERO_SHOT = "VidVec-ZS (layer 24, rerank K=100)"
_OPTIMIZED = "VidVec-O (embedding only)"
_RERANKED = "VidVec (O + rerank K=10)"
_MMEB = "VidVec, MMEB-V2 protocol, raw scores"
_INTERN = "InternVideo2-6B (100M pairs)"

ROWS: Final[dict[str, tuple[PaperRow, ...]]] = {
    "msrvtt": (
        PaperRow(_ZERO_SHOT, "t2v", True, 52.1, 74.3, 82.9),
        PaperRow(_OPTIMIZED, "t2v", True, 52.5, 76.3, 83.8),
        PaperRow(_OPTIMIZED, "v2t", True, 54.9, 77.5, 84.1),
        PaperRow(_RERANKED, "t2v", True, 56.2),
        PaperRow(_RERANKED, "v2t", True, 54.9),
        PaperRow(_MMEB, "t2v", False, 48.4, 71.4, 81.1),
        PaperRow(_INTERN, "t2v", None, 55.9),
        PaperRow(_INTERN, "v2t", None, 53.7),
    ),
    "msvd": (
        PaperRow(_OPTIMIZED, "t2v", True, 60.8, 84.9, 90.1),
        PaperRow(_OPTIMIZED, "v2t", True, 85.7, 95.5, 97.8),
        PaperRow(_RERANKED, "t2v", True, 60.9),
        PaperRow(_RERANKED, "v2t", True, 85.7),
        PaperRow(_INTERN, "t2v", None, 59.3),
        PaperRow(_INTERN, "v2t", None, 83.1),
    ),
    "vatex": (
        PaperRow(_ZERO_SHOT, "t2v", True, 69.1, 93.3, 96.7),
        PaperRow(_OPTIMIZED, "t2v", True, 68.2, 93.6, 96.8),
        PaperRow(_OPTIMIZED, "v2t", True, 89.6, 98.5, 99.3),
        PaperRow(_RERANKED, "t2v", True, 70.0),
        PaperRow(_RERANKED, "v2t", True, 89.6),
        PaperRow(_INTERN, "t2v", None, 71.5),
        PaperRow(_INTERN, "v2t", None, 85.3),
    ),
    "didemo": (
        PaperRow(_ZERO_SHOT, "t2v", True, 55.7, 80.7, 85.4),
        PaperRow(_OPTIMIZED, "t2v", True, 53.7, 79.4, 85.0),
        PaperRow(_OPTIMIZED, "v2t", True, 56.5, 79.7, 86.0),
        PaperRow(_RERANKED, "t2v", True, 61.8),
        PaperRow(_RERANKED, "v2t", True, 56.5),
        PaperRow(_MMEB, "t2v", False, 43.1, 71.0, 79.2),
        PaperRow(_INTERN, "t2v", None, 57.9),
        PaperRow(_INTERN, "v2t", None, 57.1),
    ),
    "activitynet": (
        PaperRow(_RERANKED, "t2v", True, 79.2),
        PaperRow(_RERANKED, "v2t", True, 71.9),
        PaperRow(_INTERN, "t2v", None, 63.2),
        PaperRow(_INTERN, "v2t", None, 56.5),
    ),
}
"""Rows by benchmark, as `vidembed.evaluation.BENCHMARKS` names it; other benchmarks are not in the paper."""


def paper_rows(benchmark: str, direction: str) -> tuple[PaperRow, ...]:
    """The rows of a benchmark and a direction; none where the paper has none."""
    return tuple(row for row in ROWS.get(benchmark, ()) if row.direction == direction)


MARKDOWN_FILE: Final = "report.md"
HTML_FILE: Final = "report.html"
HEADINGS: Final = {"t2v": "Text to video (T2V)", "v2t": "Video to text (V2T)"}
NOT_RUN: Final = "not run"
SHOWN: Final = 50
"""Failed and missing videos that a report lists; the JSON has all (ours)."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # no scripts, and nothing is fetched
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
h2 { margin: 2rem 0 .5rem; font-size: 1.2rem }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; font-variant-numeric: tabular-nums }
th { background: #f3f3f3 }
p, li, td { overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report; plain text throughout.

    Attributes:
        heading: Of the part.
        columns: Heads of its table, none for no table.
        rows: Cells of its table.
        lines: What is said below it, a paragraph each.
    """

    heading: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()


def write_reports(result: EvaluationResult, folder: Path) -> None:
    """Write ``report.md`` and ``report.html`` into a folder."""
    title, parts = title_of(result), list(sections(result))
    write_atomically(folder / MARKDOWN_FILE, as_markdown(title, parts))
    write_atomically(folder / HTML_FILE, as_html(title, parts))


def title_of(result: EvaluationResult) -> str:
    """The heading of a report."""
    return f"{result.model['name'] or 'A model'} on {result.benchmark.title}"


# -- what is said ----------------------------------------------------------------------------------------------------


def sections(result: EvaluationResult) -> Iterator[Section]:
    """Everything that a report says of a result."""
    for way in DIRECTIONS:
        yield Section(HEADINGS[way], figure_columns(result), tuple(figure_rows(result, way)))
        if rows := paper_rows(result.benchmark.name, way):
            yield _beside_the_paper(result, way, rows)
    yield Section("What was run", ("", ""), tuple(_settings(result)), result.benchmark.notes)
    yield _temperatures(result)
    for heading, found in (("Counted against the model", result.failures), ("Without an answer", result.unanswered)):
        if found:
            listed = tuple((one.video_id, one.file, one.reason) for one in found[:SHOWN])
            rest = (f"{len(found) - SHOWN} more are in the JSON.",) if len(found) > SHOWN else ()
            yield Section(f"{heading}: {len(found)} videos", ("video", "file", "reason"), listed, rest)
    if missing := result.benchmark.missing:
        more = "" if len(missing) <= SHOWN else f" and {len(missing) - SHOWN} more, which are in the JSON"
        yield Section(f"Left out: {len(missing)} videos without a file", lines=(", ".join(missing[:SHOWN]) + more,))
    yield _costs(result)
    yield Section("Versions", ("", ""), tuple(result.versions.items()))


def figure_columns(result: EvaluationResult) -> tuple[str, ...]:
    """Heads of the table of figures."""
    level = next(f"{100 * one.t2v.recall_1.level:g} %" for one in result.columns if one.t2v is not None)
    recalls = [f"R@{cut} ({level})" for cut in (1, 5, 10)]
    return ("", *recalls, "MdR", "MnR", "nDCG@10", "mAP")


def figure_rows(result: EvaluationResult, way: str) -> Iterator[tuple[str, ...]]:
    """The four rows of a direction."""
    for column in result.columns:
        yield (COLUMNS[column.name], *_cells(column.of(way)))


def _cells(found: Figures | None) -> tuple[str, ...]:
    if found is None:
        return (NOT_RUN, "", "", "", "", "", "")
    recalls = map(interval, found.recalls)
    ranks = (f"{found.median_rank:g}", f"{found.mean_rank:.1f}")
    return (*recalls, *ranks, f"{found.ndcg_10:.1f}", f"{found.mean_average_precision:.1f}")


def interval(value: Interval) -> str:
    """An estimate with its interval, such as ``"52.1 (49.0 to 55.2)"``."""
    return f"{value.estimate:.1f} ({value.low:.1f} to {value.high:.1f})"


def _beside_the_paper(result: EvaluationResult, way: str, rows: Sequence[PaperRow]) -> Section:
    used = {True: "yes", False: "no", None: "as published"}
    table = [
        (row.model, used[row.dual_softmax], *("" if one is None else f"{one:.1f}" for one in _recalls(row)))
        for row in rows
    ]
    for column in result.columns:
        found = column.of(way)
        figures = ("", "", "") if found is None else tuple(f"{one.estimate:.1f}" for one in found.recalls)
        used_here = "yes" if "dual_softmax" in column.name else "no"
        name = f"this result, {COLUMNS[column.name]}" + (f" ({NOT_RUN})" if found is None else "")
        table.append((name, used_here, *figures))
    columns = ("model", "dual-softmax", "R@1", "R@5", "R@10")
    return Section(f"Beside the paper, {way.upper()}", columns, tuple(table), (f"{PAPER}. {STATEMENT}",))


def _recalls(row: PaperRow) -> tuple[float | None, ...]:
    return row.recall_1, row.recall_5, row.recall_10


def _settings(result: EvaluationResult) -> Iterator[tuple[str, str]]:
    benchmark, rerank = result.benchmark, result.rerank
    yield "benchmark", f"{benchmark.title}, {benchmark.split}: {benchmark.videos} videos, {benchmark.texts} texts"
    yield "protocol", benchmark.protocol
    yield "source", benchmark.source
    for name, value in result.model.items():
        yield f"model, {name}", "none" if value is None else str(value)
    if rerank is None:
        yield "reranker", NOT_RUN
    else:
        fused = ", fused with the similarity" if rerank.fused else ""
        yield "reranker", f"{rerank.model}, score {rerank.mode}{fused}, the {rerank.k} best of each query"
        yield "reranker, fingerprint", rerank.fingerprint
    yield "ties", "count against the model"
    for name, value in result.hardware.items():
        yield name, str(value)


def _temperatures(result: EvaluationResult) -> Section:
    rows = []
    for name, one in result.temperatures.items():
        stage, way = name.split(".")
        fitted = (
            "" if one.queries is None else f"{one.recall_before:.1f} to {one.recall_after:.1f}, {one.queries} queries"
        )
        rows.append((f"{stage} stage, {way.upper()}", f"{one.value:.4g}", one.origin, fitted))
    known = result.validation
    line = "No validation set."
    if known is not None:
        line = f"Validation set: {known['title']}, {known['split']}: {known['videos']} videos, {known['texts']} texts."
    failed = [f"Not used for it: {one}." for one in (known or {}).get("failures", [])[:SHOWN]]
    lines = (line, *(known or {}).get("notes", []), *failed)
    return Section("Temperatures of dual-softmax", ("", "temperature", "origin", "R@1 there"), tuple(rows), lines)


def _costs(result: EvaluationResult) -> Section:
    rows = []
    for name, tally in result.work.items():
        speed, share = tally["per_second"], tally["share_cached"]
        rows.append(
            (
                name,
                str(tally["computed"]),
                f"{tally['seconds']:.1f}",
                "" if speed is None else f"{speed:.2f}",
                "" if share is None else f"{100 * share:.0f} %",
            )
        )
    line = f"{result.seconds:.1f} seconds in all. Speeds are of what was computed, the validation set included."
    return Section("Work", ("", "computed", "seconds", "a second", "from the cache"), tuple(rows), (line,))


# -- how it is written -----------------------------------------------------------------------------------------------


def as_markdown(title: str, parts: Sequence[Section]) -> str:
    """A report as Markdown; nothing in it is markup but what is written here."""
    lines = [f"# {_md(title)}", ""]
    for part in parts:
        lines += [f"## {_md(part.heading)}", ""]
        if part.columns:
            head, *body = (f"| {' | '.join(map(_md, row))} |" for row in (part.columns, *part.rows))
            lines += [head, f"| {' | '.join(['---'] * len(part.columns))} |", *body, ""]
        for line in part.lines:
            lines += [_md_line(line), ""]
    return "\n".join(lines)


def _md(text: str) -> str:
    """Plain text as Markdown, for a heading or a cell. Bare web addresses are no links either, as GitHub makes them."""
    marked = re.sub(r"[\\`*_\[\]<>|#~&!$]", r"\\\g<0>", printable(text).strip())
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", marked, flags=re.IGNORECASE)


def _md_line(text: str) -> str:
    """Plain text as a paragraph: it begins no list, rule or underlining of a heading."""
    return re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))", r"\1\\", _md(text))


def as_html(title: str, parts: Sequence[Section]) -> str:
    """A report as one page: all text escaped, no scripts, nothing from outside."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{_html(title)}</h1>\n"
        + "".join(map(_section, parts))
        + "</body>\n</html>\n"
    )


def _section(part: Section) -> str:
    table = ""
    if part.columns:
        head = "".join(f"<th>{_html(cell)}</th>" for cell in part.columns)
        body = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>\n" for row in part.rows)
        table = f"<table>\n<tr>{head}</tr>\n{body}</table>\n"
    return f"<h2>{_html(part.heading)}</h2>\n{table}" + "".join(f"<p>{_html(line)}</p>\n" for line in part.lines)


def _html(text: str) -> str:
    return escape(printable(text))


COMPARED: Final = ("raw", "dual_softmax")
"""Columns that are compared: those that need no reranker."""

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class ComparedRow:
    """One model, one column and one direction.

    Attributes:
        model: Its name.
        column: One of `COMPARED`.
        direction: "t2v" or "v2t".
        recall_1: R@1 in percent, with its interval.
        recall_5: R@5 in percent.
        recall_10: R@10 in percent.
        difference: R@1 less that of the first model in points, on the same queries; None for the first itself.
        temperature_origin: Where the temperature of dual-softmax came from; None of raw.
    """

    model: str
    column: str
    direction: str
    recall_1: Interval
    recall_5: float
    recall_10: float
    difference: Interval | None
    temperature_origin: str | None


@dataclass(frozen=True)
class Comparison:
    """Several models on one benchmark.

    Attributes:
        benchmark: What they were measured on.
        models: Their names, the first being what the others are compared with.
        rows: By column, direction and model.
        failures: Videos that could not be read and count against a model, by its name.
        seed: Of the bootstrap.
    """

    benchmark: BenchmarkFacts
    models: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    failures: dict[str, int]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"kind": "vidembed_comparison", "schema_version": SCHEMA_VERSION, **asdict(self)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells for people; figures in percent, differences in points."""
        level = f"{100 * self.rows[0].recall_1.level:g} %"
        heads = ["ranking", "direction", "model", f"R@1 ({level})", "R@5", "R@10", f"R@1 less the first ({level})"]
        cells = []
        for row in self.rows:
            less = "" if row.difference is None else _signed(row.difference)
            recalls = [interval(row.recall_1), f"{row.recall_5:.1f}", f"{row.recall_10:.1f}"]
            cells.append([_column(row), row.direction.upper(), row.model, *recalls, less])
        return heads, cells


def compare(results: Sequence[EvaluationResult], *, seed: int = 0) -> Comparison:
    """Compare finished results on one benchmark by a paired bootstrap over its queries, grouped by video.

    Args:
        results: At least two; the others are compared with the first.
        seed: Of the bootstrap.

    Raises:
        ValueError: There are fewer than two, or they are not of the same videos and texts.
    """
    if len(results) < 2:
        raise ValueError(f"results: got {len(results)}, expected at least 2 to compare")
    first = results[0]
    names = _names(results)
    for name, one in zip(names, results, strict=True):
        if one.benchmark.digest != first.benchmark.digest:
            raise ValueError(
                f"results: {name} was measured on {one.benchmark.title} ({one.benchmark.videos} videos, "
                f"{one.benchmark.texts} texts) and {names[0]} on {first.benchmark.title} ({first.benchmark.videos} "
                f"videos, {first.benchmark.texts} texts), or on others of the same number; compare like with like"
            )
    rows = [
        _row(name, one, first, column, way, seed)
        for column in COMPARED
        for way in DIRECTIONS
        for name, one in zip(names, results, strict=True)
    ]
    failures = {name: len(one.failures) for name, one in zip(names, results, strict=True)}
    return Comparison(first.benchmark, tuple(names), tuple(rows), failures, seed)


def _row(name: str, one: EvaluationResult, first: EvaluationResult, column: str, way: str, seed: int) -> ComparedRow:
    found = one.column(column).of(way)
    key = f"{column}.{way}"
    arrays = [result.ranks.get(key) for result in (one, first)]
    if found is None or any(ranks is None for ranks in arrays):
        raise ValueError(f"results: {name} holds no ranks of {COLUMNS[column]}, {way}; evaluate again")
    difference = None
    if one is not first:
        mine, theirs = (np.asarray(ranks) == 1 for ranks in arrays)
        less = paired_bootstrap(mine, theirs, seed=seed, groups=first.ranks[f"groups.{way}"])
        difference = Interval(100 * less.estimate, 100 * less.low, 100 * less.high, less.level)
    origin = one.temperatures[f"first.{way}"].origin if column == "dual_softmax" else None
    return ComparedRow(
        model=name,
        column=column,
        direction=way,
        recall_1=found.recall_1,
        recall_5=found.recall_5.estimate,
        recall_10=found.recall_10.estimate,
        difference=difference,
        temperature_origin=origin,
    )


def _names(results: Sequence[EvaluationResult]) -> list[str]:
    """A name for each, all different."""
    names: list[str] = []
    for one in results:
        plain = str(one.model.get("name") or "unnamed")
        same = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(plain if not same else f"{plain} ({same + 1})")
    return names


def _column(row: ComparedRow) -> str:
    name = COLUMNS[row.column]
    return name if row.temperature_origin in (None, "fitted") else f"{name} ({row.temperature_origin})"


def _signed(value: Interval) -> str:
    return f"{value.estimate:+.1f} ({value.low:+.1f} to {value.high:+.1f})"
