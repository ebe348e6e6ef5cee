"""Results for people: a report as Markdown and as one HTML file, the paper's figures beside it, and comparisons."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vidembed.evaluation.metrics import Interval, paired_bootstrap
from vidembed.evaluation.result import CUTS, BenchmarkFacts, EvaluationResult
from vidembed.evaluation.two_stage import COLUMNS, DIRECTIONS
from vidembed.pages import render
from vidembed.text import printable, write_atomically

MARKDOWN_FILE: Final = "report.md"
HTML_FILE: Final = "report.html"
HEADINGS: Final = {"t2v": "Text to video (T2V)", "v2t": "Video to text (V2T)"}
NOT_RUN: Final = "not run"
SHOWN: Final = 50  # failed and missing videos that a report lists; the JSON has all (ours)

PAPER: Final = "VidVec, arXiv 2602.08099v1"
STATEMENT: Final = (
    "The paper ranks with dual-softmax everywhere but in its MMEB-V2 row, so its figures compare with the columns "
    "dual-softmax and + both. Its V2T figures with and without reranking are equal: it reranked T2V only, it "
    "seems. InternVideo2's row is its published protocol."
)


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's tables, in percent; None where a recall is not given here."""

    model: str  # as the paper calls it, with what was done
    direction: str
    dual_softmax: bool | None  # None where another paper's protocol is quoted
    recall_1: float
    recall_5: float | None = None
    recall_10: float | None = None


_TABLE: Final = """
VidVec-ZS (layer 24, rerank K=100) | t2v | yes | 52.1/74.3/82.9 | - | 69.1/93.3/96.7 | 55.7/80.7/85.4 | -
VidVec-O (embedding only) | t2v | yes | 52.5/76.3/83.8 | 60.8/84.9/90.1 | 68.2/93.6/96.8 | 53.7/79.4/85.0 | -
VidVec-O (embedding only) | v2t | yes | 54.9/77.5/84.1 | 85.7/95.5/97.8 | 89.6/98.5/99.3 | 56.5/79.7/86.0 | -
VidVec (O + rerank K=10) | t2v | yes | 56.2 | 60.9 | 70.0 | 61.8 | 79.2
VidVec (O + rerank K=10) | v2t | yes | 54.9 | 85.7 | 89.6 | 56.5 | 71.9
VidVec, MMEB-V2 protocol, raw scores | t2v | no | 48.4/71.4/81.1 | - | - | 43.1/71.0/79.2 | -
InternVideo2-6B (100M pairs) | t2v | - | 55.9 | 59.3 | 71.5 | 57.9 | 63.2
InternVideo2-6B (100M pairs) | v2t | - | 53.7 | 83.1 | 85.3 | 57.1 | 56.5
"""  # model, direction, dual-softmax, and R@1/5/10 of the benchmarks below


def _paper_table() -> dict[str, tuple[PaperRow, ...]]:
    found: dict[str, list[PaperRow]] = {name: [] for name in ("msrvtt", "msvd", "vatex", "didemo", "activitynet")}
    used = {"yes": True, "no": False, "-": None}
    for line in _TABLE.strip().splitlines():
        model, direction, dual, *cells = (cell.strip() for cell in line.split("|"))
        for rows, cell in zip(found.values(), cells, strict=True):
            if cell != "-":
                rows.append(PaperRow(model, direction, used[dual], *map(float, cell.split("/"))))
    return {name: tuple(rows) for name, rows in found.items()}


# rows by benchmark, as `vidembed.evaluation.BENCHMARKS` names it; other benchmarks are not in the paper
ROWS: Final = _paper_table()


def paper_rows(benchmark: str, direction: str) -> tuple[PaperRow, ...]:
    """The rows of a benchmark and a direction; none where the paper has none."""
    return tuple(row for row in ROWS.get(benchmark, ()) if row.direction == direction)


@dataclass(frozen=True)
class Section:
    """A part of a report, as plain text: a heading, a table if it has columns, and paragraphs below it."""

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


def sections(result: EvaluationResult) -> Iterator[Section]:
    """All parts of a report."""
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
    work = []
    for name, done in result.work.items():
        speed = "" if done["per_second"] is None else f"{done['per_second']:.2f}"
        cached = "" if done["share_cached"] is None else f"{100 * done['share_cached']:.0f} %"
        work.append((name, str(done["computed"]), f"{done['seconds']:.1f}", speed, cached))
    line = f"{result.seconds:.1f} seconds in all. Speeds are of what was computed, the validation set included."
    yield Section("Work", ("", "computed", "seconds", "a second", "from the cache"), tuple(work), (line,))
    yield Section("Versions", ("", ""), tuple(result.versions.items()))


def figure_columns(result: EvaluationResult) -> tuple[str, ...]:
    """Heads of the table of figures."""
    level = next(f"{100 * one.t2v.recall_1.level:g} %" for one in result.columns if one.t2v is not None)
    return ("", *(f"R@{cut} ({level})" for cut in CUTS), "MdR", "MnR", "nDCG@10", "mAP")


def figure_rows(result: EvaluationResult, way: str) -> Iterator[tuple[str, ...]]:
    """The four rows of a direction."""
    for column in result.columns:
        found = column.of(way)
        cells: tuple[str, ...] = (NOT_RUN, "", "", "", "", "", "")
        if found is not None:
            means = (f"{found.mean_rank:.1f}", f"{found.ndcg_10:.1f}", f"{found.mean_average_precision:.1f}")
            cells = (*(one.text() for one in found.recalls), f"{found.median_rank:g}", *means)
        yield (COLUMNS[column.name], *cells)


def _beside_the_paper(result: EvaluationResult, way: str, rows: Sequence[PaperRow]) -> Section:
    used = {True: "yes", False: "no", None: "as published"}
    table: list[tuple[str, ...]] = []
    for row in rows:
        recalls = ("" if one is None else f"{one:.1f}" for one in (row.recall_1, row.recall_5, row.recall_10))
        table.append((row.model, used[row.dual_softmax], *recalls))
    for column in result.columns:
        found = column.of(way)
        figures = ("", "", "") if found is None else tuple(f"{one.estimate:.1f}" for one in found.recalls)
        name = f"this result, {COLUMNS[column.name]}" + (f" ({NOT_RUN})" if found is None else "")
        table.append((name, "yes" if "dual_softmax" in column.name else "no", *figures))
    columns = ("model", "dual-softmax", "R@1", "R@5", "R@10")
    return Section(f"Beside the paper, {way.upper()}", columns, tuple(table), (f"{PAPER}. {STATEMENT}",))


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
    for name, fact in result.hardware.items():
        yield name, str(fact)


def _temperatures(result: EvaluationResult) -> Section:
    rows = []
    for name, one in result.temperatures.items():
        stage, way = name.split(".")
        fitted = ""
        if one.queries is not None:
            fitted = f"{one.recall_before:.1f} to {one.recall_after:.1f}, {one.queries} queries"
        rows.append((f"{stage} stage, {way.upper()}", f"{one.value:.4g}", one.origin, fitted))
    lines = ["No validation set."]
    if (known := result.validation) is not None:
        size = f"{known.videos} videos, {known.texts} texts"
        lines = [f"Validation set: {known.title}, {known.split}: {size}.", *known.notes]
        lines += [f"Not used for it: {one}." for one in known.failures[:SHOWN]]
    columns = ("", "temperature", "origin", "R@1 there")
    return Section("Temperatures of dual-softmax", columns, tuple(rows), tuple(lines))


def as_markdown(title: str, parts: Sequence[Section]) -> str:
    """A report as Markdown; nothing in it is markup but what is written here."""
    lines = [f"# {_md(title)}", ""]
    for part in parts:
        lines += [f"## {_md(part.heading)}", ""]
        if part.columns:
            head, *body = (f"| {' | '.join(map(_md, row))} |" for row in (part.columns, *part.rows))
            lines += [head, f"| {' | '.join(['---'] * len(part.columns))} |", *body, ""]
        for line in part.lines:  # a paragraph begins no list, rule or underlining of a heading
            lines += [re.sub(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=]))", r"\1\\", _md(line)), ""]
    return "\n".join(lines)


def _md(text: str) -> str:
    """Plain text as Markdown, for a heading or a cell. Bare web addresses are no links either, as GitHub makes them."""
    marked = re.sub(r"[\\`*_\[\]<>|#~&!$]", r"\\\g<0>", printable(text).strip())
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", marked, flags=re.IGNORECASE)


def as_html(title: str, parts: Sequence[Section]) -> str:
    """A report as one page: all text escaped, no scripts, nothing from outside."""
    return render("report.html", title=title, parts=parts)


COMPARED: Final = ("raw", "dual_softmax")  # columns that are compared: those that need no reranker


@dataclass(frozen=True)
class ComparedRow:
    """Recalls in percent of one model, one of `COMPARED` and one direction."""

    model: str
    column: str
    direction: str
    recall_1: Interval
    recall_5: float
    recall_10: float
    difference: Interval | None  # of R@1 to the first model, in points, on the same queries; None for the first itself
    temperature_origin: str | None  # where the temperature of dual-softmax came from; None of raw


@dataclass(frozen=True)
class Comparison:
    """Several models on one benchmark."""

    benchmark: BenchmarkFacts
    models: tuple[str, ...]  # their names, the first being what the others are compared with
    rows: tuple[ComparedRow, ...]  # by column, direction and model
    failures: dict[str, int]  # videos that could not be read and count against a model, by its name
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"kind": "vidembed_comparison", "schema_version": 1, **asdict(self)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells for people; figures in percent, differences in points."""
        level = f"{100 * self.rows[0].recall_1.level:g} %"
        heads = ["ranking", "direction", "model", f"R@1 ({level})", "R@5", "R@10", f"R@1 less the first ({level})"]
        cells = []
        for row in self.rows:
            ranking = COLUMNS[row.column]
            if row.temperature_origin not in (None, "fitted"):
                ranking += f" ({row.temperature_origin})"
            recalls = [row.recall_1.text(), f"{row.recall_5:.1f}", f"{row.recall_10:.1f}"]
            less = "" if row.difference is None else row.difference.text("+")
            cells.append([ranking, row.direction.upper(), row.model, *recalls, less])
        return heads, cells


def compare(results: Sequence[EvaluationResult], *, seed: int = 0) -> Comparison:
    """Compare finished results of the same videos and texts with the first by a paired bootstrap, grouped by video."""
    if len(results) < 2:
        raise ValueError(f"results: got {len(results)}, expected at least 2 to compare")
    names: list[str] = []
    for one in results:
        plain = str(one.model.get("name") or "unnamed")
        numbered = (f"{plain} ({number})" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([plain], numbered) if name not in names))
    facts, named = results[0].benchmark, list(zip(names, results, strict=True))
    for name, one in named:
        if one.benchmark.digest != facts.digest:
            other, this = (f"{on.title} ({on.videos} videos, {on.texts} texts)" for on in (one.benchmark, facts))
            raise ValueError(
                f"results: {name} was measured on {other} and {names[0]} on {this}, or on other data of the same "
                f"size; compare results of the same benchmark"
            )
    ways = [(column, way) for column in COMPARED for way in DIRECTIONS]
    rows = tuple(_compared(name, one, results[0], *which, seed) for which in ways for name, one in named)
    failures = {name: len(one.failures) for name, one in named}
    return Comparison(facts, tuple(names), rows, failures, seed)


def _compared(
    name: str, one: EvaluationResult, first: EvaluationResult, column: str, way: str, seed: int
) -> ComparedRow:
    found = one.column(column).of(way)
    mine, theirs = (result.ranks.get(f"{column}.{way}") for result in (one, first))
    groups = first.ranks.get(f"groups.{way}")
    if found is None or mine is None or theirs is None or groups is None:
        raise ValueError(f"results: {name} has no ranks of {COLUMNS[column]}, {way}; evaluate again")
    difference = None
    if one is not first:
        difference = paired_bootstrap(mine == 1, theirs == 1, seed=seed, groups=groups).percent()
    origin = one.temperatures[f"first.{way}"].origin if column == "dual_softmax" else None
    recalls = (found.recall_1, found.recall_5.estimate, found.recall_10.estimate)
    return ComparedRow(name, column, way, *recalls, difference, origin)
