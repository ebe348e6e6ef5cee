"""Every error that a user can see."""

from __future__ import annotations

import sys
import warnings
from contextvars import ContextVar

# ruff: noqa: N818 - the names say what was found, as users read them in reports

_INNER = {"vidembed", "sentence_transformers", "torch"}
"""Packages through which a call of ours goes: the host's `encode`, decorated by torch, calls our methods."""
kept_warnings: ContextVar[list[Warning] | None] = ContextVar("kept_warnings", default=None)
"""Where `warn` puts warnings in a thread of a pool, which has no caller, for the thread that takes the result."""


class VideoError(Exception):
    """A video could not be read. The base class of all errors of `vidembed.video`.

    Attributes:
        item: How the video is named to the user (see `vidembed.video.item_name`).
        reason: What was found, what is allowed and what to do, in one or two sentences.
    """

    def __init__(self, item: str, reason: str) -> None:
        """Keep both in ``args``, which is what makes the error pickle."""
        super().__init__(item, reason)
        self.item = item
        self.reason = reason

    def __str__(self) -> str:
        """Return the item and the reason."""
        return f"{self.item}: {self.reason}"


class VideoNotFound(VideoError):
    """There is no such file, or the address does not answer with one."""


class NotAFile(VideoError):
    """The path is a directory, FIFO, socket or device."""


class VideoPermission(VideoError):
    """The file may not be read by this user."""


class EmptyFile(VideoError):
    """The file has no bytes."""


class NotAVideo(VideoError):
    """The content is no video container: text, an image, a playlist, a raw stream without times, noise."""


class NoVideoStream(VideoError):
    """The container holds no moving pictures: audio only, or audio with cover art."""


class UnsupportedCodec(VideoError):
    """There is a video stream, and no decoder for it."""


class EncryptedVideo(VideoError):
    """The video is encrypted (DRM), and no key is taken."""


class VideoTooLarge(VideoError):
    """The pictures, or the bytes of a download, are above a limit of this package."""


class CorruptVideo(VideoError):
    """The file begins as a video, and too much of it cannot be decoded."""


class ChangedWhileRead(VideoError):
    """The file was written to while it was being read."""


class DecodeTimeout(VideoError):
    """Reading took longer than ``timeout_s``."""


class DecoderCrashed(VideoError):
    """The process that decoded the file ended on it, or failed in a way that says nothing of the file."""


class BackendUnavailable(VideoError):
    """The decoding backend is not installed, or cannot read this kind of file."""


class InvalidVideoInput(VideoError):
    """The source argument itself is malformed: its type, times, shape, dtype, frame rate or address."""


class VideoTruncated(UserWarning):
    """A video ends more than one second before the duration it declares: what is missing was not embedded."""


class LayerChosen(UserWarning):
    """No layer was given for a video MLLM: the default was chosen."""


class LongQueries(UserWarning):
    """All queries that a layer is chosen on are long: it can do badly on short ones."""


class CroppedTexts(UserWarning):
    """A model cannot shorten what it says of videos: crops of its captions stand in for short texts."""


class NotImproved(UserWarning):
    """An adapted model retrieves less well on the videos held out than the model without the adapter."""


def warn(warning: Warning) -> None:
    """Warn at the line outside of `_INNER` that led to the call; or keep the warning where `kept_warnings` is set."""
    if (kept := kept_warnings.get()) is not None:
        kept.append(warning)
        return
    frame, level = sys._getframe(), 1  # noqa: SLF001 - public by its documentation; `skip_file_prefixes` is of 3.12
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _INNER:
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


class BackboneError(ValueError):
    """A model cannot be used as a video backbone; the message says what to change."""


class UnsupportedBackboneError(BackboneError):
    """transformers has no video language model of this type, or its parts are not laid out as expected."""


class LayerError(BackboneError):
    """The layer asked for is not a decoder block of the model."""


class TemplateError(BackboneError):
    """The chat template of the model cannot carry the prompts of the method."""


class ReadoutMismatchError(BackboneError):
    """The cut model does not reproduce the hidden state that it stands for; nothing is saved."""


class IndexMismatchError(ValueError):
    """The index was made by another model, with other settings or by a later version."""


class ServerRefusedError(ValueError):
    """A server cannot be asked so, whatever the query: its address, the key or an option is not what it takes."""


class IndexDamagedError(RuntimeError):
    """The index is there and cannot be read."""


class IndexBusyError(RuntimeError):
    """Another run is writing to the index."""


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed."""


class IndexingStoppedError(RuntimeError):
    """A file could not be indexed and the run was told to end there (`on_error="raise"`). What was committed stays."""


class IndexWriteError(RuntimeError):
    """The index could not be written: the disk is full, read-only or out of reach. What was committed stays."""


class ClusterError(RuntimeError):
    """The Ray cluster cannot be reached or has failed. What was committed to the index stays."""


class InputError(ValueError):
    """An input failed that is not a video, or whose vector is not finite; the message names it."""


class AnnotationError(ValueError):
    """A file of captioned videos or of pairs of texts cannot be used; the message names the file and the line."""


class TooFewCaptionsError(ValueError):
    """Too few of the texts that a model wrote about videos can be used; the message says how many, and why not."""


class CaptionsMismatchError(ValueError):
    """A file of captions holds records of another model, other prompts or other settings, or of none."""


class CaptionsBusyError(RuntimeError):
    """Another run is writing to the file of captions."""


class VideoUriError(ValueError):
    """A video URI that cannot be used: its scheme, host, time range or path is not allowed. Or a bare path instead."""


class NotAVideoError(ValueError):
    """A document, node or text that should name a video does not; the message names it."""


class NoCaptionError(ValueError):
    """A video has no caption, and its vector is to hold one; the message names it."""
