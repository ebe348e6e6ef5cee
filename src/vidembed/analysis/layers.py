"""`analyze_layers`: which decoder block of a video MLLM retrieves best, on pairs of the user's own."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PretrainedConfig

from vidembed.analysis.measure import (
    Bootstrap,
    Half,
    Relation,
    halves_of_kinds,
    join,
    joint_merit,
    margin_over,
    measure_prompt,
    relation_of,
    split_halves,
)
from vidembed.analysis.result import LayerAnalysis, Sample
from vidembed.backbone.architectures import REMOTE_CODE_TYPES, conditional_class
from vidembed.backbone.load import Backbone, check_dtype
from vidembed.backbone.options import with_dtype
from vidembed.captions import CaptionedVideo, read_captioned_videos
from vidembed.encoder import VideoEncoder
from vidembed.errors import BackboneError, LayerError, LongQueries, warn
from vidembed.evaluation.metrics import RESAMPLES
from vidembed.inputs import Input
from vidembed.pipeline import OnError, check_on_error, wants_bar
from vidembed.registry import CONFIG_FILE, resolve_model
from vidembed.scoring.checks import whole_number
from vidembed.video import Sampling

logger = logging.getLogger(__name__)
FloatStates = NDArray[np.float32]
# a file that `vidembed.captions.read_captioned_videos` reads, or its rows
Pairs = str | Path | Iterable[CaptionedVideo]
LONG_WORDS: Final = 12  # median words of queries from which they count as long (ours: summaries have some eight)


def analyze_layers(
    model: str | Path | Backbone,
    pairs: Pairs | Mapping[str, Pairs],
    *,
    videos: str | Path | None = None,
    prefixes: str | Sequence[str] = ("zero-shot",),
    dual_softmax: bool = True,
    sampling: Sampling | None = None,
    video_backend: str = "pyav",
    batch_size: int = 32,
    on_error: OnError = "raise",
    seed: int = 0,
    resamples: int = RESAMPLES,
    dtype: str | None = None,
    device: str | None = None,
    show_progress_bar: bool | None = None,
    **hub_kwargs: Any,
) -> LayerAnalysis:
    """Measure text-video retrieval at every decoder block of a video MLLM, and choose a block.

    Each video and each text is run once per prompt; the last token's state of every block is kept, ``(L + 1) * D``
    float32 values an input however long it is. The layer is the one with the best mean Recall@1 of both directions, by
    cosine, on one half of the videos; of equals the one with the greatest mean reciprocal rank, and of a run of equals
    in that too the middle. Figures and intervals (bootstrap over queries, texts of one video together) are of the other
    half (`split_halves`). Dual-softmax has one temperature a layer and direction, fitted on the choosing half.

    Equal videos (by resolved path) and equal texts are one; any of a text's videos counts. Equal means the same words:
    two wordings of the same content count against each other.

    Which layer is best differs with the length of the queries. With several kinds of queries for the same videos the
    choice is by the mean over kinds, and figures are of each kind.

    Args:
        model: Directory or name of a video MLLM of a supported architecture, or a loaded `Backbone`. Not a checkpoint
            of `vidembed.build`, which holds no block after its layer.
        pairs: A file of captioned videos, or `CaptionedVideo` rows. Rows with a label of False are left out. Several
            kinds of queries: a mapping of such by name, such as "dense" and "short"; `own_texts` makes one of captions.
        videos: Folder of the videos that a file names by relative paths. Default: the file's own.
        prefixes: What to put before the content of the prompt, one pass each: "zero-shot" (the paper's line), "none",
            or any text.
        dual_softmax: Whether to measure dual-softmax too. It takes the longest part of ranking some thousand texts.
        sampling: The frame grid; default ``Sampling()``.
        video_backend: Video decoder, "pyav" or "decord".
        batch_size: Most inputs per batch.
        on_error: "raise", or "skip" to leave out what fails, and the texts that have no other video; the result says.
        seed: Of the split and the bootstrap, at least 0.
        resamples: Of the bootstrap. Default 2,000.
        dtype: "float32", "bfloat16", "float16", or None for the dtype of the MLLM.
        device: Where to run, for example "cuda"; default as sentence-transformers chooses.
        show_progress_bar: Whether to show bars; by default only if the log level is INFO or DEBUG.
        **hub_kwargs: ``revision``, ``token``, ``cache_folder``, ``local_files_only``; and ``model_kwargs``.

    Warns:
        LongQueries: All kinds of queries are long: their median is `LONG_WORDS` words or more.

    Raises:
        AnnotationError: The file of pairs cannot be used.
        ValueError: There are too few pairs, or an argument is out of range.
        BackboneError: The model is a cut checkpoint, not supported or incomplete.
        VideoError: A video could not be decoded, with ``on_error="raise"``; an InputError of a text.
    """
    check_on_error(on_error)
    check_dtype(dtype)
    names = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name.strip() for name in names):
        allowed = "'none', 'zero-shot' or a text that stands for itself."
        raise ValueError(f"prefixes={prefixes!r}: expected one or more different values: {allowed}")
    for argument, value, least in (("seed", seed, 0), ("resamples", resamples, 1), ("batch_size", batch_size, 1)):
        whole_number(argument, value, least=least)
    kinds = {kind: relation_of(rows) for kind, rows in checked_queries(pairs, videos, seed=seed).items()}
    _warn_of_long(kinds)
    relation = join(kinds.values())
    lines = [None if name == "none" else name for name in names]
    how: dict[str, Any] = {"sampling": sampling, "video_backend": video_backend, **hub_kwargs}
    encoder = open_mllm(model, device=device, dtype=dtype, prefix=lines[0], **how)
    states: list[tuple[FloatStates, FloatStates]] = []  # of videos (L + 1, V, D) and of texts (L + 1, T, D), by prefix
    failed: dict[int, Exception] = {}
    how = {"batch_size": batch_size, "on_error": on_error, "show_progress_bar": show_progress_bar}
    for number, line in enumerate(lines):
        encoder = with_prefix(encoder, line) if number else encoder
        of_videos, of_texts, errors = read_states(encoder, relation.videos, relation.texts, **how)
        states.append((of_videos, of_texts))
        failed |= errors

    kept, halves = _halves(relation, failed, seed)
    bootstrap = Bootstrap(seed, resamples)
    of_kinds = halves_of_kinds(kinds, halves)
    options = {"dual": dual_softmax, "show_progress_bar": wants_bar(show_progress_bar)}
    measured = {
        name: measure_prompt(
            name, of_videos, {kind: (of_texts, both) for kind, both in of_kinds.items()}, bootstrap, **options
        )
        for name, (of_videos, of_texts) in zip(names, states, strict=True)
    }
    chosen = {name: {kind: readout for kind, (_, readout) in found.items()} for name, found in measured.items()}
    best = max(names, key=lambda name: joint_merit([readout.merit for readout in chosen[name].values()]))
    margins = (
        margin_over(readout, chosen[name][kind], name, bootstrap, kind=kind)
        for name in names
        if name != best
        for kind, readout in chosen[best].items()
    )
    parts = encoder.parts
    source = model.name if isinstance(model, Backbone) else str(model)
    return LayerAnalysis(
        model=Path(source).name if Path(source).exists() else source,
        model_type=parts.model_type,
        depth=parts.depth,
        sample=_sample(relation, kept, halves, failed, bootstrap),
        prompts=tuple(prompt for found in measured.values() for prompt, _ in found.values()),
        chosen_prefix=best,
        prefix_margins=tuple(margins),
        kinds={kind: _of_halves(both, bootstrap) for kind, both in of_kinds.items() if kind},
    )


def checked_queries(
    pairs: Pairs | Mapping[str, Pairs], videos: str | Path | None = None, *, seed: int = 0
) -> dict[str, list[CaptionedVideo]]:
    """Read or check pairs by kind of query (pairs alone: one without a name), and that they are enough; no model."""
    kinds = pairs if isinstance(pairs, Mapping) else {"": pairs}
    if not kinds:
        raise ValueError("pairs={}: expected kinds of queries by name, such as 'dense' and 'short'.")
    found = {}
    for kind, given in kinds.items():
        if isinstance(given, (str, Path)):
            rows = read_captioned_videos(given, videos=videos)
        elif videos is not None:
            raise ValueError(f"videos={str(videos)!r}: it is only for pairs in a file; leave it out.")
        else:
            rows = list(given)
        where = "pairs" + (f"[{kind!r}]" if kind else "")
        for index, row in enumerate(rows):
            if not isinstance(row, CaptionedVideo):
                raise ValueError(  # noqa: TRY004 - one kind of error for bad arguments
                    f"{where}[{index}]: expected a vidembed.captions.CaptionedVideo, got {type(row).__name__}. Write "
                    "CaptionedVideo(Path('a.mp4'), 'a dog runs')."
                )
        found[kind] = rows
    relations = {kind: relation_of(rows) for kind, rows in found.items()}
    halves_of_kinds(relations, split_halves(join(relations.values()).positives, seed=seed))
    return found


def _warn_of_long(kinds: Mapping[str, Relation]) -> None:
    """Warn if all kinds of queries are long."""
    words = {kind: statistics.median(len(text.split()) for text in relation.texts) for kind, relation in kinds.items()}
    if min(words.values()) >= LONG_WORDS:
        which = ", ".join(f"{kind} {median:g}".strip() for kind, median in words.items())
        warn(
            LongQueries(
                f"all queries are long (median words: {which}). The best layer for long queries can be poor for short "
                f"ones; give short texts too, such as the dense and short texts of a file of captions."
            )
        )


def _halves(relation: Relation, failed: dict[int, Exception], seed: int) -> tuple[Relation, tuple[Half, Half]]:
    """What is left of a relation without what failed, and its halves in positions of the whole."""
    first_text = len(relation.videos)
    failed_texts = [index - first_text for index in failed if index >= first_text]
    kept, videos, texts = relation.without([index for index in failed if index < first_text], failed_texts)
    if not kept.videos:
        raise ValueError(f"pairs: all failed; the first error: {next(iter(failed.values()))}")
    if failed:
        logger.warning(
            "left out %d inputs that failed; %d of %d videos and %d of %d texts remain",
            len(failed), len(kept.videos), first_text, len(kept.texts), len(relation.texts),
        )  # fmt: skip
    halves = split_halves(kept.positives, seed=seed)
    first, second = (replace(half, videos=videos[half.videos], texts=texts[half.texts]) for half in halves)
    return kept, (first, second)


def _sample(
    relation: Relation, kept: Relation, halves: tuple[Half, Half], failed: dict[int, Exception], bootstrap: Bootstrap
) -> Sample:
    names = [*map(str, relation.videos), *map(repr, relation.texts)]
    reasons = {index: getattr(error, "reason", str(error)) for index, error in sorted(failed.items())}
    failed_texts = sum(index >= len(relation.videos) for index in failed)
    found = _of_halves(halves, bootstrap)
    return replace(
        found,
        videos_left_out=len(kept.videos) - found.choosing_videos - found.reporting_videos,
        skipped=tuple(f"{names[index]}: {reason}" for index, reason in reasons.items()),
        texts_lost=len(relation.texts) - len(kept.texts) - failed_texts,
    )


def _of_halves(halves: tuple[Half, Half], bootstrap: Bootstrap) -> Sample:
    """The sizes of two halves."""
    choosing, reporting = halves
    return Sample(
        choosing_videos=choosing.videos.size,
        choosing_texts=choosing.texts.size,
        reporting_videos=reporting.videos.size,
        reporting_texts=reporting.texts.size,
        videos_left_out=0,
        chance=float(reporting.positives.mean()),
        seed=bootstrap.seed,
        resamples=bootstrap.resamples,
    )


def open_mllm(model: str | Path | Backbone, *, device: str | None, dtype: str | None, **kwargs: Any) -> VideoEncoder:
    """Load a full MLLM, or take a loaded one, as an encoder that runs every block; `kwargs` always hold ``prefix``."""
    if isinstance(model, Backbone):
        if dtype is not None:
            raise ValueError(f"dtype={dtype!r}: the backbone is already loaded; set dtype where you load it.")
        if device is not None:
            kwargs["device"] = device
        return VideoEncoder(backbone=model, layer=-1, **kwargs)
    # prefix is for an MLLM: a checkpoint would refuse it before it is known to be one
    prefix = kwargs.pop("prefix")
    try:
        encoder = VideoEncoder(model, layer=-1, device=device, **with_dtype(kwargs, dtype))
    except LayerError as error:  # -1 is a layer of every MLLM
        raise _cut_already(model) from error
    if encoder.backbone is None or encoder.recipe is not None:
        raise _cut_already(model)
    return with_prefix(encoder, prefix)


def check_mllm(model: str) -> None:
    """Check from its config alone that a model can be analyzed; a BackboneError if not."""
    name = resolve_model(model)
    if any((Path(name) / file).is_file() for file in ("modules.json", CONFIG_FILE)):
        raise _cut_already(model)
    model_type = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if model_type not in REMOTE_CODE_TYPES:
        conditional_class(model_type, name=model)


def _cut_already(model: str | Path) -> BackboneError:
    return BackboneError(
        f"{model} is a checkpoint that reads one layer: the blocks after it are cut off, so there is nothing to "
        "compare. Give the full MLLM that it was built from (its README.md and vidembed_config.json name it)."
    )


def with_prefix(encoder: VideoEncoder, prefix: str | None) -> VideoEncoder:
    """Make an encoder on the same weights with another line before the content of its prompts."""
    same: dict[str, Any] = {"sampling": encoder.sampling, "video_backend": encoder.video_backend}
    return VideoEncoder(backbone=encoder.backbone, layer=-1, prefix=prefix, device=str(encoder.device), **same)


@contextmanager
def every_layer(encoder: VideoEncoder) -> Iterator[list[torch.Tensor | None]]:
    """Make an encoder of all blocks (``layer=-1``) return the last token's state at every block instead of its vector.

    Each result is ``(L + 1, D)`` float32: the output of blocks 1 to L before any norm, then that of the final norm.
    Yielded are the states of the current forward pass, (B, D) of each; None between passes.
    """
    parts = encoder.parts
    held: list[torch.Tensor | None] = [None] * (parts.depth + 1)

    def keep(place: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output  # (B, S, D), padded on the left
            # a copy, since a view would keep all S positions alive
            held[place] = hidden[:, -1].to(torch.float32, copy=True)  # (B, D)

        return hook

    def deliver(_module: nn.Module, _args: object, features: dict[str, object]) -> dict[str, object]:
        states = [state for state in held if state is not None]
        held[:] = [None] * len(held)
        return {**features, "sentence_embedding": torch.stack(states, dim=1)}  # (B, L + 1, D)

    with ExitStack() as hooks:
        for place, module in enumerate([*parts.blocks, parts.norm]):
            hooks.callback(module.register_forward_hook(keep(place)).remove)
        hooks.callback(encoder[-1].register_forward_hook(deliver).remove)
        yield held


def read_states(
    encoder: VideoEncoder,
    videos: Sequence[Path],
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    on_error: OnError = "raise",
    show_progress_bar: bool | None = None,
) -> tuple[FloatStates, FloatStates, dict[int, Exception]]:
    """Read states of blocks 1 to L and of the final norm, ``(L + 1, V, D)`` of videos and ``(L + 1, T, D)`` of texts.

    Also the error of each failed input, by its position among videos, then texts; "skip" leaves its states at NaN.
    """
    inputs: list[Input] = [*({"video": video} for video in videos), *({"text": text} for text in texts)]
    layers, width = encoder.parts.depth + 1, encoder.get_embedding_dimension()
    states = np.full((layers, len(inputs), width or 0), np.nan, dtype=np.float32)  # (L + 1, V + T, D)
    failed: dict[int, Exception] = {}
    with every_layer(encoder):
        how: dict[str, Any] = {"batch_size": batch_size, "on_error": on_error, "show_progress_bar": show_progress_bar}
        for item in encoder.encode_stream(inputs, **how):
            if item.error is not None:
                failed[item.index] = item.error
            else:
                states[:, item.index] = item.embedding
    return states[:, : len(videos)], states[:, len(videos) :], failed
