"""What it takes to feed a model: time and bytes of a clip's pixels, as floats and as bytes.

    python -m benchmarks.feed
    python -m benchmarks.feed --device cuda --model NAME

A clip of 30 frames of 640 x 360 (15 s at 2 frames a second), which are decoded already, through the stock processor of
each architecture: as it is, which gives normalized floats, and as vidembed calls it, which keeps bytes and normalizes
them on the model's device (`vidembed.inputs.normalized`). Where that is not bit-equal on the loaded model,
floats are kept, and both columns are the same. CPU time of one thread, the second best of 15, with the ways taking
turns; the processor's budget of pixels is raised so that frames keep their size.

Then clips a second of preparing, by the clock, best of three: sentence-transformers' own `preprocess` of one clip after
another, and vidembed's threads (`Feeder`).

With a device, one model embeds such clips from end to end: clips a second, the share of the time in which it ran no
forward pass (on a GPU by CUDA events), milliseconds of the copy of a clip's pixels to the device, and peak memory. A
result of a GPU is kept in ``benchmarks/feed_cuda.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tests.backbone import tiny
from transformers.image_utils import SizeDict

from benchmarks.common import environment, high_water_mark, keep
from vidembed import VideoEncoder, VideoFrames
from vidembed.inputs import AS_BYTES, BYTES, PIXELS, Prepared, collate, normalized, processor_for_call, token_batches
from vidembed.pipeline import Feeder

FRAMES, WIDTH, HEIGHT = 30, 640, 360
REPEATS = 15
CLIPS = 12  # prepared by the clock, a run


def milliseconds(**runs: Callable[[], Any]) -> dict[str, float]:
    """CPU time of calls, which take turns, so that what else the machine does meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + REPEATS):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn:  # the first warms up
                taken[name].append(time.process_time() - began)
    return {name: round(1000 * sorted(times)[1], 1) for name, times in taken.items()}


def clip(seed: int) -> VideoFrames:
    frames = np.random.default_rng(seed).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)  # (T, H, W, C)
    return VideoFrames(frames, fps=2.0)


def measure(model_type: str, folder: Path) -> dict[str, Any]:
    """Stages of one architecture."""
    encoder = VideoEncoder(tiny.save(model_type, folder, max_position_embeddings=65_536), layer=4, device="cpu")
    video_processor: Any = encoder.processor.video_processor
    video_processor.size = SizeDict(shortest_edge=WIDTH, longest_edge=FRAMES * WIDTH * HEIGHT)
    prepare = functools.partial(encoder._prepare, 0, as_bytes=True)  # noqa: SLF001 - as its own threads call it
    whole, as_bytes = encoder.preprocess([clip(0)]), prepare(clip(0)).features
    kept = BYTES in as_bytes
    assert torch.equal(normalized(as_bytes, video_processor)[PIXELS], whole[PIXELS])
    batches = {
        name: [Prepared(index, "", features) for index in range(4)]
        for name, features in (("floats", whole), ("bytes", as_bytes))
    }
    found: dict[str, Any] = {"bytes are kept": kept}
    frames = clip(0)
    found["processor"] = milliseconds(floats=lambda: encoder.preprocess([frames]), bytes=lambda: prepare(frames))
    pictures = torch.from_numpy(frames.array).permute(0, 3, 1, 2)  # (T, C, H, W)
    of_call: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt"}
    own: Any = processor_for_call(encoder.processor, as_bytes=True)
    found["of it, the video processor"] = milliseconds(
        floats=functools.partial(video_processor, videos=[pictures], **of_call),
        bytes=functools.partial(own.video_processor, videos=[pictures], **AS_BYTES, **of_call),
    )
    left = milliseconds(bytes=lambda: normalized(as_bytes, video_processor)) if kept else {"bytes": 0.0}
    found["cut into patches, normalize: on the device (here the CPU)"] = {"floats": 0.0, **left}
    joined = milliseconds(
        **{name: functools.partial(collate, batch, pad_token_id=0) for name, batch in batches.items()}
    )
    found["join four clips, per clip"] = {name: round(taken / 4, 1) for name, taken in joined.items()}
    pixels = {"floats": whole[PIXELS], "bytes": as_bytes[BYTES if kept else PIXELS]}
    found["clips a second of preparing"] = preparing(encoder)
    found["MB to the device"] = {name: round(value.nbytes / 1e6, 1) for name, value in pixels.items()}
    return found


def clips_a_second(run: Callable[[], Any], clips: int) -> float:
    """By the clock, best of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return round(clips / min(taken), 1)


def preparing(encoder: VideoEncoder) -> dict[str, float]:
    """Clips a second of preparing the same frames in several ways."""
    clips = [clip(seed) for seed in range(CLIPS)]
    metadata = {"fps": 2.0, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES))}
    videos: list[Any] = [
        {"array": torch.from_numpy(one.array).permute(0, 3, 1, 2), "video_metadata": metadata}  # (T, C, H, W)
        for one in clips
    ]
    host = functools.partial(SentenceTransformer.preprocess, encoder)
    sampled: dict[str, Any] = {"do_sample_frames": False}
    uncut: dict[str, Any] = {"truncation": False, "max_length": None}  # the host would cut a prompt of 4,000 tokens

    def one_by_one() -> None:
        for video in videos:
            host([{"video": video}], processing_kwargs={"video": sampled, "text": uncut})

    def threads(workers: int) -> None:
        prepare = functools.partial(encoder._prepare, as_bytes=True)  # noqa: SLF001 - as its own threads call it
        feeder = Feeder(clips, prepare, on_error="raise", workers=workers)
        group = functools.partial(token_batches, max_items=1, max_tokens=10**6)
        for _ in feeder.batches(group, functools.partial(collate, pad_token_id=0)):
            pass

    threads(1)  # what is tried once on a model, is now
    ways = {
        "sentence-transformers, one after another": one_by_one,
        "vidembed, 1 worker": functools.partial(threads, 1),
        "vidembed, 2 workers": functools.partial(threads, 2),
    }
    return {name: clips_a_second(run, CLIPS) for name, run in ways.items()}


def embed(name: str, device: str, *, clips: int, batch_size: int) -> dict[str, Any]:
    """Embed clips by a model on a device."""
    encoder = VideoEncoder(name, device=device)
    is_gpu = torch.device(device).type == "cuda"
    passes: list[tuple[Any, Any]] = []  # when each began and ended

    def now() -> Any:
        if not is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    began: list[Any] = []
    encoder.register_forward_pre_hook(lambda *_: began.append(now()))
    encoder.register_forward_hook(lambda *_: passes.append((began.pop(), now())))
    videos = [clip(seed % 8) for seed in range(clips)]
    encoder.encode(videos[:batch_size], batch_size=batch_size, show_progress_bar=False)  # warm
    passes.clear()
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    encoder.encode(videos, batch_size=batch_size, show_progress_bar=False)
    wall = time.perf_counter() - start
    busy = sum(one.elapsed_time(other) / 1000 if is_gpu else other - one for one, other in passes)
    prepared = encoder._prepare(0, videos[0], as_bytes=True)  # noqa: SLF001 - likewise
    pixels = prepared.features.get(BYTES, prepared.features.get(PIXELS))
    peak = torch.cuda.max_memory_allocated() if is_gpu else high_water_mark(os.getpid())
    return {
        "model": name,
        "device": device,
        "clips": clips,
        "batches": len(passes),
        "workers": encoder.decode_workers,
        "tokens a clip": prepared.tokens,
        "clips a second": round(clips / wall, 2),
        "idle share": round(1 - busy / wall, 3),
        "MB to the device, a clip": round(pixels.nbytes / 1e6, 1),
        "ms to the device": {
            "pageable": copying(pixels, device),
            "pinned": copying(pixels.pin_memory(), device) if is_gpu else None,
        },
        "peak memory, MB": round(peak / 1e6),
    }


def copying(pixels: torch.Tensor, device: str) -> float:
    """Milliseconds of a copy to the device, best of 15."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        pixels.to(device, non_blocking=True)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return round(1000 * min(taken), 2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed", description="What it takes to feed a model.")
    parser.add_argument("--device", help="run one model from end to end on cuda or cpu")
    parser.add_argument("--model", help="name or path, as VideoEncoder takes it")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    asked = parser.parse_args(arguments)
    if (asked.device is None) != (asked.model is None):
        parser.error("--device and --model go together")
    if asked.device is None:
        table()
        return
    if min(asked.clips, asked.batch_size) < 1:
        parser.error("--clips and --batch-size: at least 1 is needed")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {asked.device}: torch {torch.__version__} finds no CUDA device here")
    try:
        found = embed(asked.model, asked.device, clips=asked.clips, batch_size=asked.batch_size)
    except (ValueError, OSError) as error:
        parser.error(f"--model {asked.model}: {error}")
    result = {"environment": environment(), "clip": f"{FRAMES} frames of {WIDTH} x {HEIGHT}", **found}
    if asked.device.startswith("cuda"):
        keep(str(Path(__file__).with_name("feed_cuda.py")), result)
    else:
        print(json.dumps(result, indent=2))


def table() -> None:
    """Every architecture of the tests, on the CPU."""
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for model_type in tiny.ARCHITECTURES:
            results[model_type] = found = measure(model_type, Path(folder, model_type))
            print(model_type, "bytes" if found["bytes are kept"] else "floats: bytes would not be bit-equal")
            for stage, values in found.items():
                if stage.startswith("clips"):
                    print(f"  {stage}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
                elif isinstance(values, dict):
                    ratio = values["bytes"] / values["floats"] if values["floats"] else float("nan")
                    print(f"  {stage:40} {values['floats']:8.1f} {values['bytes']:8.1f}   {ratio:.2f}")
    keep(__file__, {"environment": environment(), "clip": f"{FRAMES} frames of {WIDTH} x {HEIGHT}", "ms": results})


if __name__ == "__main__":
    main()
