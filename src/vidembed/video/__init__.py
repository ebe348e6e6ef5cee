"""A video file becomes frames: chosen by presentation time, upright, of one size, or a clear error."""

from vidembed.errors import (
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
from vidembed.video.clip import Clip
from vidembed.video.load import VideoInfo, load_segments, load_video, probe
from vidembed.video.pool import DecodePool, Reading
from vidembed.video.sampling import Sampling
from vidembed.video.segments import Cut, Layout, Scenes, Windows, cut_from_dict, cut_to_dict
from vidembed.video.source import VIDEO_SUFFIXES, VideoFrames, VideoSegment, VideoSource, item_name

__all__ = ["VIDEO_SUFFIXES", "BackendUnavailable", "Clip", "CorruptVideo", "Cut", "DecodePool", "DecodeTimeout"]
__all__ += ["DecoderCrashed", "EmptyFile", "EncryptedVideo", "InvalidVideoInput", "Layout", "NoVideoStream"]
__all__ += ["NotAFile", "NotAVideo", "Reading", "Sampling", "Scenes", "UnsupportedCodec", "VideoError", "VideoFrames"]
__all__ += ["VideoInfo", "VideoNotFound", "VideoPermission", "VideoSegment", "VideoSource", "VideoTooLarge"]
__all__ += ["VideoTruncated", "Windows", "cut_from_dict", "cut_to_dict", "item_name", "load_segments", "load_video"]
__all__ += ["probe"]
