"""Reranking speed, as ratios against named baselines in one run.

    python -m benchmarks.rerank [--quick] [--live] [--device cuda]

1. Many sentences about one video, and few sentences about several: `VideoReranker.predict` against the plain checkpoint
   that it saves, loaded by sentence-transformers' own `CrossEncoder` and run on batches of pairs, each of which holds
   its video. "speedup" compares whole calls, "speedup_forward_only" leaves the processor out on both sides.
2. Memory of one video: keys and values against visual tokens, from the shapes of published models.
3. With ``--device cuda``: parts 1 and 4 for a random model of Qwen2.5-VL-7B's shape in bfloat16.
4. One sentence about many videos, as a live query asks: a pass for each video against passes over several
   (``max_batch_tokens``), both by `VideoReranker`, with the visual tokens cached and not. ``--live`` runs this part
   alone, on the CPU, and keeps it in rerank_live.json.

The models are random; speed does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from tests.backbone import tiny
from transformers import AutoModelForImageTextToText

from benchmarks.common import environment, keep
from vidembed import VideoFrames, VideoReranker, VisualTokenCache, load_video
from vidembed import registry as hook
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.load import Backbone
from vidembed.backbone.prefix import prefill, prefix_length
from vidembed.backbone.templates import MATCH_QUESTION
from vidembed.inputs import MAX_BATCH_TOKENS

Pairs = Sequence[tuple[str, VideoFrames]]

BASELINES = {
    "speedup": "the saved checkpoint in sentence-transformers' CrossEncoder: preprocess + forward of batches of pairs, "
    "the video once per pair; against all of VideoReranker.predict",
    "speedup_forward_only": "the same, its forward pass alone; against predict less the time of "
    "its processor, with tokenizing the sentences",
    "speedup_over_batches_of_one": "as speedup, each pair a batch of its own: no padding, so attention takes no mask",
}
CLOCK = "CPU time of the process with one torch thread; on a GPU, wall time between synchronizations"
EXTRAPOLATION = (
    "each repeat runs the baseline on naive_pairs_measured pairs, other ones each time, and its time is multiplied by "
    "pairs / naive_pairs_measured; likewise batches of one by pairs / batches_of_one_measured"
)
TOLERANCE = 1e-4  # of log-odds in float32
HEAD_SCALE = 50.0  # random heads answer alike; scaled, a wrong prompt shows in the log-odds
SPREAD = 100 * TOLERANCE  # what the log-odds of different pairs must at least differ by (standard deviation)

SMALL: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
# 0.2 to 0.4 of the decoder's work per visual token, as in the published models
SMALL_VISION: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"depth": 3, "hidden_size": 256, "intermediate_size": 768, "fullatt_block_indexes": [2]},
    "qwen3_vl": {"hidden_size": 192, "intermediate_size": 768, "num_heads": 3, "deepstack_visual_indexes": [0, 1, 2]},
    "video_llama_3": {
        "num_hidden_layers": 3,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_attention_heads": 3,
    },
}
SMALL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10]}
TINY: dict[str, Any] = {"vocab_size": 1024, "num_hidden_layers": 3, "max_position_embeddings": 1024}

TARGETS = {(256, 100): 6, (1024, 10): 6, (1024, 100): 20, (4096, 100): 40}  # of speedup, by visual tokens and pairs
TEXT_TO_VIDEO_TARGET = 3

# config.json of Qwen/Qwen2.5-VL-7B-Instruct, but for the ids of special tokens
QWEN2_5_VL_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
}
QWEN2_5_VL_7B_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What the memory of one visual token depends on."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    deepstack: int = 0  # further visual features of each token, added inside the decoder

    @classmethod
    def of(cls, config: Any) -> Shape:
        text = config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        levels = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        return cls(text.num_hidden_layers, text.num_key_value_heads, head_dim, text.hidden_size, levels)

    def kv_bytes(self, tokens: int, itemsize: int = 2) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * itemsize

    def visual_bytes(self, tokens: int, itemsize: int = 2) -> int:
        return (1 + self.deepstack) * self.hidden * tokens * itemsize


PUBLISHED = {
    "Qwen2.5-VL-7B": Shape(layers=28, kv_heads=4, head_dim=128, hidden=3584),
    "Qwen3-VL-8B": Shape(layers=36, kv_heads=8, head_dim=128, hidden=4096, deepstack=3),
    "VideoLLaMA3-7B": Shape(layers=28, kv_heads=4, head_dim=128, hidden=3584),
}


def memory() -> list[dict[str, Any]]:
    """Part 2, computed."""
    return [
        {
            "model": name,
            **asdict(shape),
            "dtype": "bfloat16",
            "visual_tokens": tokens,
            "kv_bytes": shape.kv_bytes(tokens),
            "visual_token_bytes": shape.visual_bytes(tokens),
            "kv_over_visual": shape.kv_bytes(tokens) / shape.visual_bytes(tokens),
        }
        for name, shape in PUBLISHED.items()
        for tokens in (1024, 4096)
    ]


@torch.inference_mode()
def check_memory(reranker: VideoReranker, video: VideoFrames) -> dict[str, int]:
    """The arithmetic of `Shape` against what a model holds."""
    parts = find_parts(reranker[0].model)
    features = batch_to_device(reranker.preprocess([("a", video)]), reranker.device)
    prefix = prefill(parts, features)
    shape, itemsize = Shape.of(parts.base.config), prefix.hidden.element_size()
    assert shape.kv_bytes(prefix.tokens, itemsize) == prefix.nbytes
    return {"prefix_tokens": prefix.tokens, "kv_bytes_held": prefix.nbytes}


# -- models and inputs ------------------------------------------------------------------------------------------------


def sentences(count: int, seed: int = 0) -> list[str]:
    """Captions of 5 to 19 words, no two alike."""
    rng = np.random.default_rng(seed)
    words = "a the man woman dog red small old runs walks plays holds over under near park street kitchen and then"
    drawn = [" ".join(rng.choice(words.split(), rng.integers(5, 20))) for _ in range(count)]
    assert len(set(drawn)) == count
    return drawn


def texture(frames: int, side: int, seed: int) -> VideoFrames:
    """Motion everywhere: VideoLLaMA3 drops visual tokens that do not change."""
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # (H, W, C)
    return VideoFrames(np.stack([np.roll(still, (3 * t, 5 * t), (0, 1)) for t in range(frames)]), fps=2.0)


def video_of(architecture: str, visual_tokens: int, seed: int = 0) -> VideoFrames:
    """A video of so many tokens: 64 for each frame, or each two frames."""
    if visual_tokens % 64:
        raise ValueError(f"visual_tokens={visual_tokens} is not a multiple of 64.")
    side = 8 * 2 * (16 if architecture == "qwen3_vl" else 14)  # 8 merged patches of 2
    return texture(visual_tokens // 64 * (1 if architecture == "video_llama_3" else 2), side, seed)


def processor_of(architecture: str, max_length: int) -> Any:
    """A processor that keeps the size of frames, and whose tokens are words rather than bytes."""
    processor = tiny.processor(architecture)
    words = ["Yes", "No", "user\n", "assistant\n", "system\nYou are a helpful assistant."]
    corpus = [*words, "<0.5 seconds>", "Time 0.5s:", MATCH_QUESTION, *sentences(100)] * 20
    processor.tokenizer = processor.tokenizer.train_new_from_iterator(corpus, 1000, show_progress=False)
    processor.tokenizer.model_max_length = max_length
    size = {"shortest_edge": 32 * 32, "longest_edge": 2**31}
    old = processor.video_processor
    processor.video_processor = type(old)(size=size, patch_size=old.patch_size)
    return processor


def as_host_takes(reranker: VideoReranker, pairs: Pairs) -> list[tuple[str, Any]]:
    """The same pairs, with the same frames in the form that sentence-transformers takes."""
    frames: dict[int, Any] = {}
    for _, video in pairs:
        if id(video) not in frames:
            clip = load_video(video, reranker.sampling)
            array = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)  # (T, C, H, W)
            frames[id(video)] = {"array": array, "video_metadata": clip.metadata()}
    return [(text, frames[id(video)]) for text, video in pairs]


def random_backbone(
    architecture: str, text: dict[str, Any], vision: dict[str, Any], *, device: str = "cpu", dtype: Any = torch.float32
) -> Backbone:
    """A random model, made where it will run."""
    config = tiny.config(architecture, **text)
    for key, value in vision.items():
        setattr(config.vision_config, key, value)
    own = config.text_config
    if architecture == "qwen3_vl":
        own.head_dim = own.hidden_size // own.num_attention_heads
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # trained norms are not ones; residual streams are not tiny
            is_norm = "norm" in key and key.endswith("weight")
            scale = 0.3 if is_norm else 0.6 / parameter.shape[-1] ** 0.5
            parameter.normal_(1.0 if is_norm else 0.0, scale, generator=generator)
        model.lm_head.weight.mul_(HEAD_SCALE)
    return Backbone(model.eval(), processor_of(architecture, own.max_position_embeddings), f"random {architecture}")


def contestants(backbone: Backbone, folder: Path | None) -> tuple[VideoReranker, CrossEncoder]:
    """Ours and the baseline: loaded from what ours saved to `folder`, or sharing its modules where that is too big."""
    reranker = VideoReranker(backbone=backbone, mode="yes_no")
    assert reranker.sharing is not None  # tried here, once, and not in a timed run
    if folder is None:
        stock = CrossEncoder(modules=list(reranker), device=str(reranker.device))
    else:
        reranker.save_pretrained(str(folder))
        hook.remove()  # the baseline is sentence-transformers' own class
        stock = CrossEncoder(str(folder), device=str(reranker.device))
        hook.install()
    warm_up = [("a", video_of(reranker[0].model.config.model_type, 64))]
    ours(reranker, warm_up)
    naive(stock, as_host_takes(reranker, warm_up), 1)
    return reranker, stock


# -- timing -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run of one side."""

    scores: torch.Tensor  # (N,) log-odds
    forward_s: float
    total_s: float
    peak_bytes: int | None = None
    prompt_tokens: float | None = None


def now(device: torch.device, *, thread: bool = False) -> float:
    """Of CPU work, CPU time: on a busy machine the wall clock counts the work of others."""
    if device.type != "cuda":
        return time.thread_time() if thread else time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_of(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


@torch.inference_mode()
def naive(stock: CrossEncoder, pairs: Sequence[tuple[str, Any]], batch: int) -> Run:
    """Every pair through the whole model. `predict` itself takes no frames with their times in a pair."""
    reset_peak(stock.device)
    scores, processor_s, forward_s, lengths = [], 0.0, 0.0, []
    for start in range(0, len(pairs), batch):
        begin = now(stock.device)
        features = stock.preprocess(
            [{"video": video, "text": text} for text, video in pairs[start : start + batch]],
            processing_kwargs={"video": {"do_sample_frames": False}},
        )
        middle = now(stock.device)
        lengths.append(features["attention_mask"].sum(dim=1))  # (B,)
        scores.append(stock(batch_to_device(features, stock.device))["scores"][:, 0].float().cpu())  # (B,)
        processor_s += middle - begin
        forward_s += now(stock.device) - middle
    tokens = torch.cat(lengths).float().mean().item()
    return Run(torch.cat(scores), forward_s, processor_s + forward_s, peak_of(stock.device), tokens)


def ours(reranker: VideoReranker, pairs: Pairs) -> Run:
    """`predict` as users call it. The processor, which runs in a thread, is timed inside the same call."""
    module, parts = reranker[0], find_parts(reranker[0].model)
    preprocess, processor_s, videos_seen = module.preprocess, 0.0, 0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal processor_s
        begin = now(reranker.device, thread=True)
        result = preprocess(*args, **kwargs)
        processor_s += now(reranker.device, thread=True) - begin
        return result

    def seen(*_: Any) -> None:
        nonlocal videos_seen
        videos_seen += 1

    hook = next(child for child in parts.base.children() if child is not parts.decoder).register_forward_hook(seen)
    reset_peak(reranker.device)
    with mock.patch.object(module, "preprocess", timed):
        begin = now(reranker.device)
        scores = reranker.predict(
            pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True, show_progress_bar=False
        )
        total_s = now(reranker.device) - begin
    hook.remove()
    assert videos_seen == len({id(video) for _, video in pairs})  # none is remembered from an earlier run
    return Run(scores.float().cpu(), total_s - processor_s, total_s, peak_of(reranker.device))


def medians(runs: Sequence[Run]) -> tuple[float, float]:
    return statistics.median(run.total_s for run in runs), statistics.median(run.forward_s for run in runs)


def compare(
    reranker: VideoReranker,
    stock: CrossEncoder,
    pairs: Pairs,
    *,
    counts: Sequence[int],
    measured: int,
    batch: int = 10,
    few: int = 2,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Both sides in turn, so that a slow moment of the machine hits both. One row for each of `counts`.

    The baseline runs on `measured` pairs at a time, and on the first `few` of them in batches of one.
    """
    plain = as_host_takes(reranker, pairs)  # outside the clock
    theirs: list[Run] = []
    mine: dict[int, list[Run]] = {count: [] for count in counts}
    gaps: dict[int, list[float]] = {count: [] for count in counts}
    alone: list[Run] = []
    noise: list[float] = []
    for repeat in range(repeats):
        start = repeat * measured % len(pairs)
        part = slice(start, start + measured)
        theirs.append(naive(stock, plain[part], batch))
        alone.append(naive(stock, plain[start : start + few], 1))
        noise.append((alone[-1].scores - theirs[-1].scores[:few]).abs().max().item())
        for count in counts:
            same = count == measured  # then both sides take the same pairs
            run = ours(reranker, pairs[part] if same else pairs[:count])
            mine[count].append(run)
            gaps[count].append(((run.scores if same else run.scores[part]) - theirs[-1].scores).abs().max().item())
    is_exact = next(reranker.parameters()).dtype == torch.float32
    features = reranker.preprocess([pairs[0]])
    config = reranker[0].model.config
    media = (config.video_token_id, config.image_token_id)
    tokens = prefix_length(features, media)
    naive_total, naive_forward = medians(theirs)
    alone_total, alone_forward = (value / few for value in medians(alone))
    prompt_tokens = statistics.mean(run.prompt_tokens or 0.0 for run in theirs)
    rows = []
    for count in counts:
        total, forward = medians(mine[count])
        spread = mine[count][0].scores.std().item()
        assert not is_exact or max(gaps[count]) <= TOLERANCE, f"the two paths disagree by {max(gaps[count])}"
        assert not is_exact or spread > SPREAD, f"all pairs score alike ({spread}), so equal scores would prove nothing"
        share = count / measured
        row = {
            "architecture": config.model_type,
            "visual_tokens": int(torch.isin(features["input_ids"], torch.tensor(media)).sum()),
            "prefix_tokens": tokens,
            "mean_suffix_tokens": round(prompt_tokens - tokens, 1),
            "pairs": count,
            "naive_batch": min(batch, measured),
            "naive_pairs_measured": measured,
            "naive_extrapolated": count != measured,
            "batches_of_one_measured": few,
            "repeats": repeats,
            "naive_s": naive_total * share,
            "naive_forward_s": naive_forward * share,
            "naive_processor_share": 1 - naive_forward / naive_total,
            "ours_s": total,
            "ours_forward_s": forward,
            "speedup": naive_total * share / total,
            "speedup_forward_only": naive_forward * share / forward,
            "speedup_over_batches_of_one": alone_total * count / total,
            "speedup_over_batches_of_one_forward_only": alone_forward * count / forward,
            "max_log_odds_difference": max(gaps[count]),
            "naive_difference_to_batches_of_one": max(noise),
            "pairs_compared": min(measured * repeats, len(pairs)),
            "log_odds_std": spread,
        }
        if theirs[0].peak_bytes is not None:
            row["naive_peak_bytes"] = max(run.peak_bytes or 0 for run in theirs)
            row["ours_peak_bytes"] = max(run.peak_bytes or 0 for run in mine[count])
        rows.append(row)
        print(
            f"{config.model_type}, {row['visual_tokens']} tokens, {count} pairs: {row['speedup']:.1f}x", file=sys.stderr
        )
    return rows


def one_video(
    reranker: VideoReranker, stock: CrossEncoder, visual_tokens: int, counts: Sequence[int], measured: int, **how: Any
) -> list[dict[str, Any]]:
    """Many sentences about one video."""
    assert max(counts) % measured == 0
    video = video_of(reranker[0].model.config.model_type, visual_tokens)
    pairs = [(text, video) for text in sentences(max(counts))]
    held = check_memory(reranker, video)
    rows = compare(reranker, stock, pairs, counts=counts, measured=measured, **how)
    assert held["prefix_tokens"] == rows[0]["prefix_tokens"]
    return [row | {"kv_bytes_held": held["kv_bytes_held"]} for row in rows]


def text_to_video(reranker: VideoReranker, stock: CrossEncoder, visual_tokens: int, **how: Any) -> dict[str, Any]:
    """9 queries, each with the best 2 of 3 videos: 18 pairs in the order of the queries, 6 about each video."""
    videos = [video_of(reranker[0].model.config.model_type, visual_tokens, seed) for seed in range(3)]
    best = [(videos[index % 3], videos[(index + 1) % 3]) for index in range(9)]
    pairs = [(text, video) for text, both in zip(sentences(9), best, strict=True) for video in both]
    [row] = compare(reranker, stock, pairs, counts=[len(pairs)], measured=len(pairs), **how)
    return row | {"videos": len(videos), "pairs_per_video": len(pairs) // len(videos)}


def live_query(reranker: VideoReranker, visual_tokens: int, count: int, repeats: int = 3) -> list[dict[str, Any]]:
    """Part 4: one sentence, `count` videos of half so many visual tokens, or all."""
    kind = reranker[0].model.config.model_type
    rows = []
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, f"{seed}.mkv") for seed in range(count)]
        for seed, path in enumerate(paths):
            write_video(path, video_of(kind, visual_tokens if seed % 2 else max(64, visual_tokens // 2), seed))
        pairs = [(sentences(1)[0], path) for path in paths]
        for cached in (False, True):
            reranker.visual_cache = VisualTokenCache() if cached else None
            runs: dict[str, list[tuple[float, np.ndarray]]] = {"one by one": [], "batched": []}
            for repeat in range(repeats + 1):  # the first fills the cache, and is not counted
                for way, most in (("one by one", 0), ("batched", MAX_BATCH_TOKENS)):
                    reranker.max_batch_tokens = most
                    begin = now(reranker.device)
                    odds = reranker.answers(pairs, show_progress_bar=False).yes_no  # (N,)
                    if repeat:
                        runs[way].append((now(reranker.device) - begin, odds))
            assert reranker.can_batch()
            alone, together = (statistics.median(taken for taken, _ in runs[way]) for way in runs)
            gap = float(np.abs(runs["one by one"][0][1] - runs["batched"][0][1]).max())
            exact = reranker.dtype == torch.float32
            assert not exact or gap <= TOLERANCE, f"the two ways disagree by {gap}"
            rows.append(
                {
                    "architecture": kind,
                    "videos": count,
                    "visual_tokens": [max(64, visual_tokens // 2), visual_tokens],
                    "visual_tokens_cached": cached,
                    "repeats": repeats,
                    "one_by_one_s": alone,
                    "batched_s": together,
                    "speedup": alone / together,
                    "max_log_odds_difference": gap,
                    "log_odds_std": float(runs["batched"][0][1].std()),
                }
            )
            print(f"{kind}, one sentence, {count} videos, cached {cached}: {alone / together:.2f}x", file=sys.stderr)
    reranker.visual_cache, reranker.max_batch_tokens = None, None
    return rows


def write_video(path: Path, video: VideoFrames) -> None:
    """Write frames without loss."""
    frames = video.array  # (T, H, W, C)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=2)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def live_on_cpu(*, quick: bool) -> list[dict[str, Any]]:
    """Part 4 with the small shape of Qwen2.5-VL."""
    text, vision = (TINY, {}) if quick else (SMALL | {"rope_parameters": SMALL_ROPE}, SMALL_VISION["qwen2_5_vl"])
    reranker = VideoReranker(backbone=random_backbone("qwen2_5_vl", text, vision))
    return live_query(reranker, 128 if quick else 256, 4 if quick else 16)


def on_cpu(*, quick: bool) -> dict[str, Any]:
    """Part 1."""
    one: list[dict[str, Any]] = []
    for architecture, small_vision in SMALL_VISION.items():
        rope = {} if architecture == "video_llama_3" else {"rope_parameters": SMALL_ROPE}
        text, vision = (TINY, {}) if quick else (SMALL | rope, small_vision)
        with tempfile.TemporaryDirectory() as name:
            reranker, stock = contestants(random_backbone(architecture, text, vision), Path(name))
        if quick:
            one += one_video(reranker, stock, 64, [4, 8], 4)
        elif architecture == "qwen2_5_vl":
            one += one_video(reranker, stock, 256, [100], 10)
            one += one_video(reranker, stock, 1024, [10, 100], 10)
            one += one_video(reranker, stock, 4096, [100], 2, few=1, repeats=2)
        else:
            one += one_video(reranker, stock, 1024, [100], 5, repeats=2)
        if architecture == "qwen2_5_vl":
            several = text_to_video(reranker, stock, 64 if quick else 512)
    return {
        "one_video": [row | {"target": TARGETS.get((row["visual_tokens"], row["pairs"]))} for row in one],
        "text_to_video": several | {"target": TEXT_TO_VIDEO_TARGET},
    }


def seven_b(
    device: str, text: dict[str, Any], vision: dict[str, Any], sizes: Sequence[int], live: int, **how: Any
) -> list[Any]:
    """Parts 3 and 4. A test runs it on the CPU with a small shape."""
    backbone = random_backbone("qwen2_5_vl", text, vision, device=device, dtype=torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in backbone.model.parameters())
    reranker, stock = contestants(backbone, None)
    rows = [row for size in sizes for row in one_video(reranker, stock, size, **how)]
    rows += live_query(reranker, min(sizes), live)
    return [row | {"dtype": "bfloat16", "weights_bytes": weights} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    parser.add_argument("--live", action="store_true", help="only one sentence about many videos")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda adds the 7B shape")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    has_gpu = torch.cuda.is_available()
    if args.live:
        live = {"clock": CLOCK, "live": live_on_cpu(quick=args.quick), **environment()}
        print(live) if args.quick else keep(__file__.replace(".py", "_live.py"), live)
        return
    result: dict[str, Any] = {
        "baselines": BASELINES,
        "clock": CLOCK,
        "extrapolation": EXTRAPOLATION,
        **on_cpu(quick=args.quick),
        "live": live_on_cpu(quick=args.quick),
        "memory": memory(),
        "seven_b": None,
        "seven_b_note": "not asked for: --device cuda runs it" if has_gpu else "no GPU here: not run",
        **environment(),
    }
    if args.device == "cuda" and has_gpu:
        torch.set_num_threads(threads)  # the processor stays on the CPU
        sizes = (256,) if args.quick else (1024, 4096)
        result["seven_b"] = seven_b("cuda", QWEN2_5_VL_7B, QWEN2_5_VL_7B_VISION, sizes, 50, counts=[100], measured=10)
        result["seven_b_note"] = (
            "random weights, shared with the baseline rather than saved and loaded; equality is reported, not "
            f"asserted, as bfloat16 rounds; {threads} torch threads for the processor"
        )
    if args.quick:
        print(result)
    else:
        keep(__file__, result)


if __name__ == "__main__":
    main()
