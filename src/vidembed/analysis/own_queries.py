"""Queries for videos without labels: what the model itself says of some of them, without what is marked.

A dense caption and a short sentence of each; crops of the captions where a model cannot shorten what it says.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from vidembed.captions import CaptionedVideo, CaptionRecord, read_captions, write_captions
from vidembed.errors import AnnotationError, CroppedTexts, TooFewCaptionsError, warn
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.clip import content_fingerprint

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

CLIPS: Final = 200  # videos that are described to choose a layer: half of them choose (ours)
LEAST: Final = 20  # usable videos below which nothing is chosen (ours: one of ten that choose is 10 points of Recall@1)
CROP: Final = (0.4, 0.6)  # share of a caption's words that a crop holds (ours)
Videos: TypeAlias = str | Path | Sequence[str | Path]  # files and folders


@dataclass(frozen=True)
class OwnText:
    """A video with what its model says of it."""

    video: Path
    content: str  # SHA-256 of its bytes, hex
    dense: str
    short: str  # a short sentence, or a crop of `dense`


@dataclass(frozen=True)
class OwnTexts:
    """Texts about videos, of one kind of short text throughout."""

    texts: tuple[OwnText, ...]
    kind: str  # of the second text: "short", or "crop" where the model cannot shorten
    described: int  # videos that the model was asked about

    def queries(self) -> dict[str, list[CaptionedVideo]]:
        """The texts by kind, as `vidembed.analyze_layers` takes them."""
        return {
            "dense": [CaptionedVideo(one.video, one.dense) for one in self.texts],
            self.kind: [CaptionedVideo(one.video, one.short) for one in self.texts],
        }

    def summary(self) -> str:
        """One sentence: how many were asked about, and what is used."""
        second = "short texts" if self.kind == "short" else "crops of the captions in place of short texts"
        return (
            f"Of {self.described:,} videos that the model described, {len(self.texts):,} are used, with detailed "
            f"captions and {second}; the rest are marked as doubtful."
        )


def draw_videos(videos: Videos, n: int, *, seed: int = 0) -> list[Path]:
    """Draw `n` videos by a seed from files and from folders (to the bottom, by suffix), or take all of fewer; sorted.

    Raises:
        ValueError: `n` is under 1, or there is no video.
    """
    if n < 1:
        raise ValueError(f"clips={n!r}: expected at least 1.")
    given = [videos] if isinstance(videos, (str, Path)) else list(videos)
    found: dict[str, Path] = {}
    for path in (Path(each).expanduser() for each in given):
        for file in sorted(_inside(path)) if path.is_dir() else [path]:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        raise ValueError(f"videos={[str(path) for path in given]}: no video found; looked for {suffixes}.")
    files = sorted(found.values())
    return files if len(files) <= n else sorted(random.Random(seed).sample(files, n))  # noqa: S311 - a sample


def _inside(folder: Path) -> Iterable[Path]:
    """The videos in a folder, without those whose names, or whose folders' names, begin with a dot."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(top, name) for name in names if name[0] != "." and Path(name).suffix.lower() in VIDEO_SUFFIXES)


def caption_videos(
    model: VideoEncoder,
    videos: Sequence[Path],
    *,
    file: str | Path | None = None,
    overwrite: bool = False,
    show_progress_bar: bool = True,
) -> list[CaptionRecord]:
    """Have a model describe videos (`vidembed.captions.write_captions`); a record of each, in order.

    Args:
        model: Made of an MLLM.
        videos: Files.
        file: File of captions to write or to go on with. Default: none is kept.
        overwrite: Remove records of another model or of other settings from it, which are refused otherwise.
        show_progress_bar: Whether to show a bar.

    Raises:
        CaptionsMismatchError: The file has records of another model or of other settings.
        AnnotationError: The file has records of segments, or a damaged line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "captions.jsonl" if file is None else Path(file).expanduser()
        write_captions(model, videos, out, overwrite=overwrite, progress=show_progress_bar)
        every = _whole_videos(out)
    by_name = {os.path.realpath(record.video): record for record in every}
    by_content = {record.content: record for record in every if record.content}
    found = []
    for video in videos:
        record = by_name.get(os.path.realpath(video))
        # copies of a video have one record, under the name of one of them
        record = record or by_content.get(content_fingerprint(video))
        found += [] if record is None else [record]
    return found


def read_records(file: str | Path) -> list[CaptionRecord]:
    """Read a file of captions; paths are made absolute, from the folder of the file.

    Raises:
        AnnotationError: It cannot be read; it holds segments of videos; or a video is missing.
    """
    records = _whole_videos(Path(file).expanduser())
    for record in records:
        if not Path(record.video).is_file():
            raise AnnotationError(f"{file}: {record.video} is missing; relative paths are from the file's folder")
    return records


def _whole_videos(file: Path) -> list[CaptionRecord]:
    records = []
    for record in read_captions(file):
        if record.start_s is not None:
            raise AnnotationError(
                f"{file}: {record.video} has times; expected one record per video, of the whole video"
            )
        records.append(replace(record, video=str(file.absolute().parent / record.video)))
    return records


def own_texts(records: Iterable[CaptionRecord], *, least: int = LEAST, seed: int = 0) -> OwnTexts:
    """Take what is usable: dense and short texts, or crops where fewer than half of the short ones are usable.

    Of videos of equal bytes the first is taken.

    Args:
        records: Of whole videos, with the kinds "dense" and "short".
        least: Fewest videos to do with.
        seed: Of the crops.

    Warns:
        CroppedTexts: Crops stand in for short texts.

    Raises:
        TooFewCaptionsError: Fewer than `least` videos have usable texts.
    """
    every = list(records)
    dense = [record for record in every if record.usable("dense")]
    both = [record for record in dense if record.usable("short")]
    cropped = 2 * len(both) < len(dense)
    kept: dict[str, CaptionRecord] = {}
    for record in dense if cropped else both:
        kept.setdefault(record.content or content_fingerprint(record.video), record)
    if len(kept) < least:
        raise TooFewCaptionsError(
            f"{len(kept)} of {len(every)} described videos have usable texts, and at least {least} are needed"
            f"{_most_common(every)}. Give more videos, a model that describes videos better, or your own captions "
            f"(pairs=)."
        )
    if cropped:
        warn(
            CroppedTexts(
                f"{len(both)} of {len(dense)} short texts of this model can be used, because it cannot shorten its "
                f"captions. Crops of its captions are used instead; they resemble short queries less."
            )
        )
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    texts = [
        OwnText(
            Path(record.video),
            content,
            record.texts["dense"],
            crop(record.texts["dense"], rng) if cropped else record.texts["short"],
        )
        for content, record in kept.items()
    ]
    return OwnTexts(tuple(texts), "crop" if cropped else "short", len(every))


def _most_common(records: Iterable[CaptionRecord]) -> str:
    """The most frequent reasons why texts are not usable, as a part of a sentence."""
    reasons: Counter[str] = Counter()
    for record in records:
        reasons.update(f"{kind}: {problem}" for kind, problem in record.problems.items())
        reasons.update([record.error] if record.error is not None else [])
    return "".join(f"; {count} times {reason}" for reason, count in reasons.most_common(2))


def crop(text: str, rng: random.Random) -> str:
    """A run of 40 to 60 % of a text's words; of its characters, where it has no more than three words."""
    words = text.split()
    parts, between = (words, " ") if len(words) > 3 else (list(text), "")
    size = max(1, round(len(parts) * rng.uniform(*CROP)))
    start = rng.randrange(len(parts) - size + 1)
    return between.join(parts[start : start + size])
