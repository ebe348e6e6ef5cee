"""Readers of retrieval benchmarks: the published annotation files, and the videos that they name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vidembed.captions import shortened
from vidembed.errors import AnnotationError
from vidembed.evaluation.benchmark import Benchmark, FileNames, by_stem, locate, read_custom
from vidembed.evaluation.dataset_files import (
    annotation_file,
    caption,
    captions,
    entries,
    items,
    read_csv,
    read_ids,
    read_json,
    read_lines,
    some,
    video_id,
)

__all__ = ["BENCHMARKS", "read_benchmark"]


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


ACTIVITYNET = Published(
    name="activitynet",
    title="ActivityNet Captions",
    split="val_1",
    protocol=(
        "Paragraph retrieval: all sentences about a video, joined in the order of the file, are one text, and only its "
        "own video is right."
    ),
    source="https://cs.stanford.edu/people/ranjaykrishna/densevid/",
    videos=4917,
    texts=4917,
    files=("val_1.json",),
    paragraph=True,
)


def read_activitynet(request: Request) -> Benchmark:
    """Read ActivityNet Captions' ``val_1.json``: 4,917 videos with a paragraph each.

    Source: https://cs.stanford.edu/people/ranjaykrishna/densevid/ (``captions.zip``). The file holds
    ``{id: {"duration": ..., "timestamps": [...], "sentences": [...]}}``. Ids begin with ``v_``; files may be called
    with or without it.

    Raises:
        AnnotationError: The file is another one, a video is there twice, or as `build`.
    """
    file = request.file(ACTIVITYNET)
    found: dict[str, list[str]] = {}
    for where, name, entry in items(file, read_json(file), "ids and objects with 'sentences'"):
        if not isinstance(entry, dict) or "sentences" not in entry:
            raise AnnotationError(f"{where}: expected an object with 'sentences', got {shortened(entry)}")
        found[name] = captions(where, "sentences", entry["sentences"])
    return build(ACTIVITYNET, request, file, found, names=_names)


def _names(name: str) -> FileNames:
    return FileNames(tuple(dict.fromkeys((name, name.removeprefix("v_") or name))))


DIDEMO = Published(
    name="didemo",
    title="DiDeMo",
    split="test",
    protocol=(
        "Paragraph retrieval: all descriptions of a video, joined in the order of the file, are one text, and only its "
        "own video is right."
    ),
    source="https://github.com/LisaAnne/LocalizingMoments/blob/master/data/test_data.json",
    videos=1004,
    texts=1004,
    files=("test_data.json",),
    lists=("test_list.txt",),
    paragraph=True,
    hint=(
        "test_data.json has 1,037 videos; the 1,004 that papers report are in test_list.txt of collaborative-experts "
        "(misc/datasets/didemo), which goes in split."
    ),
)


def read_didemo(request: Request) -> Benchmark:
    """Read DiDeMo's ``test_data.json``, a list of ``{"video": ..., "description": ...}``: 1,004 videos and paragraphs.

    Source: https://github.com/LisaAnne/LocalizingMoments, ``data/test_data.json``, which has 4,021 descriptions of
    1,037 videos. The 1,004 of the papers (1,003 in some) are listed in
    https://github.com/albanie/collaborative-experts, ``misc/datasets/didemo/test_list.txt``.

    Ids hold the suffix of the file as it was uploaded (``....mov``, some only a dot). A file of that very name goes
    first, then one of the same stem with any video's suffix.

    Raises:
        AnnotationError: A file is another one, or as `build`.
    """
    file = request.file(DIDEMO)
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for where, entry in entries(file, read_json(file), ("video", "description")):
        captions[video_id(where, entry["video"])].append(caption(where, "description", entry["description"]))
    return build(DIDEMO, request, file, captions, names=_didemo_names)


def _didemo_names(name: str) -> FileNames:
    return FileNames(stems=tuple(dict.fromkeys((name, name.rpartition(".")[0] or name))), whole=(name,))


COLUMNS = ("key", "vid_key", "video_id", "sentence")

MSRVTT = Published(
    name="msrvtt",
    title="MSR-VTT 1k-A",
    split="test 1k-A",
    protocol="One caption for each video, and no other is right. The split is that of Yu et al. (JSFusion, 2018).",
    source="https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip",
    videos=1000,
    texts=1000,
    files=("MSRVTT_JSFUSION_test.csv",),
)


def read_msrvtt(request: Request) -> Benchmark:
    """Read ``MSRVTT_JSFUSION_test.csv``: 1,000 videos (``video7020.mp4``) with one sentence each.

    Source: https://github.com/ArrowLuo/CLIP4Clip (``msrvtt_data.zip``); the split is JSFusion's,
    arXiv:1808.02559. Columns: key, vid_key, video_id, sentence.

    Raises:
        AnnotationError: The file is another one, has a video twice or a blank sentence, or as `build`.
    """
    file = request.file(MSRVTT)
    captions: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for where, row in read_csv(file, COLUMNS):
        name = video_id(where, row["video_id"])
        if name in lines:
            raise AnnotationError(f"{where}: {name} is already at {lines[name]}; expected one caption a video")
        captions[name], lines[name] = [caption(where, "sentence", row["sentence"])], where.removeprefix(f"{file}, ")
    return build(MSRVTT, request, file, captions)


CORPUS_COLUMNS = ("VideoID", "Start", "End", "Language", "Description")

MSVD = Published(
    name="msvd",
    title="MSVD",
    split="test",
    protocol=(
        "Every caption searches for its own video; for a video, any of its captions is right. The split is that of "
        "Venugopalan et al. (2015)."
    ),
    source="https://www.cs.utexas.edu/users/ml/clamp/videoDescription/",
    videos=670,
    texts=27_763,
    files=(
        "AllVideoDescriptions.txt",
        "raw-captions.json",
        "video_corpus.csv",
        "MSR Video Description Corpus.csv",
        "raw-captions.pkl",  # found to be refused with a way out
    ),
    lists=("test_list.txt",),
    hint="The captions that papers count are those of raw-captions.pkl, which can be converted to raw-captions.json.",
)

_SECOND = re.compile(r"([0-9]{1,9})(?:\.0*)?")


def read_msvd(request: Request) -> Benchmark:
    """Read the captions of MSVD and the list of its 670 test clips (``mv89psg6zh4_33_46.avi``): 27,763 captions.

    The captions may be in any of these forms, by suffix:

    - ``.txt``: ``AllVideoDescriptions.txt``, lines of an id and a caption, ``#`` before comments. Source:
      https://www.cs.utexas.edu/users/ml/clamp/videoDescription/
    - ``.csv``: the corpus as Microsoft publishes it, of which the English rows are read; an id is made of VideoID,
      Start and End. Source: https://www.microsoft.com/en-us/download/details.aspx?id=52422
    - ``.json``: ``{id: [caption, ...]}``, where a caption may be a list of words: what ``raw-captions.pkl`` holds, from
      https://github.com/ArrowLuo/CLIP4Clip (``msvd_data.zip``). The pickle itself is refused.

    The list: https://github.com/albanie/collaborative-experts, ``misc/datasets/msvd/test_list.txt``.

    Raises:
        AnnotationError: There is no list, a file is another one or a pickle, or as `build`.
    """
    file = request.file(MSVD)
    if request.split is None and not request.annotations.is_dir():
        raise AnnotationError(
            f"{file}: holds the captions of all clips; give the list of the test ids as split, or a folder that holds "
            "both as annotations"
        )
    readers = {".txt": _text, ".csv": _csv, ".json": _json}
    if file.suffix.lower() not in readers:
        raise AnnotationError(f"{file}: expected a file that ends in .txt, .csv or .json, got {file.suffix!r}")
    return build(MSVD, request, file, readers[file.suffix.lower()](file))


def _text(file: Path) -> dict[str, list[str]]:
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for where, line in read_lines(file):
        if not line.startswith("#"):
            name, *text = line.split(maxsplit=1)
            captions[video_id(where, name)].append(caption(where, "caption", " ".join(text)))
    if not captions:
        raise AnnotationError(f"{file}: there are no captions; expected lines of an id and a caption")
    return captions


def _csv(file: Path) -> dict[str, list[str]]:
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for where, row in read_csv(file, CORPUS_COLUMNS):
        if row["Language"].strip() == "English":
            times = [_second(where, column, row[column]) for column in ("Start", "End")]
            name = video_id(where, "_".join((row["VideoID"].strip(), *times)))
            captions[name].append(caption(where, "Description", row["Description"]))
    if not captions:
        raise AnnotationError(f"{file}: no row has 'English' as its Language")
    return captions


def _second(where: str, column: str, value: str) -> str:
    if (whole := _SECOND.fullmatch(value.strip())) is None:
        raise AnnotationError(f"{where}: {column}={shortened(value)}: expected whole seconds")
    return str(int(whole[1]))


def _json(file: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for where, name, value in items(file, read_json(file), "ids and lists of captions"):
        if not isinstance(value, list) or not value:
            raise AnnotationError(f"{where}: {shortened(value)}: expected a list of at least one caption")
        captions[name] = [_spoken(where, place, one) for place, one in enumerate(value)]
    return captions


def _spoken(where: str, place: int, value: object) -> str:
    words = value if isinstance(value, list) else [value]
    return " ".join(caption(where, f"captions[{place}]", word) for word in words).strip()


VATEX = Published(
    name="vatex",
    title="VATEX",
    split="test (HGR)",
    protocol=(
        "English; every caption searches for its own video, and for a video any of its ten captions is right. The test "
        "split is half of the validation set, as Chen et al. (HGR, 2020) divided it."
    ),
    source="https://eric-xw.github.io/vatex-website/download.html",
    videos=1500,
    texts=15_000,
    files=("vatex_validation_v1.0.json", "ref_captions.json"),
    lists=("test_list.txt", "tst_names.npy"),
    hint="The validation file has 3,000 videos; the 1,500 of the test split are in a list of ids, which goes in split.",
)


def read_vatex(request: Request) -> Benchmark:
    """Read the English captions of VATEX for the 1,500 test videos of HGR (``Ptf_2VRj-V0_000122_000132.mp4``), 15,000.

    The captions are ``vatex_validation_v1.0.json``, a list of ``{"videoID": ..., "enCap": [...], "chCap": [...]}``,
    from https://eric-xw.github.io/vatex-website/download.html, or HGR's ``ref_captions.json``,
    ``{id: [caption, ...]}``. The list of ids is HGR's ``tst_names.npy`` (https://github.com/cshizhe/hgr_v2t), or text
    with one a line.

    Raises:
        AnnotationError: A file is another one, a video is there twice, or as `build`.
    """
    file = request.file(VATEX)
    value: Any = read_json(file)
    found: dict[str, list[str]] = {}
    if isinstance(value, dict):
        for where, name, texts in items(file, value, "ids and lists of captions"):
            found[name] = captions(where, "captions", texts)
        return build(VATEX, request, file, found)
    first: dict[str, str] = {}
    for where, entry in entries(file, value, ("videoID", "enCap")):
        name = video_id(where, entry["videoID"])
        if name in first:
            raise AnnotationError(f"{where}: {name} is already at {first[name]}; expected one entry a video")
        found[name], first[name] = captions(where, "enCap", entry["enCap"]), where.removeprefix(f"{file}, ")
    return build(VATEX, request, file, found)


_READERS: Final[dict[str, Callable[[Request], Benchmark]]] = {
    "msrvtt": read_msrvtt,
    "msvd": read_msvd,
    "vatex": read_vatex,
    "didemo": read_didemo,
    "activitynet": read_activitynet,
}

BENCHMARKS: Final = (*_READERS, "custom")
"""What `read_benchmark` reads, by name."""


def read_benchmark(
    name: str,
    *,
    annotations: str | Path,
    videos: str | Path | None = None,
    split: str | Path | None = None,
    allow_missing: bool = False,
    check_counts: bool = True,
) -> Benchmark:
    """Read a benchmark: its texts, its videos' files, and which belong together. No video is opened.

    Each module of this package says what its files hold and where they are published. The folder of the videos may hold
    more than the split has, in folders of any depth; a file's name is the id with any suffix of
    `vidembed.uri.VIDEO_SUFFIXES`, in either case.

    Args:
        name: One of `BENCHMARKS`.
        annotations: The annotation file, or a folder that holds it under the name that it is published under. For
            ``msvd``, ``vatex`` and ``didemo`` the folder also holds the list of the split's ids.
        videos: The folder of the videos. Only ``custom`` does without: its paths are then relative to the annotations.
        split: A list of ids, one a line (or ``.json``, ``.npy``), or a folder that holds it: only these videos, in this
            order. Needed for ``msvd`` where `annotations` is a file; not for ``custom``.
        allow_missing: Leave out videos without a file, with their texts, instead of stopping. They are in
            `Benchmark.missing`. Not for ``custom``, whose file can be changed. Default: no.
        check_counts: Stop where the annotations do not have the published number of videos and texts. Otherwise there
            is a note. Without meaning for ``custom``. Default: yes.

    Raises:
        ValueError: The name is none of `BENCHMARKS`, or an argument does not go with it.
        AnnotationError: A file is missing, is not what is published, or names videos that are not there.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(BENCHMARKS)}")
    file = Path(annotations).expanduser()
    folder = None if videos is None else Path(videos).expanduser()
    if name == "custom":
        if split is not None or allow_missing:
            which = "split" if split is not None else "allow_missing"
            raise ValueError(f"{which}: not for 'custom'; write the rows that are wanted into the file")
        return read_custom(file, folder)
    if folder is None:
        raise ValueError(f"videos: needed for {name!r}; give the folder of its videos")
    return _READERS[name](
        Request(file, folder, None if split is None else Path(split).expanduser(), allow_missing, check_counts)
    )
