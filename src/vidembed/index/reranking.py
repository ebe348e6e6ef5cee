"""Reranking of hits: ask a reranker about them, and load the one that goes with the encoder of an index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.errors import BackboneError
from vidembed.index.hits import By, Hit, Hits, Reranked
from vidembed.index.hybrid import Scores
from vidembed.index.table import is_local, path_of
from vidembed.registry import CONFIG_FILE, NAMESPACE, find_model, portable_name, resolve_model
from vidembed.scoring import ScoreFusion
from vidembed.video import Sampling, VideoSegment

if TYPE_CHECKING:
    from vidembed.checkpoint import CheckpointConfig
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)


def rerank(
    hits: Hits,
    reranker: VideoReranker,
    query: str,
    *,
    count: int | None = None,
    context: bool = False,
    fingerprint: str | None = None,
    fusion: ScoreFusion | None = None,
) -> Hits:
    """Return the hits with the probability that each matches the query, most probable first.

    If the reranker was calibrated together with a first stage, the probability of hits by video is made of similarity
    and head. The similarity is that of the hits if their encoder is the one that was calibrated with, else the reranker
    finds it. That of hits by caption, text or hybrid is made of their score and the head by `fusion`, else of the head
    alone. `Method.reranked` says which it was.

    Args:
        hits: Of a search for `query`.
        reranker: Asked about each hit's segment.
        query: Words.
        count: Ask about the first so many; the others follow in their order. Default: all.
        context: Ask about each segment with what is around it, for hits of a search with `around`.
        fingerprint: `VideoEncoder.fingerprint` of the encoder that found the hits; None if it is not known.
        fusion: For hits by caption, text or hybrid: what `stored_fusion` returns for the index, `by` and the reranker.

    Returns:
        All hits. Those that could not be asked about, because the video is gone, damaged or no file of this machine,
        come after those that were, in their order, without a probability; the log says why.

    Raises:
        ValueError: `context` is given, and a hit says nothing of what is around it; or `fusion` is for hits by video.
    """
    by: By = hits.method.by or "video"
    if fusion is not None and by == "video":
        raise ValueError("fusion: it is for hits by caption, text or hybrid; those by video take the reranker's own")
    first, rest = hits[:count], hits[len(hits[:count]) :]
    segments: dict[int, VideoSegment] = {}  # of the hits that are files of this machine, by position
    for place, hit in enumerate(first):
        start, end = (hit.context_start_s, hit.context_end_s) if context else (hit.start_s, hit.end_s)
        if start is None or end is None:
            raise ValueError(f"context: the hit {hit.uri!r} has no times around it; search with around=SECONDS")
        if is_local(hit.uri):
            segments[place] = VideoSegment(path_of(hit.uri), start, end)
    asked: dict[int, Hit] = {}
    reranked: Reranked = "head"
    if segments:
        places = list(segments)
        similarities: list[float] | Literal["own"] | None = None
        if by == "video":
            similarities = _similarities(reranker, [first[place].score for place in places], fingerprint)
        elif fusion is not None:
            scores = [Scores(hit.caption_score, hit.text_score, hit.hybrid_score) for hit in first]
            similarities = [scores[place].of(by) for place in places]
        documents = list(segments.values())
        how: dict[str, Any] = {"first_stage": similarities, "fusion": fusion, "on_error": "skip"}
        for found in reranker.rank({"text": query}, documents, **how):
            place = places[found["corpus_id"]]
            asked[place] = replace(first[place], probability=found["score"])
            reranked = by if "match" in found else "head"
    unasked = [hit for place, hit in enumerate(first) if place not in asked]
    if unasked:
        logger.warning("%d of %d hits could not be asked about and come after the others", len(unasked), len(first))
    return Hits([*asked.values(), *unasked, *rest], replace(hits.method, reranked=reranked))


def _similarities(
    reranker: VideoReranker, scores: list[float], fingerprint: str | None
) -> list[float] | Literal["own"] | None:
    """What the reranker's own fusion takes for hits with these cosines, found by the encoder with the fingerprint."""
    known = reranker.first_stage
    if reranker.fusion is None or known is None or known.fingerprint == fingerprint:
        return scores
    if reranker.can_fuse:  # a fusion is of one encoder's similarities, and wrong with another's
        return "own"
    logger.warning(
        "the reranker was calibrated with another encoder than that of the index; hits are ordered by its "
        "head alone. Calibrate it with this encoder (vidembed calibrate --encoder)."
    )
    return None


def load_stages(
    load: Callable[[], VideoEncoder],
    reranker: str | None,
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    **how: Unpack[RerankerOptions],
) -> tuple[VideoEncoder, VideoReranker]:
    """Load an encoder and the reranker that goes with it, on one copy of the weights wherever that is possible.

    An encoder that is a video MLLM or a recipe shares the weights of its MLLM. A checkpoint with weights of its own is
    not loaded at all where the reranker's MLLM gives the same vectors (`encoder_beside`).

    Args:
        load: Loads the encoder by itself.
        reranker: As `load_reranker` takes it, and so are `how`.
        model: Name of the encoder.
        layer: That `load` asks for, if it does.
        sampling: Fields of its frame grid to set, as `load` sets them.
    """
    config, options = _with_weights(model, layer), how.get("options")
    # other weights than those that the checkpoint's fingerprint is of
    if config is None or (options is not None and (options.dtype or options.quantize)):
        encoder = load()
        return encoder, load_reranker(reranker, encoder, model=model, **how)
    grid = Sampling(**{**config.sampling, **(sampling or {})})
    head = _open_reranker(reranker or _fitting(model, config.source), grid, **how)
    encoder = encoder_beside(head, load, model=model, layer=layer, sampling=sampling)
    return encoder, _introduced(head, encoder)


def encoder_beside(
    head: VideoReranker,
    load: Callable[[], VideoEncoder],
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> VideoEncoder:
    """The encoder named `model`, as `load_stages`: on the weights of a reranker with the same ones, else loaded."""
    config = _with_weights(model, layer)
    own = None if config is None else _encoder_of(head, config, config.fingerprint)
    if own is None:
        return load()
    own.sampling = replace(own.sampling, **(sampling or {}))
    return own


def _with_weights(model: str, layer: int | None) -> CheckpointConfig | None:
    """What a checkpoint with weights of its own says of itself; None for anything else, and if it has another layer."""
    from vidembed.checkpoint import CheckpointConfig  # noqa: PLC0415 - it brings torch

    file = Path(resolve_model(model)).expanduser() / CONFIG_FILE
    config = CheckpointConfig.read(file) if file.is_file() else None
    if config is None or config.recipe is not None or layer not in (None, config.layer):
        return None
    return config


def _encoder_of(head: VideoReranker, config: CheckpointConfig, fingerprint: str) -> VideoEncoder | None:
    """The encoder with this fingerprint on the weights of a reranker; None, and a line in the log, if it has others."""
    if portable_name(head.source) != config.source:
        logger.info("encoder and reranker are two models in memory: one is of %r", config.source)
        return None
    with suppress(BackboneError):  # of another depth, or a reranker that does not hold the MLLM's template
        own = head.encoder(layer=config.layer, prefix=config.prefix, sampling=Sampling(**config.sampling))
        if own.fingerprint == fingerprint:
            return own
    logger.warning(
        "encoder and reranker are two models in memory: the reranker's MLLM does not give the vectors of the "
        "checkpoint that was cut from %r, which may have another dtype or another version. Build a recipe of the MLLM "
        "(vidembed build) to keep its weights in memory once.",
        config.source,
    )
    return None


class RerankerOptions(TypedDict, total=False):
    """How a reranker is loaded; the fields are documented by `load_reranker`."""

    mode: Any
    calibration: Path | None
    visual_cache: Path | None
    options: ModelOptions | None


def load_reranker(
    name: str | None, encoder: VideoEncoder, *, model: str, **how: Unpack[RerankerOptions]
) -> VideoReranker:
    """Load the reranker that goes with the encoder of an index, with its frame grid; ValueError where there is none.

    An encoder with weights of its own goes over to those of the reranker, if they are the same.

    Args:
        name: A reranker, or a video MLLM with its head. None: the encoder's own MLLM if it holds it, else
            ``<model>-rerank`` if such a one is bundled or built, else what the encoder's checkpoint was built from.
        encoder: Of the index.
        model: Name that it was loaded by.
        **how: ``mode``, the score mode, None for the reranker's own; ``calibration``, the file that
            `VideoReranker.save_calibration` wrote; ``visual_cache``, the folder to keep visual tokens in from search
            to search, None for nowhere; ``options``, how the encoder was loaded, for a reranker with weights of its
            own: its device is by default that of the encoder, and its revision the newest.
    """
    if name is None and encoder.backbone is not None:
        return _introduced(encoder.reranker(**_opened(how)), encoder)
    config = encoder.checkpoint_config
    if name is None:
        name = _fitting(model, config.source if config else "")
    options = how.get("options") or ModelOptions()
    if options.device is None and options.device_map is None:
        how["options"] = replace(options, device=str(encoder.device))
    head = _open_reranker(name, encoder.sampling, **how)
    if encoder.backbone is None and config is not None and encoder.device == head.device:
        now = replace(config, sampling=encoder.sampling.as_dict())
        if (own := _encoder_of(head, now, encoder.fingerprint)) is not None:
            encoder.use_modules(own)
    return _introduced(head, encoder)


def _fitting(model: str, source: str) -> str:
    """The name of the reranker that goes with an encoder that holds no head."""
    if model.startswith(NAMESPACE) and find_model(model + "-rerank") is not None:
        return model + "-rerank"
    if source.count("/") != 1:  # it is a name on the Hub, or a folder of which only the last part was kept
        raise ValueError(
            f"reranker: {model!r} has no reranker, and the model it was built from is not known ({source!r} "
            "cannot be loaded). Give --reranker: the video MLLM, or a saved reranker."
        )
    return source


def _opened(how: RerankerOptions) -> dict[str, Any]:
    from vidembed.visual_cache import VisualTokenCache  # noqa: PLC0415 - it brings torch

    folder = how.get("visual_cache")
    cache = None if folder is None else VisualTokenCache(folder)
    return {"mode": how.get("mode"), "calibration": how.get("calibration"), "visual_cache": cache}


def _open_reranker(name: str, sampling: Sampling, **how: Unpack[RerankerOptions]) -> VideoReranker:
    from vidembed.reranker import VideoReranker  # noqa: PLC0415 - it brings torch

    options = how.get("options")
    options = options and replace(options, revision=None)  # which is the encoder's
    try:
        return VideoReranker(name, sampling=sampling, **kwargs_of(options), **_opened(how))
    except OSError as error:
        raise ValueError(f"reranker: {name!r} cannot be loaded: {error}") from error


def _introduced(reranker: VideoReranker, encoder: VideoEncoder) -> VideoReranker:
    """The reranker, which knows the encoder if its fusion was fitted with it."""
    known = reranker.first_stage
    if known is not None and not reranker.can_fuse and known.fingerprint == encoder.fingerprint:
        reranker.use_first_stage(encoder)
    return reranker
