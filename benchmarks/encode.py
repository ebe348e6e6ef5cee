"""Embedding speed, as ratios against named baselines in one run.

    python -m benchmarks.encode [--quick]

1. Decode-ahead: `VideoEncoder.encode` of files, against sentence-transformers' own loop fed the same decoded arrays,
   decoded in its thread just before each batch. Same model, same frames. The second baseline lets FFmpeg decode each
   file with four threads of its own.
2. Early exit: the model cut after block l, against the full model read through sentence-transformers'
   ``method_output_name=["hidden_states", l]``: time of the decoder and memory added by one pass.

The models are random, of Qwen2.5-VL's classes; speed does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tests.backbone import tiny
from tests.clips import write_video

from benchmarks.common import environment, keep
from vidembed import VideoEncoder, load_video
from vidembed import registry as hook
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.cut import as_transformer_module
from vidembed.backbone.load import load_backbone
from vidembed.backbone.templates import eol_template

BATCH = 4
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def decode_heavy_clips(folder: Path, count: int, seconds: int) -> list[Path]:
    """720p H.264 at 30 frames per second with motion everywhere, so that decoding is real work."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        texture = rng.integers(0, 255, (90, 160, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # (720, 1280, 3)
        frames = np.stack([np.roll(texture, (3 * t, 5 * t), (0, 1)) for t in range(30 * seconds)])  # (T, H, W, C)
        paths.append(write_video(folder / f"{index:02d}.mp4", frames, fps=30))
    return paths


def decode_ahead(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Part 1."""
    paths = decode_heavy_clips(folder, 6 if quick else 16, 2 if quick else 6)
    mllm = tiny.save(
        "qwen2_5_vl",
        folder / "mllm",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=12,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    )
    encoder = VideoEncoder(mllm, layer=10, device="cpu")
    encoder.save_pretrained(str(folder / "checkpoint"))
    hook.remove()  # the baseline is sentence-transformers' own class
    stock = SentenceTransformer(str(folder / "checkpoint"), device="cpu")
    hook.install()
    no_resampling = {"video": {"do_sample_frames": False}}

    def baseline(threads: int) -> np.ndarray:
        rows = []
        for start in range(0, len(paths), BATCH):
            clips = [load_video(path, encoder.sampling, threads=threads) for path in paths[start : start + BATCH]]
            arrays = [
                {"array": torch.from_numpy(clip.frames).permute(0, 3, 1, 2), "video_metadata": clip.metadata()}
                for clip in clips
            ]
            rows.append(stock.encode(arrays, batch_size=BATCH, processing_kwargs=no_resampling))
        return np.concatenate(rows)

    def ours() -> np.ndarray:
        return encoder.encode(paths, batch_size=BATCH)

    runs: dict[str, Callable[[], Any]] = {
        "one_thread": functools.partial(baseline, 1),
        "ffmpeg_threads": functools.partial(baseline, 4),
        "vidembed": ours,
        "decoding_alone": lambda: [load_video(path, encoder.sampling, threads=1) for path in paths],
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    vectors: dict[str, Any] = {}
    for repeat in range(2 if quick else 4):
        for name, run in runs.items():  # in turn, so that a slow moment of the machine hits all
            start = time.perf_counter()
            vectors[name] = run()
            if repeat:  # the first is to warm up
                seconds[name].append(time.perf_counter() - start)
    gap = float(np.abs(vectors["one_thread"] - vectors["vidembed"]).max())
    assert gap <= 1e-5, f"the two paths disagree by {gap}"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "baseline": "sentence-transformers encode, arrays decoded in its thread before each batch",
        "clips": len(paths),
        "clip": "1280x720 H.264, 30 fps",
        "median_s": medians,
        "max_difference": gap,
        "speedup": medians["one_thread"] / medians["vidembed"],
        "speedup_over_ffmpeg_threads": medians["ffmpeg_threads"] / medians["vidembed"],
    }


@contextlib.contextmanager
def added_memory(box: dict[str, float]) -> Iterator[None]:
    """MiB of peak resident memory over what was resident before (Linux with glibc)."""

    def status(key: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        raise KeyError(key)

    ctypes.CDLL(None).malloc_trim(0)  # else what earlier passes freed hides what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    yield
    box["added_mib"] = status("VmHWM") - before


def early_exit(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Part 2."""
    depth = 24
    # every tensor its own mapping, given back when freed: else the heap's holes count as memory of the pass
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    mllm = tiny.save(
        "qwen2_5_vl",
        folder / "deep",
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=depth,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    )
    text = ["a red square moves down " * 80] * 2  # about 800 tokens each
    rows = []
    for layer in (14, 21):
        encoder = VideoEncoder(mllm, layer=layer, prefix=None, device="cpu")
        backbone = load_backbone(mllm)
        module = as_transformer_module(
            find_parts(backbone.model).base, backbone.processor, chat_template=eol_template(backbone.processor)
        )
        for params in module.modality_config.values():
            params["method_output_name"] = ["hidden_states", layer]
        full = SentenceTransformer(
            modules=[module, Pooling(module.get_embedding_dimension(), "lasttoken"), Normalize()], device="cpu"
        )
        features = encoder.preprocess(text)
        row: dict[str, Any] = {
            "baseline": 'method_output_name=["hidden_states", l] on the full model',
            "depth": depth,
            "layer": layer,
            "tokens": int(features["input_ids"].shape[1]),
        }
        vectors, memory, seconds = {}, {}, {"full": [], "cut": []}
        with torch.inference_mode():
            for name, model in (("full", full), ("cut", encoder)):
                model(dict(features))
                samples = []
                for _ in range(3):
                    box: dict[str, float] = {}
                    with added_memory(box):
                        vectors[name] = model(dict(features))["sentence_embedding"]
                    samples.append(box["added_mib"])
                memory[name] = statistics.median(samples)
            for _ in range(3 if quick else 9):  # in turn, so that a slow moment of the machine hits both
                for name, model in (("full", full), ("cut", encoder)):
                    start = time.perf_counter()
                    model(dict(features))
                    seconds[name].append(time.perf_counter() - start)
        gap = 1 - torch.nn.functional.cosine_similarity(vectors["full"].double(), vectors["cut"].double()).min().item()
        assert gap <= 1e-6, f"the two paths disagree: 1 - cosine = {gap}"
        ratio = statistics.median(seconds["full"]) / statistics.median(seconds["cut"])
        rows.append(
            row
            | {
                "full_s": statistics.median(seconds["full"]),
                "cut_s": statistics.median(seconds["cut"]),
                "one_minus_cosine": gap,
                "time_ratio": ratio,
                "time_ratio_over_depth_by_layer": ratio / (depth / layer),
                "full_added_mib": memory["full"],
                "cut_added_mib": memory["cut"],
                "added_memory_ratio": memory["cut"] / memory["full"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "decode_ahead": decode_ahead(folder, quick=args.quick),
            "early_exit": early_exit(folder, quick=args.quick),  # last: it changes how this process gets memory
            **environment(),
        }
    if args.quick:
        print(result)
    else:
        keep(__file__, result)


if __name__ == "__main__":
    main()
