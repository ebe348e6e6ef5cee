"""`vidembed calibrate`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidembed.cli.console import print_json, print_table, say
from vidembed.cli.options import Device

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker


def command(
    *,
    model: Annotated[str, typer.Argument(help="A video MLLM with its head, or a saved reranker.", show_default=False)],
    pairs: Annotated[
        Path,
        typer.Option(
            help="JSONL or CSV with columns video and caption. With a column label (1 or 0), exactly these pairs; "
            "without one, the hits of a search for each caption are used (--encoder).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: NAME.json holds the fitted numbers, for `search --calibration`; any other name is "
            "a folder, which gets the whole reranker.",
            show_default=False,
        ),
    ],
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos. Default: that of the pairs.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="First stage, for pairs without labels; its similarity is fused with the score.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Decoder layer of --encoder, if that is a video MLLM.")] = None,
    candidates: Annotated[int, typer.Option("-k", "--candidates", min=2, help="Hits used of each caption.")] = 10,
    score: Annotated[
        str | None, typer.Option(help="yes, yes_no or prior_corrected. Default: the reranker's own.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw reliability before and after: .png, .svg or .pdf.")] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Fit what makes a reranker's scores calibrated probabilities, and say how far off they are."""
    from vidembed.annotations import read_pairs

    _check_targets(out, plot)
    rows = read_pairs(pairs, videos=videos)  # what is cheap to find wrong comes before a model is loaded
    labelled = rows[0].label is not None
    if labelled == (encoder is not None):
        needed = "leave --encoder out" if labelled else "give --encoder, or a column label"
        raise ValueError(f"pairs: {pairs} has {'a' if labelled else 'no'} column label; {needed}")
    reranker = _load(model, score, device)
    if encoder is None:
        asked: list[Any] = [({"text": row.text}, row.video) for row in rows]
        report = reranker.calibrate(asked, [bool(row.label) for row in rows], show_progress_bar=True)
    else:
        from vidembed.evaluation.candidates import first_stage_candidates
        from vidembed.index.model import load_model

        first = load_model(encoder, layer=layer, device=device)
        found = first_stage_candidates(first, rows, k=candidates)
        if found.missed:
            say(f"{found.missed} captions do not have their video among the first {candidates} hits.")
        report = reranker.calibrate(
            found.pairs, found.labels, first_stage=found.similarities, encoder=first, show_progress_bar=True
        )
    if out.suffix == ".json":
        reranker.save_calibration(out)
    else:
        reranker.save_pretrained(str(out))
    if plot is not None:
        report.plot(plot)
    facts = report.to_dict()
    if as_json:
        print_json(facts)
    else:
        print_table(["", "value"], [[name, str(value)] for name, value in facts.items()])
    say(f"Wrote {out}")


def _check_targets(out: Path, plot: Path | None) -> None:
    for option, path in (("out", out), ("plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option}: {str(path)!r} is in a folder that does not exist")
    if plot is not None and plot.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise ValueError(f"plot: {str(plot)!r}: expected a name that ends in .png, .svg or .pdf")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {str(out)!r} is a folder that is not empty; name a new one, or a .json file")


def _load(model: str, score: str | None, device: str | None) -> VideoReranker:
    """The reranker, without the calibration that it may have: it is fitted anew."""
    from vidembed.reranker import VideoReranker
    from vidembed.reranking.answers import check_mode

    mode = None if score is None else check_mode(score)
    try:
        reranker = VideoReranker(model, device=device)
    except OSError as error:
        raise ValueError(f"model: {model!r} cannot be loaded: {error}") from error
    reranker.calibration = reranker.fusion = reranker.first_stage = None
    if mode is not None:
        reranker.mode = mode
    return reranker
