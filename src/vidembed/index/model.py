"""The model of an index, loaded by the name that is stored with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidembed.models import NAMESPACE, find_model

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker


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
    from vidembed.backbone.load import check_device  # noqa: PLC0415 - it brings torch, which an index does not need
    from vidembed.encoder import VideoEncoder  # noqa: PLC0415 - likewise

    check_device(device)
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


def load_reranker(
    name: str | None,
    encoder: VideoEncoder,
    *,
    model: str,
    mode: Any = None,
    calibration: Path | None = None,
    visual_cache: Path | None = None,
    device: str | None = None,
) -> VideoReranker:
    """Load the reranker that goes with the encoder of an index.

    Args:
        name: A reranker, or a video MLLM with its head. None: the encoder's own MLLM if it holds it, else
            ``<model>-rerank`` if such a one is bundled or built, else what the encoder's checkpoint was built from.
        encoder: Of the index. The reranker gets its frame grid.
        model: Name that the encoder was loaded by.
        mode: Score mode; None for the reranker's own.
        calibration: File that `VideoReranker.save_calibration` wrote.
        visual_cache: Folder to keep visual tokens in from search to search; None for nowhere.
        device: Torch device. None: that of the encoder.

    Raises:
        ValueError: There is no such reranker, or none that can be told from the encoder.
    """
    from vidembed.reranker import VideoReranker  # noqa: PLC0415 - it brings torch
    from vidembed.reranking.visual_cache import VisualTokenCache  # noqa: PLC0415 - it brings torch

    how: dict[str, Any] = {
        "mode": mode,
        "calibration": calibration,
        "visual_cache": None if visual_cache is None else VisualTokenCache(visual_cache),
    }
    if name is None and encoder.backbone is not None:
        reranker = encoder.reranker(**how)
    else:
        name = name or _reranker_of(encoder, model)
        try:
            reranker = VideoReranker(name, sampling=encoder.sampling, device=device or str(encoder.device), **how)
        except OSError as error:
            raise ValueError(f"reranker: {name!r} cannot be loaded: {error}") from error
    known = reranker.first_stage
    if known is not None and not reranker.can_fuse and known.fingerprint == encoder.fingerprint:
        reranker.use_first_stage(encoder)
    return reranker


def _reranker_of(encoder: VideoEncoder, model: str) -> str:
    beside = model + "-rerank"
    if model.startswith(NAMESPACE) and find_model(beside) is not None:
        return beside
    source = encoder.checkpoint_config.source if encoder.checkpoint_config else ""
    if source.count("/") == 1:  # a name on the Hub; of a folder only the last part was kept
        return source
    raise ValueError(
        f"reranker: {model!r} holds no head, and it does not say which model it was built from ({source!r} is no name "
        "that can be loaded). Give --reranker: the video MLLM, or a saved reranker."
    )
