"""A single picture as a clip of one frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidembed.errors import CorruptVideo, NotAVideo, VideoTooLarge
from vidembed.video.clip import Clip, Sampling, VideoFrames, sample_frames
from vidembed.video.picture import MAX_AREA, MAX_SIDE, check_size

# What Pillow decodes by itself; another one, such as EPS, would run a program. GIF is a video here.
FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def read_still(path: str | os.PathLike[str], sampling: Sampling, *, item: str) -> Clip:
    """Return a picture as a clip of one frame, upright, RGB, that lasts a second.

    Raises:
        NotAVideo: It is no picture of `FORMATS`, or several in one file.
        VideoTooLarge: It has more pixels than a frame may have.
        CorruptVideo: It cannot be decoded.
    """
    try:
        with Image.open(Path(path), formats=FORMATS) as opened:
            check_size(*opened.size, item)
            if (count := getattr(opened, "n_frames", 1)) > 1:
                raise NotAVideo(item, f"a {opened.format} file with {count} pictures; give a file with one picture")
            upright = (ImageOps.exif_transpose(opened) or opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoTooLarge(
            item, f"the picture has more than {MAX_SIDE} pixels on a side or {MAX_AREA} pixels; scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise NotAVideo(item, f"neither a video nor a picture of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError) as error:  # Pillow, at damage
        raise CorruptVideo(item, f"the picture cannot be decoded ({error}); get an intact copy") from error
    frames = VideoFrames(np.asarray(upright)[None], fps=1.0)  # (1, H, W, 3)
    return sample_frames(frames, sampling, item=item, start=0.0, end=None)
