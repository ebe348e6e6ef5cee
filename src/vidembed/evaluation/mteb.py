"""A checkpoint at MTEB: its metadata, mteb's wrappers around it, and runs of mteb's tasks (extra ``mteb``)."""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from vidembed.errors import MissingExtraError
from vidembed.progress import progress_bar

try:
    import mteb
except ModuleNotFoundError as error:
    raise MissingExtraError(f'{error.name} is not installed; pip install "vidembed[mteb]"') from error

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta
from mteb.models.abs_encoder import get_prompt_name
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.results import TaskResult
from mteb.types import BatchedInput, PromptType
from numpy.typing import NDArray

from vidembed.encoder import VideoEncoder
from vidembed.registry import NAMESPACE, resolve_model
from vidembed.video import VideoError, VideoFrames

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)
# who reads a task's videos: "file", the encoder reads the files; "mteb", mteb samples frames of them
Frames = Literal["file", "mteb"]
# the modalities of mteb that an encoder can have, in the order in which it gets those of one input
MODALITIES: Final = ("text", "image", "video")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class VideoFileEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper of SentenceTransformers, but the encoder reads the videos of a task from their files.

    mteb hands a model the frames that it sampled, without their times. Here frames are those of ``encoder.sampling``
    with their times, so the vectors are those of ``encoder.encode_document(files)``, and torchcodec is not used. Texts
    are taken for text whatever they look like.
    """

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed the rows of a task, ``(N, D)``; called by mteb. A VideoError names the row that cannot be decoded."""
        del hf_split, hf_subset
        rows: Any = inputs.dataset
        if isinstance(rows.features.get("video"), datasets.Video):
            rows = rows.cast_column("video", datasets.Video(decode=False))
        size = kwargs.setdefault("batch_size", 32)
        bar = kwargs.pop("show_progress_bar", True)
        encode = self.model.encode
        if prompt_type is not None:
            encode = self.model.encode_query if prompt_type == PromptType.query else self.model.encode_document
        if self.model_prompts:
            name = get_prompt_name(self.model_prompts, task_metadata, prompt_type)
            kwargs["prompt"] = self.model_prompts.get(name) if name else None
        vectors = []
        with progress_bar(f"Encoding {task_metadata.name}", "inputs", total=len(rows), shown=bar) as progress:
            for start in range(0, len(rows), size):
                chunk = range(start, min(start + size, len(rows)))
                items = [_as_input(rows[at], at, self.mteb_model_meta.modalities) for at in chunk]
                vectors.append(encode(items, show_progress_bar=False, **kwargs))
                progress.update(len(items))
        return np.concatenate(vectors)  # (N, D)


class _SampledFramesEncoder(VideoEncoder):
    """Takes mteb's bare frames for frames at the grid's rate, which it samples at but keeps no times of."""

    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().encode([self._timed(item) for item in inputs], *args, **kwargs)

    def _timed(self, item: object) -> object:
        if isinstance(item, str):
            return {"text": item}
        if not isinstance(item, Mapping) or not isinstance(item.get("video"), torch.Tensor):
            return item
        frames = item["video"].permute(0, 2, 3, 1).contiguous().numpy()  # (T, H, W, C)
        if len(frames) >= self.sampling.max_frames:
            may = "the video may be longer than the model takes it for"
            logger.warning("mteb sampled %d frames, the most allowed: %s", len(frames), may)
        return {**item, "video": VideoFrames(frames, fps=self.sampling.fps)}


def load_encoder(
    name: str,
    revision: str | None = None,
    device: str | None = None,
    *,
    checkpoint: str | None = None,
    frames: Frames = "file",
    embed_dim: int | None = None,
    **kwargs: Any,
) -> SentenceTransformerEncoderWrapper:
    """Load a checkpoint for mteb, in a wrapper whose ``mteb_model_meta`` is complete; the loader of `model_meta`.

    Args:
        name: As `VideoEncoder` takes it; with `checkpoint`, only what results are filed under.
        revision: For a model of the Hub its commit. For one in a local folder its fingerprint, which is checked.
        device: Torch device.
        checkpoint: Folder of the checkpoint, where `name` does not lead to it.
        frames: "file" makes a `VideoFileEncoder`. "mteb" makes mteb's ``SentenceTransformerEncoderWrapper`` itself; it
            samples frames with torchcodec by the model's grid, and the model takes them to be that far apart.
        embed_dim: Truncate vectors to this many values; kept apart as an experiment.
        **kwargs: As `VideoEncoder` takes.

    Raises:
        ValueError: `frames` or `embed_dim` is out of range, or a local checkpoint has another fingerprint.
        BackboneError: The model takes no video.
        OSError: There is no such model.
    """
    if frames not in get_args(Frames):
        raise ValueError(f"frames={frames!r}: expected one of {', '.join(map(repr, get_args(Frames)))}")
    source = resolve_model(checkpoint or name)
    is_local = Path(source).is_dir()
    kind = VideoEncoder if frames == "file" else _SampledFramesEncoder
    if not is_local:
        kwargs["revision"] = revision
    try:
        encoder = kind(checkpoint or name, device=device, **kwargs)
    except OSError as error:
        raise OSError(f"{checkpoint or name}: this model could not be loaded. {error}") from error
    meta = model_meta(encoder, name, revision=None if is_local else revision, checkpoint=checkpoint, frames=frames)
    if is_local and revision is not None and revision != meta.revision:
        remedy = "Leave revision out, or load the checkpoint that the metadata is of."
        raise ValueError(f"revision={revision!r}: {source} has the fingerprint {meta.revision!r}. {remedy}")
    if embed_dim is not None:  # after the fingerprint was compared, of which it is part
        whole = encoder.get_embedding_dimension() or 0
        if not 1 <= embed_dim <= whole:
            raise ValueError(f"embed_dim={embed_dim}: expected 1 to {whole}, the values of a vector of this model")
        encoder.truncate_dim = embed_dim
        experiment = {**(meta.experiment_kwargs or {}), "embed_dim": embed_dim}
        meta = meta.model_copy(update={"embed_dim": embed_dim, "experiment_kwargs": experiment})
    if frames == "file":
        wrapper: SentenceTransformerEncoderWrapper = VideoFileEncoder(encoder)
    else:
        grid = encoder.sampling
        wrapper = SentenceTransformerEncoderWrapper(encoder, fps=grid.fps, max_frames=grid.max_frames)
    wrapper.mteb_model_meta = meta
    return wrapper


def model_meta(
    encoder: VideoEncoder,
    name: str,
    *,
    revision: str | None = None,
    checkpoint: str | None = None,
    frames: Frames = "file",
    **facts: object,
) -> ModelMeta:
    """Describe a checkpoint to mteb by its own files; ``.to_python()`` is the text to send upstream.

    Args:
        encoder: The loaded checkpoint.
        name: "organization/model", on the Hub or among vidembed's own.
        revision: Commit on the Hub. Default: the commit that the encoder was loaded from, and for a local folder its
            fingerprint, of which the weights, the layer, the prompts and the frame grid are part.
        checkpoint: As `load_encoder` takes.
        frames: As `load_encoder` takes; "mteb" is kept apart as an experiment, as mteb calls it.
        **facts: Fields of ``mteb.ModelMeta`` that no checkpoint holds, such as ``license``; None unless given.

    Raises:
        ValueError: `name` is no such name, or a fact is none that mteb knows, or one that the checkpoint holds.
    """
    parameters = list(encoder.parameters())
    commit = getattr(encoder[0].config, "_commit_hash", None)
    source = encoder.checkpoint_config.source if encoder.checkpoint_config else ""
    backbone: Any = encoder[0].model
    known: dict[str, Any] = {
        "loader": functools.partial(load_encoder, checkpoint=checkpoint) if checkpoint else load_encoder,
        "name": name,
        "revision": revision or commit or encoder.fingerprint,
        "n_parameters": sum(one.numel() for one in parameters),
        "n_embedding_parameters": backbone.get_input_embeddings().weight.numel(),
        "memory_usage_mb": round(sum(one.numel() * one.element_size() for one in parameters) / 2**20),
        "max_tokens": encoder.max_seq_length,
        "embed_dim": encoder.get_embedding_dimension(),
        "similarity_fn_name": encoder.similarity_fn_name,
        "framework": ["Sentence Transformers", "PyTorch"],
        "use_instructions": any(encoder.prompts.values()),
        "modalities": [kind for kind in MODALITIES if kind in encoder.modalities],
        "model_type": ["dense"],
        "adapted_from": source if _HUB_NAME.fullmatch(source) and not source.startswith(NAMESPACE) else None,
        "experiment_kwargs": {"frames": frames} if frames != "file" else None,
    }
    if taken := sorted(set(facts) & set(known)):
        raise ValueError(f"{taken[0]}={facts[taken[0]]!r}: the checkpoint sets this itself; leave it out")
    if strange := sorted(set(facts) - set(ModelMeta.model_fields)):
        raise ValueError(f"{strange[0]}={facts[strange[0]]!r}: mteb.ModelMeta has no such field")
    required = {key: None for key, field in ModelMeta.model_fields.items() if field.is_required()}
    return ModelMeta(**{**required, **known, **facts})


def _as_input(row: Mapping[str, object], place: int, modalities: Sequence[str]) -> dict[str, object]:
    """A row of a task as `VideoEncoder.encode` takes it; `place` names a row without an id."""
    name = str(row.get("id", place))
    item = {kind: row[kind] for kind in MODALITIES if kind in modalities and row.get(kind) is not None}
    if not item:
        raise ValueError(f"row {name!r} has none of {', '.join(modalities)}; its columns are {', '.join(row)}")
    video = item.get("video")
    if isinstance(video, Mapping) and set(video) == {"bytes", "path"}:
        if video["bytes"] is not None:
            item["video"] = file = io.BytesIO(video["bytes"])
            vars(file)["name"] = f"{video['path'] or 'video'} of row {name!r}"  # for messages
        elif video["path"] and Path(video["path"]).is_file():
            item["video"] = video["path"]
        else:
            reason = "not a file of this machine; load the data of the task as files"
            raise VideoError(f"{video['path']} of row {name!r}", reason)
    return item


@dataclass(frozen=True)
class TaskRun:
    """What came of one task; the score is mteb's main one, a mean over splits and subsets."""

    name: str
    metric: str
    score: float
    result: TaskResult
    file: Path
    kept: bool  # whether mteb's file was there already, and the task was not run again


def run_tasks(
    model: str | Path,
    tasks: Sequence[str | AbsTask] = (),
    *,
    benchmark: str | None = None,
    out: str | Path,
    device: str | None = None,
    batch_size: int = 32,
    frames: Frames = "file",
    show_progress_bar: bool = True,
    **loading: Any,
) -> list[TaskRun]:
    """Run tasks of mteb one by one. Results are files as mteb writes them; those there already are not run again.

    Args:
        model: A vidembed checkpoint, as `VideoEncoder` takes it.
        tasks: Names of tasks, such as "MSRVTTT2V", or tasks.
        benchmark: Also all tasks of this benchmark of mteb, such as "MVEB(text, video, v1)".
        out: Folder; mteb writes ``results/MODEL/REVISION/TASK.json`` in it. A folder of a checkpoint is filed under
            ``local__NAME``, and its revision is its fingerprint.
        device: Torch device.
        batch_size: Inputs embedded at once.
        frames: As `load_encoder` takes; a MissingExtraError for "mteb" without torchcodec.
        show_progress_bar: Whether to show bars.
        **loading: As `VideoEncoder` takes.

    Raises:
        ValueError: A task is unknown, or takes what the model does not.
        VideoError: A video of a task could not be decoded.
        OSError: There is no such model, a task's data could not be loaded, or `out` cannot be written.
    """
    if frames == "mteb" and importlib.util.find_spec("torchcodec") is None:
        raise MissingExtraError('torchcodec, with which mteb reads videos, is not installed; pip install "mteb[video]"')
    chosen = _chosen(tasks, benchmark)
    cache = mteb.ResultCache(out)
    name, checkpoint = str(model), None
    if Path(model).is_dir():
        name, checkpoint = f"local/{Path(model).resolve().name}", str(model)
    wrapper = load_encoder(name, device=device, checkpoint=checkpoint, frames=frames, **loading)
    meta = wrapper.mteb_model_meta
    for task in chosen:  # all of them, before the first one is run; mteb itself only warns of parts that it leaves out
        if missing := sorted(set(task.metadata.modalities) - set(meta.modalities)):
            of, without = ", ".join(task.metadata.modalities), " and no ".join(missing)
            raise ValueError(f"tasks: {task.metadata.name} needs {of}, and the model does not accept {without}")
    runs = []
    for task in chosen:
        name = task.metadata.name
        saved = cache.load_task_result(name, meta)
        kept = saved is not None and not saved.get_missing_evaluations(task)
        if not kept:
            try:
                task.load_data()
            except (OSError, ImportError) as error:
                raise OSError(
                    f"{name}: its data, {task.metadata.dataset['path']}, could not be loaded: {error}. mteb downloads "
                    f"them from the Hugging Face Hub; run once with network access, and later runs need none."
                ) from error
        how: dict[str, Any] = {"show_progress_bar": show_progress_bar}
        kwargs: Any = {"batch_size": batch_size, **how}
        done = mteb.evaluate(wrapper, task, cache=cache, co2_tracker=False, encode_kwargs=kwargs, **how)
        task.unload_data()
        (result,) = done.task_results
        file = cache.get_task_result_path(name, meta)
        runs.append(TaskRun(name, task.metadata.main_score, float(result.get_score()), result, file, kept))
    return runs


def _chosen(tasks: Sequence[str | AbsTask], benchmark: str | None) -> list[AbsTask]:
    if isinstance(tasks, str):
        raise TypeError(f"tasks={tasks!r}: expected a list of tasks, such as [{tasks!r}]")
    argument = "tasks"
    try:
        chosen = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
        argument = "benchmark"
        chosen += mteb.get_benchmark(benchmark).tasks if benchmark is not None else []
    except KeyError as error:
        reason = str(error.args[0]).removeprefix("KeyError: ")
        raise ValueError(f"{argument}: {reason} `mteb available-{argument.rstrip('s')}s` lists them.") from error
    if not chosen:
        raise ValueError("tasks: got none; give names of mteb's tasks, such as MSRVTTT2V, or a benchmark")
    return list({task.metadata.name: task for task in chosen}.values())
