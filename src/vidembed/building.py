"""`build`: cut a video MLLM into a plain sentence-transformers checkpoint, verified before it is saved."""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import nn

from vidembed.analysis.layers import Pairs, analyze_layers, checked_pairs, open_mllm
from vidembed.backbone.architectures import capture_block, check_layer, find_parts
from vidembed.backbone.load import Features, check_dtype
from vidembed.backbone.prefix import model_inputs
from vidembed.card import model_card
from vidembed.checkpoint import FILE_NAME, CheckpointConfig
from vidembed.encoder import VideoEncoder
from vidembed.errors import ReadoutMismatchError
from vidembed.inputs import Input
from vidembed.proof import probe_video
from vidembed.registry import check_name, loading_name, store_dir
from vidembed.video import Sampling

logger = logging.getLogger(__name__)

MIN_COSINE = 0.99999  # least cosine between the saved model's vector and the hidden state that it stands for


def build(
    mllm: str | Path,
    *,
    layer: int | Literal["auto"],
    pairs: Pairs | None = None,
    videos: str | Path | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    prefix: str | None = "zero-shot",
    sampling: Sampling | None = None,
    dtype: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    **hub_kwargs: Any,
) -> Path:
    """Write the checkpoint that reads decoder block `layer` of a video MLLM.

    The result is a plain sentence-transformers checkpoint: ``SentenceTransformer(path)`` loads it without
    ``trust_remote_code`` and without vidembed. Blocks after `layer` and the language model head are not stored.
    Before it is moved into place it is loaded back and compared with the full model's hidden state on one video and
    one text.

    Args:
        mllm: Directory or Hub name of a video MLLM of a supported architecture.
        layer: 1-based decoder block, or -1 for the last block with its trained final norm; "auto" for the one that
            `vidembed.analyze_layers` chooses on `pairs`, which the model card then names with its Recall@1.
        pairs: For ``layer="auto"``: captioned videos, as `vidembed.analyze_layers` takes them.
        videos: For ``layer="auto"``: the folder of the videos that a file of pairs names by relative paths.
        out: Folder to write. Give `out` or `name`.
        name: Name in the model store instead of a folder; it loads as ``vidembed/<name>``.
        prefix: A line before the content of the prompt: "zero-shot" for the paper's, None for nothing, or any text.
        sampling: Frame grid that the checkpoint uses by default.
        dtype: "float32", "bfloat16", "float16", or None for the dtype of the MLLM.
        device: Where to run the check, for example "cuda"; default as sentence-transformers chooses.
        overwrite: Replace `out` if it exists.
        **hub_kwargs: ``revision``, ``token``, ``cache_folder``, ``local_files_only``.

    Returns:
        The folder written.

    Raises:
        ValueError: Neither or both of `out` and `name` are given, or `name` is no plain name; `pairs` are missing,
            too few, or given with a layer.
        VideoError: A video of `pairs` could not be decoded.
        FileExistsError: `out` exists and is not empty, and `overwrite` is False.
        LayerError: `layer` is not a block of the model.
        BackboneError: The model is not supported or incomplete.
        ReadoutMismatchError: The checkpoint does not reproduce the hidden state; nothing is written.
    """
    if (out is None) == (name is None):
        raise ValueError(f"give out=FOLDER or name=NAME, one of them; got out={out!r}, name={name!r}.")
    check_dtype(dtype)
    target = checked_target(store_dir() / check_name(name) if name is not None else str(out), overwrite=overwrite)

    note = ""
    if layer == "auto":
        encoder, note = _best_layer(
            mllm, pairs, videos, prefix=prefix, sampling=sampling, dtype=dtype, device=device, **hub_kwargs
        )
    else:
        if pairs is not None or videos is not None:
            raise ValueError(f'layer={layer!r}: pairs and videos are for layer="auto", which chooses on them.')
        hub_kwargs["model_kwargs"] = {"dtype": dtype} if dtype else None
        encoder = VideoEncoder(mllm, layer=layer, prefix=prefix, sampling=sampling, device=device, **hub_kwargs)
    config = encoder.checkpoint_config
    assert config is not None  # noqa: S101 - set whenever an MLLM is cut
    probes = probe_inputs()
    wanted = hidden_states(encoder, probes)  # (2, D)
    with drafted(target) as draft:
        encoder.save_pretrained(str(draft), create_model_card=False)
        saved_config = CheckpointConfig.read(draft / FILE_NAME)
        features, device_name = [encoder.preprocess([probe]) for probe in probes], str(encoder.device)
        del encoder  # before the copy is loaded
        cosines = saved_cosines(draft, features, wanted, device=device_name)
        logger.info("readout check: cosine %.8f (video), %.8f (text)", *cosines)
        if not min(cosines) >= MIN_COSINE:
            raise ReadoutMismatchError(
                f"{mllm}: cut at layer {layer}, the checkpoint gives cosine {cosines[0]:.6f} (video) and "
                f"{cosines[1]:.6f} (text) with the hidden state that it stands for; at least {MIN_COSINE} is required. "
                "Nothing was written. The final norm or the position ids of this model differ from what vidembed "
                "knows: please report it with the model's config.json."
            )
        card = model_card(loading_name(target if out is None else out), saved_config, cosines)
        Path(draft, "README.md").write_text(card + note, encoding="utf-8")
    return target


def _best_layer(
    mllm: str | Path, pairs: Pairs | None, videos: str | Path | None, *, prefix: str | None, **kwargs: Any
) -> tuple[VideoEncoder, str]:
    """An encoder of the layer that does best on pairs, on the weights that were analyzed; a section for the card."""
    if pairs is None:
        raise ValueError(
            'layer="auto" needs pairs=FILE, videos with captions to choose the layer on (a .jsonl or .csv file, see '
            "vidembed.captions); or give the number of a layer."
        )
    rows = checked_pairs(pairs, videos)
    full = open_mllm(mllm, prefix=prefix, **kwargs)
    assert full.backbone is not None  # noqa: S101 - open_mllm refuses what is none
    shared = {"sampling": kwargs["sampling"], "device": str(full.device)}
    analysis = analyze_layers(
        full.backbone, rows, prefixes=prefix or "none", dual_softmax=False, show_progress_bar=True, **shared
    )
    note = f"\n## How the layer was chosen\n\n{analysis.summary()} In brackets: 95 % bootstrap intervals.\n"
    logger.info("%s", analysis.summary())
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
    video, text = torch.nn.functional.cosine_similarity(torch.stack(vectors).double(), wanted.double(), dim=1).tolist()
    return video, text
