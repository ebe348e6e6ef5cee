"""Text-to-video and video-to-text retrieval as an evaluator of sentence-transformers."""

from __future__ import annotations

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.metrics import mean_rank, median_rank, ranks, recall_at
from vidembed.evaluation.result import CUTS
from vidembed.scoring import dual_softmax
from vidembed.scoring.checks import whole_number
from vidembed.video import item_name

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel

logger = logging.getLogger(__name__)


class VideoTextRetrievalEvaluator(BaseEvaluator):
    """Measures how well a model finds videos by captions (``t2v``) and captions by videos (``v2t``).

    For ``SentenceTransformerTrainer(evaluator=...)``, for ``model.evaluate(...)``, or called with a model: a
    `VideoEncoder`, or any SentenceTransformer that takes video. Captions are embedded by ``encode_query``, videos by
    ``encode_document``, and compared by the model's own ``similarity``. The metrics of each direction are ``R@k``, in
    percent, and the median and mean rank, ``MdR`` and ``MnR``, from 1. Ties count against the model
    (`vidembed.evaluation.ranks`). A query with several right answers has the rank of the best one. ``primary_metric``
    is ``t2v_R@k`` with the least k.

    Args:
        videos: V videos, each a path or what else the model takes for a video; or a `Benchmark`, without captions.
        captions: V captions, or V lists of the captions of one video. A caption that stands at several videos is
            right for each of them.
        ks: Ranks of the recalls, each at least 1.
        temperature: Also rank by dual-softmax (`vidembed.scoring.dual_softmax`) with this temperature, above 0, in the
            unit of the similarity. It uses all queries at once. Fit it on other data.
        batch_size: Inputs embedded at once.
        name: Stands before the metrics and in the name of the CSV file.
        write_csv: Whether a call with an ``output_path`` appends a row to a CSV file there.
        truncate_dim: Compare by the first values of the vectors only; default the model's.
        show_progress_bar: Whether to show a bar while inputs are embedded.

    Raises:
        ValueError: A caption is empty, a video stands there twice, or another argument does not fit.
        TypeError: One video or one caption is given where a list is expected.

    Example:
        >>> from vidembed.evaluation.evaluator import VideoTextRetrievalEvaluator
        >>> VideoTextRetrievalEvaluator(["a.mp4"], ["a dog runs"], name="dogs").csv_file
        'Video-Text-Retrieval_evaluation_dogs_results.csv'
    """

    def __init__(
        self,
        videos: Sequence[object] | Benchmark,
        captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        ks: Sequence[int] = CUTS,
        temperature: float | None = None,
        batch_size: int = 32,
        name: str = "",
        write_csv: bool = True,
        truncate_dim: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if isinstance(videos, Benchmark):
            if captions is not None:
                raise ValueError(
                    "captions: a Benchmark has its own captions; leave captions out, or give a list of videos"
                )
            self.videos: list[object] = list(videos.videos)
            self.texts = list(videos.texts)
            self._positives = videos.positives  # (T, V)
        else:
            if captions is None:
                raise ValueError("captions: missing; give one caption per video, or one list of captions per video")
            self.videos, self.texts, self._positives = _labelled(videos, captions)
        self.ks = tuple(sorted(set(ks)))
        if not self.ks or not all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in self.ks):
            raise ValueError(f"ks={ks!r}: expected whole numbers of at least 1, such as (1, 5, 10)")
        if temperature is not None:
            dual_softmax([[0.0]], temperature=temperature)  # refuses what it cannot use, now and not after the work
        if "/" in name or os.sep in name or "\0" in name:
            raise ValueError(f"name={name!r}: it becomes part of a file name, so it cannot contain {os.sep!r}")
        self.temperature = temperature
        self.batch_size = whole_number("batch_size", batch_size)
        self.name = name
        self.write_csv = write_csv
        self.truncate_dim = truncate_dim
        self.show_progress_bar = show_progress_bar
        ways = ["t2v", "v2t"] + (["t2v_dual_softmax", "v2t_dual_softmax"] if temperature is not None else [])
        self._metrics = [f"{way}_{metric}" for way in ways for metric in (*(f"R@{k}" for k in self.ks), "MdR", "MnR")]
        self.primary_metric = f"t2v_R@{self.ks[0]}"
        self.csv_file = f"Video-Text-Retrieval_evaluation{'_' + name if name else ''}_results.csv"
        self.csv_headers = ["epoch", "steps", *self._metrics]

    def __call__(
        self, model: BaseModel, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Embed, measure, and append a row to the CSV file in `output_path`, which is made where missing.

        Returned is ``{metric: value}``, with ``name`` in front. A ValueError if the model takes no video, gives a
        vector that is not finite, or the file has other columns; a VideoError if a video could not be decoded.
        """
        modalities = getattr(model, "modalities", ())
        if not isinstance(model, SentenceTransformer) or "video" not in modalities:
            takes = f"takes {', '.join(map(str, modalities))}" if modalities else "has no modalities"
            raise ValueError(
                f"model: this {type(model).__name__} {takes}; expected a VideoEncoder, or a SentenceTransformer whose "
                "modalities include video"
            )
        file = Path(output_path, self.csv_file) if output_path is not None and self.write_csv else None
        if file is not None and file.exists():
            with file.open(encoding="utf-8", newline="") as lines:
                header = next(csv.reader(lines), [])
            if header != self.csv_headers:
                raise ValueError(
                    f"output_path: {file} has the columns {', '.join(header)}, and this evaluator writes "
                    f"{', '.join(self.csv_headers)}. Give another folder or name, or remove the file."
                )
        when = "" if epoch == -1 else f" after epoch {epoch}" if steps == -1 else f" in epoch {epoch}, step {steps}"
        logger.info("Video-text retrieval on %s%s:", self.name or f"{len(self.videos)} videos", when)
        measured = self.measure(self.similarity(model))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            rows: list[list[str] | list[float]] = [] if file.exists() else [self.csv_headers]
            rows.append([epoch, steps, *measured.values()])
            with file.open("a", encoding="utf-8", newline="") as lines:
                csv.writer(lines, lineterminator="\n").writerows(rows)
        for metric, value in measured.items():
            logger.info("%s: %.2f", metric, value)
        metrics: dict[str, float] = self.prefix_name_to_metrics(measured, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)  # type: ignore[arg-type] # trainers pass parts of epochs
        return metrics

    def similarity(self, model: SentenceTransformer) -> NDArray[np.float64]:
        """Similarities ``(T, V)`` of all captions and videos; errors as of a call."""
        how: dict[str, Any] = {"batch_size": self.batch_size, "truncate_dim": self.truncate_dim}
        how |= {"show_progress_bar": self.show_progress_bar, "convert_to_tensor": True}
        queries = model.encode_query([{"text": text} for text in self.texts], **how)  # (T, D)
        documents = model.encode_document([_as_video(video, model) for video in self.videos], **how)  # (V, D)
        for argument, vectors in (("captions", queries), ("videos", documents)):
            finite = vectors.isfinite().all(dim=1)  # (T,) or (V,)
            if not bool(finite.all()):
                place = int((~finite).nonzero()[0])
                raise ValueError(f"{argument}[{place}]: the model gave a vector with values that are not finite")
        return np.asarray(model.similarity(queries.float(), documents.float()).cpu(), dtype=np.float64)

    def measure(self, scores: NDArray[np.float64]) -> dict[str, float]:
        """Metrics of similarities ``(T, V)``, without ``name`` in front; a ValueError if they are of another shape."""
        found = {"t2v": (scores, self._positives), "v2t": (scores.T, self._positives.T)}
        if self.temperature is not None:
            for way, (values, right) in list(found.items()):
                found[f"{way}_dual_softmax"] = dual_softmax(values, temperature=self.temperature), right
        measured: dict[str, float] = {}
        for way, (values, right) in found.items():
            places = ranks(values, right)
            measured |= {f"{way}_R@{k}": 100.0 * recall_at(places, k) for k in self.ks}
            measured |= {f"{way}_MdR": median_rank(places), f"{way}_MnR": mean_rank(places)}
        return measured

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows of the evaluation beyond its figures."""
        settings = {"truncate_dim": self.truncate_dim, "temperature": self.temperature}
        return {key: value for key, value in settings.items() if value is not None}


def _labelled(
    videos: Sequence[object], captions: Sequence[str] | Sequence[Sequence[str]]
) -> tuple[list[object], list[str], NDArray[np.bool_]]:
    """Videos, texts, and which text is right for which video ``(T, V)``."""
    if isinstance(videos, (str, bytes, os.PathLike, Mapping)):
        raise TypeError(f"videos: got one {type(videos).__name__}; expected a list of videos")
    if isinstance(captions, str):
        raise TypeError("captions: got one string; expected a list of captions, one per video")
    items, given = list(videos), list(captions)
    if not items:
        raise ValueError("videos: empty; expected at least one")
    if len(items) != len(given):
        raise ValueError(
            f"captions: got {len(given)} for {len(items)} videos; expected one caption, or one list of captions, per "
            f"video"
        )
    _check_distinct(items)
    texts: list[str] = []
    right: defaultdict[str, list[int]] = defaultdict(list)
    for place, entry in enumerate(given):
        of_video = [entry] if isinstance(entry, str) else list(entry)
        if not of_video or not all(isinstance(text, str) and text.strip() for text in of_video):
            raise ValueError(f"captions[{place}]={entry!r}: expected text, or a list of at least one text")
        texts += of_video
        for text in of_video:
            right[text].append(place)
    positives = np.zeros((len(texts), len(items)), dtype=np.bool_)  # (T, V)
    for row, text in enumerate(texts):
        positives[row, right[text]] = True
    return items, texts, positives


def _check_distinct(videos: Sequence[object]) -> None:
    first: dict[str, int] = {}
    for place, video in enumerate(videos):
        if isinstance(video, (str, os.PathLike)) and (other := first.setdefault(os.fspath(video), place)) != place:
            again = f"videos[{place}] is videos[{other}] again"
            raise ValueError(f"{again}: {item_name(video)}. Give its captions as one list.")


def _as_video(video: object, model: SentenceTransformer) -> object:
    """Name the input a video, whatever it looks like."""
    if isinstance(video, Mapping) and "video" in video:
        return video
    if isinstance(video, os.PathLike) and type(model) is SentenceTransformer:
        video = os.fspath(video)  # which takes no Path
    return {"video": video}
