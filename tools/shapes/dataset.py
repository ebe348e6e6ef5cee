"""Training batches: what is asked of each clip and each text, drawn from a seed and a step number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tools.shapes import prompts
from tools.shapes.model import TEMPORAL_PATCH_SIZE, TOKENS_PER_SECOND, patchify
from tools.shapes.packing import Packed, Row, Segment, pack
from vidembed.backbone.templates import MATCH_QUESTION
from vidembed.shapes import language
from vidembed.shapes.world import FRAMES, SAMPLE_FPS, Scene, render, sample_scene, sample_times

GRID: Final = (FRAMES // TEMPORAL_PATCH_SIZE, 3, 3)
"""(time, height, width) of a clip's visual tokens: 36 tokens."""
TOKENS_PER_GRID: Final = int(TOKENS_PER_SECOND * TEMPORAL_PATCH_SIZE / SAMPLE_FPS)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a stage of training asks, per step.

    Attributes:
        clips: Clips a step.
        texts: Captions a step, read as text.
        tags: Tag answers about each clip.
        captions: Dense captions of each clip.
        summaries: Short summaries of each clip.
        questions: Questions about each clip.
        statements: Pairs of sentences to judge about each clip, a right one and a wrong one worded alike.
        hard: Share of wrong sentences that differ in one attribute; the others differ in two.
        text_answers: What is asked about each text.
        isolated: Share of answers generated from the last prompt token alone.
    """

    clips: int = 24
    texts: int = 12
    tags: int = 1
    captions: int = 0
    summaries: int = 0
    questions: int = 0
    statements: int = 0
    hard: float = 0.7
    text_answers: tuple[Literal["tags", "short", "dense"], ...] = ("tags",)
    isolated: float = 0.5


@dataclass(slots=True)
class Batch:
    """One step's inputs: rows about clips with their patches, and rows about texts.

    Attributes:
        clips: Packed rows, each of which starts with a clip.
        pixel_values: (clips * 144, 1176) float32, as the processor gives them.
        texts: Packed rows of text, or None.
    """

    clips: Packed
    pixel_values: torch.Tensor
    texts: Packed | None


class RowBuilder:
    """Turns scenes and sentences into rows of segments."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.pad = self._token("<|endoftext|>")
        self._cache: dict[str, list[int]] = {}
        visual = [self._token("<|video_pad|>")] * int(np.prod(GRID))
        head = self.ids("<|im_start|>user\n<|vision_start|>")
        self.clip = Segment([*head, *visual, *self.ids("<|vision_end|>")], grid=GRID, vision_start=len(head))

    def _token(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int):
            raise TypeError(f"tokenizer has no token {token!r}; build it with build_tokenizer")
        return found

    def ids(self, text: str) -> list[int]:
        """Token ids of a text without added tokens."""
        found = self._cache.get(text)
        if found is None:
            found = self.tokenizer.encode(text, add_special_tokens=False)
            if len(self._cache) < 20000:
                self._cache[text] = found
        return found

    def text(self, sentence: str) -> Segment:
        """The segment that a text's row starts with."""
        return Segment(self.ids("<|im_start|>user\n") + self.ids(f"{sentence}\n"))

    def instruction(self, instruction: str, *, video: bool) -> Segment:
        """The rest of the user's turn, up to where the answer begins."""
        text = f"{instruction}<|im_end|>\n<|im_start|>assistant\n"
        return Segment(self.ids("\n" + text if video else text), parent=0)

    def ask(self, row: Row, instruction: str, answer: str, *, video: bool, isolated: bool) -> None:
        """Appends an instruction and its answer to a row."""
        row.append(self.instruction(instruction, video=video))
        tokens = self.ids(answer) + self.ids("<|im_end|>")
        row.append(Segment(tokens, parent=len(row) - 1, weights=[1.0] * len(tokens), isolated=isolated))

    def judge(self, row: Row, statement: prompts.Statement, *, reason: bool = False) -> None:
        """Appends a sentence, the question whether the video matches it, and the answer, with its reason if asked."""
        sentence = self.ids(f"\n{statement.text}")
        question = prompts.EXPLAIN_QUESTION if reason else MATCH_QUESTION
        asked = self.ids(f"\n{question}<|im_end|>\n<|im_start|>assistant\n")
        weights = [0.0, *[0.3] * (len(sentence) - 1)] if statement.true else []  # a right sentence is a caption too
        row.append(Segment(sentence + asked, parent=0, weights=weights))
        answer = self.ids(statement.verdict if reason else "Yes" if statement.true else "No") + self.ids("<|im_end|>")
        row.append(Segment(answer, parent=len(row) - 1, weights=[4.0, *[0.5] * (len(answer) - 1)]))

    def prompt(self, sentence: str | None, instruction: str = prompts.ONE_WORD_INSTRUCTION) -> Row:
        """The prompt of a sentence, or of a clip when None, up to where the answer begins."""
        if sentence is None:
            return [self.clip, self.instruction(instruction.format(kind="video"), video=True)]
        return [self.text(sentence), self.instruction(instruction.format(kind="sentence"), video=False)]

    def pack(self, rows: list[Row]) -> Packed:
        """Packs rows with this tokenizer's padding."""
        return pack(rows, pad=self.pad, tokens_per_grid=TOKENS_PER_GRID)


def _tag_answer(scene: Scene, rng: np.random.Generator, kind: str) -> tuple[str, str]:
    if rng.random() < 0.25:
        return language.pick(rng, prompts.KEYWORD_INSTRUCTIONS).format(kind=kind), prompts.keywords(scene, rng)
    return language.pick(rng, prompts.TAG_INSTRUCTIONS).format(kind=kind), language.tags(scene)


def _dense_answer(scene: Scene, rng: np.random.Generator, kind: str) -> tuple[str, str]:
    return language.pick(rng, prompts.DENSE_INSTRUCTIONS).format(kind=kind), language.caption(scene, rng)


def _short_answer(scene: Scene, rng: np.random.Generator, kind: str) -> tuple[str, str]:
    return language.pick(rng, prompts.SHORT_INSTRUCTIONS).format(kind=kind), language.summary(scene, rng)


def clip_row(builder: RowBuilder, scene: Scene, rng: np.random.Generator, mixture: Mixture) -> Row:
    """The row of one clip: everything that the mixture asks about it."""
    row: Row = [builder.clip]
    answers = (
        [_tag_answer(scene, rng, "video") for _ in range(mixture.tags)]
        + [_dense_answer(scene, rng, "video") for _ in range(mixture.captions)]
        + [_short_answer(scene, rng, "video") for _ in range(mixture.summaries)]
    )
    for instruction, answer in answers:
        builder.ask(row, instruction, answer, video=True, isolated=bool(rng.random() < mixture.isolated))
    for _ in range(mixture.questions):
        instruction, answer = language.question(scene, rng)
        builder.ask(row, instruction, answer, video=True, isolated=False)
    for _ in range(mixture.statements):
        form = prompts.FORMS[rng.choice(len(prompts.FORMS), p=(0.3, 0.45, 0.25))]
        for statement in prompts.statement_pair(scene, rng, form, hard=mixture.hard):
            builder.judge(row, statement, reason=bool(rng.random() < 0.3))
    return row


def text_row(builder: RowBuilder, scene: Scene, rng: np.random.Generator, mixture: Mixture) -> Row:
    """The row of one caption read as text."""
    row: Row = [builder.text(language.caption(scene, rng))]
    make = {"tags": _tag_answer, "short": _short_answer, "dense": _dense_answer}
    for kind in mixture.text_answers:
        instruction, answer = make[kind](scene, rng, "sentence")
        builder.ask(row, instruction, answer, video=False, isolated=bool(rng.random() < mixture.isolated))
    return row


def augment(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Roughens frames (T, H, W, 3) as compression and cameras do: a colour cast and a little noise."""
    cast = rng.uniform(0.96, 1.04, size=3).astype(np.float32)
    noise = rng.standard_normal(frames.shape[1:], dtype=np.float32) * float(rng.uniform(0.0, 5.0))
    rough = frames * cast + np.roll(noise, int(rng.integers(84)), 0)[None] + 0.5  # (T, H, W, 3)
    clipped: NDArray[np.uint8] = np.clip(rough, 0, 255).astype(np.uint8)
    return clipped


def make_batch(builder: RowBuilder, mixture: Mixture, *, seed: int, step: int) -> Batch:
    """The batch of one step; a function of its arguments alone, so that a resumed run sees the same data.

    Args:
        builder: Makes the rows.
        mixture: What to ask.
        seed: The run's seed.
        step: The step's number.

    Returns:
        The batch.
    """
    rng = np.random.default_rng((seed, step))
    scenes = [sample_scene(rng, "train") for _ in range(mixture.clips)]
    frames = np.stack([augment(render(scene, sample_times()), rng) for scene in scenes])  # (B, T, H, W, C)
    clips = builder.pack([clip_row(builder, scene, rng, mixture) for scene in scenes])
    texts = None
    if mixture.texts:
        captioned = [sample_scene(rng, "train") for _ in range(mixture.texts)]
        texts = builder.pack([text_row(builder, scene, rng, mixture) for scene in captioned])
    return Batch(clips=clips, pixel_values=patchify(frames), texts=texts)
