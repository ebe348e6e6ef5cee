"""How long a video is."""

from __future__ import annotations

from vidembed.video.download import UrlAccess
from vidembed.video.load import load_video
from vidembed.video.probe import probe
from vidembed.video.sampling import Sampling
from vidembed.video.source import VideoSource


def video_duration(source: VideoSource, *, allow_url: UrlAccess = False) -> float:
    """Return the length of a video in seconds: as declared, or measured by decoding it where it declares none.

    Args:
        source: What to measure (see :data:`vidembed.video.VideoSource`); of a segment, the whole video.
        allow_url: Whether http and https addresses may be fetched. Default False.

    Raises:
        VideoError: It cannot be read.
    """
    declared = probe(source, allow_url=allow_url).duration
    return declared or load_video(source, Sampling(max_frames=1, max_pixels=64 * 64), allow_url=allow_url).duration
