"""What a model says of videos: captions, generated after the same prefill that embedding and head use."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

import numpy as np
import torch

from vidembed.backbone.generate import Generated, generate, generate_plainly, greedy, sampled
from vidembed.backbone.templates import instruct_template
from vidembed.captions.records import FIELDS
from vidembed.errors import InputError
from vidembed.inputs import Failed, HalvingRunner, Prepared, no_room
from vidembed.pipeline import OnError, check_context, fields_digest, report, wants_bar
from vidembed.progress import progress_bar
from vidembed.scoring import PlattScaling
from vidembed.scoring.calibration import sigmoid
from vidembed.yes_no import Answers, AskOptions, VideoPrompt, around_video

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)

PROMPTS: Final[dict[str, str]] = {
    "dense": "Describe above video in detail:",
    "short": "Summarize above video in one sentence:",
}
"""What is asked for each kind of text, in the form of the paper's prompts (VidVec, section 3.2; these are ours)."""

MAX_NEW_TOKENS: Final = 256  # of one text (ours): a detailed caption of VideoUFO has some 120 words
BATCH_BYTES: Final = 2**30  # of the prefixes of those and their copies: about 1 GiB beside the model (ours)
AGREED: Final = 0.5  # P(Yes) below which the head denies a text (ours: Yes is less likely than No)
BATCH_SIZE: Final = 8  # videos whose texts are generated together (ours)
_NOT_KINDS: Final = FIELDS | {"label"}  # keys of a record, and the column of `read_captioned_videos` for the truth
_SENTENCE = re.compile(r"[^\W_].*[.!?。！？]\W*", re.DOTALL)  # noqa: RUF001 - begins with a letter or a number, and is ended
_INNER_END = re.compile(r"[.!?]\s+[^\W\d_a-z]|[。！？].")  # noqa: RUF001 - where a second sentence begins
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")  # Chinese and Japanese put no spaces between words


class DescribeKeywords(TypedDict, total=False):
    """The fields of `DescribeOptions`, as keyword arguments."""

    kinds: Sequence[str]
    prompts: Mapping[str, str]
    max_new_tokens: int
    temperature: float
    seed: int
    agree: bool


@dataclass(frozen=True)
class DescribeOptions:
    """What is asked of a model about a video, and how.

    Attributes:
        kinds: Which texts; keys of `prompts`.
        prompts: What is asked for each kind. Default: `PROMPTS`. Those of other kinds are left out.
        max_new_tokens: Most tokens of a text. One that is not ended by then is marked. Default 256.
        temperature: 0, the default, takes the likeliest token; above it tokens are drawn, by softmax of logits over
            temperature.
        seed: Of the draws. A text depends on it and on its video, and not on the batch.
        agree: Whether to ask the head about each text: one that it denies is marked.

    Raises:
        ValueError: A value is out of range, or a kind has no prompt, is named twice, or is a key of a record.
    """

    kinds: Sequence[str] = ("dense", "short")
    prompts: Mapping[str, str] = field(default_factory=PROMPTS.copy)
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    agree: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        kinds = [*self.kinds]
        if not kinds or len(set(kinds)) < len(kinds) or isinstance(self.kinds, str):
            raise ValueError(f"kinds={self.kinds!r}: expected a list of one or more different kinds of text.")
        if taken := sorted(_NOT_KINDS.intersection(kinds)):
            raise ValueError(f"kinds={kinds}: {', '.join(taken)} is reserved in caption files; choose another name.")
        if unknown := [kind for kind in kinds if not self.prompts.get(kind, "").strip()]:
            raise ValueError(f"kinds={kinds}: no prompt was given for {', '.join(unknown)}. Add it to prompts.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: expected at least 1.")
        if not 0 <= self.temperature <= 10:
            raise ValueError(
                f"temperature={self.temperature!r}: expected a number from 0 (the most likely token) to 10."
            )
        object.__setattr__(self, "kinds", tuple(kinds))
        object.__setattr__(self, "temperature", float(self.temperature))  # 1 and 1.0 have one fingerprint
        object.__setattr__(self, "prompts", {kind: self.prompts[kind] for kind in kinds})

    def rendered(self, reranker: VideoReranker) -> dict[str, tuple[str, str]]:
        """What the prompt of each kind holds before the video and after it, as the model's chat template writes it."""
        processor: Any = reranker.processor if reranker.backbone is None else reranker.backbone.processor
        return {
            kind: around_video(processor, None, template=instruct_template(processor, instruction))
            for kind, instruction in self.prompts.items()
        }

    def fingerprint(self, reranker: VideoReranker) -> str:
        """SHA-256, in hex, of all that decides what a reranker says and how it is marked.

        That is the reranker's own fingerprint (weights, frame grid, dtype), the prompts, these options, and what the
        head's answers are calibrated with. BackboneError as `VideoReranker.calibration_applies`.
        """
        fields: dict[str, Any] = {"reranker": reranker.fingerprint_fields(), "prompts": self.rendered(reranker)}
        fields |= {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "agree")}
        if self.temperature:
            fields["seed"] = self.seed
        if self.agree and (scaling := _scaling_of(reranker)) is not None:
            weights = reranker.prior_correction
            fields["calibration"] = [reranker.mode, scaling.slope, scaling.intercept]
            fields["priors"] = [weights.video_weight, weights.text_weight]
        return fields_digest(fields)


@dataclass(frozen=True, eq=False)
class Described:
    """What a model says of one video.

    Attributes:
        index: Position among the inputs.
        name: Of the video, in messages.
        texts: What it says, by kind, on one line each, without white space around it.
        problems: Why the text of a kind is not to be used for choosing or training, by kind; empty if all are.
        match: What the head says to each text, by kind: the reranker's calibrated probability of a match, or without a
            calibration that of Yes against No. Empty if it was not asked.
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
    videos: Iterable[Any],
    *,
    encoder: VideoEncoder | None = None,
    batch_size: int = BATCH_SIZE,
    on_error: OnError = "raise",
    show_progress_bar: bool | None = None,
    **options: Unpack[DescribeKeywords],
) -> Iterator[Described]:
    """Have a model describe videos, in order; each is decoded once, and prefilled once for all that is asked of it.

    Args:
        model: A reranker, or an encoder that was made of an MLLM (a cut checkpoint holds no head).
        videos: Videos of any kind that `VideoEncoder` takes. What is no list is read as it is needed.
        encoder: Made of the same weights with ``prefix=None`` (`VideoReranker.encoder`): its vectors come along.
        batch_size: Most videos whose texts are generated together. Where they do not fit into memory, half as many.
        on_error: "raise" raises at the first video that fails, naming it; "skip" gives it with its error.
        show_progress_bar: Whether to show a bar; by default only if the log level is INFO or DEBUG.
        **options: Fields of `DescribeOptions`.

    Raises:
        BackboneError: The model has no head.
        InputError: A prompt does not fit the model's context.
        ValueError: An argument is not known or out of range; or the encoder cannot share the prefill.
        VideoError: A video could not be decoded.
        torch.OutOfMemoryError: A video does not fit into memory by itself; it is named.

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
    asked = DescribeOptions(**options)
    batches = describe_batches(as_reranker(model), videos, asked, encoder, batch_size=batch_size, on_error=on_error)
    total = len(videos) if isinstance(videos, Sized) else None
    shown = wants_bar(show_progress_bar)
    with closing(batches), progress_bar("Describing", "videos", total=total, shown=shown) as bar:
        for batch in batches:
            yield from batch
            bar.update(len(batch))


def describe_batches(
    reranker: VideoReranker,
    videos: Iterable[Any],
    options: DescribeOptions,
    encoder: VideoEncoder | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    on_error: OnError = "raise",
) -> Generator[list[Described], None, None]:
    """Describe videos as `describe`, and give at once those that were generated together."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected at least 1.")
    asking = AskOptions(on_error=on_error, show_progress_bar=False)
    describer = _Describer(reranker, options, encoder, on_error)
    with closing(reranker.prepared_videos(videos, asking)) as prepared:
        for batch in describer.batches(prepared, batch_size):
            yield describer.describe(batch)


def as_reranker(model: VideoReranker | VideoEncoder) -> VideoReranker:
    """The reranker itself, or one on the weights of an encoder; BackboneError for an encoder without a head."""
    make: Callable[[], VideoReranker] | None = getattr(model, "reranker", None)
    return model if make is None else make()  # type: ignore[return-value]


def _scaling_of(reranker: VideoReranker) -> PlattScaling | None:
    """The calibration of a reranker, if it has one that applies."""
    return reranker.calibration if reranker.calibration is not None and reranker.calibration_applies() else None


@dataclass(frozen=True, eq=False)
class _Asked:
    """A prefilled video with what is asked about it."""

    index: int
    name: str
    video: VideoPrompt
    suffixes: list[list[int]]  # token ids after the video, of each kind's prompt
    limit: int  # most tokens of a text

    @property
    def tokens(self) -> int:
        """Most tokens that one of its prompts takes with its text."""
        return self.video.tokens + max(map(len, self.suffixes)) + self.limit


class _Describer:
    """A model with what is asked of it about each video."""

    def __init__(
        self, reranker: VideoReranker, options: DescribeOptions, encoder: VideoEncoder | None, on_error: OnError
    ) -> None:
        self._reranker, self._options, self._on_error = reranker, options, on_error
        self._sharing = reranker.sharing
        self._reader = reranker.reader(sharing=self._sharing)
        self._embed = None if encoder is None else reranker.embedding_by_prefix(encoder)
        self._after: dict[str, str] = {}  # what the prompt of each kind holds after the video
        own = around_video(reranker.processor, None)[0]
        for kind, (before, after) in options.rendered(reranker).items():
            if before != own:
                raise ValueError(f"prompts[{kind!r}] begins with {before!r}, and the reranker's prompt with {own!r}.")
            self._after[kind] = after
        settings = reranker.parts.model.generation_config
        ends: Any = None if settings is None else settings.eos_token_id
        self._tokenizer: Any = reranker.tokenizer
        known = [*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id]
        self._stop = {token for token in known if token is not None}
        self._choose = sampled(options.temperature, options.seed) if options.temperature else greedy
        self._scaling = _scaling_of(reranker) if options.agree else None
        self._run = HalvingRunner(
            self._describe_together,
            lambda _batch: {},
            lambda asked, error: Described(asked.index, asked.name, error=self._skip(error)),
        )

    def batches(self, prepared: Iterable[Prepared | Failed], most: int) -> Generator[list[_Asked | Failed], None, None]:
        """Prefill videos, in order: at most `most`, and about `BATCH_BYTES` of prefixes and their copies, at a time.

        A list that was given is emptied when the next one is asked for, so that nobody holds its memory.
        """
        copies = 1 + 2 * len(self._after)  # itself, and for each kind one of its own and one in the batch
        batch: list[_Asked | Failed] = []
        held = 0
        for item in prepared:
            found = item if isinstance(item, Failed) else self._prefilled(item)
            if isinstance(found, torch.OutOfMemoryError) and isinstance(item, Prepared) and batch:
                most = len(batch)
                logger.warning("out of memory; from now on, at most %d videos are prefilled at once", most)
                yield batch
                batch.clear()
                held = 0
                found = self._prefilled(item)
            if isinstance(found, torch.OutOfMemoryError):
                found = Failed(item.index, item.name, self._skip(found))
            batch.append(found)
            if isinstance(found, _Asked) and found.video.prefix is not None:
                held += found.video.prefix.nbytes * copies
            del item, found
            if len(batch) >= most or held > BATCH_BYTES:
                yield batch
                batch.clear()
                held = 0
        if batch:
            yield batch

    def _prefilled(self, item: Prepared) -> _Asked | Failed | torch.OutOfMemoryError:
        """Prefill a video; the error, which is not raised and holds no memory, where there is no room for it."""
        try:
            video = self._reranker.video_prompt(self._reader, item)
            return _Asked(item.index, item.name, video, self._suffixes(video, item), self._options.max_new_tokens)
        except InputError as error:
            return report(Failed(item.index, item.name, error), self._on_error)
        except torch.OutOfMemoryError as error:
            full = no_room(item, error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return full

    def _skip(self, error: Exception) -> Exception:
        """Raise an error, or log it and return it."""
        if self._on_error == "raise":
            raise error
        logger.warning("skipped %s", error)
        return error

    def describe(self, batch: Sequence[_Asked | Failed]) -> list[Described]:
        """Describe videos, in order."""
        found = [Described(one.index, one.name, error=one.error) for one in batch if isinstance(one, Failed)]
        found += self._run([one for one in batch if isinstance(one, _Asked)])
        return sorted(found, key=lambda one: one.index)

    def _suffixes(self, video: VideoPrompt, item: Prepared) -> list[list[int]]:
        """Token ids of each kind's prompt after the video; InputError where text and prompt may not fit the model."""
        suffixes, limit = [], self._options.max_new_tokens
        for after in self._after.values():
            ids = [*video.between, *self._tokenizer.encode(video.lead + after, add_special_tokens=False)]
            parts = f"the video takes {video.tokens} tokens, its prompt {len(ids)} and the text up to {limit}"
            tokens = video.tokens + len(ids) + limit
            check_context(self._config, tokens, f"videos[{item.index}] {item.name}", parts=parts)
            suffixes.append(ids)
        return suffixes

    @property
    def _config(self) -> Any:
        return self._reranker.parts.model.config

    @torch.inference_mode()
    def _describe_together(self, batch: list[_Asked], _features: object) -> list[Described]:
        said = self._generate(batch)
        return [self._described(asked, generated) for asked, generated in zip(batch, said, strict=True)]

    def _generate(self, batch: list[_Asked]) -> list[list[Generated]]:
        parts = self._reranker.parts
        how: dict[str, Any] = {"stop": self._stop, "max_new_tokens": self._options.max_new_tokens}
        how["choose"] = self._choose
        if self._sharing is not None:
            prefixed = [(one.video.prefix, one.suffixes) for one in batch if one.video.prefix is not None]
            return generate(parts, prefixed, sharing=self._sharing, **how)

        def alone(video: VideoPrompt, suffix: list[int]) -> Generated:
            def read(ids: list[int]) -> torch.Tensor:
                return self._reader.read_whole(video.followed_by(ids))

            return generate_plainly(parts, read, suffix, **how)

        return [[alone(one.video, suffix) for suffix in one.suffixes] for one in batch]

    def _described(self, asked: _Asked, said: list[Generated]) -> Described:
        answers = dict(zip(self._after, said, strict=True))
        decode = self._tokenizer.decode
        texts = {kind: one_line(decode(one.tokens, skip_special_tokens=True)) for kind, one in answers.items()}
        problems: dict[str, str] = {}
        for kind, text in texts.items():
            if problem := problem_of(kind, text, finished=answers[kind].is_finished, others=texts):
                problems[kind] = problem
        match = self._match(asked, texts, problems) if self._options.agree else {}
        for kind, value in match.items():
            if value < AGREED:
                problems.setdefault(kind, f"the head gives it {value:.0%}")
        vector = None if self._embed is None else self._embed(asked.video)
        return Described(asked.index, asked.name, texts, problems, match, vector)

    def _match(self, asked: _Asked, texts: Mapping[str, str], problems: dict[str, str]) -> dict[str, float]:
        """What the head says to each text; why it cannot be asked, in `problems`."""
        video, suffixes = asked.video, {}
        for kind, text in texts.items():
            if not text:
                continue
            try:
                suffix = self._reader.after(video, text)
                check_context(self._config, video.tokens + len(suffix), "with it as a sentence")
                suffixes[kind] = suffix
            except InputError as error:
                problems.setdefault(kind, f"the head cannot be asked about it: {error}")
        if not suffixes:
            return {}
        kinds, count = list(suffixes), len(suffixes)
        priors = self._scaling is not None and self._reranker.mode == "prior_corrected"
        prior = [self._reader.after(video, "")] if priors else []
        yes, yes_no = (odds.numpy() for odds in self._reader.about_video(video, [*suffixes.values(), *prior]))  # (n,)
        answers = Answers(yes[:count], yes_no[:count])
        if priors:
            of_texts = self._reader.about_nothing([texts[kind] for kind in kinds]).numpy()  # (count,)
            answers = replace(answers, video_prior=np.full(count, yes_no[-1]), text_prior=of_texts)
        if self._scaling is None:
            values = sigmoid(answers.yes_no)
        else:
            odds = answers.log_odds(self._reranker.mode, self._reranker.prior_correction)
            values = sigmoid(self._scaling.slope * odds + self._scaling.intercept)
        found = dict(zip(kinds, values.tolist(), strict=True))
        for kind, value in found.items():
            if math.isnan(value):
                problems.setdefault(kind, "the head's answer is not finite")
        return {kind: value for kind, value in found.items() if not math.isnan(value)}
