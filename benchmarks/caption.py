"""What describing videos costs, as ratios against named baselines in one run.

    python -m benchmarks.caption [--quick]

Clips of the bundled world are described, two texts each, by the bundled model on the CPU: `describe` with all clips in
one batch, the same one by one, and the host's own ``generate`` for each clip and text, which decodes, prepares and
prefills the clip each time. The texts of all three must be the same. Then the same with the head asked about each text.
"marks" counts which detailed captions the head denies, of those that are right (they name shape, colour, background and
what is in the corner) and of the others: by its calibrated probability, and by P(Yes) against No.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.common import environment, keep
from vidembed import VideoReranker, load_video
from vidembed.backbone.generate import generate
from vidembed.captions import DescribeOptions, describe
from vidembed.captions.describing import one_line
from vidembed.shapes import ClipRecord, write_clips

MODEL = "vidembed/shapes-mllm"
CLIPS, REPEATS = 16, 3
MARKED = 40  # clips whose captions are compared with what they show
NAMED = ("shape", "colour", "background", "corner_colour", "corner_shape")
BASELINES = {
    "speedup": "transformers' model.generate, greedy, for each clip and text: load_video, processor and generate; "
    "against all of describe",
    "speedup_generate_only": "the same, generate alone; against describe less what decodes and prepares",
    "speedup_over_one_by_one": "describe with batch_size=1",
}
CLOCK = "CPU time of the process with one torch thread, the median of the repeats"
Texts = list[dict[str, str]]


def plain(reranker: VideoReranker, clips: Sequence[Path], options: DescribeOptions) -> tuple[Texts, float, int]:
    """The texts of the host's own ``generate``, the seconds that it alone took, and the tokens that it made."""
    assert reranker.backbone is not None
    processor: Any = reranker.backbone.processor
    prompts = {
        kind: f"{before}{processor.video_token}{after}" for kind, (before, after) in options.rendered(reranker).items()
    }
    model: Any = reranker[0].model
    texts: Texts = []
    seconds, tokens = 0.0, 0
    for path in clips:
        texts.append({})
        for kind, prompt in prompts.items():
            clip = load_video(path, reranker.sampling)
            frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)  # (T, C, H, W)
            how = {"video_metadata": [clip.metadata()], "do_sample_frames": False, "return_tensors": "pt"}
            features = processor(text=[prompt], videos=[frames], **how)
            begin = time.process_time()
            made = model.generate(**features, max_new_tokens=options.max_new_tokens, do_sample=False)  # (1, P + N)
            seconds += time.process_time() - begin
            new = made[0, features["input_ids"].shape[1] :]
            tokens += len(new)
            texts[-1][kind] = one_line(processor.decode(new, skip_special_tokens=True))
    return texts, seconds, tokens


class Timed:
    """Adds up the CPU time of the calling thread in a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds, self._function = 0.0, function

    def __call__(self, *given: Any, **named: Any) -> Any:
        begin = time.thread_time()
        try:
            return self._function(*given, **named)
        finally:
            self.seconds += time.thread_time() - begin


def ours(
    reranker: VideoReranker, clips: Sequence[Path], batch_size: int, *, agree: bool
) -> tuple[Texts, dict[str, float]]:
    """The texts of `describe`, and its seconds: all, shared prefill, generation, head with the rest, decoding."""
    prefill, making = Timed(reranker.video_prompt), Timed(generate)
    patched = mock.patch("vidembed.captions.describing.generate", making)
    with mock.patch.object(reranker, "video_prompt", prefill), patched:
        begin, own = time.process_time(), time.thread_time()
        found = list(describe(reranker, clips, batch_size=batch_size, agree=agree))
        total, own = time.process_time() - begin, time.thread_time() - own
    parts = {"prefill": prefill.seconds, "generation": making.seconds}
    others = {"head_and_rest": own - sum(parts.values()), "decoding_and_processor": total - own}
    return [one.texts for one in found], {"total": total, **parts, **others}


def measure(clips: Sequence[Path], repeats: int) -> dict[str, Any]:
    reranker, options = VideoReranker(MODEL, device="cpu"), DescribeOptions()
    ways: dict[str, tuple[int, bool]] = {
        "batched": (len(clips), False),
        "one_by_one": (1, False),
        "batched_and_head_asked": (len(clips), True),
    }
    for size, agree in ways.values():
        ours(reranker, clips[:1], size, agree=agree)  # what is tried once on a model, is now
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    theirs: list[tuple[float, float]] = []
    for _ in range(repeats):  # in turn, so that a slow moment of the machine hits all
        begin = time.process_time()
        said, alone_s, tokens = plain(reranker, clips, options)
        theirs.append((time.process_time() - begin, alone_s))
        for way, (size, agree) in ways.items():
            texts, seconds = ours(reranker, clips, size, agree=agree)
            assert texts == said, f"{way}: other texts than the host's"
            runs[way].append(seconds)
    taken = {
        way: {part: statistics.median(run[part] for run in all_) for part in all_[0]} for way, all_ in runs.items()
    }
    plain_s, plain_generate_s = (statistics.median(each) for each in zip(*theirs, strict=True))
    batched = taken["batched"]
    return {
        "clips": len(clips),
        "texts_of_each": len(options.kinds),
        "tokens": tokens,
        "repeats": repeats,
        "seconds": taken,
        "plain_s": plain_s,
        "plain_generate_s": plain_generate_s,
        "clips_per_s": {way: len(clips) / each["total"] for way, each in taken.items()}
        | {"plain": len(clips) / plain_s},
        "tokens_per_s": {way: tokens / each["total"] for way, each in taken.items()} | {"plain": tokens / plain_s},
        "prefill_share": batched["prefill"] / batched["total"],
        "speedup": plain_s / batched["total"],
        "speedup_generate_only": plain_generate_s / (batched["total"] - batched["decoding_and_processor"]),
        "speedup_over_one_by_one": taken["one_by_one"]["total"] / batched["total"],
        "head_share": 1 - batched["total"] / taken["batched_and_head_asked"]["total"],
    }


def marks(scenes: Sequence[tuple[Path, ClipRecord]]) -> dict[str, Any]:
    """How many detailed captions the head denies."""
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    found: dict[str, Any] = {"clips": len(scenes)}
    for way in ("calibrated", "plain"):
        if way == "plain":
            reranker.calibration = None
        said = list(describe(reranker, [path for path, _ in scenes], kinds=["dense"]))
        right = [
            all(record.attributes[name] in one.texts["dense"] for name in NAMED if record.attributes[name] != "none")
            for one, (_, record) in zip(said, scenes, strict=True)
        ]
        marked = [not one.usable for one in said]
        found["right"] = sum(right)
        found[way] = {
            "right_marked": sum(map(all, zip(right, marked, strict=True))),
            "others_marked": sum(marked) - sum(map(all, zip(right, marked, strict=True))),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_clips(folder, 2 if args.quick else MARKED, "test", 0)
        clips = [path for path, _ in scenes]
        found = measure(clips[:CLIPS], 1 if args.quick else REPEATS) | {"marks": marks(scenes)}
    result = {"model": MODEL, "baselines": BASELINES, "clock": CLOCK, **found, **environment()}
    print(result) if args.quick else keep(__file__, result)


if __name__ == "__main__":
    main()
