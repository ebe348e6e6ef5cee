"""`vidembed search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.index import Hit, Hits, VideoIndex
    from vidembed.index.search import RerankerOptions, SearchKeywords
    from vidembed.reranker import VideoReranker

MAX_QUERIES_BYTES = 2**24
_LINE_BYTES = 2**16  # of a line that is read: more than any query takes in UTF-8
_PROMPT = "> "
CAPTION_WIDTH = 60  # characters of a caption that a table shows


def command(
    *,
    query: Annotated[str | None, Argument(help="What to look for, in words. Default: lines of the terminal.")] = None,
    folder: Annotated[Path | None, Option("--in", help="Folder of the index.")] = None,
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
    model_options: ModelOptions | None = None,
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
    no_mirror: cli.NoMirror = False,
    quantized: Annotated[
        str | None, Option(help="Look into the ANN index of int8 or binary, also of few segments.")
    ] = None,
    compact: Annotated[str | None, Option(hidden=True, help="The earlier name of --quantized.")] = None,
    bank: Annotated[bool, Option("--bank", help="Normalize scores by the query bank of the index.")] = False,
    merge: Annotated[
        cli.Merge, Option(help="One hit for segments that overlap, one for each video, or every segment by itself.")
    ] = "moments",
    around: Annotated[float | None, Option(help="Show each hit with so many seconds before and after it, too.")] = None,
    by: Annotated[
        cli.By,
        Option(help="Order by the video, its caption, the words of its caption, or all three (`index --captions`)."),
    ] = "video",
    server: Annotated[
        str | None, Option(help="Ask a running `vidembed serve` at this URL, with the key of VIDEMBED_API_KEY.")
    ] = None,
    timeout: Annotated[
        float | None, Option(help="With --server: seconds that an answer may take. Default: 90.")
    ] = None,
) -> None:
    """Search an index in words; with --rerank, look at the best hits once more."""
    from vidembed.index import Condition, Filter, SearchOptions, VideoIndex
    from vidembed.index.search import load_stages

    quantized = one_name(quantized, compact)
    words = words_of(query, queries)  # what is cheap to find wrong comes before the model is loaded
    options: SearchKeywords = {
        "k": max(k, rerank or 0),
        "exact": exact,
        "keep": Filter(path, after, before, tuple(map(Condition.parse, where or ()))),
        "copy": quantized,
        "bank": bank,
        "merge": merge,
        "around": around,
        "by": by,
    }
    SearchOptions(k=k)
    SearchOptions(**options)
    if rerank_around and around is None:
        raise ValueError("rerank-around: it is for --around SECONDS; give the seconds around hits to ask about")
    own: dict[str, object] = {
        "reranker": reranker,
        "score": score,
        "calibration": calibration,
        "visual-cache": visual_cache,
    }
    if rerank is None:
        cli.refuse({**own, "rerank-around": rerank_around}, "it is for --rerank K; give the number of hits to look at")
    cli.check_score(score)
    cli.check_file("html", html)
    ask: Callable[[Sequence[str]], Iterable[Hits]]
    index: VideoIndex | None = None
    if server is not None:
        from vidembed.cli.client import Server

        own |= {"in": folder, "model": model, "quantized": quantized, "html": html, **cli.named(model_options)}
        switches = {"exact": exact, "no-mirror": no_mirror, "bank": bank, "rerank-around": rerank_around}
        cli.refuse({**own, **switches}, "it is for an index that is searched here; leave it out, or leave --server out")
        ask = partial(Server.named(server, timeout).search, options, k, rerank)
    else:
        cli.refuse({"timeout": timeout}, "it is for --server URL")
        if folder is None:
            raise ValueError("in: give the folder of an index with --in DIR, or a running server with --server URL")
        index = VideoIndex.open(folder, mirror=not no_mirror)
        check_index(index, options)
        name = model or index.meta.model
        load = partial(index.meta.load_encoder, model, model_options)
        same: RerankerOptions = {"mode": score, "calibration": calibration, "visual_cache": visual_cache}
        how: dict[str, Any] = {
            "model": name,
            "layer": index.meta.layer,
            "sampling": index.meta.sampling,
            "options": model_options,
        }
        encoder, head = (load(), None) if rerank is None else load_stages(load, reranker, **how, **same)
        look = None
        if rerank is not None and head is not None:
            look = partial(look_again, head=head, k=rerank, context=rerank_around, fingerprint=encoder.fingerprint)
        ask = partial(search_index, index, encoder, options, look, name=name)
    lines = queries is not None or (as_json and words is None)
    write = partial(write_hits, lines=lines, as_json=as_json, titled=words is None, compact=quantized)
    found = []
    for each, hits in answers(ask, words):
        if rerank is not None:
            say_lost(hits[:rerank])
        del hits[k:]
        write(each, hits)
        if html is not None:
            found.append((each, hits))
    if html is not None and index is not None:
        write_sheet(html, found, index)


def one_name(quantized: str | None, compact: str | None) -> str | None:
    """Return the value of --quantized, or of --compact, its earlier name; raises ValueError if both are given."""
    if quantized is not None and compact is not None:
        raise ValueError("compact: it is the earlier name of --quantized; give one of them")
    return quantized or compact


def words_of(query: str | None, queries: Path | None) -> list[str] | None:
    """Return the query, the lines of the file of queries, or None where neither is given.

    Raises:
        ValueError: One of them cannot be searched, or both are given.
    """
    from vidembed.index.rows import check_query

    if query is not None and queries is not None:
        raise ValueError("query: give words to look for, or a file of queries with --queries, and not both")
    if query is not None:
        check_query(query)
        return [query]
    if queries is None:
        return None
    words = read_queries(queries)
    for number, each in enumerate(words, start=1):
        check_query(each, name=f"queries: line {number} of {str(queries)!r}")
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
    from vidembed.index.search import ByCaptions

    if (keep := options["keep"]) is not None:
        keep.check(index)
    if (copy := options["copy"]) is not None:
        quantized(index, copy)
    if options["bank"]:
        open_bank(index)
    if options["by"] != "video":
        ByCaptions.of(index, options["by"])


def search_index(
    index: VideoIndex,
    encoder: VideoEncoder,
    options: SearchKeywords,
    look: Callable[[Hits, str], Hits] | None,
    words: Sequence[str],
    *,
    name: str,
) -> Iterator[Hits]:
    """Yield the hits of each query, all of them searched at once, and looked at again if they shall be."""
    from vidembed.index import search_many

    for query, hits in zip(words, search_many(index, encoder, words, name=name, **options), strict=True):
        yield hits if look is None else look(hits, query)


def look_again(hits: Hits, query: str, *, head: VideoReranker, k: int, context: bool, fingerprint: str) -> Hits:
    """Return hits with the first `k` ordered by a reranker."""
    from vidembed.index import Hits, rerank

    looked_at = rerank(hits[:k], head, query, context=context, fingerprint=fingerprint)
    return Hits([*looked_at, *hits[k:]], hits.method)


def answers(ask: Callable[[Sequence[str]], Iterable[Hits]], words: Sequence[str] | None) -> Iterator[tuple[str, Hits]]:
    """Yield queries with their hits; those of the terminal, where there are no `words`, as they come.

    A line of the terminal that cannot be searched is said, and the next one is asked for.
    """
    from vidembed.errors import IndexMismatchError, ServerRefusedError
    from vidembed.index.rows import check_query

    if words is not None:
        yield from zip(words, ask(words), strict=True)
        return
    for line in typed_lines():
        try:
            query = (line if isinstance(line, str) else line.decode("utf-8-sig")).rstrip("\r\n")
            if not query.strip():
                continue
            check_query(query)
            (hits,) = ask([query])
        except (IndexMismatchError, ServerRefusedError):
            raise  # so would every other line be
        except ValueError as error:
            cli.failed(error, cli.MISUSE)  # said, and not raised
            continue
        yield query, hits


def typed_lines() -> Iterator[str | bytes]:
    """Yield lines of standard input: with a prompt and line editing from a terminal, else as bytes."""
    if not sys.stdin.isatty():
        source = sys.stdin.buffer
        while line := source.readline(_LINE_BYTES):
            rest = line
            while len(rest) == _LINE_BYTES and not rest.endswith(b"\n"):  # too long in any case
                rest = source.readline(_LINE_BYTES)
            yield line
        return
    with suppress(ImportError):  # Windows edits lines by itself
        import readline  # noqa: F401 - `input` uses it when it is there
    cli.say("One query a line. Ctrl-D ends.")
    # `input` writes its prompt to stdout, where it belongs to no result only if that is the terminal too.
    to_terminal = sys.stdout.isatty()
    try:
        while True:
            if not to_terminal:
                typer.echo(_PROMPT, nl=False, err=True)
            yield input(_PROMPT if to_terminal else "")
    except EOFError:
        typer.echo(err=True)


def say_lost(hits: Sequence[Hit]) -> None:
    """Write to stderr which hits a reranker should have looked at, and could not."""
    from vidembed.index.table import name_of

    if lost := [name_of(hit.uri) for hit in hits if hit.probability is None]:
        cli.say(f"Not looked at, since the video is gone or cannot be read: {', '.join(lost)}.")


def write_hits(query: str, hits: Hits, *, lines: bool, as_json: bool, titled: bool, compact: str | None) -> None:
    """Write the hits of a query to stdout: as one line of JSON, as a JSON list, or as a table."""
    listed = [hit.to_dict() for hit in hits]
    if lines:
        typer.echo(json.dumps({"query": query, "search": hits.method.to_dict(), "hits": listed}, ensure_ascii=True))
    elif as_json:
        cli.print_json(listed)
    else:
        show(hits, title=query if titled else None)
        explain(hits, compact=compact)


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
    if how.by is None:
        return
    fitted = how.fusion == "fitted"
    order = {
        "caption": "Ordered by the cosine of query and caption.",
        "text": "Ordered by BM25 of the captions' words.",
        "hybrid": "Ordered by video, caption and words of the caption, with fitted weights."
        if fitted
        else "Ordered by video, caption and words of the caption, by reciprocal rank fusion: no weights were fitted "
        "(`vidembed calibrate INDEX --hybrid`).",
    }
    cli.say(order[how.by])
    if lacking := how.rows - (how.captioned or 0):
        rank = "count with the mean of the captions that were fitted on" if fitted else "are ranked by the video alone"
        what = rank if how.by == "hybrid" else "are no hits"
        cli.say(f"{lacking} of {how.rows} segments have no caption, and {what}.")


def show(hits: Sequence[Hit], *, title: str | None = None) -> None:
    """Write hits to stdout as a table. Columns that no hit has a value for are left out."""
    from vidembed.index.gallery import context_range, time_range
    from vidembed.index.table import name_of

    columns = {
        "match": ["" if hit.probability is None else f"{hit.probability:.1%}" for hit in hits],
        "normalized": ["" if hit.normalized is None else f"{hit.normalized:.3f}" for hit in hits],
        "hybrid score": ["" if hit.hybrid_score is None else f"{hit.hybrid_score:.4f}" for hit in hits],
        "caption score": ["" if hit.caption_score is None else f"{hit.caption_score:.3f}" for hit in hits],
        "text score": ["" if hit.text_score is None else f"{hit.text_score:.2f}" for hit in hits],
        "score": [f"{hit.score:.3f}" for hit in hits],
        "time": [time_range(hit.start_s, hit.end_s) for hit in hits],
        "around": [context_range(hit) for hit in hits],
        "segments": ["" if hit.segments is None else str(hit.segments) for hit in hits],
        "file": [name_of(hit.uri) for hit in hits],
        "caption": [_shortened(hit.caption or "") for hit in hits],
    }
    kept = {name: cells for name, cells in columns.items() if name in ("score", "time", "file") or any(cells)}
    cli.print_table([*kept], [list(row) for row in zip(*kept.values(), strict=True)], title=title)


def _shortened(caption: str) -> str:
    """Return a caption on one line, cut where it is long."""
    line = " ".join(caption.split())
    return line if len(line) <= CAPTION_WIDTH else f"{line[: CAPTION_WIDTH - 3]}..."


def write_sheet(path: Path, results: Sequence[tuple[str, Sequence[Hit]]], index: VideoIndex) -> None:
    """Write a contact sheet of hits of an index."""
    from vidembed.index import contact_sheet
    from vidembed.index.gallery import durations_of

    durations = durations_of(index, (hit for _, hits in results for hit in hits))
    path.write_text(contact_sheet(results, durations=durations), encoding="utf-8")
    cli.say(f"Wrote {path}")
