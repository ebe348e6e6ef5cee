"""`vidembed search`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidembed.cli.console import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.index import Hit


def command(
    *,
    query: Annotated[str, typer.Argument(help="What to look for, in words.", show_default=False)],
    folder: Annotated[Path, typer.Option("--in", help="Folder of the index.", show_default=False)],
    k: Annotated[int, typer.Option("-k", "--top-k", help="Most hits to show.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the hits to stdout as JSON, and nothing else.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture of each hit to this file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Load the model from here. Default: the name stored in the index.")
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Ask a model's head about the first so many hits, and order them by it.")
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(help="With --rerank: a saved reranker or a video MLLM. Default: the one that fits the model."),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="With --rerank: yes, yes_no or prior_corrected. Default: the reranker's own.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="With --rerank: file that `vidembed calibrate` wrote.")
    ] = None,
    visual_cache: Annotated[
        Path | None, typer.Option(help="With --rerank: folder to keep visual tokens in, for the next search.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda.")] = None,
) -> None:
    """Search an index in words; with --rerank, look at the best hits once more."""
    from vidembed.index import VideoIndex, search
    from vidembed.index.files import path_of
    from vidembed.index.model import load_model, load_reranker
    from vidembed.index.rerank import rerank as reranked
    from vidembed.index.search import check_query
    from vidembed.index.sheet import printable

    check_query(query, k)  # before the model is loaded, and before anything is written
    asked_for = {"reranker": reranker, "score": score, "calibration": calibration, "visual-cache": visual_cache}
    if rerank is None and any(asked_for.values()):
        given = next(option for option, value in asked_for.items() if value)
        raise ValueError(f"{given}: it is for --rerank K; give the number of hits to look at")
    if score is not None:
        from vidembed.reranking.answers import check_mode

        check_mode(score)
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ValueError(f"html: {str(html)!r} is a folder or in a folder that does not exist; name a file")
    index = VideoIndex.open(folder)
    name = model or index.meta.model
    encoder = load_model(name, layer=index.meta.layer, sampling=index.meta.sampling, device=device)
    hits = search(index, encoder, query, k=max(k, rerank or 0), name=name)
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
        looked_at = reranked(hits[:rerank], head, query)
        lost = [str(path_of(hit.uri)) for hit in looked_at if hit.probability is None]
        if lost:
            say(f"Not looked at, since the video is gone or cannot be read: {', '.join(map(printable, lost))}.")
        hits = [*looked_at, *hits[rerank:]][:k]
    if html is not None:
        write_sheet(html, [(query, hits)])
    if as_json:
        print_json([hit.to_dict() for hit in hits])
    else:
        show(hits)


def show(hits: Sequence[Hit], *, title: str | None = None) -> None:
    """Write hits to stdout as a table."""
    from vidembed.index.files import path_of
    from vidembed.index.sheet import time_range

    rows = [[f"{hit.score:.3f}", time_range(hit.start_s, hit.end_s), str(path_of(hit.uri))] for hit in hits]
    columns = ["score", "time", "file"]
    if any(hit.probability is not None for hit in hits):
        columns.insert(0, "match")
        for row, hit in zip(rows, hits, strict=True):
            row.insert(0, "" if hit.probability is None else f"{hit.probability:.1%}")
    print_table(columns, rows, title=title)


def write_sheet(path: Path, results: Sequence[tuple[str, Sequence[Hit]]]) -> None:
    """Write a contact sheet."""
    from vidembed.index import contact_sheet

    path.write_text(contact_sheet(results), encoding="utf-8")
    say(f"Wrote {path}")
