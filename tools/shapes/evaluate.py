"""Measures a model on held-out clips as they are met in use: ``python -m tools.shapes.evaluate --model DIR``.

Clips are written as H.264 files, read back through ``vidembed.video``, and go through the processor of transformers.
Layer ``l`` is the output of decoder block ``l`` (from 1), before any norm, at the last token of the prompt.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tools.shapes import prompts
from tools.shapes.answers import read
from tools.shapes.dataset import GRID, RowBuilder
from tools.shapes.model import forward, layer_outputs, patchify
from tools.shapes.packing import Row
from vidembed.backbone.templates import MATCH_QUESTION
from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.shapes import CHECKPOINT, ClipRecord, sample_clips, write_clips
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.shapes.world import Split
from vidembed.video import Sampling, load_video

logger = logging.getLogger(__name__)

VIDEO_PROMPT: Final = "\n" + prompts.ONE_WORD_INSTRUCTION.format(kind="video")
TEXT_PROMPT: Final = "\n" + prompts.ONE_WORD_INSTRUCTION.format(kind="sentence")
VALIDATION_SEED: Final = 31
"""Of the clips that choices are made on, so that the test split is left alone: scenes of the training split, drawn
from numbers that no training batch is drawn from."""
ASKED: Final = {
    "caption": prompts.DENSE_INSTRUCTIONS,
    "summary": prompts.SHORT_INSTRUCTIONS,
    "tags": prompts.TAG_INSTRUCTIONS[:1],
}
"""What clips are asked for each kind of answer."""
_BATCH: Final = 20
_TAG_WORDS = ("colour", "shape", "size", "direction", "speed", "event", "background", "", "")
_CORNER_WORDS = (*_TAG_WORDS, "corner_colour", "corner_shape", "corner", "corner")


class Reader:
    """A model with its processor, asked about files and sentences.

    Args:
        folder: Of a checkpoint in the format of transformers; nothing is fetched.
        device: Where the model runs.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        # Any: transformers' auto classes and decorators have no types that a checker can follow
        auto_model: Any = AutoModelForImageTextToText
        auto_processor: Any = AutoProcessor
        self.model = auto_model.from_pretrained(folder, dtype="auto", local_files_only=True).to(device).eval()
        self.processor = auto_processor.from_pretrained(folder, local_files_only=True)

    def inputs(self, videos: list[Path] | None, texts: list[str]) -> Any:
        """The model's inputs for prompts about files, or for prompts alone."""
        media = [{"type": "video"}] if videos is not None else []
        prompts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*media, {"type": "text", "text": text}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for text in texts
        ]
        options: dict[str, Any] = {}
        if videos is not None:
            clips = [load_video(path, Sampling()) for path in videos]
            options = {
                "videos": [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips],  # (T, C, H, W)
                "video_metadata": [clip.metadata() for clip in clips],
                "do_sample_frames": False,
            }
        return self.processor(text=prompts, padding=True, return_tensors="pt", **options).to(self.model.device)

    @torch.inference_mode()
    def states(self, videos: list[Path] | None, texts: list[str]) -> torch.Tensor:
        """Output of every decoder block at the last prompt token, (layers, N, D); padding is on the left."""
        with layer_outputs(self.model) as outputs:
            self.model(**self.inputs(videos, texts), logits_to_keep=1, use_cache=False)
        return torch.stack([output[:, -1] for output in outputs]).float().cpu()

    @torch.inference_mode()
    def answer(self, videos: list[Path], texts: list[str]) -> list[str]:
        """Greedy answers about files."""
        inputs = self.inputs(videos, texts)
        made = self.model.generate(**inputs, max_new_tokens=48, do_sample=False)
        tail = made[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(tail, skip_special_tokens=True)]

    @torch.inference_mode()
    def p_yes(self, videos: list[Path], sentences: list[str]) -> torch.Tensor:
        """P(Yes) + P(yes) over the whole vocabulary, (N,), that each file matches its sentence."""
        texts = [f"\n{sentence}\n{MATCH_QUESTION}" for sentence in sentences]
        logits = self.model(**self.inputs(videos, texts), logits_to_keep=1, use_cache=False).logits[:, -1].float()
        ids = [self.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "yes")]
        yes: torch.Tensor = logits.softmax(-1)[:, ids].sum(-1).cpu()
        return yes


def recalls(similarity: torch.Tensor, right: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """``R@1``, ``R@5`` and ``R@10`` in percent of a (queries, items) matrix, the right pairs those of the diagonal."""
    found = ranks(similarity.numpy(force=True), np.arange(len(similarity)) if right is None else right)
    return {f"R@{k}": round(100.0 * recall_at(found, k), 2) for k in (1, 5, 10)}


def by_layer(video: torch.Tensor, text: torch.Tensor, right: NDArray[np.bool_] | None = None) -> list[dict[str, Any]]:
    """Recalls of both directions for each layer.

    Args:
        video: (layers, N, D).
        text: (layers, N, D), row i belongs to clip i.
        right: (N, N), symmetric, which texts are true of which clips. Default: each of its own clip alone.

    Returns:
        One entry a layer, from 1: ``layer``, ``t2v`` and ``v2t``.
    """
    found = []
    for number, (v, t) in enumerate(zip(video, text, strict=True), start=1):
        similarity = functional.normalize(t, dim=-1) @ functional.normalize(v, dim=-1).T  # (texts, clips)
        found.append({"layer": number, "t2v": recalls(similarity, right), "v2t": recalls(similarity.T, right)})
    return found


def _tag_accuracy(answers: list[str], records: list[ClipRecord]) -> dict[str, float]:
    hits: dict[str, list[bool]] = defaultdict(list)
    names = ("colour", "shape", "size", "direction", "speed", "event", "background")
    for answer, record in zip(answers, records, strict=True):
        answered, expected = answer.split(), record.tags.split()
        for i, name in enumerate(names):
            hits[name].append(answered[i : i + 1] == expected[i : i + 1])
        hits["corner object"].append(answered[8:] == expected[8:])
        hits["all"].append(answered == expected)
    return {name: round(sum(values) / len(values), 3) for name, values in hits.items()}


def choose_layer(*kinds: list[dict[str, Any]]) -> int:
    """The layer with the best mean Recall@1 over directions and kinds of queries; the first of equals."""
    merits = [sum(entry[way]["R@1"] for entry in same for way in ("t2v", "v2t")) for same in zip(*kinds, strict=True)]
    return int(kinds[0][int(np.argmax(merits))]["layer"])


def pair_states(
    reader: Reader, written: Sequence[tuple[Path, ClipRecord]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of clips, of their captions and of their summaries in the one-word prompts, each (layers, N, D)."""
    video, text, short = [], [], []
    for start in tqdm(range(0, len(written), _BATCH), desc="reading states", unit="batch"):
        part = written[start : start + _BATCH]
        video.append(reader.states([path for path, _ in part], [VIDEO_PROMPT] * len(part)))
        text.append(reader.states(None, [record.caption + TEXT_PROMPT for _, record in part]))
        short.append(reader.states(None, [record.summary + TEXT_PROMPT for _, record in part]))
    return torch.cat(video, 1), torch.cat(text, 1), torch.cat(short, 1)


def _answers(reader: Reader, written: Sequence[tuple[Path, ClipRecord]]) -> dict[str, Any]:
    """The answers of the model about the clips: tags, and whether sentences match."""
    instruction = "\n" + prompts.TAG_INSTRUCTIONS[0].format(kind="video")
    answers: list[str] = []
    right, wrong = [], []
    for start in tqdm(range(0, len(written), _BATCH), desc="asking", unit="batch"):
        paths = [path for path, _ in written[start : start + _BATCH]]
        records = [record for _, record in written[start : start + _BATCH]]
        answers += reader.answer(paths, [instruction] * len(paths))
        right.append(reader.p_yes(paths, [record.right for record in records]))
        wrong.append(reader.p_yes(paths, [record.wrong for record in records]))
    p_right, p_wrong = torch.cat(right), torch.cat(wrong)
    hits = torch.cat([p_right > 0.5, p_wrong <= 0.5]).float()
    return {
        "tags": _tag_accuracy(answers, [record for _, record in written]),
        "match": {
            "accuracy": round(hits.mean().item(), 3),
            "right_above_wrong": round((p_right > p_wrong).float().mean().item(), 3),
        },
    }


def abilities(reader: Reader, written: Sequence[tuple[Path, ClipRecord]]) -> dict[str, Any]:
    """What the model can say about clips, and how well it judges sentences about them.

    Args:
        reader: The model.
        written: Files and their descriptions.

    Returns:
        ``questions``: the share of questions about one attribute that get the right sentence. ``answers``: for each
        instruction of `ASKED` the share of greedy answers that are well-formed, of their attributes that are right
        (none, where an answer is not well-formed), and of answers right in all. ``match``: the share of yes/no answers
        that are right on true sentences (``true``) and on wrong ones that differ in one attribute (``wrong``), and of
        pairs in which the true one scores higher (``above``), by form of the sentence. ``by_attribute``: the same as
        ``wrong``, by the attribute that differs.
    """
    rng = np.random.default_rng(VALIDATION_SEED)
    answered: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    judged: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    wrong: dict[str, list[bool]] = defaultdict(list)
    questions: list[bool] = []
    for start in tqdm(range(0, len(written), _BATCH), desc="asking for answers", unit="batch"):
        paths = [path for path, _ in written[start : start + _BATCH]]
        asked = [record.questions[0] for _, record in written[start : start + _BATCH]]
        found = reader.answer(paths, ["\n" + question for question, _ in asked])
        questions += [answer == expected for answer, (_, expected) in zip(found, asked, strict=True)]
        scenes = [record.scene for _, record in written[start : start + _BATCH]]
        for kind, instructions in ASKED.items():
            for instruction in (one.format(kind="video") for one in instructions):
                for answer, scene in zip(reader.answer(paths, ["\n" + instruction] * len(paths)), scenes, strict=True):
                    told = SUMMARY_ATTRIBUTES if kind == "summary" else tuple(scene.attributes)
                    named = read(answer, kind) or {}
                    right = np.mean([named.get(name) == scene.attributes[name] for name in told])
                    answered[instruction].append((bool(named), float(right)))
        for form in prompts.FORMS:
            pairs = [prompts.statement_pair(scene, rng, form) for scene in scenes]
            p_true, p_wrong = (reader.p_yes(paths, [pair[i].text for pair in pairs]).tolist() for i in (0, 1))
            for (statement, _), yes, other in zip(pairs, p_true, p_wrong, strict=True):
                judged[form].append((yes > 0.5, other <= 0.5, yes > other))
                wrong[statement.about].append(other <= 0.5)
    return {
        "questions": round(float(np.mean(questions)), 3),
        "answers": {
            instruction: {
                "well_formed": round(float(np.mean([formed for formed, _ in some])), 3),
                "attributes": round(float(np.mean([right for _, right in some])), 3),
                "all": round(float(np.mean([right == 1.0 for _, right in some])), 3),
            }
            for instruction, some in answered.items()
        },
        "match": {
            form: dict(zip(("true", "wrong", "above"), np.mean(some, axis=0).round(3).tolist(), strict=True))
            for form, some in judged.items()
        },
        "by_attribute": {name: round(float(np.mean(some)), 3) for name, some in sorted(wrong.items())},
    }


def evaluate(
    folder: str | Path,
    *,
    clips: int = 200,
    layer: int | None = None,
    layer_clips: int = 400,
    split: Split = "test",
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures a checkpoint on clips written as files.

    Args:
        folder: Of the checkpoint.
        clips: How many clips; their captions are distinct.
        layer: The layer to read; by default chosen here on `layer_clips` validation clips.
        layer_clips: How many validation clips the layer is chosen on, with captions and summaries as queries.
        split: Of the clips; for "train" the seed should be `VALIDATION_SEED`.
        seed: Of the clips.
        device: Where the model runs.

    Returns:
        ``layers`` (recalls in percent by layer with captions as queries), ``summary_layers`` (the same with short
        summaries, which several clips may share), ``best_layer`` (of the validation clips), ``final_layer``, ``tags``
        (share of greedy tags that are right, by attribute), ``match`` (yes/no: accuracy, and how often the right
        sentence scores above the wrong one) and ``abilities``.
    """
    reader = Reader(folder, device)
    with tempfile.TemporaryDirectory() as scratch:
        written = write_clips(Path(scratch) / "measured", clips, split, seed)
        chosen = layer
        if chosen is None:
            others = write_clips(Path(scratch) / "validation", layer_clips, "train", VALIDATION_SEED + 1)
            summarized = [tuple(r.attributes[name] for name in SUMMARY_ATTRIBUTES) for _, r in others]
            alike = np.array([[one == other for other in summarized] for one in summarized])
            seen, *told = pair_states(reader, others)
            chosen = choose_layer(by_layer(seen, told[0]), by_layer(seen, told[1], alike))
        video, text, short = pair_states(reader, written)
        answers = _answers(reader, written) | {"abilities": abilities(reader, written)}
    layers = by_layer(video, text)
    return {
        "clips": clips,
        "layer_clips": layer_clips,
        "split": split,
        "seed": seed,
        "chance_r1": round(100.0 / clips, 3),
        "best_layer": chosen,
        "final_layer": len(layers),
        "layers": layers,
        "summary_layers": by_layer(video, short),
        **answers,
    }


def prompt_states(
    model: Qwen2_5_VLForConditionalGeneration, builder: RowBuilder, rows: list[Row], frames: NDArray[np.uint8] | None
) -> torch.Tensor:
    """Output of every decoder block at the last token of each row, (layers, N, D); the fast path, on arrays."""
    packed = builder.pack(rows).to(model.device)
    values = None if frames is None else patchify(frames).to(model.device)
    with layer_outputs(model) as outputs:
        forward(model, packed, values, GRID)
    index = torch.arange(len(rows), device=model.device)
    return torch.stack([output[index, packed.last] for output in outputs])


@torch.inference_mode()
def probe(model: Qwen2_5_VLForConditionalGeneration, builder: RowBuilder, n: int = 100) -> dict[str, Any]:
    """A quick look at a model in training: tag words, yes/no and recall by layer on validation clips, from arrays.

    Args:
        model: The model; left in training mode.
        builder: Of its tokenizer.
        n: Clips.

    Returns:
        ``tags``: accuracy by attribute, each word given the ones before it; ``match``: accuracy on right sentences and
        on wrong ones that differ in one attribute; ``t2v_r1``: text-to-video Recall@1 in percent by layer.
    """
    model.train(mode=False)
    records = sample_clips(n, "train", VALIDATION_SEED)
    frames = np.stack([record.frames() for record in records])  # (N, T, H, W, C)
    values = patchify(frames).to(model.device)
    rng = np.random.default_rng(1)
    tag_rows: list[Row] = []
    match_rows: list[Row] = []
    for record in records:
        tag_rows.append([builder.clip])
        instruction = prompts.TAG_INSTRUCTIONS[0].format(kind="video")
        builder.ask(tag_rows[-1], instruction, record.tags, video=True, isolated=False)
        match_rows.append([builder.clip])
        for form in prompts.FORMS[1:]:
            for statement in prompts.statement_pair(record.scene, rng, form):
                builder.judge(match_rows[-1], statement)

    def predict(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        packed = builder.pack(rows).to(model.device)
        hidden = forward(model, packed, values, GRID)
        return model.lm_head(hidden[packed.rows, packed.predictors]), packed.targets, packed.rows.tolist()

    logits, targets, owners = predict(tag_rows)
    right = (logits.argmax(-1) == targets).tolist()
    hits: dict[str, list[bool]] = defaultdict(list)
    word: dict[int, int] = defaultdict(int)
    for hit, owner in zip(right, owners, strict=True):
        names = _CORNER_WORDS if records[owner].scene.corner else _TAG_WORDS
        if word[owner] < len(names) and names[word[owner]]:
            hits[names[word[owner]]].append(hit)
        word[owner] += 1
    logits, targets, _ = predict(match_rows)
    yes, no = builder.ids("Yes")[0], builder.ids("No")[0]
    asked = (targets == yes) | (targets == no)
    match = ((logits[asked, yes] > logits[asked, no]) == (targets[asked] == yes)).float().mean().item()
    video = prompt_states(model, builder, [builder.prompt(None)] * n, frames)  # (layers, N, D)
    text = prompt_states(model, builder, [builder.prompt(record.caption) for record in records], None)
    video, text = functional.normalize(video, dim=-1), functional.normalize(text, dim=-1)
    model.train()
    return {
        "tags": {name: round(float(np.mean(values)), 3) for name, values in hits.items()},
        "match": round(match, 3),
        "t2v_r1": [recalls(t @ v.T)["R@1"] for t, v in zip(text, video, strict=True)],
    }


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.shapes.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--layer", type=int, help="the layer to read; by default chosen on other clips")
    parser.add_argument("--validation", action="store_true", help="validation clips instead of the test split's")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="figures as JSON; to the log by default")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    split: Split = "train" if options.validation else "test"
    seed = VALIDATION_SEED if options.validation else 0
    figures = evaluate(
        options.model, clips=options.clips, layer=options.layer, split=split, seed=seed, device=options.device
    )
    for entry in figures["layers"]:
        logger.info("layer %2d  t2v %s  v2t %s", entry["layer"], entry["t2v"], entry["v2t"])
    logger.info("best layer %s; tags %s; match %s", figures["best_layer"], figures["tags"], figures["match"])
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    else:
        logger.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
