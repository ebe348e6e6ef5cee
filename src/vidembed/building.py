"""`build`: write how a search model is made of a video MLLM, or a checkpoint cut out of it, verified before that."""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import nn

from vidembed.analysis.layers import Pairs, analyze_layers, checked_queries, open_mllm
from vidembed.analysis.own_queries import CLIPS, Videos, caption_videos, draw_videos, own_texts, read_records
from vidembed.backbone.architectures import capture_block, check_layer, find_parts
from vidembed.backbone.load import Backbone, Features, check_dtype
from vidembed.backbone.options import refuse_quantization, with_dtype
from vidembed.backbone.prefix import model_inputs
from vidembed.captions.writing import check_out
from vidembed.card import model_card
from vidembed.checkpoint import FILE_NAME, CheckpointConfig, Recipe
from vidembed.encoder import VideoEncoder
from vidembed.errors import BackboneError, ReadoutMismatchError
from vidembed.inputs import Input
from vidembed.pipeline import fields_digest
from vidembed.proof import probe_video
from vidembed.registry import check_name, loading_name, store_dir
from vidembed.video import Sampling

logger = logging.getLogger(__name__)

# queries by kind, and a sentence about how they were made, with the model that may have to make them
FindQueries: TypeAlias = Callable[[VideoEncoder], tuple[Mapping[str, Pairs], str]]
MIN_COSINE = 0.99999  # least cosine between the saved model's vector and the hidden state that it stands for


def build(
    mllm: str | Path,
    *,
    layer: int | Literal["auto"] | None = None,
    pairs: Pairs | Mapping[str, Pairs] | None = None,
    videos: Videos | None = None,
    captions: str | Path | None = None,
    clips: int = CLIPS,
    seed: int = 0,
    out: str | Path | None = None,
    name: str | None = None,
    prefix: str | None = "zero-shot",
    sampling: Sampling | None = None,
    dtype: str | None = None,
    device: str | None = None,
    standalone: bool = False,
    overwrite: bool = False,
    **hub_kwargs: Any,
) -> Path:
    """Write the model that reads decoder block `layer` of a video MLLM.

    The result is a recipe, a folder of some KB that names the MLLM: loading it, as `VideoEncoder` or, after ``import
    vidembed``, as ``SentenceTransformer``, loads the MLLM once and cuts it in memory, so that a reranker on the same
    weights costs no memory. If the MLLM is gone by then, or has changed, it says so.

    With `standalone` it is a plain sentence-transformers checkpoint: ``SentenceTransformer(path)`` loads it without
    ``trust_remote_code`` and without vidembed. Blocks after `layer` and the language model head are not stored.

    Before it is moved into place it is loaded back and compared with the full model's hidden state on one video and
    one text.

    Args:
        mllm: Directory or Hub name of a video MLLM of a supported architecture.
        layer: 1-based decoder block, or -1 for the last block with its trained final norm; "auto" for the one that
            `vidembed.analyze_layers` chooses on `pairs`, or on what the model says of `videos`; the model card then
            names it with its Recall@1. Default: the block at 24/28 of the depth, with a warning that says so.
        pairs: For ``layer="auto"``: captioned videos, as `vidembed.analyze_layers` takes them.
        videos: For ``layer="auto"`` without `pairs`: videos without labels, files and folders. The model describes some
            of them (`vidembed.captions.describe`), and the layer is chosen on its dense and short texts that are not
            marked. With `pairs`: the folder of the videos that a file of pairs names by relative paths.
        captions: For ``layer="auto"``: a file of captions. With `videos` they are written there, and an interrupted
            call goes on from it; without, they are read from it.
        clips: Most videos that are described. Default `CLIPS`.
        seed: Decides which.
        out: Folder to write. Give `out` or `name`.
        name: Name in the model store instead of a folder; it loads as ``vidembed/<name>``.
        prefix: A line before the content of the prompt: "zero-shot" for the paper's, None for nothing, or any text.
        sampling: Frame grid that the checkpoint uses by default.
        dtype: "float32", "bfloat16", "float16", or None for the dtype of the MLLM.
        device: Where to run the check, for example "cuda"; default as sentence-transformers chooses.
        standalone: Write the weights up to the layer, too.
        overwrite: Replace `out` if it exists, and in `captions` records of another model.
        **hub_kwargs: ``revision``, ``token``, ``cache_folder``, ``local_files_only``; and ``model_kwargs``.

    Returns:
        The folder written.

    Warns:
        CroppedTexts: The model cannot shorten what it says; crops of its captions stand in for short texts.
        LongQueries: All `pairs` are long.

    Raises:
        TooFewCaptionsError: Too few of the texts that the model wrote about `videos` can be used.
        ValueError: Neither or both of `out` and `name` are given, or `name` is no plain name; `pairs` are missing,
            too few, or given with a layer; `out` is the folder of the MLLM itself.
        VideoError: A video of `pairs` could not be decoded.
        FileExistsError: `out` exists and is not empty, and `overwrite` is False.
        LayerError: `layer` is not a block of the model.
        BackboneError: The model is not supported or incomplete, or cut already.
        ReadoutMismatchError: The model as it is loaded back does not reproduce the hidden state; nothing is written.
    """
    if (out is None) == (name is None):
        raise ValueError(f"give either out=FOLDER or name=NAME; got out={out!r}, name={name!r}.")
    check_dtype(dtype)
    refuse_quantization(hub_kwargs, "a checkpoint holds its weights as they are; quantize it where it is loaded.")
    target = checked_target(store_dir() / check_name(name) if name is not None else str(out), overwrite=overwrite)

    note = ""
    if layer == "auto":
        find = _queries_for(pairs, videos, captions, clips, seed, overwrite=overwrite)
        encoder, note = _best_layer(
            mllm, find, prefix=prefix, sampling=sampling, dtype=dtype, device=device, **hub_kwargs
        )
    else:
        if pairs is not None or videos is not None or captions is not None:
            raise ValueError(
                f'layer={layer!r}: pairs, videos and captions need layer="auto"; leave them out, or set layer="auto".'
            )
        kwargs = with_dtype(hub_kwargs, dtype)
        encoder = VideoEncoder(mllm, layer=layer, prefix=prefix, sampling=sampling, device=device, **kwargs)
    if encoder.backbone is None:
        raise BackboneError(
            f"{mllm} is a checkpoint that was cut at layer {layer}, so it cannot be built from. Give the video MLLM "
            f"that it was cut from."
        )
    config = encoder.checkpoint_config
    assert config is not None  # noqa: S101 - set whenever an MLLM is cut
    if config.recipe is not None and config.recipe.adapter:
        raise BackboneError(
            f"{mllm} is aligned: a recipe with an adapter. To make a checkpoint of it, load it and call "
            f"save_pretrained."
        )
    if not standalone:
        _keep_mllm(encoder.backbone, target)
    probes = probe_inputs()
    wanted = hidden_states(encoder, probes)  # (2, D)
    with drafted(target) as draft:
        if standalone:
            encoder.save_pretrained(str(draft), create_model_card=False)
            features, device_name = [encoder.preprocess([probe]) for probe in probes], str(encoder.device)
            del encoder  # before the copy is loaded
            cosines = saved_cosines(draft, features, wanted, device=device_name)
        else:
            write_recipe(encoder, draft, target)
            hub_kwargs.pop("model_kwargs", None)
            loaded = VideoEncoder(draft, device=str(encoder.device), **{**hub_kwargs, "revision": None})
            cosines = _cosines(torch.from_numpy(np.stack([loaded.encode(probe) for probe in probes])), wanted)
        logger.info("readout check: cosine %.8f (video), %.8f (text)", *cosines)
        if not min(cosines) >= MIN_COSINE:
            raise ReadoutMismatchError(
                f"{mllm}: cut at layer {config.layer}, the model gives cosine {cosines[0]:.6f} (video) and "
                f"{cosines[1]:.6f} (text) with the hidden state of the full model; at least {MIN_COSINE} is required. "
                "Nothing was written. The final norm or the position ids of this model differ from what vidembed "
                "knows: please report it with the model's config.json."
            )
        card = model_card(
            loading_name(target if out is None else out), CheckpointConfig.read(draft / FILE_NAME), cosines
        )
        Path(draft, "README.md").write_text(card + note, encoding="utf-8")
    return target


def write_recipe(encoder: VideoEncoder, folder: Path, target: Path, *, adapter: bool = False) -> None:
    """Write into `folder`, which `target` will be, the configuration that makes `encoder` of its MLLM again.

    Raises:
        BackboneError: Its MLLM was not loaded from files.
    """
    config, backbone = encoder.checkpoint_config, encoder.backbone
    assert config is not None and backbone is not None  # noqa: S101, PT018 - set whenever an MLLM is cut
    made = encoder.fingerprint_fields()
    recipe = Recipe.of(backbone, made, target, adapter=adapter)
    sampling = encoder.sampling.as_dict()
    replace(config, sampling=sampling, fingerprint=fields_digest(made), recipe=recipe).write(folder)


def _keep_mllm(backbone: Backbone, target: Path) -> None:
    """Raise ValueError for a target that would replace the model that it is built from."""
    if backbone.folder is not None and backbone.folder.resolve().is_relative_to(target.resolve()):
        raise ValueError(f"out: {str(target)!r} contains the model to build from; choose another folder.")


def _queries_for(
    pairs: Pairs | Mapping[str, Pairs] | None,
    videos: Videos | None,
    captions: str | Path | None,
    clips: int,
    seed: int,
    *,
    overwrite: bool,
) -> FindQueries:
    """Read what can be read before a model is loaded; return what makes queries, and a sentence about them, with it."""
    if pairs is not None:
        if captions is not None:
            raise ValueError(f"captions={str(captions)!r}: give either pairs or captions.")
        if videos is not None and not isinstance(videos, (str, Path)):
            raise ValueError(f"videos={videos!r}: with pairs, expected one folder that their paths are relative to.")
        given: Mapping[str, Pairs] = checked_queries(pairs, videos)
        return lambda _: (given, "")
    if videos is not None:
        drawn = draw_videos(videos, clips, seed=seed)
        if captions is not None:
            check_out(Path(captions))

        def described(full: VideoEncoder) -> tuple[Mapping[str, Pairs], str]:
            texts = own_texts(caption_videos(full, drawn, file=captions, overwrite=overwrite), seed=seed)
            return texts.queries(), f"{texts.summary()} They were drawn by seed {seed}. "

        return described
    if captions is not None:
        texts = own_texts(read_records(captions), seed=seed)
        return lambda _: (texts.queries(), f"{texts.summary()} ")
    raise ValueError(
        'layer="auto" needs pairs=FILE, videos with captions to choose the layer on (a .jsonl or .csv file, see '
        "vidembed.captions); or videos=FOLDER, which the model describes itself; or captions=FILE, with its own "
        "captions; or the number of a layer."
    )


def _best_layer(mllm: str | Path, find: FindQueries, *, prefix: str | None, **kwargs: Any) -> tuple[VideoEncoder, str]:
    """An encoder of the layer that does best on queries, on the weights that were analyzed; a section for the card."""
    full = open_mllm(mllm, prefix=prefix, **kwargs)
    assert full.backbone is not None  # noqa: S101 - open_mllm refuses what is none
    queries, origin = find(full)
    shared = {"sampling": kwargs["sampling"], "device": str(full.device)}
    analysis = analyze_layers(
        full.backbone, queries, prefixes=prefix or "none", dual_softmax=False, show_progress_bar=True, **shared
    )
    found = origin + analysis.summary()
    note = f"\n## How the layer was chosen\n\n{found} In brackets: 95 % bootstrap intervals.\n"
    logger.info("%s", found)
    encoder = VideoEncoder(backbone=full.backbone, layer=analysis.chosen_layer, prefix=prefix, **shared)
    return encoder, note


def checked_target(out: str | Path, *, overwrite: bool) -> Path:
    """The absolute path of a folder to write to; FileExistsError if it is not empty, without `overwrite`."""
    target = Path(out).expanduser().absolute()
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists. Choose another folder or name, or pass overwrite=True.")
    return target


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into, which replaces `target` at the end; after an error nothing is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        draft = Path(scratch) / "checkpoint"
        draft.mkdir()
        yield draft
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        draft.replace(target)


def probe_inputs() -> list[Input]:
    """A video and a text to check a saved model with."""
    return [probe_video(), {"text": "a person in a red coat walks a dog along the beach at sunset"}]


@torch.inference_mode()
def hidden_states(encoder: VideoEncoder, inputs: Sequence[Input]) -> torch.Tensor:
    """The full model's hidden state of the last prompt token at the encoder's layer, for each input (N, D)."""
    assert encoder.backbone is not None and encoder.layer is not None  # noqa: S101, PT018
    model: nn.Module = encoder.backbone.model
    if encoder.backbone.model.device != encoder.device:  # in inference mode, quantized weights cannot be moved
        model.to(encoder.device)
    parts = find_parts(model, name=encoder.backbone.name)
    block = check_layer(encoder.layer, parts.depth, name=encoder.backbone.name)
    rows = []
    for item in inputs:
        features = model_inputs(batch_to_device(encoder.preprocess([item]), encoder.device))
        with capture_block(parts, block) as captured:
            parts.base(**features, use_cache=False)
        hidden = captured.hidden  # (1, S, D)
        assert hidden is not None  # noqa: S101 - the block has just run
        if encoder.layer == -1:
            hidden = parts.norm(hidden)
        rows.append(hidden[0, -1].float().cpu())  # (D,)
    return torch.stack(rows)


@torch.inference_mode()
def saved_cosines(
    folder: Path, features: Sequence[Features], wanted: torch.Tensor, *, device: str
) -> tuple[float, float]:
    """Cosines of the vectors of `probe_inputs`, by sentence-transformers from `folder`, with `wanted` (2, D)."""
    gc.collect()  # two copies of a 7B model do not fit everywhere
    saved = SentenceTransformer(str(folder), device=device)
    moved = [batch_to_device(batch, saved.device) for batch in features]
    vectors = [saved(batch)["sentence_embedding"][0].float().cpu() for batch in moved]  # (D,) each
    return _cosines(torch.stack(vectors), wanted)


def _cosines(vectors: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    video, text = torch.nn.functional.cosine_similarity(vectors.double(), wanted.double(), dim=1).tolist()
    return video, text
