"""A contact sheet: hits as one HTML file that needs nothing else, with a picture from each."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vidembed.index.files import file_name_of, is_local, path_of
from vidembed.text import printable
from vidembed.video import Sampling, VideoError, VideoSegment, load_video

if TYPE_CHECKING:
    from vidembed.index.search import Hit


logger = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 320 * 180
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # no scripts, and nothing is fetched
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem }
.hits { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 220px }
img, .none { width: 220px; height: 150px; object-fit: contain; background: #eee }
.none { display: flex; align-items: center; justify-content: center; color: #777; font-size: .8rem }
figcaption { font-size: .8rem; overflow-wrap: anywhere }
"""


def time_range(start_s: float, end_s: float) -> str:
    """Return a stretch of time as people write it, such as `1:05.0-1:15.0`."""
    return f"{_clock(start_s)}-{_clock(end_s)}"


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
    sections = "".join(
        f"<h2>{escape(printable(query))}</h2>\n<div class='hits'>\n"
        + "".join(_figure(rank, hit) for rank, hit in enumerate(hits, start=1))
        + "</div>\n"
        for query, hits in results
    )
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{escape(printable(title))}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(printable(title))}</h1>\n{sections}</body>\n</html>\n"
    )


def _figure(rank: int, hit: Hit) -> str:
    start, end = hit.start_s, hit.end_s
    around = context_range(hit)
    if hit.context_start_s is not None and hit.context_end_s is not None:
        start, end = hit.context_start_s, hit.context_end_s
    link = escape(f"{hit.uri}#t={start:g},{end:g}")
    return (
        f"<figure>{_picture(hit)}<figcaption>{rank}. {_judged(hit)} "
        f'<a href="{link}">{escape(printable(file_name_of(hit.uri)))}</a><br>{time_range(hit.start_s, hit.end_s)}'
        + (f" (in {around})" if around else "")
        + (f"<br>segments: {hit.segments}" if hit.segments is not None else "")
        + "</figcaption></figure>\n"
    )


def _judged(hit: Hit) -> str:
    return f"{hit.score:.3f}" if hit.probability is None else f"{hit.probability:.1%} ({hit.score:.3f})"


def _picture(hit: Hit) -> str:
    if not is_local(hit.uri):
        return "<div class='none'>not a file of this machine</div>"
    try:
        picture = thumbnail(path_of(hit.uri), (hit.start_s + hit.end_s) / 2)
    except VideoError as error:
        logger.warning("no picture: %s", error)
        return f"<div class='none'>{escape(type(error).__name__)}</div>"
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode("ascii")}">'


def thumbnail(path: Path, seconds: float) -> bytes:
    """Return the frame on show at a time, as JPEG.

    Args:
        path: The video.
        seconds: Time on the clock of a player.

    Raises:
        VideoError: It cannot be read.
    """
    # A short stretch, so that decoding ends with the frame that is wanted.
    clip = load_video(VideoSegment(path, seconds, seconds + 0.01), Sampling(max_frames=1, max_pixels=THUMBNAIL_PIXELS))
    out = io.BytesIO()
    Image.fromarray(clip.frames[0]).save(out, "JPEG", quality=80)  # (H, W, 3)
    return out.getvalue()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
