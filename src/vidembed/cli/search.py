"""`vidembed search`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.index import Hit, Hits, VideoIndex
    from vidembed.index.search import RerankerOptions, SearchKeywords
    from vidembed.index.table import ModelOptions
    from vidembed.reranker import VideoReranker

MAX_QUERIES_BYTES = 2**24


def command(
    *,
    query: Annotated[str | None, Argument(help="What to look for, in words.")] = None,
    folder: Annotated[Path, Option("--in", help="Folder of the index.")],
    k: Annotated[int, Option("-k", "--top-k", help="Most hits to show.")] = 10,
    as_json: Annotated[bool, Option("--json", help="Write the hits to stdout as JSON, and nothing else.")] = False,
    html: Annotated[Path | None, Option(help="Write a page with a picture of each hit to this file.")] = None,
    model: cli.IndexModel = None,
    rerank: Annotated[
        int | None, Option(min=1, help="Ask a model's head about the first so many hits, and order them by it.")
    ] = None,
    reranker: cli.Reranker = None,
    score: cli.ScoreMode = None,
    calibration: cli.Calibration = None,
    visual_cache: Annotated[
        Path | None, Option(help="With --rerank: folder to keep visual tokens in, for the next search.")
    ] = None,
    rerank_around: Annotated[
        bool, Option("--rerank-around", help="With --rerank: ask about hits with the seconds of --around.")
    ] = False,
    device: cli.Device = None,
    queries: Annotated[
        Path | None, Option(help="Search each line of this UTF-8 file, and write a JSON line for each.")
    ] = None,
    path: Annotated[
        str | None, Option(help="Only videos whose path fits this glob; without a / it is of the name.")
    ] = None,
    after: Annotated[float | None, Option(help="Only segments that end after so many seconds.")] = None,
    before: Annotated[float | None, Option(help="Only segments that start before so many seconds.")] = None,
    where: Annotated[
        list[str] | None, Option(help="Only rows with COLUMN=VALUE, or <, <=, !=, >=, >. Can be repeated.")
    ] = None,
    exact: Annotated[bool, Option("--exact", help="Compare every vector, even in a large index.")] = False,
    quantized: Annotated[
        str | None, Option(help="Look into the ANN index of int8 or binary, also of few segments.")
    ] = None,
    compact: Annotated[str | None, Option(hidden=True, help="The earlier name of --quantized.")] = None,
    bank: Annotated[bool, Option("--bank", help="Normalize scores by the query bank of the index.")] = False,
    merge: Annotated[
        cli.Merge, Option(help="One hit for segments that overlap, one for each video, or every segment by itself.")
    ] = "moments",
    around: Annotated[float | None, Option(help="Show each hit with so many seconds before and after it, too.")] = None,
) -> None:
    """Search an index in words; with --rerank, look at the best hits once more."""
    from vidembed.index import Condition, Filter, SearchOptions, VideoIndex, search, search_many

    quantized = one_name(quantized, compact)
    words = words_of(query, queries, k)  # what is cheap to find wrong comes before the model is loaded
    options: SearchKeywords = {
        "k": max(k, rerank or 0),
        "exact": exact,
        "keep": Filter(path, after, before, tuple(map(Condition.parse, where or ()))),
        "copy": quantized,
        "bank": bank,
        "merge": merge,
        "around": around,
    }
    SearchOptions(**options)
    if rerank_around and around is None:
        raise ValueError("rerank-around: it is for --around SECONDS; give the seconds around hits to ask about")
    if rerank is None:
        named = {"reranker": reranker, "score": score, "calibration": calibration, "visual-cache": visual_cache}
        why = "it is for --rerank K; give the number of hits to look at"
        cli.refuse({**named, "rerank-around": rerank_around}, why)
    cli.check_score(score)
    cli.check_file("html", html)
    index = VideoIndex.open(folder)
    check_index(index, options)
    asked = index.meta.model_options(model, device=device)
    how: RerankerOptions = {"calibration": calibration, "visual_cache": visual_cache, "mode": score, "device": device}
    encoder, head = load(asked, reranker, how) if rerank is not None else (asked.load(), None)
    if queries is None:
        results = [search(index, encoder, words[0], name=asked.name, **options)]
    else:
        results = search_many(index, encoder, words, name=asked.name, **options)
    if head is not None and rerank is not None:
        for hits, each in zip(results, words, strict=True):
            again = look_again(hits, head, each, rerank, context=rerank_around, fingerprint=encoder.fingerprint)
            hits[:] = again[:k]
    if html is not None:
        write_sheet(html, list(zip(words, results, strict=True)))
    for each, hits in zip(words, results, strict=True):
        if queries is not None:
            line = {"query": each, "search": hits.method.to_dict(), "hits": [hit.to_dict() for hit in hits]}
            typer.echo(json.dumps(line, ensure_ascii=True))
        elif as_json:
            cli.print_json([hit.to_dict() for hit in hits])
        else:
            show(hits)
            explain(hits, compact=quantized)


def load(asked: ModelOptions, reranker: str | None, how: RerankerOptions) -> tuple[VideoEncoder, VideoReranker]:
    """Load the model of an index and a reranker, on one copy of the weights where that is possible."""
    from vidembed.index.search import load_stages

    return load_stages(asked.load, reranker, model=asked.name, layer=asked.layer, sampling=asked.sampling, **how)


def one_name(quantized: str | None, compact: str | None) -> str | None:
    """Return the value of --quantized, or of --compact, its earlier name; raises ValueError if both are given."""
    if quantized is not None and compact is not None:
        raise ValueError("compact: it is the earlier name of --quantized; give one of them")
    return quantized or compact


def words_of(query: str | None, queries: Path | None, k: int) -> list[str]:
    """Return the query or the lines of the file of queries; raises ValueError at one that cannot be searched."""
    from vidembed.index.rows import check_query

    if query is not None and queries is None:
        check_query(query, k)
        return [query]
    if query is not None or queries is None:
        raise ValueError("query: give words to look for, or a file of queries with --queries, and not both")
    words = read_queries(queries)
    for number, each in enumerate(words, start=1):
        check_query(each, k, name=f"queries: line {number} of {str(queries)!r}")
    return words


def read_queries(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file; raises ValueError if it is too large, not UTF-8 or has too many lines."""
    from vidembed.index.search import MAX_QUERIES

    if not path.is_file() or path.stat().st_size > MAX_QUERIES_BYTES:
        raise ValueError(f"queries: {str(path)!r} is not a file of at most {MAX_QUERIES_BYTES} bytes")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"queries: {str(path)!r} is not UTF-8: {error}") from error
    if len(lines) > MAX_QUERIES:
        raise ValueError(f"queries: {str(path)!r} has {len(lines)} lines; at most {MAX_QUERIES} are taken at once")
    return [line.removesuffix("\r") for line in lines]


def check_index(index: VideoIndex, options: SearchKeywords) -> None:
    """Refuse what the index does not have."""
    from vidembed.index.ann import quantized
    from vidembed.index.bank import open_bank

    if (keep := options["keep"]) is not None:
        keep.check(index)
    if (copy := options["copy"]) is not None:
        quantized(index, copy)
    if options["bank"]:
        open_bank(index)


def look_again(hits: Hits, head: VideoReranker, query: str, k: int, *, context: bool, fingerprint: str) -> list[Hit]:
    """Return hits with the first `k` ordered by a reranker, and name those that it could not look at."""
    from vidembed.index import rerank
    from vidembed.index.table import name_of

    looked_at = rerank(hits[:k], head, query, context=context, fingerprint=fingerprint)
    if lost := [name_of(hit.uri) for hit in looked_at if hit.probability is None]:
        cli.say(f"Not looked at, since the video is gone or cannot be read: {', '.join(lost)}.")
    return [*looked_at, *hits[k:]]


def explain(hits: Hits, *, compact: str | None = None) -> None:
    """Write to stderr how hits were found, where it is not by every vector's cosine, or not as it was asked for."""
    how = hits.method
    if how.approximate:
        cli.say(
            f"Approximate ({how.name}, {how.rows} segments): recall@{how.recall_at} {how.recall:.3f} against the exact "
            f"search, measured with {how.sample} stored vectors, moved, as queries. --exact compares every vector."
        )
    elif compact is not None:
        cli.say(f"Every vector was compared: {compact} vectors gave too few hits that do not overlap or share a video.")
    if how.query_bank:
        cli.say("Ordered by score normalized with the query bank.")
    elif how.query_bank is not None:
        cli.say("Ordered by cosine: the best segment is no bank query's best, so the query bank changes nothing.")


def show(hits: Sequence[Hit]) -> None:
    """Write hits to stdout as a table. Columns that no hit has a value for are left out."""
    from vidembed.index.gallery import context_range, time_range
    from vidembed.index.table import name_of

    columns = {
        "match": ["" if hit.probability is None else f"{hit.probability:.1%}" for hit in hits],
        "normalized": ["" if hit.normalized is None else f"{hit.normalized:.3f}" for hit in hits],
        "score": [f"{hit.score:.3f}" for hit in hits],
        "time": [time_range(hit.start_s, hit.end_s) for hit in hits],
        "around": [context_range(hit) for hit in hits],
        "segments": ["" if hit.segments is None else str(hit.segments) for hit in hits],
        "file": [name_of(hit.uri) for hit in hits],
    }
    kept = {name: cells for name, cells in columns.items() if name in ("score", "time", "file") or any(cells)}
    cli.print_table([*kept], [list(row) for row in zip(*kept.values(), strict=True)])


def write_sheet(path: Path, results: Sequence[tuple[str, Sequence[Hit]]]) -> None:
    """Write a contact sheet."""
    from vidembed.index import contact_sheet

    path.write_text(contact_sheet(results), encoding="utf-8")
    cli.say(f"Wrote {path}")
