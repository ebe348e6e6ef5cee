"""Makes ``vidembed/shapes`` of the trained MLLM: ``python -m vidembed.shapes.package [--layer N]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vidembed.building import build
from vidembed.shapes import CHECKPOINT

EMBEDDER = Path(__file__).parent / "embedder"


def package(layer: int, out: Path = EMBEDDER) -> Path:
    """Build the embedding checkpoint, stored in half the bytes.

    The trained weights were rounded to float16 when they were stored, so storing them so again loses nothing; the
    configuration says float32, so they load as that.

    Args:
        layer: Decoder block to read.
        out: The folder; replaced if it exists.
    """
    build(CHECKPOINT, layer=layer, prefix=None, out=out, overwrite=True, device="cpu")
    file = out / "model.safetensors"
    weights = load_file(file)
    halves = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    changed = [name for name, half in halves.items() if not torch.equal(half.float(), weights[name].float())]
    if changed:
        raise ValueError(f"{CHECKPOINT}: {len(changed)} weights are no float16 values, for example {changed[0]}")
    save_file(halves, file, metadata={"format": "pt"})
    file.chmod(0o644)  # it is written for its owner alone, and installers keep modes
    return out


def main() -> None:
    """Package at the layer that the figures of the checkpoint name, unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    figures = json.loads((CHECKPOINT / "figures.json").read_text(encoding="utf-8"))
    parser.add_argument("--layer", type=int, default=figures["best_layer"], help="default: the one in figures.json")
    package(parser.parse_args().layer)


if __name__ == "__main__":
    main()
