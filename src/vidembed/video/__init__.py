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
from vidembed.video.clip import (
    Clip,
    DecodeLimits,
    Sampling,
    VideoFrames,
    VideoSegment,
    VideoSource,
    item_name,
)
from vidembed.video.container import VIDEO_SUFFIXES
from vidembed.video.info import VideoInfo, probe
from vidembed.video.load import load_segments, load_video
from vidembed.video.pool import DecodePool, Reading
from vidembed.video.segments import Cut, Layout, Scenes, Windows, cut_from_dict, cut_to_dict

__all__ = ["VIDEO_SUFFIXES", "BackendUnavailable", "Clip", "CorruptVideo", "Cut", "DecodeLimits", "DecodePool"]
__all__ += ["DecodeTimeout", "DecoderCrashed", "EmptyFile", "EncryptedVideo", "InvalidVideoInput", "Layout"]
__all__ += ["NoVideoStream", "NotAFile", "NotAVideo", "Reading", "Sampling", "Scenes", "UnsupportedCodec", "VideoError"]
__all__ += ["VideoFrames", "VideoInfo", "VideoNotFound", "VideoPermission", "VideoSegment", "VideoSource"]
__all__ += ["VideoTooLarge", "VideoTruncated", "Windows", "cut_from_dict", "cut_to_dict", "item_name", "load_segments"]
__all__ += ["load_video", "probe"]
