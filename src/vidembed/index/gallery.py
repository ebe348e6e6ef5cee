"""A contact sheet: hits as one HTML file that needs nothing else, with a picture from each."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from vidembed.index.hits import Hit, clock, time_range
from vidembed.index.table import VideoIndex, file_name_of, is_local, path_of
from vidembed.pages import render
from vidembed.video import Sampling, VideoError, VideoSegment, load_video

THUMBNAIL_PIXELS = 320 * 180
MAX_PICTURES = 500  # of a page; with some 15 KB each it stays below 10 MB (ours)
_SHADE = 0.55  # of a picture's mean colour, beside it where its shape is not that of the card (ours)
MATCH = ("P(match)", "How probable it is, by the reranker, that this segment shows what was asked for.")
SIMILARITY = (
    "cosine",
    "Cosine similarity of the query and this segment, up to 1. It is not a probability; models differ in their values.",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bar:
    """A score of a hit."""

    name: str
    meaning: str  # one sentence
    share: float  # how long it is, 0 to 1; what is outside is cut
    value: str

    @property
    def percent(self) -> int:
        """How long it is, 0 to 100."""
        return round(100 * min(1.0, max(0.0, self.share)))


@dataclass(frozen=True, slots=True)
class Picture:
    """The picture of a hit, or why there is none."""

    jpeg: str | None = None  # in base64
    tone: str | None = None  # a colour of CSS that goes beside it
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What the templates show of a hit."""

    picture: Picture
    link: str
    name: str
    time: str
    length: str | None  # of the whole video; None if it is not known
    place: tuple[float, float] | None  # start and length within the video, percent of it; None if it is not known
    facts: list[str]
    caption: str | None
    bars: list[Bar]


def contact_sheet(
    results: Sequence[tuple[str, Sequence[Hit]]],
    *,
    title: str = "Search results",
    durations: Mapping[str, float] | None = None,
) -> str:
    """Return a page with the hits of each query, best first, and the picture in the middle of each.

    Pictures are embedded, of the first `MAX_PICTURES` hits; all text is escaped, and a content security policy forbids
    scripts and everything from outside. A video that can no longer be read has the reason in place of its picture.
    Names of videos are links; of hits that were asked for with what is around them, to all of it.

    Args:
        results: Queries, each with its hits.
        title: Heading of the page.
        durations: Of videos by URI, seconds (`durations_of`), to show where a hit lies in its video. Of others that is
            not shown.
    """
    pictures = Pictures()
    shown = [(query, [card_of(hit, pictures, durations or {}) for hit in hits]) for query, hits in results]
    return render("sheet.html", title=title, meanings=[MATCH, SIMILARITY], results=shown)


def durations_of(index: VideoIndex, hits: Iterable[Hit]) -> dict[str, float]:
    """Return the durations of the videos of hits by URI, seconds."""
    return index.of_files((hit.uri for hit in hits), "duration")


class Pictures:
    """The pictures of one page, of which each is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, float], Picture] = {}
        self._count = 0

    def of(self, hit: Hit) -> Picture:
        """Return the picture in the middle of a hit; none of what is not a file of this machine, or one too many."""
        if not is_local(hit.uri):
            return Picture(missing="not a file of this machine")
        if self._count == MAX_PICTURES:
            return Picture(missing=f"a page has {MAX_PICTURES} pictures")
        key = hit.uri, (hit.start_s + hit.end_s) / 2
        if key not in self._known:
            self._known[key] = _picture(path_of(hit.uri), key[1])
        self._count += self._known[key].jpeg is not None
        return self._known[key]


def _picture(path: Path, seconds: float) -> Picture:
    try:
        jpeg = thumbnail(path, seconds)
    except VideoError as error:
        logger.warning("no picture: %s", error)
        return Picture(missing=f"no picture ({type(error).__name__})")
    with Image.open(io.BytesIO(jpeg)) as image:
        tone = image.resize((1, 1), Image.Resampling.BOX).tobytes()  # (3,)
    shaded = " ".join(str(round(_SHADE * value)) for value in tone)
    return Picture(base64.b64encode(jpeg).decode("ascii"), f"rgb({shaded})")


def card_of(hit: Hit, pictures: Pictures, durations: Mapping[str, float], bars: Sequence[Bar] | None = None) -> Card:
    """Return what is shown of a hit. `bars` are its scores; None for its match, if it has one, and its similarity."""
    start, end = hit.start_s, hit.end_s
    facts = []
    if hit.context_start_s is not None and hit.context_end_s is not None:
        start, end = hit.context_start_s, hit.context_end_s
        facts.append(f"in {time_range(start, end)}")
    if hit.segments is not None:
        facts.append(f"segments: {hit.segments}")
    if bars is None:
        bars = [Bar(*SIMILARITY, hit.score, f"{hit.score:.2f}")]
        if hit.probability is not None:
            bars = [Bar(*MATCH, hit.probability, f"{hit.probability:.0%}"), *bars]
    length, place = durations.get(hit.uri, 0.0), None
    if length > 0:
        before, share = (100 * seconds / length for seconds in (hit.start_s, hit.end_s - hit.start_s))
        place = round(min(100.0, before), 2), round(min(100.0, share), 2)
    return Card(
        picture=pictures.of(hit),
        link=f"{hit.uri}#t={start:g},{end:g}",
        name=file_name_of(hit.uri),
        time=time_range(hit.start_s, hit.end_s),
        length=clock(length) if length > 0 else None,
        place=place,
        facts=facts,
        caption=hit.caption,
        bars=list(bars),
    )


def thumbnail(path: Path, seconds: float, kind: Literal["JPEG", "PNG"] = "JPEG") -> bytes:
    """Return the frame of a video on show at a time, in seconds on the clock of a player, as a picture file.

    It has at most `THUMBNAIL_PIXELS`. Raises VideoError.
    """
    # A short stretch, so that decoding ends with the frame that is wanted.
    clip = load_video(VideoSegment(path, seconds, seconds + 0.01), Sampling(max_frames=1, max_pixels=THUMBNAIL_PIXELS))
    out = io.BytesIO()
    Image.fromarray(clip.frames[0]).save(out, kind, quality=80)  # (H, W, 3)
    return out.getvalue()
