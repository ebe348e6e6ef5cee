"""What a model says of videos: captions, generated after the same prefill that embedding and head use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tqdm.auto import tqdm

from vidembed.backbone.generate import Choose, Generated, generate, generate_plainly, greedy, sampled
from vidembed.backbone.templates import instruct_template
from vidembed.errors import InputError
from vidembed.inputs import Failed, name_of
from vidembed.pipeline import OnError, check_context, wants_bar
from vidembed.yes_no import AskOptions, around_video

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker
    from vidembed.yes_no import VideoPrompt

PROMPTS: Final[dict[str, str]] = {
    "dense": "Describe above video in detail:",
    "short": "Summarize above video in one sentence:",
}
"""What is asked for each kind of text, in the form of the paper's prompts (VidVec, section 3.2; these are ours)."""

MAX_NEW_TOKENS: Final = 256  # of one text (ours): a detailed caption of VideoUFO has some 120 words
BATCH_BYTES: Final = 2**30  # of the prefixes of those and their copies: about 1 GiB beside the model (ours)
AGREED: Final = 0.5  # P(Yes) below which the head denies a text (ours: Yes is less likely than No)
BATCH_SIZE: Final = 8  # videos whose texts are generated together (ours)
_SENTENCE = re.compile(r"[^\W_].*[.!?。！？]\W*", re.DOTALL)  # noqa: RUF001 - begins with a letter or a number, and is ended
_INNER_END = re.compile(r"[.!?]\s+[^\W\d_a-z]|[。！？].")  # noqa: RUF001 - where a second sentence begins
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")  # Chinese and Japanese put no spaces between words


@dataclass(frozen=True, eq=False)
class Described:
    """What a model says of one video.

    Attributes:
        index: Position among the inputs.
        name: Of the video, in messages.
        texts: What it says, by kind, on one line each, without white space around it.
        problems: Why the text of a kind is not to be used for choosing or training, by kind; empty if all are.
        match: What the head says to each text, by kind: the probability of Yes against No, not calibrated. Empty if it
            was not asked.
        vector: The encoder's vector of the video (D,) float32, or None without an encoder.
        error: Why the video could not be described, or None.
    """

    index: int
    name: str
    texts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    match: dict[str, float] = field(default_factory=dict)
    vector: np.ndarray | None = None
    error: Exception | None = None

    @property
    def usable(self) -> bool:
        """Whether there is a text of each kind, and the model contradicts none."""
        return self.error is None and not self.problems


def one_line(text: str) -> str:
    """A text with each run of white space as one space."""
    return " ".join(text.split())


def problem_of(kind: str, text: str, *, finished: bool, others: Mapping[str, str]) -> str | None:
    """Why the text of a kind is not to be used, or None. A short text is one sentence, shorter than the dense one."""
    if not text:
        return "empty"
    if not finished:
        return "not ended within the limit of tokens"
    if kind != "short":
        return None
    if _SENTENCE.fullmatch(text) is None or _INNER_END.search(text) is not None or len(_WORD.findall(text)) < 3:
        return "not one sentence"
    if "dense" in others and len(text) >= len(others["dense"]):
        return "no shorter than the dense text"
    return None


def describe(
    model: VideoReranker | VideoEncoder,
    videos: Sequence[Any],
    *,
    kinds: Sequence[str] = ("dense", "short"),
    prompts: Mapping[str, str] = PROMPTS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    agree: bool = True,
    encoder: VideoEncoder | None = None,
    batch_size: int = BATCH_SIZE,
    on_error: OnError = "raise",
    show_progress_bar: bool | None = None,
) -> Iterator[Described]:
    """Have a model describe videos, in order; each is decoded once, and prefilled once for all that is asked of it.

    Args:
        model: A reranker, or an encoder that was made of an MLLM (a cut checkpoint holds no head).
        videos: Videos of any kind that `VideoEncoder` takes.
        kinds: Which texts; keys of `prompts`.
        prompts: What is asked for each kind.
        max_new_tokens: Most tokens of a text. One that is not ended by then is marked.
        temperature: 0 takes the likeliest token; above it tokens are drawn, by softmax of logits over temperature.
        seed: Of the draws.
        agree: Whether to ask the head about each text: one that it denies is marked.
        encoder: Made of the same weights with ``prefix=None`` (`VideoReranker.encoder`): its vectors come along.
        batch_size: Videos whose texts are generated together.
        on_error: "raise" raises at the first video that fails, naming it; "skip" gives it with its error.
        show_progress_bar: Whether to show a bar; by default only if the log level is INFO or DEBUG.

    Raises:
        BackboneError: The model has no head.
        InputError: A prompt does not fit the model's context.
        ValueError: An argument is not known or out of range; or the encoder cannot share the prefill.
        VideoError: A video could not be decoded.

    Example:
        >>> import tempfile
        >>> from vidembed import VideoReranker
        >>> from vidembed.captions import describe
        >>> from vidembed.shapes import write_clips
        >>> reranker = VideoReranker("vidembed/shapes-rerank")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [(clip, record)] = write_clips(folder, 1, "test", 0)
        ...     [described] = describe(reranker, [clip], kinds=["dense"])
        >>> record.attributes["colour"] in described.texts["dense"]
        True
    """
    if unknown := [kind for kind in kinds if kind not in prompts]:
        raise ValueError(f"kinds={list(kinds)}: there is no prompt for {', '.join(unknown)}. Give it in prompts.")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value!r}: expected at least 1.")
    if not 0 <= temperature <= 10:
        raise ValueError(f"temperature={temperature!r}: expected 0 (the likeliest token) to 10.")
    names = [name_of(video) for video in videos]
    asked = {kind: prompts[kind] for kind in kinds}
    choose = sampled(temperature, seed) if temperature else greedy
    asker = _Describer(_as_reranker(model), names, asked, max_new_tokens, choose, encoder)
    options = AskOptions(on_error=on_error, show_progress_bar=False)
    bar_off = not wants_bar(show_progress_bar)
    with (
        tqdm(total=len(videos), desc="Describing", unit="video", disable=bar_off) as bar,
        closing(asker.reranker.video_prompts(videos, options)) as prefilled,
    ):
        index = 0
        for batch in _batches(prefilled, batch_size, copies=2 * len(asked)):  # one each, and joined
            yield from asker.describe(index, batch, options, agree=agree)
            index += len(batch)
            bar.update(len(batch))


def _batches(
    prefilled: Iterator[VideoPrompt | Failed], most: int, *, copies: int
) -> Iterator[list[VideoPrompt | Failed]]:
    """Videos in order, at most `most` and about `BATCH_BYTES` of prefixes and `copies` of each at a time."""
    batch: list[VideoPrompt | Failed] = []
    held = 0
    for item in prefilled:
        batch.append(item)
        held += 0 if isinstance(item, Failed) or item.prefix is None else item.prefix.nbytes * (1 + copies)
        if len(batch) == most or held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _as_reranker(model: VideoReranker | VideoEncoder) -> VideoReranker:
    """The reranker itself, or one on the weights of an encoder; BackboneError for an encoder without a head."""
    make: Callable[[], VideoReranker] | None = getattr(model, "reranker", None)
    return model if make is None else make()  # type: ignore[return-value]


class _Describer:
    """A model with what is asked of it about each video."""

    def __init__(
        self,
        reranker: VideoReranker,
        names: Sequence[str],
        prompts: Mapping[str, str],
        limit: int,
        choose: Choose,
        encoder: VideoEncoder | None,
    ) -> None:
        self.reranker, self._names, self._limit, self._choose = reranker, names, limit, choose
        self._sharing = reranker.sharing
        self._reader = reranker.reader(sharing=self._sharing)
        self._embed = None if encoder is None else reranker.embedding_by_prefix(encoder)
        self._after: dict[str, str] = {}  # what the prompt of each kind holds after the video
        processor: Any = reranker.processor if reranker.backbone is None else reranker.backbone.processor
        own = around_video(reranker.processor, None)[0]
        for kind, instruction in prompts.items():
            template = instruct_template(processor, instruction)
            before, self._after[kind] = around_video(processor, None, template=template)
            if before != own:
                raise ValueError(f"prompts[{kind!r}] begins with {before!r}, and the reranker's prompt with {own!r}.")
        settings = reranker.parts.model.generation_config
        ends: Any = None if settings is None else settings.eos_token_id
        known = [*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id]
        self._stop = {token for token in known if token is not None}
        self._tokenizer = processor.tokenizer

    def describe(
        self, first: int, batch: list[VideoPrompt | Failed], options: AskOptions, *, agree: bool
    ) -> Iterator[Described]:
        """Describe some videos; the first is at position `first` of all."""
        found: dict[int, Described] = {}
        ready: list[tuple[int, VideoPrompt, list[list[int]]]] = []
        for index, video in enumerate(batch, first):
            if isinstance(video, Failed):
                found[index] = Described(index, self._names[index], error=video.error)
                continue
            try:
                ready.append((index, video, self._suffixes(video, index)))
            except InputError as error:
                options.skip(error)
                found[index] = Described(index, self._names[index], error=error)
        said = self._generate([(video, suffixes) for _, video, suffixes in ready])
        for (index, video, _), generated in zip(ready, said, strict=True):
            found[index] = self._described(index, video, generated, agree=agree)
        yield from (found[index] for index in sorted(found))

    def _suffixes(self, video: VideoPrompt, index: int) -> list[list[int]]:
        """Token ids of each kind's prompt after the video; InputError where text and prompt may not fit the model."""
        suffixes = []
        for after in self._after.values():
            ids = [*video.between, *self._tokenizer.encode(video.lead + after, add_special_tokens=False)]
            parts = f"the video takes {video.tokens} tokens, its prompt {len(ids)} and the text up to {self._limit}"
            tokens = video.tokens + len(ids) + self._limit
            name = f"videos[{index}] {self._names[index]}"
            check_context(self.reranker.parts.model.config, tokens, name, parts=parts)
            suffixes.append(ids)
        return suffixes

    def _generate(self, prompts: list[tuple[VideoPrompt, list[list[int]]]]) -> list[list[Generated]]:
        parts, stop, limit = self.reranker.parts, self._stop, self._limit
        if self._sharing is not None:
            prefixed = [(video.prefix, suffixes) for video, suffixes in prompts if video.prefix is not None]
            return generate(
                parts, prefixed, stop=stop, max_new_tokens=limit, sharing=self._sharing, choose=self._choose
            )

        def alone(video: VideoPrompt, suffix: list[int]) -> Generated:
            def read(ids: list[int]) -> torch.Tensor:
                return self._reader.read_whole(video.followed_by(ids))

            return generate_plainly(parts, read, suffix, stop=stop, max_new_tokens=limit, choose=self._choose)

        return [[alone(video, suffix) for suffix in suffixes] for video, suffixes in prompts]

    @torch.inference_mode()
    def _described(self, index: int, video: VideoPrompt, said: list[Generated], *, agree: bool) -> Described:
        answers = dict(zip(self._after, said, strict=True))
        decode = self._tokenizer.decode
        texts = {kind: one_line(decode(one.tokens, skip_special_tokens=True)) for kind, one in answers.items()}
        problems: dict[str, str] = {}
        for kind, text in texts.items():
            if problem := problem_of(kind, text, finished=answers[kind].is_finished, others=texts):
                problems[kind] = problem
        match: dict[str, float] = {}
        if agree and (asked := {kind: text for kind, text in texts.items() if text}):
            odds = self._reader.about_video(video, [self._reader.after(video, text) for text in asked.values()])[1]
            match = dict(zip(asked, torch.sigmoid(odds).tolist(), strict=True))
            for kind, value in match.items():
                if value < AGREED:
                    problems.setdefault(kind, f"the head gives it {value:.0%}")
        vector = None if self._embed is None else self._embed(video)
        return Described(index, self._names[index], texts, problems, match, vector)
