"""A video file becomes frames: chosen by presentation time, upright, of one size, or a clear error."""

from vidembed.video.clip import Clip
from vidembed.video.errors import (
    BackendUnavailable,
    CorruptVideo,
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    NotAFile,
    NotAVideo,
    NoVideoStream,
    UnsupportedCodec,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
    VideoTruncated,
)
from vidembed.video.load import load_segments, load_video
from vidembed.video.probe import VideoInfo, probe
from vidembed.video.sampling import Sampling
from vidembed.video.source import VIDEO_SUFFIXES, VideoFrames, VideoSegment, VideoSource, item_name

__all__ = [
    "VIDEO_SUFFIXES",
    "BackendUnavailable",
    "Clip",
    "CorruptVideo",
    "DecodeTimeout",
    "EmptyFile",
    "InvalidVideoInput",
    "NoVideoStream",
    "NotAFile",
    "NotAVideo",
    "Sampling",
    "UnsupportedCodec",
    "VideoError",
    "VideoFrames",
    "VideoInfo",
    "VideoNotFound",
    "VideoPermission",
    "VideoSegment",
    "VideoSource",
    "VideoTooLarge",
    "VideoTruncated",
    "item_name",
    "load_segments",
    "load_video",
    "probe",
]
