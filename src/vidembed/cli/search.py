"""`vidembed search`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidembed.cli.options import Calibration, Device, IndexModel, Reranker, ScoreMode, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.index import Hit, Hits, VideoIndex
    from vidembed.index.rows import Filter
    from vidembed.reranker import VideoReranker

MAX_QUERIES_BYTES = 2**24


def command(
    *,
    query: Annotated[str | None, typer.Argument(help="What to look for, in words.", show_default=False)] = None,
    folder: Annotated[Path, typer.Option("--in", help="Folder of the index.", show_default=False)],
    k: Annotated[int, typer.Option("-k", "--top-k", help="Most hits to show.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the hits to stdout as JSON, and nothing else.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture of each hit to this file.")] = None,
    model: IndexModel = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Ask a model's head about the first so many hits, and order them by it.")
    ] = None,
    reranker: Reranker = None,
    score: ScoreMode = None,
    calibration: Calibration = None,
    visual_cache: Annotated[
        Path | None, typer.Option(help="With --rerank: folder to keep visual tokens in, for the next search.")
    ] = None,
    rerank_around: Annotated[
        bool, typer.Option("--rerank-around", help="With --rerank: ask about hits with the seconds of --around.")
    ] = False,
    device: Device = None,
    queries: Annotated[
        Path | None, typer.Option(help="Search each line of this UTF-8 file, and write a JSON line for each.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Only videos whose path fits this glob; without a / it is of the name.")
    ] = None,
    after: Annotated[float | None, typer.Option(help="Only segments that end after so many seconds.")] = None,
    before: Annotated[float | None, typer.Option(help="Only segments that start before so many seconds.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE, or <, <=, !=, >=, >. Can be repeated.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every vector, even in a large index.")] = False,
    quantized: Annotated[
        str | None, typer.Option(help="Look into the ANN index of int8 or binary, also of few segments.")
    ] = None,
    compact: Annotated[str | None, typer.Option(hidden=True, help="The earlier name of --quantized.")] = None,
    bank: Annotated[bool, typer.Option("--bank", help="Normalize scores by the query bank of the index.")] = False,
    merge: Annotated[
        Literal["moments", "videos", "none"],
        typer.Option(help="One hit for segments that overlap, one for each video, or every segment by itself."),
    ] = "moments",
    around: Annotated[
        float | None, typer.Option(help="Show each hit with so many seconds before and after it, too.")
    ] = None,
) -> None:
    """Search an index in words; with --rerank, look at the best hits once more."""
    from vidembed.index import Condition, Filter, VideoIndex, search, search_many
    from vidembed.index.meta import load_model, load_reranker
    from vidembed.index.search import Hits, check_options

    if None not in {quantized, compact}:
        raise ValueError("compact: it is the earlier name of --quantized; give one of them")
    compact = quantized or compact
    words = words_of(query, queries, k)  # before the model is loaded, and before anything is written
    keep = Filter(path, after, before, tuple(map(Condition.parse, where or ())))
    wanted = max(k, rerank or 0)
    how: dict[str, Any] = {
        "exact": exact,
        "keep": keep,
        "copy": compact,
        "bank": bank,
        "merge": merge,
        "around": around,
    }
    check_options(k=wanted, **how)
    if rerank_around and around is None:
        raise ValueError("rerank-around: it is for --around SECONDS; give the seconds around hits to ask about")
    check_rerank(
        rerank,
        {
            "reranker": reranker,
            "score": score,
            "calibration": calibration,
            "visual-cache": visual_cache,
            "rerank-around": rerank_around,
        },
    )
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ValueError(f"html: {str(html)!r} is a folder or in a folder that does not exist; name a file")
    index = VideoIndex.open(folder)
    check_index(index, keep=keep, compact=compact, bank=bank)
    name = model or index.meta.model
    encoder = load_model(name, layer=index.meta.layer, sampling=index.meta.sampling, device=device)
    if queries is None:
        results = [search(index, encoder, words[0], k=wanted, name=name, **how)]
    else:
        results = search_many(index, encoder, words, k=wanted, name=name, **how)
    if rerank is not None:
        head = load_reranker(
            reranker,
            encoder,
            model=name,
            mode=score,
            calibration=calibration,
            visual_cache=visual_cache,
            device=device,
        )
        results = [
            Hits(
                look_again(hits, head, each, rerank, context=rerank_around, fingerprint=encoder.fingerprint)[:k],
                hits.method,
            )
            for each, hits in zip(words, results, strict=True)
        ]
    if html is not None:
        write_sheet(html, list(zip(words, results, strict=True)))
    for each, hits in zip(words, results, strict=True):
        if queries is not None:
            print_json_line({"query": each, "search": hits.method.to_dict(), "hits": [hit.to_dict() for hit in hits]})
        elif as_json:
            print_json([hit.to_dict() for hit in hits])
        else:
            show(hits)
            explain(hits, compact=compact)


def words_of(query: str | None, queries: Path | None, k: int) -> list[str]:
    """Return the query, or the lines of the file of queries.

    Raises:
        ValueError: There is neither or both, or one cannot be searched.
    """
    from vidembed.index.bank import check_query

    if queries is not None and query is None:
        words = read_queries(queries)
        for number, each in enumerate(words):
            check_query(each, k, name=f"queries: line {number + 1} of {str(queries)!r}")
        return words
    if query is None or queries is not None:
        raise ValueError("query: give words to look for, or a file of queries with --queries, and not both")
    check_query(query, k)
    return [query]


def check_rerank(rerank: int | None, asked_for: dict[str, Any]) -> None:
    """Refuse options of reranking without it, and a score mode that is none.

    Raises:
        ValueError: There is one.
    """
    if rerank is None and any(asked_for.values()):
        given = next(option for option, value in asked_for.items() if value)
        raise ValueError(f"{given}: it is for --rerank K; give the number of hits to look at")
    if asked_for["score"] is not None:
        from vidembed.yes_no import check_mode

        check_mode(asked_for["score"])


def read_queries(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file.

    Raises:
        ValueError: The file cannot be read, is too large or not UTF-8, or holds no query or too many.
    """
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


def check_index(index: VideoIndex, *, keep: Filter, compact: str | None, bank: bool) -> None:
    """Refuse what the index does not have, before the model is loaded."""
    from vidembed.index.ann import quantized
    from vidembed.index.bank import open_bank

    keep.check(index)
    if compact is not None:
        quantized(index, compact)
    if bank:
        open_bank(index)


def look_again(
    hits: Hits,
    head: VideoReranker,
    query: str,
    count: int,
    *,
    context: bool = False,
    fingerprint: str | None = None,
) -> list[Hit]:
    """Return hits with the first `count` ordered by a reranker, and say which could not be looked at."""
    from vidembed.index import rerank as reranked
    from vidembed.index.files import name_of
    from vidembed.text import printable

    looked_at = reranked(hits[:count], head, query, context=context, fingerprint=fingerprint)
    lost = [name_of(hit.uri) for hit in looked_at if hit.probability is None]
    if lost:
        say(f"Not looked at, since the video is gone or cannot be read: {', '.join(map(printable, lost))}.")
    return [*looked_at, *hits[count:]]


def explain(hits: Hits, *, compact: str | None = None) -> None:
    """Say how hits were found, where it is not simply by every vector's cosine, or not as it was asked for."""
    how = hits.method
    if how.approximate:
        say(
            f"Approximate ({how.name}, {how.rows} segments): recall@{how.recall_at} {how.recall:.3f} against the exact "
            f"search, measured with {how.sample} stored vectors, moved, as queries. --exact compares every vector."
        )
    elif compact is not None:
        say(f"Every vector was compared: {compact} vectors gave too few hits that do not overlap or share a video.")
    if how.query_bank is not None:
        say(
            "Ordered by score normalized with the query bank."
            if how.query_bank
            else "Ordered by cosine: the best segment is no bank query's best, so the query bank changes nothing."
        )


def print_json_line(value: dict[str, Any]) -> None:
    """Write one JSON value on a line of its own to stdout, in ASCII."""
    typer.echo(json.dumps(value, ensure_ascii=True))


def show(hits: Sequence[Hit], *, title: str | None = None) -> None:
    """Write hits to stdout as a table. Columns that no hit has a value for are left out."""
    from vidembed.index.files import name_of
    from vidembed.index.gallery import context_range, time_range

    cells = [
        {
            "match": "" if hit.probability is None else f"{hit.probability:.1%}",
            "normalized": "" if hit.normalized is None else f"{hit.normalized:.3f}",
            "score": f"{hit.score:.3f}",
            "time": time_range(hit.start_s, hit.end_s),
            "around": context_range(hit),
            "segments": "" if hit.segments is None else str(hit.segments),
            "file": name_of(hit.uri),
        }
        for hit in hits
    ]
    always = ("score", "time", "file")
    columns = ["match", "normalized", "score", "time", "around", "segments", "file"]
    columns = [column for column in columns if column in always or any(row[column] for row in cells)]
    print_table(columns, [[row[column] for column in columns] for row in cells], title=title)


def write_sheet(path: Path, results: Sequence[tuple[str, Sequence[Hit]]]) -> None:
    """Write a contact sheet."""
    from vidembed.index import contact_sheet

    path.write_text(contact_sheet(results), encoding="utf-8")
    say(f"Wrote {path}")
