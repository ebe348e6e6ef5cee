"""A video file becomes frames: chosen by presentation time, upright, of one size, or a clear error."""

from vidembed.video.clip import Clip
from vidembed.video.cutting import Cut, cut_from_dict, cut_to_dict
from vidembed.video.errors import (
    BackendUnavailable,
    CorruptVideo,
    DecoderCrashed,
    DecodeTimeout,
    EmptyFile,
    EncryptedVideo,
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
from vidembed.video.pool import DecodePool, Layout, Reading
from vidembed.video.probe import VideoInfo, probe
from vidembed.video.sampling import Sampling
from vidembed.video.scenes import Scenes
from vidembed.video.source import VIDEO_SUFFIXES, VideoFrames, VideoSegment, VideoSource, item_name
from vidembed.video.windows import Windows

__all__ = [
    "VIDEO_SUFFIXES",
    "BackendUnavailable",
    "Clip",
    "CorruptVideo",
    "Cut",
    "DecodePool",
    "DecodeTimeout",
    "DecoderCrashed",
    "EmptyFile",
    "EncryptedVideo",
    "InvalidVideoInput",
    "Layout",
    "NoVideoStream",
    "NotAFile",
    "NotAVideo",
    "Reading",
    "Sampling",
    "Scenes",
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
    "Windows",
    "cut_from_dict",
    "cut_to_dict",
    "item_name",
    "load_segments",
    "load_video",
    "probe",
]
