"""`check_model`: what the tests prove on small random models, proved on one loaded model."""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import transformers
from sentence_transformers.util import batch_to_device
from torch.nn.functional import cosine_similarity

from vidembed.backbone.architectures import TESTED_TYPES
from vidembed.backbone.prefix import model_inputs
from vidembed.backbone.templates import TEXT_PROMPT, VIDEO_PROMPT, open_thought
from vidembed.building import hidden_states
from vidembed.encoder import VideoEncoder
from vidembed.errors import TemplateError, UnsupportedBackboneError
from vidembed.inputs import Input
from vidembed.pipeline import VideoModel, max_positions
from vidembed.proof import SENTENCES, probe_video
from vidembed.video import Sampling
from vidembed.yes_no import VIDEO_PART, rendered

if TYPE_CHECKING:
    from vidembed.backbone.load import Backbone, Features
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)

Status = Literal["pass", "note", "fail", "not run"]
Values: TypeAlias = "dict[str, float | int | str | None]"

# most 1 - cosine of two vectors that should be one (ours: 1e-6 is asked of float32; the others round as much more)
COSINE_LIMITS = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 1e-3}
# most difference of log-odds between a shared prefix and a whole prompt (ours, likewise)
LOG_ODDS_LIMITS = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
LIKELY_ANSWER = 0.5  # least share of Yes and No variants at the answer's place that is no reason for a note (ours)
_ANSWERS = ("Yes", "yes", " Yes", " yes", "No", "no", " No", " no")
_OF_THE_MODEL = (UnsupportedBackboneError, TemplateError)  # errors of loading that are a result
_PICTURE = (640, 360)  # width and height of the video whose tokens are counted


@dataclass(frozen=True)
class CheckItem:
    """One thing that was checked."""

    name: str
    status: Status
    detail: str  # what was found, or why it failed, in one line
    values: Values = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0  # peak memory up to here: of the GPU where the model is on one, else of the process


@dataclass(frozen=True)
class ModelCheck:
    """What `check_model` found."""

    model: str
    items: tuple[CheckItem, ...]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not any(item.status == "fail" for item in self.items)

    @property
    def works(self) -> dict[str, bool]:
        """What can be used: embedding, reranking, one prefill a video."""
        found = {item.name: item.status for item in self.items}
        # a checkpoint's blocks after its layer are gone, so its cut is not checked again
        embeds = found.get("cut") in ("pass", "not run") and all(found.get(one) == "pass" for one in ("load", "prompt"))
        reranks = all(found.get(one) == "pass" for one in ("load", "answers", "reranker prompt"))
        reranks &= found.get("shared prefix") in ("pass", "note")
        return {"embed": embeds, "rerank": reranks, "shared prefill": found.get("shared prefix") == "pass"}

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-able dict."""
        return {**asdict(self), "passed": self.passed, "works": self.works}


def check_model(
    model: str | Path | Backbone,
    *,
    layer: int | None = None,
    prefix: str | None = "zero-shot",
    sampling: Sampling | None = None,
    **kwargs: Any,
) -> ModelCheck:
    """Prove on a loaded video MLLM, on a small made-up video and two sentences, what the package relies on.

    Args:
        model: Directory or Hub name of a video MLLM or checkpoint, or a loaded `Backbone`. Of a checkpoint without
            its head, what needs the whole model is not run.
        layer: As `VideoEncoder` takes it.
        prefix: As `VideoEncoder` takes it.
        sampling: Likewise; the longest video that fits is computed for it.
        **kwargs: Everything else that `VideoEncoder` takes (``device``, ``model_kwargs``, ``revision``, ...).

    Returns:
        An item for each check. A model that cannot be loaded or cut has failed items that say what is missing, and
        ``works`` says what can be used all the same.

    Raises:
        LayerError: `layer` is not a block of the model.
        BackboneError: The checkpoint is not complete, or the dtype unknown.
        OSError: There is no such model.
    """
    name = str(model) if isinstance(model, (str, Path)) else model.name
    run = _Run()
    source = {"model_name_or_path": model} if isinstance(model, (str, Path)) else {"backbone": model}
    encoder = run("load", lambda: _load(layer=layer, prefix=prefix, sampling=sampling, **source, **kwargs))
    if encoder is not None:
        run.model = encoder
        run("cut", lambda: _check_cut(encoder))
        run("batch", lambda: _check_batch(encoder))
        run("times", lambda: _check_times(encoder))
        run("prompt", lambda: _check_prompt(encoder, VIDEO_PROMPT, TEXT_PROMPT))
        run("tokens", lambda: _check_tokens(encoder))
        reranker = run("answers", lambda: _check_answers(encoder))
        if reranker is not None:
            run("reranker prompt", lambda: _check_prompt(reranker))
            run("shared prefix", lambda: _check_sharing(reranker))
            run("answer mass", lambda: _check_mass(reranker))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return ModelCheck(name, tuple(run.items), versions)


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends a check with another status than pass."""

    def __init__(self, status: Status, detail: str, values: Values | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.values = status, detail, values or {}


@dataclass(frozen=True)
class _Found:
    """What a check that passed found, and what the next ones need of it."""

    detail: str
    values: Values = field(default_factory=dict)
    made: Any = None  # a model


class _Run:
    """Runs checks one after the other and keeps an item of each."""

    def __init__(self) -> None:
        self.items: list[CheckItem] = []
        self.model: VideoModel | None = None

    def __call__(self, name: str, check: Callable[[], _Found]) -> Any:
        """Run one check; what it made, or None."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start, made = time.perf_counter(), None
        status: Status = "pass"
        try:
            found = check()
            detail, values, made = found.detail, found.values, found.made
        except _Stop as stop:
            status, detail, values = stop.status, stop.detail, stop.values
        except Exception as error:  # whatever goes wrong in a model is the result
            asked_wrongly = isinstance(error, (ValueError, OSError)) and not isinstance(error, _OF_THE_MODEL)
            if name == "load" and asked_wrongly:
                raise
            logger.debug("check %s failed", name, exc_info=True)
            known = type(error).__module__.startswith("vidembed")
            status, detail, values = "fail", f"{'' if known else f'{type(error).__name__}: '}{error}", {}
        seconds = time.perf_counter() - start
        line = " ".join(detail.split())
        self.items.append(CheckItem(name, status, line, values, round(seconds, 3), round(self._peak_mib(), 1)))
        return made

    def _peak_mib(self) -> float:
        if self.model is not None and self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device) / 2**20
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _load(**kwargs: Any) -> _Found:
    encoder = VideoEncoder(**kwargs)
    parts = encoder.parts
    dtype = str(encoder.dtype).removeprefix("torch.")
    tested = "" if parts.model_type in TESTED_TYPES else ", not tested here"
    config = encoder.checkpoint_config
    depth = config.depth if config else parts.depth
    detail = (
        f"{parts.model_type}{tested}: layer {encoder.layer} of {depth}, {dtype} on {encoder.device}, attention "
        f"{parts.attention}"
    )
    values: Values = {"model_type": parts.model_type, "layer": encoder.layer, "depth": depth, "dtype": dtype}
    return _Found(detail, {**values, "device": str(encoder.device), "attention": parts.attention}, encoder)


def _limit(limits: dict[str, float], model: VideoModel) -> float:
    return limits.get(str(model.dtype).removeprefix("torch."), max(limits.values()))


def _inputs() -> list[Input]:
    """Videos and texts of mixed lengths."""
    texts: list[Input] = [{"text": text} for text in SENTENCES]
    return [probe_video(0, 8), texts[0], probe_video(1, 5), texts[1], probe_video(2, 2)]


def _check_cut(encoder: VideoEncoder) -> _Found:
    if encoder.backbone is None:
        raise _Stop("not run", "this checkpoint has no blocks after its layer to compare with; check its MLLM")
    items: list[Input] = [probe_video(), {"text": SENTENCES[1]}]
    wanted = hidden_states(encoder, items)  # (2, D)
    vectors = torch.from_numpy(np.stack([encoder.encode(item) for item in items]))
    apart = 1 - cosine_similarity(vectors.double(), wanted.double(), dim=1)  # (2,)
    values: Values = {"video": apart[0].item(), "text": apart[1].item(), "limit": _limit(COSINE_LIMITS, encoder)}
    detail = f"vectors against the output of block {encoder.layer}: 1 - cosine {apart.max().item():.1e}"
    return _within(apart.max().item(), _limit(COSINE_LIMITS, encoder), detail, values)


def _within(worst: float, limit: float, detail: str, values: Values) -> _Found:
    if not worst <= limit:
        raise _Stop("fail", f"{detail}, above {limit:g}", values)
    return _Found(detail, values)


def _check_batch(encoder: VideoEncoder) -> _Found:
    together = encoder.encode(_inputs()).astype(np.float64)
    alone = np.stack([encoder.encode(item) for item in _inputs()]).astype(np.float64)
    scale = np.linalg.norm(together, axis=1) * np.linalg.norm(alone, axis=1)
    worst = float((1 - (together * alone).sum(1) / scale).max())
    joins = encoder.can_join()
    detail = f"three videos and two texts together against one by one: 1 - cosine {worst:.1e}; videos " + (
        "share batches" if joins else "run one at a time, because inputs of this model cannot be batched"
    )
    return _within(worst, _limit(COSINE_LIMITS, encoder), detail, {"worst": worst, "joins": int(joins)})


class _Recorder:
    """A video processor that keeps what its calls are told of the videos."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.metadata: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.metadata.append(kwargs.get("video_metadata"))
        return self.wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def _check_times(encoder: VideoEncoder) -> _Found:
    processor: Any = encoder.processor
    video = probe_video()
    slow = type(video)(video.array, fps=video.fps / 4)
    recorder = _Recorder(processor.video_processor)
    processor.video_processor = recorder
    try:
        fast_features, slow_features = (encoder.preprocess([one]) for one in (video, slow))
    finally:
        processor.video_processor = recorder.wrapped
    told = [_times(one) or [] for one in recorder.metadata]
    wanted = [[round(index / one.fps, 6) for index in range(len(one.array))] for one in (video, slow)]
    grid = encoder.sampling.fps
    if len(told) != 2 or not all(told):
        raise _Stop("fail", "the video processor does not get the times of frames")
    if any(max(times) > asked[-1] or sorted(times) != times for times, asked in zip(told, wanted, strict=True)):
        raise _Stop("fail", f"the video processor gets {told} s for frames at {wanted} s")
    differ = _differ(fast_features, slow_features)
    used = "and they change what the model gets" if differ else "and this model does not use them"
    detail = f"times of frames reach the video processor (sampled at {grid:g} a second), {used}"
    return _Found(detail, {"used": int(differ)})


def _times(metadata: Any) -> list[float] | None:
    """Seconds at which the frames of the one video of a call are shown, as its metadata says; None without."""
    one = metadata[0] if isinstance(metadata, (list, tuple)) and metadata else metadata
    one = one if isinstance(one, dict) else vars(one) if hasattr(one, "__dict__") else {}
    indices, fps = one.get("frames_indices"), one.get("fps")
    return None if indices is None or not fps else [round(index / fps, 6) for index in indices]


def _differ(one: Features, other: Features) -> bool:
    tensors = {key: value for key, value in one.items() if isinstance(value, torch.Tensor) and "pixel" not in key}
    return any(other[key].shape != value.shape or not torch.equal(value, other[key]) for key, value in tensors.items())


def _check_prompt(model: VideoModel, *once: str) -> _Found:
    """The prompt holds the content once, one placeholder, its question once, and ends where an answer begins."""
    processor: Any = model.processor
    sentence, mark = SENTENCES[0], str(processor.video_token)
    with_video = rendered(processor, None, VIDEO_PART, *([] if once else [{"type": "text", "text": sentence}]))
    with_text = rendered(processor, None, {"type": "text", "text": sentence})
    counts = {"video placeholder": with_video.count(mark), "text": with_text.count(sentence)}
    if once:
        counts |= {"video prompt": with_video.count(once[0]), "text prompt": with_text.count(once[1])}
    if wrong := {what: count for what, count in counts.items() if count != 1}:
        raise _Stop("fail", f"each of these should appear once in the prompt: {wrong}. It is {with_video!r}")
    if thought := open_thought(with_video):
        raise _Stop("fail", f"the prompt ends inside a thought, started by {thought!r} , so the answer cannot follow")
    end = re.split(r"\n(?=.)", with_video)[-1]
    return _Found(f"each part stands once, no thought is open; it ends in {end[-60:]!r}", {**counts})


def _check_tokens(encoder: VideoEncoder) -> _Found:
    width, height = _PICTURE
    noise = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), dtype=np.uint8)  # (T, H, W, C)
    video = type(probe_video())
    short, long = (
        int(encoder.preprocess([video(noise[:count], fps=encoder.sampling.fps)])["input_ids"].shape[1])
        for count in (8, 16)
    )
    frame, most = (long - short) / 8, max_positions(encoder.transformers_model.config)  # type: ignore[union-attr]
    sampling = encoder.sampling
    rest = short - 8 * frame
    frames = sampling.max_frames if most is None else min(sampling.max_frames, int((most - rest) / max(frame, 1e-9)))
    values: Values = {"tokens_per_frame": frame, "context": most, "frames": frames}
    detail = f"{frame:g} tokens a frame of {width} x {height}; "
    if frames < sampling.max_frames:
        detail += (
            f"the context of {most} tokens takes {frames} frames, fewer than the {sampling.max_frames} of the frame "
            f"grid: a longer video is refused. Set Sampling(max_frames={frames})"
        )
        raise _Stop("note", detail, values)
    return _Found(f"{detail}the context of {most} tokens takes the {frames} frames of the grid", values)


def _check_answers(encoder: VideoEncoder) -> _Found:
    if encoder.backbone is None:
        raise _Stop("not run", "this checkpoint has no language model head; check its MLLM")
    reranker = encoder.reranker()
    tokens = reranker.tokenizer
    ids = {word: tokens.encode(word, add_special_tokens=False) for word in _ANSWERS}
    single = [repr(word) for word, found in ids.items() if len(found) == 1]
    return _Found(f"one token each: {', '.join(single)}", {"yes": ids["Yes"][0], "no": ids["No"][0]}, reranker)


def _pairs() -> list[tuple[str, Any]]:
    return [(text, video) for video in (probe_video(0, 8), probe_video(1, 3)) for text in SENTENCES]


@torch.inference_mode()
def _own_logits(reranker: VideoReranker) -> torch.Tensor:
    """Logits of the model's own forward pass of the processor's whole prompt of each pair (N, V) float32."""
    model: Any = reranker.transformers_model
    rows = []
    for pair in _pairs():
        features = model_inputs(batch_to_device(reranker.preprocess([pair]), reranker.device))
        rows.append(model(**features, use_cache=False).logits[0, -1].float().cpu())
    return torch.stack(rows)


def _check_sharing(reranker: VideoReranker) -> _Found:
    answers, logits = reranker.answers(_pairs(), show_progress_bar=False), _own_logits(reranker)
    tokens = reranker.tokenizer
    yes, no = (tokens.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    worst = float(np.abs(answers.yes_no - (logits[:, yes] - logits[:, no]).double().numpy()).max())
    way = reranker.sharing
    detail = f"sentences {'packed behind' if way == 'packed' else 'behind copies of'} one prefill of a video"
    if way is None:
        detail = "texts cannot share a prefill, so every pair takes a whole forward pass, which is slower"
    detail += f": log-odds of Yes differ from whole prompts by {worst:.1e}"
    limit = _limit(LOG_ODDS_LIMITS, reranker)
    found = _within(worst, limit, detail, {"worst": worst, "limit": limit, "sharing": way})
    if way is None:
        raise _Stop("note", detail, found.values)
    return found


def _check_mass(reranker: VideoReranker) -> _Found:
    probabilities = _own_logits(reranker).softmax(dim=1).mean(0)  # (V,)
    tokens = reranker.tokenizer
    found = {word: tokens.encode(word, add_special_tokens=False) for word in _ANSWERS}
    shares = {word: probabilities[ids[0]].item() for word, ids in found.items() if len(ids) == 1}
    mass = sum({found[word][0]: share for word, share in shares.items()}.values())
    best = tokens.decode([int(probabilities.argmax())])
    detail = f"{mass:.1%} of the probability is on forms of Yes and No; the most likely token is {best!r}"
    values: Values = {**shares, "mass": mass, "likeliest": best}
    if mass < LIKELY_ANSWER:
        raise _Stop("note", f"{detail}. The head does not answer the question, so its scores mean little", values)
    return _Found(detail, values)
