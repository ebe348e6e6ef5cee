"""`vidembed demo`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from vidembed.cli.console import NOTHING_DONE, print_table, say
from vidembed.cli.index import DEFAULT_MODEL
from vidembed.cli.index import run as run_index
from vidembed.cli.index import show as show_report
from vidembed.cli.search import write_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vidembed.index import Hit
    from vidembed.shapes import ClipRecord

FREE_QUERY = "a red square moving down that stops"
SHOWN = 4  # clips whose captions are searched and shown


def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the clips, the index and the page.")] = Path("demo-out"),
    clips: Annotated[int, typer.Option(min=2, max=5000, help="How many clips to draw.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Decides which clips.")] = 0,
    model: Annotated[str, typer.Option(help="Model to search with.")] = DEFAULT_MODEL,
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda.")] = None,
) -> None:
    """Draw clips that the bundled model has never seen, index them, search them in words, and say how well it went."""
    from vidembed.index import VideoIndex
    from vidembed.index.files import uri_of
    from vidembed.index.search import nearest
    from vidembed.shapes import sample_clips, write_clips

    folder = out / f"clips-{clips}-{seed}"
    to = out / f"index-{clips}-{seed}"
    if not (folder / "captions.jsonl").is_file():  # written last
        write_clips(folder, clips, split="test", seed=seed, progress=True)
    report, encoder = run_index([folder], to, model=model, device=device)
    show_report(report)
    if not report.any_in_index:
        raise typer.Exit(NOTHING_DONE)

    index = VideoIndex.open(to)
    records = {uri_of(folder.resolve() / f"{one.name}.mp4"): one for one in sample_clips(clips, "test", seed)}
    uris = list(records)

    def ask(queries: Sequence[str], k: int) -> list[list[Hit]]:
        vectors: NDArray[np.float64] = encoder.encode_query([{"text": query} for query in queries])  # (Q, D)
        return [nearest(index, vector.astype("float64"), k=k) for vector in vectors]

    captions, summaries = ([getattr(record, name) for record in records.values()] for name in ("caption", "summary"))
    by_caption, by_summary = ask(captions, 5), ask(summaries, 5)
    picked = range(0, clips, max(1, clips // SHOWN))[:SHOWN]
    shown: list[tuple[str, list[Hit], str | None]] = [(summaries[i], by_summary[i][:3], uris[i]) for i in picked]
    shown.append((FREE_QUERY, ask([FREE_QUERY], 3)[0], None))
    for query, hits, true in shown:
        _show(query, hits, records, true)

    _show_recall({"long captions": by_caption, "short captions": by_summary}, uris)
    page = out / f"hits-{clips}-{seed}.html"
    write_sheet(page, [(query, hits) for query, hits, _ in shown])
    typer.echo(
        "\nNext, type:\n"
        f"  vidembed search {quote('a blue circle moving left')} --in {quote(str(to))}\n"
        f"  vidembed info {quote(str(to))}\n"
        "  vidembed build MLLM --layer N --name NAME   # a model for videos of the real world\n"
        "  vidembed index VIDEOS --to INDEX --model vidembed/NAME"
    )


def _show(query: str, hits: Sequence[Hit], records: dict[str, ClipRecord], true: str | None) -> None:
    """Write the hits of a query, with what each clip really shows."""
    verdict = ""
    if true is not None:
        verdict = "  (its clip came first)" if hits[0].uri == true else f"  (its clip is {records[true].name})"
    typer.echo(f"\n{query}{verdict}")
    rows = [[f"{hit.score:.3f}", records[hit.uri].name, records[hit.uri].summary] for hit in hits]
    print_table(["score", "clip", "what it shows"], rows)


def _show_recall(results: dict[str, list[list[Hit]]], uris: list[str]) -> None:
    """Write how often a clip was among the first 1 and 5 for its own caption."""
    typer.echo(f"\nEach of the {len(uris)} clips, searched by its own caption:")
    rows = []
    for name, found in results.items():
        ranks = [
            next((i for i, hit in enumerate(hits) if hit.uri == uri), 5) for uri, hits in zip(uris, found, strict=True)
        ]
        rows.append([name, *(f"{sum(rank < k for rank in ranks) / len(uris):.1%}" for k in (1, 5))])
    rows.append(["by chance", *(f"{min(1.0, k / len(uris)):.1%}" for k in (1, 5))])
    print_table(["", "recall@1", "recall@5"], rows)
    say("Clips can share a short caption; then more than one is right and only its own counts.")
