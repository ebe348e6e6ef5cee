"""Seats a checkpoint at MTEB: its metadata, mteb's wrappers around it, and runs of mteb's tasks.

mteb hands a model the frames that it sampled, without their times. `VideoFileEncoder` reads the videos of a task itself
instead, as everywhere in vidembed, so that a task measures the vectors that a search has.
"""

from __future__ import annotations

from vidembed.index.errors import MissingExtraError

try:
    import mteb as _mteb  # noqa: F401 - said here and not halfway through the imports below
except ModuleNotFoundError as error:
    raise MissingExtraError(f'{error.name} is not installed; pip install "vidembed[mteb]"') from error

from vidembed.evaluation.mteb.encoder import VideoFileEncoder, load_encoder, model_meta
from vidembed.evaluation.mteb.run import TaskDataError, TaskRun, run_tasks

__all__ = ["TaskDataError", "TaskRun", "VideoFileEncoder", "load_encoder", "model_meta", "run_tasks"]
