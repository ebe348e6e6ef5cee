"""Makes the bundled embedder, reranker and adapter of the trained MLLM: ``python -m tools.shapes.package``."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tools.shapes.align import LORA, PAIRS, TRAINING, text_pairs
from tools.shapes.scores import FIT_DEPTH, FITTED_ON, SENTENCES, draw, is_true
from vidembed.building import build
from vidembed.calibration import CalibrationReport
from vidembed.captions import CaptionedVideo
from vidembed.checkpoint import ADAPTER_FILES
from vidembed.evaluation.two_stage import first_stage_candidates
from vidembed.reproduce import ALIGNED
from vidembed.reranker import VideoReranker
from vidembed.shapes import CHECKPOINT
from vidembed.shapes.clips import ClipRecord
from vidembed.training import align

EMBEDDER = CHECKPOINT.parent / "embedder"
RERANKER = CHECKPOINT.parent / "reranker"

_FIGURES = """
## Calibration

Fitted on {pairs} pairs: the first stage's top {depth} for captions, summaries and short statements of {clips} held-out
clips, {matches} of them matches. Expected calibration error, by cross-fitting: {before:.3f} before, {after:.3f} after.
The fusion with the first stage's similarity is fitted on lists of tags too, {fused_pairs} pairs with {fused_matches}
matches in all; its error is {fused:.3f}.
`python -m tools.shapes.rerank`, in the repository, measures recall by mode and depth, on other clips.

It knows only the embedded world of moving shapes.
"""


def package_embedder(layer: int, out: Path = EMBEDDER) -> Path:
    """Build the embedding checkpoint, stored in half the bytes.

    Args:
        layer: Decoder block to read.
        out: The folder; replaced if it exists.
    """
    build(CHECKPOINT, layer=layer, prefix=None, out=out, standalone=True, overwrite=True, device="cpu")
    _halve(out / "model.safetensors")
    return out


def package_reranker(layer: int, out: Path = RERANKER, *, clips: int = 200, seed: int = 0) -> None:
    """Save the reranking checkpoint, calibrated on held-out clips that no figure is reported on.

    Args:
        layer: Decoder block that the first stage reads.
        out: The folder; files in it are replaced.
        clips: How many clips to calibrate on.
        seed: Of the clips that figures are reported on; these are drawn with the next one.
    """
    reranker = VideoReranker(CHECKPOINT, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        _, others = draw(Path(scratch), 200, clips, seed)
        encoder = reranker.encoder(layer=layer, prefix=None)

        def calibrate(kinds: Mapping[str, Callable[[ClipRecord], str]]) -> CalibrationReport:
            captioned = [
                CaptionedVideo(path, say(described))
                for kind, say in kinds.items()
                for _, described in others
                for path, shown in others
                if is_true(kind, described, shown)
            ]
            found = first_stage_candidates(encoder, captioned, k=FIT_DEPTH)
            return reranker.calibrate(found.pairs, found.labels, first_stage=found.similarities, encoder=encoder)

        every, sentences = calibrate(FITTED_ON), calibrate(SENTENCES)
    reranker.fusion = every.fit.fusion  # both were fitted with the same encoder
    reranker.save_pretrained(str(out))
    _halve(out / "model.safetensors")
    figures = _FIGURES.format(
        pairs=sentences.pairs,
        matches=sentences.matches,
        clips=clips,
        depth=FIT_DEPTH,
        before=sentences.ece_before,
        after=sentences.ece_after,
        fused_pairs=every.pairs,
        fused_matches=every.matches,
        fused=every.ece_fused,
    )
    with (out / "README.md").open("a", encoding="utf-8") as card:
        card.write(figures)


def package_adapter(out: Path = ALIGNED, *, seed: int = 0) -> Path:
    """Align the final layer with pairs of texts, and keep the adapter, its weights rounded to float16.

    Args:
        out: The folder; replaced if it exists.
        seed: Of the pairs and of the training.
    """
    training = replace(TRAINING, seed=seed)
    align(
        CHECKPOINT,
        text_pairs(PAIRS, seed),
        out,
        layer=-1,
        lora=LORA,
        training=training,
        output="adapter",
        overwrite=True,
        device="cpu",
    )
    (out / "curves.png").unlink(missing_ok=True)  # the log beside it says the same in fewer bytes
    _halve(out / ADAPTER_FILES[0], rounded=True)
    return out


def _halve(file: Path, *, rounded: bool = False) -> None:
    """Store weights as float16. The configuration says float32, so they load as that.

    Args:
        file: Of weights; replaced.
        rounded: Whether they may be rounded. Those of the trained model are float16 values already.

    Raises:
        ValueError: Rounding would change one, and it may not.
    """
    weights = load_file(file)
    halves = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    changed = [name for name, half in halves.items() if not torch.equal(half.float(), weights[name].float())]
    if changed and not rounded:
        raise ValueError(f"{file}: {len(changed)} weights are no float16 values, for example {changed[0]}")
    save_file(halves, file, metadata={"format": "pt"})
    file.chmod(0o644)  # it is written for its owner alone, and installers keep modes


def main() -> None:
    """Package all three, at the layer that the figures of the checkpoint name, or at another one."""
    parser = argparse.ArgumentParser(description=__doc__)
    figures = json.loads((CHECKPOINT / "figures.json").read_text(encoding="utf-8"))
    parser.add_argument("--layer", type=int, default=figures["best_layer"], help="default: the one in figures.json")
    layer = parser.parse_args().layer
    package_embedder(layer)
    package_reranker(layer)
    package_adapter()


if __name__ == "__main__":
    main()
