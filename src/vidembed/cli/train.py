"""`vidembed train`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from vidembed.cli.console import NOTHING_DONE, say
from vidembed.cli.options import Overwrite


def command(
    *,
    model: Annotated[str, typer.Option(help="Video MLLM, or a vidembed checkpoint to go on from: a folder or a name.")],
    pairs: Annotated[Path, typer.Option(help="File of captions and summaries, .csv or .jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    kind: Annotated[
        str, typer.Option(help="Columns of --pairs: plain, videoufo, nli, short; auto: as found.")
    ] = "auto",
    samples: Annotated[int, typer.Option(help="Pairs to sample from the file; 0 for all.")] = 60_000,
    on_bad: Annotated[str, typer.Option(help="At a row that cannot be used: raise, or skip it.")] = "raise",
    too_long: Annotated[
        str, typer.Option(help="At a text longer than --max-tokens: raise, or drop the pair.")
    ] = "raise",
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a text. Default: what the model takes.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Decoder layer to read, from 1; -1 is the last. Default: -1, or the checkpoint's."),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="A line before the content of each prompt. Default: none.")] = None,
    loss: Annotated[str, typer.Option(help="dual-softmax or infonce.")] = "dual-softmax",
    temperature: Annotated[float, typer.Option(help="What cosines are divided by.")] = 0.05,
    prior_temperature: Annotated[
        float, typer.Option(help="What cosines are divided by inside the dual-softmax factor.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Pairs of a step.")] = 288,
    mini_batch_size: Annotated[int, typer.Option(help="Texts embedded at once; bounds memory.")] = 16,
    epochs: Annotated[float, typer.Option(help="Times each pair is seen.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")] = 64,
    alpha: Annotated[float, typer.Option(help="The LoRA's updates are scaled by alpha / rank.")] = 128.0,
    dropout: Annotated[float, typer.Option(help="Dropout of the LoRA.")] = 0.05,
    held_out: Annotated[int, typer.Option(help="Pairs that are measured and not trained on.")] = 256,
    every: Annotated[int | None, typer.Option(help="Steps between measurements. Default: a tenth of the run.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the sample, the adapter's first weights and the order.")] = 0,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--no-bf16", help="Compute in bfloat16. Default: where CUDA supports it.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for activations, more time.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter/--merge", help="Write the PEFT adapter alone, or a merged checkpoint (default).")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Do not go on from an interrupted run.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: the model's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the best there is.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Align a model with pairs of captions and summaries, without any video: a light LoRA on the language model."""
    from vidembed.training import LoraSettings, TrainingSettings, align, sample_pairs
    from vidembed.training.extras import require_extra

    require_extra()
    if logging.getLogger("vidembed").getEffectiveLevel() > logging.WARNING:  # rows left out are not to pass unseen
        logging.getLogger("vidembed.training").setLevel(logging.WARNING)
    # what these are allowed to be is checked, and said, where they are used
    choices: dict[str, Any] = {"loss": loss, "on_error": on_bad, "too_long": too_long}
    training = TrainingSettings(
        loss=choices["loss"],
        batch_size=batch_size,
        mini_batch_size=mini_batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        temperature=temperature,
        prior_temperature=prior_temperature,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    lora = LoraSettings(rank=rank, alpha=alpha, dropout=dropout)
    try:
        sample = sample_pairs(pairs, samples or None, seed=seed, kind=kind, on_error=choices["on_error"])
        written = align(
            model,
            sample,
            out,
            layer=layer,
            prefix=prefix,
            lora=lora,
            training=training,
            held_out=held_out,
            every=every,
            max_tokens=max_tokens,
            too_long=choices["too_long"],
            output="adapter" if adapter else "merged",
            resume=not restart,
            overwrite=overwrite,
            dtype=dtype,
            device=device,
            progress=True,
        )
    except FloatingPointError as error:
        say(f"Error: {error}")
        raise typer.Exit(NOTHING_DONE) from error
    except OSError as error:  # no such model or file, or --out is taken
        raise ValueError(str(error)) from error
    say(_summary(json.loads((written / "alignment.json").read_text(encoding="utf-8"))))
    typer.echo(str(written))


def _summary(facts: dict[str, Any]) -> str:
    parts = [
        f"Trained {facts['trained_parameters']:,} parameters on {facts['pairs']:,} pairs in {facts['steps']:,} steps",
        f"loss {facts['first_loss']:.3g} to {facts['last_loss']:.3g}",
        f"{facts['false_negatives']:,} false negatives masked",
    ]
    if facts["left_out_too_long"]:
        parts.append(f"{facts['left_out_too_long']:,} pairs left out as too long")
    metric = "eval_summary_to_dense_R@1"
    if metric in facts["before"] and metric in facts["after"]:
        parts.append(
            f"held-out captions found by their summary {facts['before'][metric]} to {facts['after'][metric]} %"
        )
    return "; ".join(parts) + "."
