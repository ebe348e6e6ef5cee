"""`vidembed build`, `layers`, `train` and `calibrate`: models are made, measured, aligned and calibrated."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.analysis import LayerAnalysis
    from vidembed.index import HybridReport
    from vidembed.index.reranking import RerankerOptions
    from vidembed.reranker import VideoReranker

_PREFIXES = {"both": ("none", "zero-shot"), "none": ("none",), "zero-shot": ("zero-shot",)}


def build_command(
    *,
    mllm: Annotated[str, Argument(help="Video MLLM: a folder or a name on the Hub.")],
    layer: Annotated[
        str | None,
        Option(
            metavar="INTEGER|auto",
            help="Decoder layer to read, from 1; -1 is the last, with its final norm; auto chooses it on --pairs, or "
            "on the model's own captions of --videos. Default: at 24/28 of the depth.",
        ),
    ] = None,
    pairs: Annotated[Path | None, Option(help="For --layer auto: captioned videos, a .jsonl or .csv file.")] = None,
    videos: Annotated[
        Path | None,
        Option(
            help="For --layer auto: a folder of videos that the model describes; with --pairs, the folder of the "
            "videos named there."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        Option(
            help="For --layer auto: .jsonl file for captions of --videos; without --videos, captions are read from it."
        ),
    ] = None,
    clips: Annotated[int, Option(min=1, help="For --layer auto: largest number of --videos to describe.")] = 200,
    seed: Annotated[
        int, Option(min=0, help="For --layer auto: random seed that chooses which of --videos to describe.")
    ] = 0,
    out: Annotated[Path | None, Option(help="Folder to write.")] = None,
    name: Annotated[
        str | None, Option(help="Name in the model store, instead of --out; the model loads as vidembed/NAME.")
    ] = None,
    prefix: Annotated[bool, Option(help="Put the paper's zero-shot line before each prompt.")] = True,
    standalone: Annotated[
        bool, Option("--standalone", help="Also write the weights up to the layer, for use without vidembed.")
    ] = False,
    model_options: ModelOptions | None = None,
    overwrite: cli.Overwrite = False,
) -> None:
    """Make a search model from a video MLLM: a few KB that name the model and the layer. It is checked first."""
    given = locals()  # all options by their names
    if (out is None) == (name is None):
        raise ValueError("out: give either --out DIR or --name NAME")
    if layer not in (None, "auto") and not re.fullmatch(r"\s*[+-]?\d+\s*", layer):
        raise ValueError(f"layer: got {layer!r}; give the number of a decoder layer, -1, or auto")
    from vidembed.building import build

    if layer == "auto":
        cli.show_logs("vidembed.building", logging.INFO)
    names = ("pairs", "videos", "captions", "clips", "seed", "out", "name", "standalone", "overwrite")
    with cli.misuse_of(OSError):  # no such model, or --out is taken
        same = {each: given[each] for each in names}
        same |= kwargs_of(model_options)
        same |= {"layer": layer if layer in (None, "auto") else int(layer), "prefix": "zero-shot" if prefix else None}
        written = build(mllm, **same)
    typer.echo(str(written))


def check_command(
    *,
    model: Annotated[str, Argument(help="Video MLLM, or a checkpoint of one: a folder or a name.")],
    layer: Annotated[
        int | None, Option(help="Decoder layer to read, from 1; -1 is the last. Default: the checkpoint's, or 24/28.")
    ] = None,
    prefix: Annotated[bool, Option(help="Put the paper's zero-shot line before each prompt.")] = True,
    model_options: ModelOptions | None = None,
    as_json: Annotated[bool, Option("--json", help="Write the result to stdout as JSON, and nothing else.")] = False,
) -> None:
    """Test whether vidembed works with your model. The exit code is 1 if a test fails."""
    from vidembed.check import check_model

    line = "zero-shot" if prefix else None
    with cli.misuse_of(OSError):  # no such model
        found = check_model(model, layer=layer, prefix=line, **kwargs_of(model_options))
    if as_json:
        cli.print_json(found.to_dict())
    else:
        rows = [
            [each.status, each.name, each.detail, f"{each.seconds:.1f}", f"{each.peak_mib:,.0f}"]
            for each in found.items
        ]
        cli.print_table(["", "check", "found", "s", "peak MiB"], rows, title=found.model)
        cli.say("; ".join(f"{what}: {'works' if works else 'does not work'}" for what, works in found.works.items()))
    if not found.passed:
        raise typer.Exit(cli.NOTHING_DONE)


def train_command(
    *,
    model: Annotated[str, Option(help="Video MLLM, or a vidembed checkpoint to continue from: a folder or a name.")],
    pairs: Annotated[Path, Option(help="File of captions and summaries, .csv or .jsonl.")],
    out: Annotated[Path, Option(help="Folder to write.")],
    kind: Annotated[
        str, Option(help="Columns of --pairs: plain, own, videoufo, nli or short; auto finds out.")
    ] = "auto",
    samples: Annotated[int, Option(help="Pairs to sample from the file; 0 for all.")] = 60_000,
    on_bad: Annotated[str, Option(help="For a row that cannot be used: raise an error, or skip it.")] = "raise",
    too_long: Annotated[
        str, Option(help="For a text longer than --max-tokens: raise an error, or drop the pair.")
    ] = "raise",
    max_tokens: Annotated[int | None, Option(help="Most tokens per text. Default: the limit of the model.")] = None,
    layer: Annotated[
        int | None, Option(help="Decoder layer to read, from 1; -1 is the last. Default: -1, or the checkpoint's.")
    ] = None,
    prefix: Annotated[str | None, Option(help="Line to put before the content of each prompt. Default: none.")] = None,
    loss: Annotated[str, Option(help="dual-softmax or infonce.")] = "dual-softmax",
    temperature: Annotated[float, Option(help="Temperature of the loss, which divides cosines.")] = 0.05,
    prior_temperature: Annotated[
        float, Option(help="Temperature of the prior in the dual-softmax loss, which divides cosines.")
    ] = 1.0,
    batch_size: Annotated[int, Option(help="Pairs per step.")] = 288,
    mini_batch_size: Annotated[int, Option(help="Texts embedded at once; fewer need less memory.")] = 16,
    epochs: Annotated[float, Option(help="Passes over the pairs.")] = 1.0,
    learning_rate: Annotated[float, Option(help="Peak learning rate.")] = 1e-4,
    rank: Annotated[int, Option(help="Rank of the LoRA.")] = 64,
    alpha: Annotated[float, Option(help="The LoRA's updates are scaled by alpha / rank.")] = 128.0,
    dropout: Annotated[float, Option(help="Dropout of the LoRA.")] = 0.05,
    held_out: Annotated[int, Option(help="Pairs for measuring, not training.")] = 256,
    every: Annotated[int | None, Option(help="Steps between measurements. Default: a tenth of the run.")] = None,
    seed: Annotated[int, Option(help="Random seed of the sample, the first weights of the LoRA and the order.")] = 0,
    bf16: Annotated[
        bool | None, Option("--bf16/--no-bf16", help="Compute in bfloat16. Default: where CUDA supports it.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, Option("--gradient-checkpointing", help="Use less memory and more time.")
    ] = False,
    adapter: cli.Adapter = False,
    restart: Annotated[bool, Option("--restart", help="Start again instead of continuing an interrupted run.")] = False,
    model_options: ModelOptions | None = None,
    overwrite: cli.Overwrite = False,
) -> None:
    """Train a model on pairs of captions and summaries, without videos: a small LoRA on the language model."""
    given = locals()  # all options by their names
    from vidembed.text import require_train_extra
    from vidembed.training import LoraSettings, TrainingSettings, align, sample_pairs

    require_train_extra()
    cli.show_logs("vidembed.training")  # rows left out are not to pass unseen
    same = ("layer", "prefix", "held_out", "every", "max_tokens", "too_long", "overwrite")
    with cli.misuse_of(OSError):  # no such model or file, or --out is taken
        written = align(
            model,
            sample_pairs(pairs, samples or None, seed=seed, kind=kind, on_error=given["on_bad"]),
            out,
            lora=LoraSettings(rank=rank, alpha=alpha, dropout=dropout),
            training=cli.fill(TrainingSettings, given),
            output="adapter" if adapter else "merged",
            resume=not restart,
            progress=True,
            **{name: given[name] for name in same},
            **kwargs_of(model_options),
        )
    cli.say(_summary(json.loads((written / "alignment.json").read_text(encoding="utf-8"))))
    typer.echo(str(written))


def _summary(facts: dict[str, Any]) -> str:
    parts = [
        f"Trained {facts['trained_parameters']:,} parameters on {facts['pairs']:,} pairs in {facts['steps']:,} steps",
        f"loss {facts['first_loss']:.3g} to {facts['last_loss']:.3g}",
        f"{facts['false_negatives']:,} false negatives masked",
    ]
    if facts["left_out_too_long"]:
        parts.append(f"{facts['left_out_too_long']:,} pairs left out as too long")
    before, after = (facts[when].get("eval_summary_to_dense_R@1") for when in ("before", "after"))
    if before is not None and after is not None:
        parts.append(f"held-out captions found by their summary {before} to {after} %")
    return "; ".join(parts) + "."


def layers_command(
    *,
    model: Annotated[list[str], Option(help="Video MLLM: a folder or a name on the Hub. Can be repeated.")],
    pairs: Annotated[Path | None, Option(help="Captioned videos: a .jsonl or .csv file.")] = None,
    captions: Annotated[
        Path | None, Option(help="Instead of --pairs: a .jsonl file with a dense and a short text of each video.")
    ] = None,
    videos: cli.PairVideos = None,
    out: Annotated[Path | None, Option(help="Folder for the figures as JSON and as a plot.")] = None,
    prefix: Annotated[
        Literal["both", "none", "zero-shot"],
        Option(help="Line before each prompt: the paper's zero-shot line, none, or measure both."),
    ] = "zero-shot",
    model_options: ModelOptions | None = None,
    plot: Annotated[Path | None, Option(help="Draw Recall@1 by layer to this .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, Option("--json", help="Write the figures to stdout as JSON.")] = False,
) -> None:
    """Measure retrieval at every decoder layer of a video MLLM on captioned videos, and choose a layer."""
    cli.check_folder(out)
    cli.check_file("plot", plot)
    from vidembed.analysis import analyze_layers
    from vidembed.analysis.layers import Pairs, check_mllm, checked_queries
    from vidembed.analysis.own_queries import own_texts, read_records
    from vidembed.backbone.load import check_device
    from vidembed.plots import check_plot

    if plot is not None:
        check_plot(plot)
    kwargs = kwargs_of(model_options)
    check_device(kwargs.get("device"))
    if (pairs is None) == (captions is None):
        raise ValueError("pairs: give either --pairs FILE or --captions FILE")
    given: Pairs | Mapping[str, Pairs]
    if captions is not None:
        cli.refuse({"videos": videos}, "paths in --captions are relative to its folder; leave it out")
        texts = own_texts(read_records(captions))
        cli.say(texts.summary())
        given = texts.queries()
    else:
        assert pairs is not None  # noqa: S101 - one of the two
        given = pairs
    queries = checked_queries(given, videos)
    analyses: list[LayerAnalysis] = []
    with cli.misuse_of(OSError):  # no such model
        for name in model:
            check_mllm(name)  # all of them, before the first one is run
        for name in model:
            lines = _PREFIXES[prefix]
            found = analyze_layers(name, queries, prefixes=lines, show_progress_bar=True, **kwargs)
            analyses.append(found)
            gc.collect()  # two models do not fit everywhere
    _write(analyses, out, plot)
    if as_json:
        cli.print_json([analysis.to_dict() for analysis in analyses])
    else:
        typer.echo("\n\n".join(analysis.table() for analysis in analyses))


def _write(analyses: Sequence[LayerAnalysis], out: Path | None, plot: Path | None) -> None:
    from vidembed.analysis import plot_layers
    from vidembed.plots import can_plot

    plots = [] if plot is None else [plot]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for analysis in analyses:
            plain = "layers-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", analysis.model)[-80:] or "model")
            numbered = (f"{plain}-{number}" for number in itertools.count(2))  # two folders of the same name
            stem = next(each for each in itertools.chain([plain], numbered) if each not in taken)
            taken.add(stem)
            analysis.save(out / f"{stem}.json")
            cli.say(f"Wrote {out / f'{stem}.json'}")
        if can_plot():
            plots.append(out / "layers.png")
        else:
            cli.say('No plot: matplotlib is not installed; pip install "vidembed[plot]"')
    for file in plots:
        plot_layers(analyses, file)
        cli.say(f"Wrote {file}")


def calibrate_command(
    *,
    model: Annotated[
        str,
        Argument(metavar="MODEL|INDEX", help="A video MLLM, or a saved reranker; with --hybrid, an index."),
    ],
    pairs: Annotated[
        Path,
        Option(
            help="JSONL or CSV with columns video and caption. With a column label (1 or 0), exactly these pairs are "
            "used; without it, the hits of a search for each caption (--encoder)."
        ),
    ],
    out: Annotated[
        Path | None,
        Option(
            help="NAME.json writes the fitted numbers, for `search --calibration`; any other name is a folder for the "
            "whole reranker."
        ),
    ] = None,
    hybrid: Annotated[
        bool, Option("--hybrid", help="Fit the weights of `search --by hybrid`, and store them in the index.")
    ] = False,
    videos: Annotated[Path | None, Option(help="Folder of the videos. Default: the folder of --pairs.")] = None,
    encoder: Annotated[
        str | None,
        Option(help="Model of the first stage, for pairs without labels; its cosine is fused with the score."),
    ] = None,
    layer: Annotated[int | None, Option(help="Decoder layer of --encoder, if it is a video MLLM.")] = None,
    candidates: Annotated[
        int | None,
        Option("-k", "--candidates", min=2, help="Hits to use per caption. Default: 10; with --hybrid, 50."),
    ] = None,
    rerank: Annotated[
        int | None,
        Option(min=2, help="With --hybrid: also fuse a reranker's answers about so many hits with their score."),
    ] = None,
    reranker: cli.Reranker = None,
    score: Annotated[str | None, Option(help="yes, yes_no or prior_corrected. Default: the reranker's own.")] = None,
    calibration: cli.Calibration = None,
    plot: Annotated[Path | None, Option(help="Draw reliability before and after: .png, .svg or .pdf.")] = None,
    model_options: ModelOptions | None = None,
    as_json: Annotated[bool, Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Calibrate a reranker, so that its scores are probabilities, and measure the calibration error."""
    from vidembed.captions import read_captioned_videos

    if hybrid:
        own: dict[str, object] = {"out": out, "encoder": encoder, "layer": layer, "plot": plot}
        cli.refuse(own, "it is an option for rerankers; leave it out, or leave --hybrid out")
        if rerank is None:
            of_rerankers = {"reranker": reranker, "score": score, "calibration": calibration}
            cli.refuse(of_rerankers, "it is an option for rerankers; leave it out, or give --rerank K too")
        how: RerankerOptions = {"mode": score, "calibration": calibration, "options": model_options}
        fitted = _calibrate_hybrid(Path(model), pairs, videos, candidates or 50, rerank, reranker, how)
        (cli.print_json if as_json else cli.print_facts)(fitted.to_dict())
        cli.say(f"Wrote the weights to {model}; `vidembed search --by hybrid` uses them.")
        return
    cli.refuse({"rerank": rerank, "reranker": reranker, "calibration": calibration}, "it is for --hybrid and an index")
    candidates = candidates or 10
    out = _checked(out, plot)
    rows = read_captioned_videos(pairs, videos=videos)  # what is cheap to find wrong comes before a model is loaded
    labelled = rows[0].label is not None
    if labelled == (encoder is not None):
        needed = "leave --encoder out" if labelled else "give --encoder, or a column label"
        raise ValueError(f"pairs: {pairs} has {'a' if labelled else 'no'} column label; {needed}")
    head = _uncalibrated(model, score, model_options)
    if encoder is None:
        asked = [({"text": row.text}, row.video) for row in rows]
        report = head.calibrate(asked, [bool(row.label) for row in rows], show_progress_bar=True)
    else:
        from vidembed.encoder import load_encoder
        from vidembed.evaluation.two_stage import first_stage_candidates
        from vidembed.index.reranking import encoder_beside

        options = model_options and replace(model_options, revision=None)
        load = partial(load_encoder, encoder, layer=layer, options=options)
        first = encoder_beside(head, load, model=encoder, layer=layer)
        found = first_stage_candidates(first, rows, k=candidates)
        if found.missed:
            cli.say(f"{found.missed} captions do not find their video among the first {candidates} hits.")
        report = head.calibrate(
            found.pairs, found.labels, first_stage=found.similarities, encoder=first, show_progress_bar=True
        )
    if out.suffix == ".json":
        head.save_calibration(out)
    else:
        head.save_pretrained(str(out))
    if plot is not None:
        report.plot(plot)
    if as_json:
        cli.print_json(report.to_dict())
    else:
        cli.print_facts({name: str(value) for name, value in report.to_dict().items()})
    cli.say(f"Wrote {out}")


def _checked(out: Path | None, plot: Path | None) -> Path:
    """Return --out of a reranker; raises ValueError if it or --plot cannot be written."""
    from vidembed.plots import check_plot

    cli.check_file("plot", plot)
    if plot is not None:
        check_plot(plot)
    if out is None:
        raise ValueError("out: give a file or a folder with --out, or --hybrid and an index")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out: {str(out)!r} is in a folder that does not exist")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {str(out)!r} is a folder that is not empty; give a new folder, or a .json file")
    return out


def _calibrate_hybrid(
    folder: Path,
    pairs: Path,
    videos: Path | None,
    candidates: int,
    rerank: int | None,
    reranker: str | None,
    of_head: RerankerOptions,
) -> HybridReport:
    """Fit the weights of hybrid search, and with `rerank` the fusions with the head, and say what was left out."""
    from vidembed.captions import read_captioned_videos
    from vidembed.index import VideoIndex, fit_hybrid
    from vidembed.index.hybrid import ByCaptions
    from vidembed.index.reranking import load_stages

    cli.check_score(of_head["mode"])
    index = VideoIndex.open(folder)
    ByCaptions.of(index, "text")  # what is cheap to find wrong comes before the model is loaded
    rows = read_captioned_videos(pairs, videos=videos)
    meta, head = index.meta, None
    load = partial(meta.load_encoder, None, of_head["options"])
    how: dict[str, Any] = {"candidates": candidates, "name": meta.model}
    if rerank is None:
        encoder = load()
    else:
        of_index: dict[str, Any] = {"model": meta.model, "layer": meta.layer, "sampling": meta.sampling}
        encoder, head = load_stages(load, reranker, **of_index, **of_head)
        how |= {"reranker": head, "rerank_k": rerank}
    report = fit_hybrid(folder, encoder, rows, **how)
    if report.missed:
        cli.say(
            f"{report.missed} texts were left out, because their video is not among the first {candidates} candidates."
        )
    for by, why in ({} if report.rerank is None else report.rerank.unfitted).items():
        cli.say(f"Reranked hits by {by} are ordered by the head alone, since no fusion could be fitted: {why}")
    return report


def _uncalibrated(model: str, score: str | None, options: ModelOptions | None) -> VideoReranker:
    """Load a reranker without the calibration that it may have, since it is fitted anew."""
    from vidembed.reranker import VideoReranker
    from vidembed.yes_no import check_mode

    mode = None if score is None else check_mode(score)
    try:
        reranker = VideoReranker(model, **kwargs_of(options))
    except OSError as error:
        raise ValueError(f"model: {model!r} cannot be loaded: {error}") from error
    reranker.calibration = reranker.fusion = reranker.first_stage = None
    if mode is not None:
        reranker.mode = mode
    return reranker
