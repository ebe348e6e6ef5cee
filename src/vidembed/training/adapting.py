"""`adapt`: text-only alignment on what a model says of the user's own videos, measured on videos held out."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vidembed.analysis.layers import open_mllm
from vidembed.analysis.measure import cosines, relation_of
from vidembed.analysis.own_queries import LEAST, OwnText, OwnTexts, Videos, caption_videos, draw_videos, own_texts
from vidembed.backbone.options import refuse_quantization
from vidembed.captions import TextPair
from vidembed.encoder import VideoEncoder
from vidembed.errors import NotImproved, warn
from vidembed.evaluation.metrics import Interval, paired_bootstrap, ranks
from vidembed.scoring.checks import FORMAT_VERSION, check_header, read_object
from vidembed.text import require_train_extra, write_atomically
from vidembed.training.alignment import Output, align
from vidembed.training.lora import LoraSettings
from vidembed.training.trainer import TrainingSettings

logger = logging.getLogger(__name__)
CLIPS: Final = 500  # videos that are described by default (ours: 400 pairs were tried, and a tenth is held out)
LORA: Final = LoraSettings(rank=16, alpha=128)  # the paper's alpha, a quarter of its rank: few pairs (ours)
LEARNING_RATE: Final = 3e-4  # of the bundled model's alignment, `tools.shapes.align` (ours)
STEPS: Final = 24  # of batches of `BATCH` pairs or all of fewer: a few hundred pairs are seen several times (ours)
BATCH: Final = 100
HELD_OUT: Final = 0.1  # share of the videos that is measured and not trained on, and at least `LEAST` (ours)
Hits = dict[str, dict[str, list[bool]]]  # by kind of query and direction: which queries find a right answer first
_KIND = "adaptation"
_REPORT, _CAPTIONS, _MODEL = "adapt.json", "captions.jsonl", "model"


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did, and Recall@1 on the videos held out, with what the model says of them as queries."""

    folder: Path  # the adapted model
    texts: str  # how many videos were described and used, in a sentence
    trained: int  # pairs
    held_out: int  # videos
    before: Hits
    after: Hits

    def recall(self, hits: Hits, kind: str, way: str) -> float:
        """Recall@1 in percent; `hits` are those before or after, `way` is "t2v" or "v2t"."""
        return 100 * float(np.mean(hits[kind][way]))

    def gain(self, kind: str, way: str) -> Interval:
        """Points of Recall@1 after less before, on the same queries, with the 95 % bootstrap interval."""
        return paired_bootstrap(self.after[kind][way], self.before[kind][way], seed=0).percent()

    @property
    def mean_gain(self) -> float:
        """Points of Recall@1 gained in the mean of kinds of queries and directions."""
        return float(np.mean([self.gain(kind, way).estimate for kind, ways in self.before.items() for way in ways]))

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON values, in percent and points."""
        figures = {
            kind: {
                way: {
                    "before": round(self.recall(self.before, kind, way), 2),
                    "after": round(self.recall(self.after, kind, way), 2),
                    "gain": [round(value, 2) for value in (gain.estimate, gain.low, gain.high)],
                }
                for way in ways
                for gain in [self.gain(kind, way)]
            }
            for kind, ways in self.before.items()
        }
        counts = {"texts": self.texts, "trained": self.trained, "held_out": self.held_out}
        return {**counts, "recall_at_1": figures, "mean_gain": round(self.mean_gain, 2)}


def adapt(
    mllm: str | Path,
    videos: Videos,
    out: str | Path,
    *,
    clips: int = CLIPS,
    held_out: int | None = None,
    lora: LoraSettings | None = None,
    training: TrainingSettings | None = None,
    learning_rate: float | None = None,
    output: Output = "merged",
    seed: int = 0,
    overwrite: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    progress: bool = False,
    **hub_kwargs: Any,
) -> Adaptation:
    """Adapt the last layer of a video MLLM to videos without labels.

    The model describes videos, texts that are marked are left out, some videos are held out, `align` trains on the
    pairs of texts of the others, and Recall@1 on the videos held out is measured before and after. Queries are the
    model's own texts about them: the figures say whether retrieval got better, not how good it is on queries of people.

    `out` gets ``captions.jsonl``, ``adapt.json`` (figures) and the folder ``model``. The same call goes on from what
    is complete there.

    Args:
        mllm: Directory or Hub name of a video MLLM.
        videos: Files and folders.
        out: Folder to write.
        clips: Most videos that are described, drawn by the seed. Default `CLIPS`.
        held_out: Videos that are measured and not trained on. Default a tenth of those with usable texts, and at least
            `LEAST`. Videos of equal bytes count as one.
        lora: Of the adapter. Default `LORA`.
        training: Of the run. Default `STEPS` steps with batches of `BATCH` pairs, or of all where there are fewer.
        learning_rate: Peak learning rate, without `training`. Default `LEARNING_RATE`.
        output: "merged" or "adapter", as `align` takes.
        seed: Decides which videos are described and held out, and the training.
        overwrite: Train again in a folder that was made with other settings or videos; what this model has said of
            videos is kept.
        dtype: "float32" or "bfloat16", of the weights; None for the dtype of the model.
        device: "cpu", "cuda", or None for the best there is.
        progress: Whether to show bars.
        **hub_kwargs: ``revision``, ``token``, ``cache_folder``, ``local_files_only``; and ``model_kwargs``.

    Warns:
        CroppedTexts: The model cannot shorten what it says; crops of its captions stand in for short texts. They help
            long queries only.
        NotImproved: Recall@1 on the videos held out fell, in the mean of kinds of queries and directions.

    Raises:
        MissingExtraError: A package of the extra ``train`` is not installed.
        FileExistsError: `out` holds something else.
        TooFewCaptionsError: Too few videos have usable texts.
        ValueError: An argument is out of range, or `out` was made with other settings or videos.
        BackboneError: The model is not supported, its weights are to be quantized, or it is a cut checkpoint, which
            holds no head.
    """
    require_train_extra()
    if training is not None and learning_rate is not None:
        raise ValueError(f"learning_rate={learning_rate!r}: set it in training instead.")
    refuse_quantization(hub_kwargs, "an adapter cannot be merged into quantized weights; leave it out.")
    if training is None:
        settings_for(BATCH, seed, learning_rate)  # out of range is found before anything is done
    folder = Path(out).expanduser().absolute()
    file = folder / _REPORT
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / _CAPTIONS).is_file())):
        raise FileExistsError(f"{folder} exists and was not made by adapt. Choose another folder.")
    drawn = draw_videos(videos, clips, seed=seed)
    encoder = open_mllm(mllm, prefix=None, dtype=dtype, device=device, **hub_kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / _CAPTIONS
    records = caption_videos(encoder, drawn, file=said, overwrite=overwrite, show_progress_bar=progress)
    texts = own_texts(records, least=2 * LEAST, seed=seed)
    held, rest = hold_out(texts.texts, held_out, seed=seed)
    logger.info("%s Training on %d pairs; %d videos are held out.", texts.summary(), len(rest), len(held))
    lora, training = lora or LORA, training or settings_for(len(rest), seed, learning_rate)
    made_of = {
        "model": encoder.fingerprint,
        "held_out": [one.content for one in held],
        "texts": [[one.content, one.dense, one.short] for one in texts.texts],
        "settings": [asdict(lora), asdict(training), output],
    }
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    state = _open(file, digest, overwrite=overwrite)
    if not state:
        state = {"kind": _KIND, "format_version": FORMAT_VERSION, "digest": digest}
        state["held"] = [one.content for one in held]
        state["before"] = first_hits(encoder, held, texts.kind, show_progress_bar=progress)
        _write(file, state)
    del encoder
    gc.collect()  # two copies of a 7B model do not fit everywhere
    options = {"dtype": dtype, "device": device, **hub_kwargs}
    if not (folder / _MODEL).exists():
        pairs = [TextPair(one.dense, one.short) for one in rest]
        same: dict[str, Any] = {"lora": lora, "training": training, "output": output, "progress": progress}
        align(mllm, pairs, folder / _MODEL, held_out=0, too_long="drop", **same, **options)
    if "after" not in state:
        of_the_hub = {name: value for name, value in hub_kwargs.items() if name not in ("model_kwargs", "revision")}
        adapted = VideoEncoder(folder / _MODEL, device=device, **of_the_hub)
        state["after"] = first_hits(adapted, held, texts.kind, show_progress_bar=progress)
    found = Adaptation(folder / _MODEL, texts.summary(), len(rest), len(held), state["before"], state["after"])
    _write(file, {**state, **found.to_dict()})
    if found.mean_gain < 0:
        warn(
            NotImproved(
                f"Recall@1 on {len(held)} videos held out fell by {-found.mean_gain:.1f} points in the mean, so the "
                f"adapted model in {found.folder} is worse than the original. Do not use it; try more videos, "
                "or a lower learning rate."
            )
        )
    return found


def settings_for(pairs: int, seed: int = 0, learning_rate: float | None = None) -> TrainingSettings:
    """`STEPS` steps over this many pairs; the learning rate is `LEARNING_RATE` by default."""
    batch = max(2, min(BATCH, pairs))
    epochs = STEPS / math.ceil(pairs / batch)
    peak = LEARNING_RATE if learning_rate is None else learning_rate
    return TrainingSettings(batch_size=batch, epochs=epochs, learning_rate=peak, seed=seed)


def hold_out(texts: Sequence[OwnText], n: int | None, *, seed: int = 0) -> tuple[list[OwnText], list[OwnText]]:
    """Draw `n` videos by a seed to measure on (default a tenth, and at least `LEAST`); these, then the others.

    What is drawn depends on the bytes of the videos alone, not on their names.
    """
    n = max(LEAST, math.ceil(HELD_OUT * len(texts))) if n is None else n
    most = len(texts) - LEAST
    if not 2 <= n <= most:
        raise ValueError(
            f"held_out={n!r} of {len(texts)} videos with usable texts: expected 2..{most}, so that at least {LEAST} "
            f"remain for training."
        )
    order = sorted(texts, key=lambda one: one.content)
    drawn = {one.content for one in random.Random(seed).sample(order, n)}  # noqa: S311 - a sample, not a secret
    return [one for one in texts if one.content in drawn], [one for one in texts if one.content not in drawn]


def first_hits(encoder: VideoEncoder, held: Sequence[OwnText], kind: str, *, show_progress_bar: bool = False) -> Hits:
    """Which texts find a right video first, and which videos a right text; `kind` is that of the short texts.

    Equal texts count as one, and each video of such a text is right.
    """
    queries = OwnTexts(tuple(held), kind, len(held)).queries()
    vectors = encoder.encode([one.video for one in held], show_progress_bar=show_progress_bar)  # (V, D)
    found: Hits = {}
    for name, rows in queries.items():
        relation = relation_of(rows)  # its videos are those of `held`, in order
        texts = encoder.encode([{"text": text} for text in relation.texts], show_progress_bar=False)  # (T, D)
        scores = cosines(np.asarray(texts), np.asarray(vectors))  # (T, V)
        ways = {"t2v": (scores, relation.positives), "v2t": (scores.T, relation.positives.T)}
        found[name] = {way: (ranks(*both) == 1).tolist() for way, both in ways.items()}
    return found


def _open(file: Path, digest: str, *, overwrite: bool) -> dict[str, Any]:
    """What a run of the same settings has measured; nothing where there is none, or where it is to be done again."""
    model = file.with_name(_MODEL)
    if not file.is_file():
        if model.exists():
            raise FileExistsError(f"{model} exists and was not made by adapt. Choose another folder.")
        return {}
    state = read_object(file)
    check_header(_KIND, state, remedy="choose another folder")
    if state.get("digest") == digest:
        return state
    if not overwrite:
        raise ValueError(
            f"{file.parent} was made with other videos, settings or another model. Choose another folder, or pass "
            "overwrite=True to train again; the captions are kept."
        )
    for path in (model, file.with_name(f"{_MODEL}.training")):
        shutil.rmtree(path, ignore_errors=True)
    return {}


def _write(file: Path, state: Mapping[str, Any]) -> None:
    write_atomically(file, json.dumps(state) + "\n")
