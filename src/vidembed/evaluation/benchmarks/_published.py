"""From captions by id to a `Benchmark`: what is the same for every published protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidembed.annotations import AnnotationError
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import annotation_file, read_ids, some
from vidembed.evaluation.benchmarks._videos import FileNames, by_stem, locate

LISTS = ("test_list.txt",)
"""What a list of ids is called in a folder, where the benchmark is not published with one."""


@dataclass(frozen=True)
class Published:
    """A benchmark as it is published.

    Attributes:
        name: As `Benchmark`.
        title: As `Benchmark`.
        split: As `Benchmark`.
        protocol: As `Benchmark`.
        source: As `Benchmark`.
        videos: How many it has.
        texts: How many it has.
        files: Names that its annotation file is published under, for the look into a folder.
        lists: Names that the list of its ids is published under; none where the annotation file is the split.
        paragraph: Whether the texts of a video are joined to one.
        hint: What to do where the counts are others, a sentence.
    """

    name: str
    title: str
    split: str
    protocol: str
    source: str
    videos: int
    texts: int
    files: tuple[str, ...]
    lists: tuple[str, ...] = ()
    paragraph: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Request:
    """What `read_benchmark` was given."""

    annotations: Path
    videos: Path
    split: Path | None = None
    allow_missing: bool = False
    check_counts: bool = True

    def file(self, published: Published) -> Path:
        """Return the annotation file; errors as `annotation_file`."""
        return annotation_file(self.annotations, published.files, f"the captions of {published.title}")

    def ids(self, published: Published) -> list[str] | None:
        """Return the ids of the split, or None where all videos of the annotation file are meant.

        A list that lies beside the annotation file is taken only where a folder was given: who names one file means it.
        """
        what = f"the list of the test ids of {published.title}"
        if self.split is not None:
            return read_ids(annotation_file(self.split, published.lists or LISTS, what))
        if published.lists and self.annotations.is_dir():
            return read_ids(annotation_file(self.annotations, published.lists, what))
        return None


def build(
    published: Published,
    request: Request,
    file: Path,
    captions: Mapping[str, Sequence[str]],
    *,
    names: Callable[[str], FileNames] = by_stem,
) -> Benchmark:
    """Make the benchmark: restrict to the split, check the counts, find the files.

    Args:
        published: What is expected.
        request: What was asked for.
        file: Where the captions come from, for messages.
        captions: The captions of each id; "" is a blank one, which is left out with a note.
        names: How the file of an id may be called.

    Raises:
        AnnotationError: An id of the split has no captions, the counts are not the published ones, or files are
            missing.
    """
    kept, blank = _chosen(published, request, file, captions)
    notes = [f"Blank captions left out: {blank}."] if blank else []
    notes += _check_counts(published, request, file, kept, blank)
    located = locate(request.videos, list(kept), names)
    missing = tuple(name for name in kept if name not in located)
    notes += _check_missing(request, kept, missing)
    present = [name for name in kept if name in located]
    texts = [(text, place) for place, name in enumerate(present) for text in kept[name]]
    notes += _shared(texts)
    return Benchmark(
        name=published.name,
        title=published.title,
        split=published.split,
        protocol=published.protocol,
        source=published.source,
        video_ids=tuple(present),
        videos=tuple(located[name] for name in present),
        texts=tuple(text for text, _ in texts),
        owners=tuple((place,) for _, place in texts),
        missing=missing,
        notes=tuple(notes),
    )


def _chosen(
    published: Published, request: Request, file: Path, captions: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], int]:
    """The texts of each video of the split, and how many captions were blank."""
    ids = request.ids(published)
    if ids is None:
        ids = list(captions)
    if without := [name for name in ids if name not in captions]:
        raise AnnotationError(
            f"{file}: no captions for {len(without)} of {len(ids)} videos of the split: {some(without)}"
        )
    kept = {name: [text for text in captions[name] if text] for name in ids}
    if bare := [name for name, texts in kept.items() if not texts]:
        raise AnnotationError(f"{file}: only blank captions for {len(bare)} videos: {some(bare)}")
    blank = sum(len(captions[name]) - len(texts) for name, texts in kept.items())
    if published.paragraph:
        kept = {name: [" ".join(texts)] for name, texts in kept.items()}
    return kept, blank


def _check_counts(
    published: Published, request: Request, file: Path, kept: Mapping[str, Sequence[str]], blank: int
) -> list[str]:
    videos, texts = len(kept), sum(map(len, kept.values()))
    if (videos, texts) == (published.videos, published.texts):
        return []
    if request.check_counts:
        raise AnnotationError(
            f"{file}: got {videos} videos and {texts} texts, expected {published.videos} and {published.texts} for "
            f"{published.title} ({published.split})"
            + (f", after {blank} blank captions were left out" if blank else "")
            + (f". {published.hint}" if published.hint else ".")
            + " For a part of the data on purpose, give check_counts=False; the result then says so."
        )
    note = (
        f"The annotations have {videos} videos and {texts} texts, where the published split has {published.videos} and "
        f"{published.texts}: figures cannot be compared with published ones."
    )
    return [note]


def _check_missing(request: Request, kept: Mapping[str, Sequence[str]], missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    found = f"{len(missing)} of {len(kept)} videos have no file in {request.videos}: {some(missing)}"
    if len(missing) == len(kept):
        raise AnnotationError(f"videos: {found}. Files are found by their name, which is the id and a video's suffix.")
    if not request.allow_missing:
        raise AnnotationError(
            f"videos: {found}. Get them, or give allow_missing=True, which leaves them out with their texts; figures "
            "cannot be compared with published ones then."
        )
    texts = sum(len(kept[name]) for name in missing)
    note = (
        f"{len(missing)} of {len(kept)} videos have no file and are left out with their {texts} texts: figures cannot "
        "be compared with published ones."
    )
    return [note]


def _shared(texts: Sequence[tuple[str, int]]) -> list[str]:
    """A note where one text is said of several videos."""
    places: defaultdict[str, set[int]] = defaultdict(set)
    for text, place in texts:
        places[text].add(place)
    shared = sum(len(places[text]) > 1 for text, _ in texts)
    if not shared:
        return []
    return [
        f"{shared} of {len(texts)} texts are said of several videos; as published, each is true of its own one only."
    ]
