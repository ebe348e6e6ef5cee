"""`vidembed caption`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.cli import options as cli
from vidembed.cli.index import cut_of

DEFAULT_MODEL = "vidembed/shapes-rerank"
SHAPES_WARNING = (
    f"Note: {DEFAULT_MODEL} knows only videos of moving coloured shapes. For other videos, give --model: a video "
    "MLLM, or a saved reranker."
)


def command(
    *,
    videos: Annotated[list[str], Argument(help="Videos, and folders of videos.")],
    out: Annotated[Path, Option(help="File of captions to write (.jsonl), or to continue.")],
    model: Annotated[str, Option(help="A video MLLM, or a saved reranker.")] = DEFAULT_MODEL,
    calibration: Annotated[
        Path | None, Option(help="Calibration written by `vidembed calibrate`, for the probabilities of --agree.")
    ] = None,
    kinds: Annotated[
        str | None, Option(help="Kinds of text, separated by commas. Default: dense,short and those of --prompt.")
    ] = None,
    prompt: Annotated[
        list[str] | None, Option(metavar="KIND=TEXT", help="Prompt for a kind of text. Can be repeated.")
    ] = None,
    max_new_tokens: Annotated[int | None, Option(min=1, help="Most tokens per text. Default: 256.")] = None,
    temperature: Annotated[
        float | None, Option(help="0 takes the most likely token; above 0, tokens are sampled. Default: 0.")
    ] = None,
    seed: Annotated[int | None, Option(min=0, help="Random seed of the sampling. Default: 0.")] = None,
    agree: Annotated[
        bool, Option(help="Ask the model whether each text is true of its video, and mark texts that it denies.")
    ] = True,
    segment: Annotated[
        float | None, Option(help="Cut videos into segments of this many seconds. Default: whole videos.")
    ] = None,
    overlap: Annotated[float | None, Option(help="Seconds that a segment shares with the next. Default: 0.")] = None,
    scenes: Annotated[
        bool, Option("--scenes", help="Cut videos at scene changes instead of fixed times (extra: scenes).")
    ] = False,
    fps: Annotated[float | None, Option(help="Frames to sample per second. Default: the model's.")] = None,
    max_frames: Annotated[int | None, Option(help="Most frames per segment. Default: the model's.")] = None,
    on_error: Annotated[
        Literal["skip", "raise"], Option(help="For a file that cannot be captioned: report it and continue, or stop.")
    ] = "skip",
    batch_size: Annotated[int, Option(min=1, help="Segments per batch.")] = 8,
    model_options: ModelOptions | None = None,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Remove records of another model or of other settings from the file.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Write captions of videos with a model. Run it again to add what is not in the file yet."""
    given = locals()  # all options by their names
    from vidembed.captions import DescribeOptions, write_captions
    from vidembed.captions.writing import check_out
    from vidembed.errors import BackendUnavailable, InputError
    from vidembed.index.files import find_videos
    from vidembed.index.table import name_of, path_of
    from vidembed.reranker import VideoReranker
    from vidembed.video import VIDEO_SUFFIXES, VideoError

    check_out(out)  # what is cheap to find wrong comes before the model is loaded
    given["kinds"], given["prompts"] = asked_of(kinds, prompt or [])
    options = cli.fill(DescribeOptions, given)
    cut = cut_of(segment, overlap, scenes=scenes)
    listing = find_videos(videos, VIDEO_SUFFIXES)
    cli.show_logs("vidembed.captions")  # a line cut short is not to pass unseen
    if model == DEFAULT_MODEL:
        cli.say(SHAPES_WARNING)
    with cli.misuse_of(OSError):  # no such model
        reranker = VideoReranker(model, calibration=calibration, **kwargs_of(model_options))
    sampling = {name: given[name] for name in ("fps", "max_frames") if given[name] is not None}
    reranker.sampling = replace(reranker.sampling, **sampling)
    same = {name: given[name] for name in ("batch_size", "on_error", "overwrite")}
    same |= {"name": model, "cut": cut, **vars(options)}
    try:
        report = write_captions(reranker, [path_of(uri) for uri in listing.files], out, **same)
    except BackendUnavailable:
        raise  # scenes cannot be found here
    except (VideoError, InputError) as error:  # with --on-error raise
        raise cli.failed(error, cli.NOTHING_DONE) from error
    report.failed |= {name_of(each.uri): f"{each.kind}: {each.message}" for each in listing.problems}
    if as_json:
        cli.print_json(report.to_dict())
    else:
        if report.failed:
            cli.print_table(["not described", "reason"], [[*each] for each in report.failed.items()])
        done = f"{report.described} described ({report.marked} marked), {report.unchanged} unchanged"
        typer.echo(f"{done}, {len(report.failed)} failed. {cli.plain(report.out)} holds {report.records} records.")
    if not report.described + report.unchanged:
        cli.say("No video could be described.")
        raise typer.Exit(cli.NOTHING_DONE)


def asked_of(kinds: str | None, prompts: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the kinds of text, and the prompt of each, that --kinds and --prompt ask for."""
    from vidembed.captions import PROMPTS

    own: dict[str, str] = {}
    for each in prompts:
        kind, given, text = each.partition("=")
        if not given or not kind.strip() or not text.strip():
            raise ValueError(f"prompt: got {each!r}; expected KIND=TEXT, such as tags='Name what is seen above:'")
        own[kind.strip()] = text.strip()
    named = list(dict.fromkeys([*PROMPTS, *own])) if kinds is None else [kind.strip() for kind in kinds.split(",")]
    if unused := [kind for kind in own if kind not in named]:
        raise ValueError(f"prompt: {', '.join(unused)} is not among --kinds {kinds}; add it there, or leave it out")
    return named, {**PROMPTS, **own}
