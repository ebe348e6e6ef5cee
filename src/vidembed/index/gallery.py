"""A contact sheet: hits as one HTML file that needs nothing else, with a picture from each."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from vidembed.index.search import Hit
from vidembed.index.table import file_name_of, is_local, path_of
from vidembed.text import printable
from vidembed.video import Sampling, VideoError, VideoSegment, load_video

THUMBNAIL_PIXELS = 320 * 180
_TEMPLATE = Path(__file__).with_suffix(".html")

logger = logging.getLogger(__name__)


def time_range(start_s: float, end_s: float) -> str:
    """Return a stretch of time as people write it, such as `1:05.0-1:15.0`."""
    return f"{_clock(start_s)}-{_clock(end_s)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def context_range(hit: Hit) -> str:
    """Return the stretch around a hit as people write it, or nothing where the search was not asked for it."""
    if hit.context_start_s is None or hit.context_end_s is None:
        return ""
    return time_range(hit.context_start_s, hit.context_end_s)


def contact_sheet(results: Sequence[tuple[str, Sequence[Hit]]], *, title: str = "vidembed search") -> str:
    """Return a page with the hits of each query, best first, and the picture in the middle of each.

    Pictures are embedded, all text is escaped, and a content security policy forbids scripts and everything from
    outside. A video that can no longer be read has the reason in place of its picture. Names of videos are links; of
    hits that were asked for with what is around them, to all of it.

    Args:
        results: Queries, each with its hits.
        title: Heading of the page.
    """
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only pages need it

    environment = Environment(autoescape=True, keep_trailing_newline=True, undefined=StrictUndefined)
    environment.filters["printable"] = printable
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return page.render(title=title, results=[(query, [_figure(hit) for hit in hits]) for query, hits in results])


def _figure(hit: Hit) -> dict[str, str | int | None]:
    """Return what the template shows of a hit."""
    start, end = hit.start_s, hit.end_s
    if hit.context_start_s is not None and hit.context_end_s is not None:
        start, end = hit.context_start_s, hit.context_end_s
    jpeg, missing = None, "not a file on this machine"
    if is_local(hit.uri):
        try:
            jpeg = base64.b64encode(thumbnail(path_of(hit.uri), (hit.start_s + hit.end_s) / 2)).decode("ascii")
        except VideoError as error:
            logger.warning("no picture: %s", error)
            missing = type(error).__name__
    return {
        "jpeg": jpeg,
        "missing": missing,
        "score": f"{hit.score:.3f}" if hit.probability is None else f"{hit.probability:.1%} ({hit.score:.3f})",
        "link": f"{hit.uri}#t={start:g},{end:g}",
        "name": file_name_of(hit.uri),
        "time": time_range(hit.start_s, hit.end_s),
        "around": context_range(hit),
        "segments": hit.segments,
        "caption": hit.caption,
    }


def thumbnail(path: Path, seconds: float, kind: Literal["JPEG", "PNG"] = "JPEG") -> bytes:
    """Return the frame of a video on show at a time, in seconds on the clock of a player, as a picture file.

    It has at most `THUMBNAIL_PIXELS`. Raises VideoError.
    """
    # A short stretch, so that decoding ends with the frame that is wanted.
    clip = load_video(VideoSegment(path, seconds, seconds + 0.01), Sampling(max_frames=1, max_pixels=THUMBNAIL_PIXELS))
    out = io.BytesIO()
    Image.fromarray(clip.frames[0]).save(out, kind, quality=80)  # (H, W, 3)
    return out.getvalue()
