"""The last token's state at every decoder block, from one forward pass per input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PretrainedConfig

from vidembed.backbone import BackboneError, LayerError, architecture_of, find_parts
from vidembed.backbone.architectures import REMOTE_CODE_TYPES
from vidembed.backbone.load import Backbone, check_device
from vidembed.encoder import VideoEncoder
from vidembed.encoding.pipeline import OnError
from vidembed.models import resolve_model

FloatStates = NDArray[np.float32]


def open_mllm(model: str | Path | Backbone, *, device: str | None, dtype: str | None, **kwargs: Any) -> VideoEncoder:
    """Load a full MLLM, or take a loaded one, as an encoder that runs every block.

    Args:
        model: Directory or Hub name of an MLLM, or a loaded `Backbone`.
        device: Torch device; by default that of the `Backbone`, or as sentence-transformers chooses.
        dtype: As `vidembed.build`; only where the model is loaded here.
        **kwargs: ``prefix``, ``sampling``, ``video_backend`` and, where the model is loaded here, ``revision``,
            ``token``, ``cache_folder``, ``local_files_only``.

    Raises:
        BackboneError: It is a cut checkpoint, or no supported video MLLM.
        ValueError: `device` is none of this machine.
    """
    check_device(device)
    if isinstance(model, Backbone):
        if dtype is not None:
            raise ValueError(f"dtype={dtype!r}: the backbone is loaded already; load it with the dtype that is wanted.")
        if device is not None:
            kwargs["device"] = device
        return VideoEncoder(backbone=model, layer=-1, **kwargs)
    # prefix is for an MLLM: a checkpoint would refuse it before it is known to be one
    prefix = kwargs.pop("prefix")
    try:
        encoder = VideoEncoder(
            model, layer=-1, device=device, model_kwargs={"dtype": dtype} if dtype else None, **kwargs
        )
    except LayerError as error:  # -1 is a layer of every MLLM
        raise _cut_already(model) from error
    if encoder.backbone is None:
        raise _cut_already(model)
    return with_prefix(encoder, prefix)


def check_mllm(model: str) -> None:
    """Find out from its config alone that a model cannot be analyzed, before another one is run.

    Raises:
        BackboneError: It is a cut checkpoint, or of no supported architecture.
        OSError: It cannot be found (from transformers).
    """
    name = resolve_model(model)
    if (Path(name) / "modules.json").is_file():
        raise _cut_already(model)
    model_type = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if model_type not in REMOTE_CODE_TYPES:
        architecture_of(SimpleNamespace(model_type=model_type), name=model)


def _cut_already(model: str | Path) -> BackboneError:
    return BackboneError(
        f"{model} is a checkpoint that reads one layer: the blocks after it are cut off, so there is nothing to "
        "compare. Give the full MLLM that it was built from (its README.md and vidembed_config.json name it)."
    )


def with_prefix(encoder: VideoEncoder, prefix: str | None) -> VideoEncoder:
    """Make an encoder on the same weights with another line before the content of its prompts."""
    return VideoEncoder(
        backbone=encoder.backbone,
        layer=-1,
        prefix=prefix,
        sampling=encoder.sampling,
        video_backend=encoder.video_backend,
        device=str(encoder.device),
    )


@dataclass(frozen=True)
class LastTokens:
    """What the hooks of `every_layer` hold.

    Attributes:
        taken: Of each block, and then of the final norm, the last position of the pass at hand (B, D); None between
            passes.
    """

    taken: list[torch.Tensor | None]


@contextmanager
def every_layer(encoder: VideoEncoder) -> Iterator[LastTokens]:
    """Make an encoder return the last token's state at every block in the place of its vector.

    Inputs then go through the encoder's own pipeline (decoding ahead, batches by tokens, halving when out of memory),
    and each result is ``(L + 1, D)`` float32: the output of blocks 1 to L before any norm, as `capture_block` has it,
    and last that of the trained final norm (layer -1). Nothing that grows with the number of tokens is kept.

    Args:
        encoder: Of all blocks (``layer=-1``).
    """
    parts = find_parts(encoder._transformer.model)
    held = LastTokens([None] * (parts.depth + 1))

    def keep(place: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output  # (B, S, D), padded on the left
            # a copy, since a view would keep all S positions alive
            held.taken[place] = hidden[:, -1].to(torch.float32, copy=True)  # (B, D)

        return hook

    def deliver(_module: nn.Module, _args: Any, features: dict[str, Any]) -> dict[str, Any]:
        states = [state for state in held.taken if state is not None]
        held.taken[:] = [None] * len(held.taken)
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
    """Read the states of videos and texts at every layer.

    Args:
        encoder: Of all blocks (``layer=-1``).
        videos: V files.
        texts: T texts.
        batch_size: Most inputs per batch.
        on_error: "raise", or "skip" to leave the states of an input that fails at NaN.
        show_progress_bar: Whether to show a bar; by default only if the log level is INFO or DEBUG.

    Returns:
        ``(L + 1, V, D)`` and ``(L + 1, T, D)`` float32 states of blocks 1 to L and of the final norm, and the error of
        each input that failed, by its position among the videos and then the texts.

    Raises:
        VideoError: A video could not be decoded, with ``on_error="raise"``.
        InputError: Another input failed, or a state is not finite, with ``on_error="raise"``.
    """
    inputs: list[Any] = [*({"video": video} for video in videos), *({"text": text} for text in texts)]
    layers, width = find_parts(encoder._transformer.model).depth + 1, encoder.get_embedding_dimension()
    states = np.full((layers, len(inputs), width or 0), np.nan, dtype=np.float32)  # (L + 1, V + T, D)
    failed: dict[int, Exception] = {}
    with every_layer(encoder):
        for item in encoder.encode_stream(
            inputs, batch_size=batch_size, on_error=on_error, show_progress_bar=show_progress_bar
        ):
            if item.error is not None:
                failed[item.index] = item.error
            else:
                states[:, item.index] = item.embedding
    return states[:, : len(videos)], states[:, len(videos) :], failed
