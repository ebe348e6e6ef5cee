"""`vidembed demo`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli
from vidembed.cli.index import DEFAULT_MODEL, asked_model
from vidembed.cli.index import show as show_report
from vidembed.cli.search import write_sheet

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.index import Hit, VideoIndex
    from vidembed.reranker import VideoReranker
    from vidembed.shapes import ClipRecord

SHOWN = 4  # short captions that were found, to show
LOOKED_AT = 10  # hits of a short caption that the head is asked about


@dataclass(slots=True)
class Asked:
    """A query and its hits."""

    query: str
    right: set[str]  # URIs of the clips that it describes
    hits: list[Hit]  # best first


def command(
    *,
    out: Annotated[Path, Option(help="Folder for the clips, the index and the page.")] = Path("demo-out"),
    clips: Annotated[int, Option(min=2, max=5000, help="How many clips to draw.")] = 60,
    seed: Annotated[int, Option(min=0, help="Decides which clips.")] = 0,
    model: Annotated[str, Option(help="Model to search with.")] = DEFAULT_MODEL,
    model_options: ModelOptions | None = None,
) -> None:
    """Draw clips that the bundled model has never seen, index them, search them in words, and say how well it went."""
    from vidembed.encoder import load_encoder
    from vidembed.index import VideoIndex, index_videos
    from vidembed.index.ingest import open_if_there
    from vidembed.index.search import load_reranker
    from vidembed.index.table import uri_of
    from vidembed.shapes import sample_clips, write_clips
    from vidembed.shapes.language import SUMMARY_ATTRIBUTES

    folder = out / f"clips-{clips}-{seed}"
    to = out / f"index-{clips}-{seed}"
    if not (folder / "captions.jsonl").is_file():  # written last
        write_clips(folder, clips, split="test", seed=seed, progress=True)
    name, layer, sampling = asked_model(open_if_there(to), model, None, {})
    encoder = load_encoder(name, layer=layer, sampling=sampling, options=model_options)
    report = index_videos([folder], to, encoder, model=name, layer=layer)
    show_report(report)
    if not report.any_in_index:
        raise typer.Exit(cli.NOTHING_DONE)
    index = VideoIndex.open(to)
    records = {uri_of(folder.resolve() / f"{one.name}.mp4"): one for one in sample_clips(clips, "test", seed)}

    def described(attributes: dict[str, str]) -> set[str]:
        """Return the clips that have these attributes: a short caption can be true of several."""
        return {uri for uri, record in records.items() if attributes.items() <= record.attributes.items()}

    short = [
        (one.summary, described({key: one.attributes[key] for key in SUMMARY_ATTRIBUTES})) for one in records.values()
    ]
    by_caption = _ask(index, encoder, [(one.caption, {uri}) for uri, one in records.items()])
    by_summary = _ask(index, encoder, short, k=LOOKED_AT)
    rows = [recall_row("long caption", by_caption, clips), recall_row("short caption", by_summary, clips)]
    best = by_summary
    if model == DEFAULT_MODEL:  # its reranker comes with it
        best = _look_again(by_summary, load_reranker(None, encoder, model=model, options=model_options))
        rows.append(recall_row("short caption, reranked", best, clips))
    shown = _chosen(best)
    typer.echo("\nShort captions: the surest of those that were found, and one that was not if there is one.")
    for one in shown:
        _show(one, records)
    typer.echo(f"\nEach of the {clips} clips, searched by its own captions:")
    cli.print_table(["", "recall@1", "recall@5", "by chance @1", "by chance @5"], rows)

    write_sheet(out / f"hits-{clips}-{seed}.html", [(one.query, one.hits[:3]) for one in shown])
    typer.echo(
        "\nNext, type:\n"
        f"  vidembed search {quote(shown[0].query)} --in {quote(str(to))} --rerank {LOOKED_AT}\n"
        f"  vidembed info {quote(str(to))}\n"
        "  vidembed build MLLM --layer N --name NAME   # a model for videos of the real world\n"
        "  vidembed index VIDEOS --to INDEX --model vidembed/NAME"
    )


def _ask(index: VideoIndex, encoder: VideoEncoder, queries: Sequence[tuple[str, set[str]]], k: int = 5) -> list[Asked]:
    from vidembed.index import search_many

    found = search_many(index, encoder, [query for query, _ in queries], k=k)
    return [Asked(query, right, hits) for (query, right), hits in zip(queries, found, strict=True)]


def _look_again(asked: Sequence[Asked], reranker: VideoReranker) -> list[Asked]:
    """Ask the head about all hits at once, so that each clip is run once for all queries that found it."""
    from vidembed.index.table import path_of
    from vidembed.video import VideoSegment

    found = [(one.query, hit) for one in asked for hit in one.hits]
    answers = reranker.answers(
        [({"text": query}, VideoSegment(path_of(hit.uri), hit.start_s, hit.end_s)) for query, hit in found],
        show_progress_bar=True,
    )
    assert reranker.fusion is not None  # noqa: S101 - the bundled reranker is calibrated
    similarities = [hit.score for _, hit in found]
    odds = answers.log_odds(reranker.mode)
    scores = iter(reranker.fusion(odds, similarities, [query for query, _ in found]).tolist())
    again = []
    for one in asked:
        hits = [replace(hit, probability=next(scores)) for hit in one.hits]
        again.append(Asked(one.query, one.right, sorted(hits, key=lambda hit: -(hit.probability or 0.0))))
    return again


def _show(asked: Asked, records: dict[str, ClipRecord]) -> None:
    """Write the first three hits of a query, with what each clip really shows."""
    typer.echo(f"\n{asked.query}\n({'a' if asked.hits[0].uri in asked.right else 'no'} right clip came first)")
    rows = []
    for hit in asked.hits[:3]:
        sure = f"{hit.score:.3f}" if hit.probability is None else f"{hit.probability:.1%}"
        shown = records[hit.uri]
        rows.append([sure, shown.name, shown.summary, "yes" if hit.uri in asked.right else ""])
    cli.print_table(["score" if asked.hits[0].probability is None else "match", "clip", "what it shows", "right"], rows)


def _chosen(results: Sequence[Asked]) -> list[Asked]:
    """Up to `SHOWN` queries that a right clip came first for, the surest first, and one more that it did not."""
    different = sorted(
        {one.query: one for one in results}.values(), key=lambda one: -(one.hits[0].probability or one.hits[0].score)
    )
    found = [one for one in different if one.hits[0].uri in one.right]
    missed = [one for one in different if one.hits[0].uri not in one.right]
    return [*found[:SHOWN], *missed[:1]]


def recall_row(name: str, results: Iterable[Asked], clips: int) -> list[str]:
    """Return how often a right clip was among the first 1 and 5, and how often it would be in a random order."""
    results = list(results)
    found = [sum(any(hit.uri in one.right for hit in one.hits[:k]) for one in results) for k in (1, 5)]
    chance = [sum(1 - comb(clips - len(one.right), k) / comb(clips, k) for one in results) for k in (1, min(5, clips))]
    return [name, *(f"{count / len(results):.1%}" for count in (*found, *chance))]
