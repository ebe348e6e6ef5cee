"""The model of an index, loaded by the name that is stored with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder


def load_model(
    name: str,
    *,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> VideoEncoder:
    """Load the encoder that an index needs.

    Args:
        name: As `VideoEncoder` takes it.
        layer: Decoder layer, for a model that is not a vidembed checkpoint.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        device: Torch device, such as `cuda`. None: the best there is.

    Raises:
        ValueError: There is no such model, it takes no video, or an argument is out of range.
    """
    import torch  # noqa: PLC0415 - reading an index does not need it

    from vidembed.encoder import VideoEncoder  # noqa: PLC0415 - it brings torch

    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"device: {device!r} is not to be had here ({reason}); leave it out for the best there is"
            ) from error
    try:
        encoder = VideoEncoder(name, layer=layer, device=device)
    except OSError as error:  # what transformers raises for a model that it cannot find
        where = "" if Path(name).exists() else "is no folder here, no model of the store, and "
        raise ValueError(f"model: {name!r} {where}cannot be loaded: {error}") from error
    if sampling:
        encoder.sampling = replace(encoder.sampling, **sampling)
    return encoder


def stored_name(name: str) -> str:
    """Return the name to store for a model: a folder by its absolute path, so that a search finds it from anywhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
