"""`vidembed search`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import images
from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.index import Hit, Hits, SearchOptions, VideoIndex
    from vidembed.index.reranking import RerankerOptions
    from vidembed.reranker import VideoReranker

MAX_QUERIES_BYTES = 2**24
_LINE_BYTES = 2**16  # of a line that is read: more than any query takes in UTF-8
_PROMPT = "> "
CAPTION_WIDTH = 60  # characters of a caption that a table shows


def command(
    *,
    query: Annotated[
        str | None,
        Argument(help="What to look for, in words. Default: read queries from standard input, one per line."),
    ] = None,
    folder: Annotated[Path | None, Option("--in", help="Folder of the index.")] = None,
    k: Annotated[int, Option("-k", "--top-k", help="Number of hits to show.")] = 10,
    as_json: Annotated[bool, Option("--json", help="Write the hits to stdout as JSON, and nothing else.")] = False,
    html: Annotated[Path | None, Option(help="Write a page with a picture of each hit to this file.")] = None,
    with_images: Annotated[
        bool,
        Option("--images", help="Draw a picture of each hit, in a terminal that can (kitty, iTerm2, WezTerm, ...)."),
    ] = False,
    image_protocol: Annotated[
        images.Protocol | None,
        Option(
            help="With --images: how to draw. Default: found from TERM, TERM_PROGRAM, LC_TERMINAL, KITTY_WINDOW_ID."
        ),
    ] = None,
    model: cli.IndexModel = None,
    rerank: Annotated[
        int | None,
        Option(
            min=1,
            metavar="K",
            help="Ask a video MLLM whether each of the first K hits matches, and order them by P(match).",
        ),
    ] = None,
    reranker: cli.Reranker = None,
    score: cli.ScoreMode = None,
    calibration: cli.Calibration = None,
    visual_cache: Annotated[
        Path | None, Option(help="With --rerank: folder to keep visual tokens in; later searches reuse them.")
    ] = None,
    rerank_around: Annotated[
        bool, Option("--rerank-around", help="With --rerank: look at each hit with the seconds of --around.")
    ] = False,
    model_options: ModelOptions | None = None,
    queries: Annotated[
        Path | None, Option(help="Search each line of this UTF-8 file, and write one JSON line per query.")
    ] = None,
    path: Annotated[
        str | None, Option(help="Only videos whose path matches this glob; without a /, whose file name does.")
    ] = None,
    after: Annotated[float | None, Option(help="Only segments that end after this second of the video.")] = None,
    before: Annotated[float | None, Option(help="Only segments that start before this second of the video.")] = None,
    where: Annotated[
        list[str] | None, Option(help="Only rows where COLUMN=VALUE (or <, <=, !=, >=, >). Can be repeated.")
    ] = None,
    exact: Annotated[bool, Option("--exact", help="Compare every vector, even in a large index.")] = False,
    no_mirror: cli.NoMirror = False,
    quantized: Annotated[
        str | None, Option(help="Search the quantized approximate index, int8 or binary, for any number of segments.")
    ] = None,
    compact: Annotated[str | None, Option(hidden=True, help="The earlier name of --quantized.")] = None,
    bank: Annotated[bool, Option("--bank", help="Normalize scores with the query bank of the index.")] = False,
    merge: Annotated[
        cli.Merge, Option(help="One hit per moment (overlapping segments), one per video, or one per segment.")
    ] = "moments",
    around: Annotated[
        float | None, Option(help="Also show each hit with this many seconds before and after it.")
    ] = None,
    by: Annotated[
        cli.By,
        Option(
            help="Order by the video, its caption, the words of the caption, or all three (see `index --captions`)."
        ),
    ] = "video",
    server: Annotated[
        str | None,
        Option(help="Search on a running `vidembed serve` at this URL; the API key is read from VIDEMBED_API_KEY."),
    ] = None,
    timeout: Annotated[float | None, Option(help="With --server: seconds to wait for an answer. Default: 90.")] = None,
) -> None:
    """Search an index with words. With --rerank, a reranker looks at the best hits again."""
    from vidembed.index import Condition, Filter, SearchOptions, VideoIndex

    quantized = one_name(quantized, compact)
    words = words_of(query, queries)  # what is cheap to find wrong comes before the model is loaded
    keep = Filter(path, after, before, tuple(map(Condition.parse, where or ())))
    SearchOptions(k=k)
    options = SearchOptions(max(k, rerank or 0), exact, keep, quantized, bank, merge, around, by)
    if rerank_around and around is None:
        raise ValueError("rerank-around: it needs --around SECONDS; give that too, or leave this out")
    own: dict[str, object] = {
        "reranker": reranker,
        "score": score,
        "calibration": calibration,
        "visual-cache": visual_cache,
    }
    if rerank is None:
        cli.refuse(
            {**own, "rerank-around": rerank_around},
            "it needs --rerank K; give the number of hits to rerank, or leave this out",
        )
    cli.check_score(score)
    cli.check_file("html", html)
    draw = drawing(image_protocol, asked=with_images, in_json={"json": as_json, "queries": queries})
    ask: Callable[[Sequence[str]], Iterable[Hits]]
    index: VideoIndex | None = None
    if server is not None:
        from vidembed.cli.client import Server

        own |= {"in": folder, "model": model, "quantized": quantized, "html": html, **cli.named(model_options)}
        switches = {"exact": exact, "no-mirror": no_mirror, "bank": bank, "rerank-around": rerank_around}
        switches |= {"images": with_images}
        cli.refuse({**own, **switches}, "it cannot be used with --server; leave one of them out")
        ask = partial(Server.named(server, timeout).search, options, k, rerank)
    else:
        cli.refuse({"timeout": timeout}, "it needs --server URL; give that too, or leave this out")
        if folder is None:
            raise ValueError("in: give the folder of an index with --in DIR, or a running server with --server URL")
        index = VideoIndex.open(folder, mirror=not no_mirror)
        check_index(index, options)
        how: RerankerOptions = {"mode": score, "calibration": calibration, "visual_cache": visual_cache}
        how["options"] = model_options
        ask = searching(index, options, model, reranker, rerank=rerank, context=rerank_around, **how)
    lines = queries is not None or (as_json and words is None)
    write = partial(write_hits, draw=draw, lines=lines, as_json=as_json, titled=words is None, compact=quantized)
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
        raise ValueError("compact: it is the old name of --quantized; give one of them")
    return quantized or compact


def words_of(query: str | None, queries: Path | None) -> list[str] | None:
    """Return the query, the lines of the file of queries, or None where neither is given.

    Raises:
        ValueError: One of them cannot be searched, or both are given.
    """
    from vidembed.index.rows import check_query

    if query is not None and queries is not None:
        raise ValueError("query: got both a query and --queries; give one of them")
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
        raise ValueError(f"queries: {str(path)!r} has {len(lines)} lines; at most {MAX_QUERIES} are allowed")
    return [line.removesuffix("\r") for line in lines]


def check_index(index: VideoIndex, options: SearchOptions) -> None:
    """Refuse what the index does not have."""
    from vidembed.index.ann import quantized
    from vidembed.index.bank import open_bank
    from vidembed.index.hybrid import ByCaptions

    if options.keep is not None:
        options.keep.check(index)
    if options.copy is not None:
        quantized(index, options.copy)
    if options.bank:
        open_bank(index)
    if options.by != "video":
        ByCaptions.of(index, options.by)


def drawing(
    protocol: images.Protocol | None, *, asked: bool, in_json: Mapping[str, object]
) -> Callable[[Hits], None] | None:
    """Return what draws pictures of hits, or None where they are not asked for; ValueError if options do not fit."""
    if asked:
        return images.drawing(protocol, in_json=in_json)
    cli.refuse({"image-protocol": protocol}, "it needs --images; give that too, or leave it out")
    return None


def searching(
    index: VideoIndex,
    asked: SearchOptions,
    model: str | None,
    reranker: str | None,
    *,
    rerank: int | None,
    context: bool,
    **how: Unpack[RerankerOptions],
) -> Callable[[Sequence[str]], Iterable[Hits]]:
    """Load the models, and return what searches the index with them, and reranks the first `rerank` hits."""
    from vidembed.index.reranking import load_stages

    meta, name = index.meta, model or index.meta.model
    load = partial(meta.load_encoder, model, how.get("options"))
    if rerank is None:
        return partial(search_index, index, load(), asked, None, name=name)
    encoder, head = load_stages(load, reranker, model=name, layer=meta.layer, sampling=meta.sampling, **how)
    look = partial(look_again, index=index, head=head, count=rerank, context=context, fingerprint=encoder.fingerprint)
    return partial(search_index, index, encoder, asked, look, name=name)


def search_index(
    index: VideoIndex,
    encoder: VideoEncoder,
    options: SearchOptions,
    look: Callable[[Hits, str], Hits] | None,
    words: Sequence[str],
    *,
    name: str,
) -> Iterator[Hits]:
    """Yield the hits of each query, all of them searched at once, and looked at again if they shall be."""
    from vidembed.index import search_many

    for query, hits in zip(words, search_many(index, encoder, words, name=name, asked=options), strict=True):
        yield hits if look is None else look(hits, query)


def look_again(hits: Hits, query: str, *, index: VideoIndex, head: VideoReranker, **how: Any) -> Hits:
    """Return hits ordered by a reranker, as `vidembed.index.rerank`, with the fusion that is kept in the index."""
    from vidembed.index import rerank, stored_fusion

    fusion = stored_fusion(index, hits.method.by or "video", head)
    return rerank(hits, head, query, fusion=fusion, **how)


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
    cli.say("Type one query per line. Ctrl-D ends.")
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
        cli.say(f"Not reranked, because the video is missing or cannot be read: {', '.join(lost)}.")


def write_hits(
    query: str,
    hits: Hits,
    *,
    draw: Callable[[Hits], None] | None,
    lines: bool,
    as_json: bool,
    titled: bool,
    compact: str | None,
) -> None:
    """Write the hits of a query to stdout: as one line of JSON, as a JSON list, or as a table."""
    listed = [hit.to_dict() for hit in hits]
    if lines:
        typer.echo(json.dumps({"query": query, "search": hits.method.to_dict(), "hits": listed}, ensure_ascii=True))
    elif as_json:
        cli.print_json(listed)
    else:
        show(hits, title=query if titled else None)
        explain(hits, compact=compact)
        if draw is not None:
            draw(hits)


def explain(hits: Hits, *, compact: str | None = None) -> None:
    """Write to stderr how hits were found, where it is not by every vector's cosine, or not as it was asked for."""
    how = hits.method
    if how.approximate:
        cli.say(
            f"Approximate ({how.name}, {how.rows} segments): recall@{how.recall_at} {how.recall:.3f} against the exact "
            f"search, measured with {how.sample} queries made from stored vectors. --exact compares every vector."
        )
    elif compact is not None:
        cli.say(f"Every vector was compared, because the {compact} index gave too few hits after merging.")
    if how.query_bank:
        cli.say("Ordered by the score that the query bank normalizes (QB-norm).")
    elif how.query_bank is not None:
        cli.say(
            "Ordered by cosine: the best segment is the best of no query in the query bank, so QB-norm is the same."
        )
    if how.by is None:
        return
    fitted = how.fusion == "fitted"
    parts = "cosine, caption cosine and BM25"
    order = {
        "caption": "Ordered by the cosine of query and caption.",
        "text": "Ordered by BM25 of the query's words in the caption.",
        "hybrid": f"Ordered by the log-odds of a match: {parts}, with fitted weights."
        if fitted
        else f"Ordered by reciprocal rank fusion (RRF) of {parts}. `vidembed calibrate INDEX --hybrid` fits weights.",
    }
    cli.say(order[how.by])
    if how.reranked is not None:
        reranked = f"the head fused with the {how.by} score"
        if how.reranked == "head":
            fit = "vidembed calibrate INDEX --hybrid --pairs FILE --rerank K"
            reranked = f"the head alone: no fusion with the {how.by} score was fitted (`{fit}`)"
        cli.say(f"Reranked by {reranked}.")
    if lacking := how.rows - (how.captioned or 0):
        rank = "They count as the average caption of the fit" if fitted else "They are ranked by cosine alone"
        what = rank if how.by == "hybrid" else "They cannot be hits"
        cli.say(f"{lacking} of {how.rows} segments have no caption. {what}.")


def show(hits: Hits, *, title: str | None = None) -> None:
    """Write hits to stdout as a table, with the scores by their names. A column that is empty is left out."""
    from vidembed.index.hits import time_range
    from vidembed.index.table import name_of

    def scores(field: str, form: str) -> list[str]:
        return ["" if (score := getattr(hit, field)) is None else format(score, form) for hit in hits]

    def around(hit: Hit) -> str:
        start, end = hit.context_start_s, hit.context_end_s
        return "" if start is None or end is None else time_range(start, end)

    columns = {
        "P(match)": scores("probability", ".1%"),
        "QB-norm": scores("normalized", ".3f"),
        "log-odds" if hits.method.fusion == "fitted" else "RRF": scores("hybrid_score", ".4f"),
        "caption cosine": scores("caption_score", ".3f"),
        "BM25": scores("text_score", ".2f"),
        "cosine": scores("score", ".3f"),
        "time": [time_range(hit.start_s, hit.end_s) for hit in hits],
        "around": [around(hit) for hit in hits],
        "segments": ["" if hit.segments is None else str(hit.segments) for hit in hits],
        "file": [name_of(hit.uri) for hit in hits],
        "caption": [_shortened(hit.caption or "") for hit in hits],
    }
    kept = {name: cells for name, cells in columns.items() if name in ("cosine", "time", "file") or any(cells)}
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
