"""Why a file is refused in which FFmpeg found no container that is read: told by its first bytes."""

from __future__ import annotations

import re

from vidembed.errors import CorruptVideo, NotAVideo, NoVideoStream, VideoError

# First words of AVIF and HEIF files (https://mp4ra.org/registered-types/brands), which FFmpeg opens as it does MP4.
PICTURE_BRANDS = frozenset([b"avif", b"heic", b"heix", b"mif1"])
# First bytes of files.
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*")
_SOUNDS = (b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1")
_LISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")
_VIDEOS = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"GIF8", b"\x30\x26\xb2\x75", b"OggS", b"\x00\x00\x01\xba")
_BOXES = frozenset([b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"])  # after four bytes
PICTURE = "a single picture; give it as an image instead"


def refusal(head: bytes, item: str, error: BaseException) -> VideoError:
    """Return the error that fits the first bytes of a file in which no allowed container was recognized."""
    riff = head[8:16] if head[:4] == b"RIFF" else b""
    if riff == b"WEBPVP8X" and head[20:21] and head[20] & 2:
        reason = "an animated WebP picture, which FFmpeg does not decode; convert it to MP4, GIF or APNG first"
    elif riff[:4] == b"WEBP" or head.startswith(_PICTURES):
        reason = PICTURE
    elif riff[:4] == b"WAVE" or head.startswith(_SOUNDS):
        return NoVideoStream(item, "an audio file, with no video stream")
    elif head.lstrip().startswith(_LISTS):
        reason = "a playlist, and playlists are not read; give the videos themselves"
    elif _is_raw_stream(head):
        remedy = "Put it into a container (ffmpeg -framerate RATE -i FILE -c copy out.mp4), or decode it and give"
        found = "a raw video stream without a container: it has no times, and the frame rate is never guessed"
        reason = f"{found}. {remedy} VideoFrames(array, fps)"
    elif riff[:4] == b"AVI " or head[4:8] in _BOXES or head.startswith(_VIDEOS):
        return CorruptVideo(
            item,
            "it starts like a video but cannot be opened; it is cut short, or its index is missing. Get an intact copy",
        )
    else:
        reason = f"not a video: no known container format was found in it ({error})"
    return NotAVideo(item, reason)


def _is_raw_stream(head: bytes) -> bool:
    """Whether a file starts like an H.264, HEVC, MPEG-1/2/4 or AV1 elementary stream."""
    match = re.match(rb"\x00\x00\x00?\x01(.)", head, re.DOTALL)
    if match is None:
        return head[:3] == b"\x12\x00\x0a"  # AV1: temporal delimiter, then a sequence header
    code = match[1][0]
    is_h264 = code & 0x1F in (6, 7, 9) and code < 0x80
    return is_h264 or code in {0x40, 0x42, 0x44, 0x46, 0x4E} or code in {0xB0, 0xB3, 0xB5}  # HEVC; MPEG-4, 2, 1
