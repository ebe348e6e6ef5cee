"""`vidembed demo`."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli
from vidembed.cli.index import DEFAULT_MODEL, asked_model
from vidembed.cli.index import show as show_report

if TYPE_CHECKING:
    from vidembed.cli.demo_page import Asked, Demo
    from vidembed.encoder import VideoEncoder
    from vidembed.index import VideoIndex
    from vidembed.reranker import VideoReranker

SHOWN = 2  # queries that the terminal shows of those on the page
SUGGESTED = 3  # searches
LOOKED_AT = 10  # hits of a query that the head is asked about


def command(
    *,
    out: Annotated[Path, Option(help="Folder for the clips, the index and the page.")] = Path("demo-out"),
    clips: Annotated[int, Option(min=2, max=5000, help="How many clips to draw.")] = 60,
    seed: Annotated[int, Option(min=0, help="Decides which clips.")] = 0,
    model: Annotated[str, Option(help="Model to search with.")] = DEFAULT_MODEL,
    open_page: Annotated[bool, Option("--open", help="Open the page in a browser.")] = False,
    model_options: ModelOptions | None = None,
) -> None:
    """Draw clips that the bundled model has never seen, index them, search them in words, and say how well it went."""
    from vidembed.cli import demo_page as page
    from vidembed.encoder import load_encoder
    from vidembed.index import VideoIndex, index_videos
    from vidembed.index.commit import open_if_there
    from vidembed.index.reranking import load_reranker
    from vidembed.index.table import uri_of
    from vidembed.shapes import sample_clips, write_clips
    from vidembed.shapes.language import SUMMARY_ATTRIBUTES
    from vidembed.text import write_atomically

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

    queries = [(one.caption, {uri}) for uri, one in records.items()]
    queries += [
        (one.summary, described({key: one.attributes[key] for key in SUMMARY_ATTRIBUTES})) for one in records.values()
    ]
    found = _ask(index, encoder, queries)
    ways, charts = page.ways_of(found), []
    if model == DEFAULT_MODEL:  # its reranker comes with it
        cli.say(f"The head looks at the first {LOOKED_AT} hits of each query:")
        reranker = load_reranker(None, encoder, model=model, options=model_options)
        by_head, fused = _look_again(found, reranker)
        ways = page.ways_of(found, by_head, fused)
        cli.say("Every layer, on the same clips and queries:")
        charts = [page.layer_chart(reranker, encoder, records, queries), page.reliability_chart(by_head, fused)]
    result = page.Demo(model, encoder.checkpoint_config, records, ways, *charts)
    _say(result)
    suggested = [_search(one.query, to, reranked=len(ways) > 1) for one in result.succeeded()[:SUGGESTED]]
    file = out / "index.html"
    write_atomically(file, page.as_html(result, index, suggested))
    _say_next(file, to, suggested)
    if open_page and not webbrowser.open(file.resolve().as_uri()):
        cli.say(f"No browser could be opened; open {file} in one.")


def _ask(index: VideoIndex, encoder: VideoEncoder, queries: Sequence[tuple[str, set[str]]]) -> list[Asked]:
    from vidembed.cli.demo_page import Asked
    from vidembed.index import search_many

    found = search_many(index, encoder, [query for query, _ in queries], k=LOOKED_AT)
    return [Asked(query, right, hits) for (query, right), hits in zip(queries, found, strict=True)]


def _look_again(asked: Sequence[Asked], reranker: VideoReranker) -> tuple[list[Asked], list[Asked]]:
    """Order hits by the head alone, and by both. All are asked about at once, so that each clip is run once."""
    from vidembed.index.table import path_of
    from vidembed.scoring.calibration import sigmoid
    from vidembed.video import VideoSegment

    found = [(one.query, hit) for one in asked for hit in one.hits]
    answers = reranker.answers(
        [({"text": query}, VideoSegment(path_of(hit.uri), hit.start_s, hit.end_s)) for query, hit in found],
        show_progress_bar=True,
    )
    assert reranker.fusion is not None  # noqa: S101 - the bundled reranker is calibrated
    odds = answers.log_odds(reranker.mode)
    fused = reranker.fusion(odds, [hit.score for _, hit in found], [query for query, _ in found])

    def ordered(scores: Sequence[float]) -> list[Asked]:
        left = iter(scores)
        again = [replace(one, hits=[replace(hit, probability=next(left)) for hit in one.hits]) for one in asked]
        return [replace(one, hits=sorted(one.hits, key=lambda hit: -(hit.probability or 0.0))) for one in again]

    return ordered(sigmoid(odds).tolist()), ordered(fused.tolist())


def _say(result: Demo) -> None:
    """Write the first hits of some queries, and how often a right clip came first."""
    from vidembed.cli.demo_page import HITS, KINDS, recalls

    best = result.ways[-1]
    typer.echo("\nThe short captions of the first clips, right or wrong:")
    for one in [best.of("short")[place] for place in result.shown()[:SHOWN]]:
        typer.echo(f"\n{one.query}\n({'a' if one.succeeded else 'no'} right clip came first)")
        bars, clips = [best.bar(hit) for hit in one.hits[:HITS]], [result.records[hit.uri] for hit in one.hits[:HITS]]
        rows = [
            [bar.value, clip.name, clip.summary, "yes" if hit.uri in one.right else "no"]
            for hit, bar, clip in zip(one.hits, bars, clips, strict=False)
        ]
        cli.print_table([bars[0].name, "clip", "what it shows", "right"], rows)
    count = len(result.records)
    typer.echo(f"\nEach of the {count} clips, searched by its own captions:")
    rows = [
        [f"{kind} caption, {way.name.lower()}", *(f"{value:.1%}" for value in recalls(way.of(kind), count))]
        for kind in KINDS
        for way in result.ways
    ]
    cli.print_table(["", "recall@1", "recall@5", "by chance @1", "by chance @5"], rows)


def _search(query: str, index: Path, *, reranked: bool) -> str:
    return f"vidembed search {quote(query)} --in {quote(str(index))}" + (f" --rerank {LOOKED_AT}" if reranked else "")


def _say_next(file: Path, index: Path, suggested: Sequence[str]) -> None:
    cli.say(f"Wrote {file}: the hits of each way of search, right and wrong, with pictures.")
    search = suggested[0] if suggested else f"vidembed search WORDS --in {quote(str(index))}"
    typer.echo(
        "\nNext, type:\n"
        f"  {search}\n"
        f"  vidembed info {quote(str(index))}\n"
        "  vidembed build MLLM --layer N --name NAME   # a model for videos of the real world\n"
        "  vidembed index VIDEOS --to INDEX --model vidembed/NAME"
    )
