"""What it takes to feed a model: CPU time and bytes of a clip's pixels, as floats and as bytes.

    python -m benchmarks.feed

A clip of 30 frames of 640 x 360 (15 s at 2 frames a second), through the stock processor of each architecture: as it
is, which gives normalized floats, and as vidembed calls it, which keeps bytes and normalizes them on the model's device
(`vidembed.inputs.normalized`). Where that is not bit-equal on the loaded model, floats are kept, and both columns are
the same. CPU time of one thread, the second best of seven; the processor's budget of pixels is raised so that frames
keep their size. Decoding is not part of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.backbone import tiny
from transformers.image_utils import SizeDict

from benchmarks.common import environment, keep
from vidembed import VideoEncoder, VideoFrames
from vidembed.inputs import AS_BYTES, BYTES, PIXELS, Prepared, collate, normalized

FRAMES, WIDTH, HEIGHT = 30, 640, 360
REPEATS = 7


def milliseconds(run: Callable[[], Any]) -> float:
    """CPU time of a call."""
    run()
    taken = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return round(1000 * sorted(taken)[1], 1)


def clip(seed: int) -> VideoFrames:
    frames = np.random.default_rng(seed).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)  # (T, H, W, C)
    return VideoFrames(frames, fps=2.0)


def measure(model_type: str, folder: Path) -> dict[str, Any]:
    """Stages of one architecture."""
    encoder = VideoEncoder(tiny.save(model_type, folder, max_position_embeddings=65_536), layer=4, device="cpu")
    video_processor: Any = encoder.processor.video_processor
    video_processor.size = SizeDict(shortest_edge=WIDTH, longest_edge=FRAMES * WIDTH * HEIGHT)
    raw: dict[str, Any] = {"video": AS_BYTES}
    whole = encoder.preprocess([clip(0)])
    try:
        as_bytes = encoder.preprocess([clip(0)], processing_kwargs=raw)
        as_bytes[BYTES] = as_bytes.pop(PIXELS)
        kept = torch.equal(normalized(as_bytes, video_processor)[PIXELS], whole[PIXELS])
    except RuntimeError:  # video_llama_3 needs floats to choose tokens
        kept = False
    if not kept:
        raw, as_bytes = {}, whole
    batches = {
        name: [Prepared(index, "", features) for index in range(4)]
        for name, features in (("floats", whole), ("bytes", as_bytes))
    }
    found: dict[str, Any] = {"bytes are kept": kept}
    frames = clip(0)
    found["processor"] = {
        "floats": milliseconds(lambda: encoder.preprocess([frames])),
        "bytes": milliseconds(lambda: encoder.preprocess([frames], processing_kwargs=raw)),
    }
    found["normalize on the device (here the CPU)"] = {
        "floats": 0.0,
        "bytes": milliseconds(lambda: normalized(as_bytes, video_processor)) if kept else 0.0,
    }
    found["join four clips, per clip"] = {
        name: round(milliseconds(lambda batch=batch: collate(batch, pad_token_id=0)) / 4, 1)
        for name, batch in batches.items()
    }
    pixels = {"floats": whole[PIXELS], "bytes": as_bytes[BYTES if kept else PIXELS]}
    found["MB to the device"] = {name: round(value.nbytes / 1e6, 1) for name, value in pixels.items()}
    return found


def main() -> None:
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for model_type in tiny.ARCHITECTURES:
            results[model_type] = found = measure(model_type, Path(folder, model_type))
            print(model_type, "bytes" if found["bytes are kept"] else "floats: bytes would not be bit-equal")
            for stage, values in found.items():
                if isinstance(values, dict):
                    ratio = values["bytes"] / values["floats"] if values["floats"] else float("nan")
                    print(f"  {stage:40} {values['floats']:8.1f} {values['bytes']:8.1f}   {ratio:.2f}")
    keep(__file__, {"environment": environment(), "clip": f"{FRAMES} frames of {WIDTH} x {HEIGHT}", "ms": results})


if __name__ == "__main__":
    main()
