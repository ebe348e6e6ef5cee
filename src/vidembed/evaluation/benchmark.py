"""Retrieval benchmarks: videos, texts and which belong together, read from the annotation files that are published."""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.captions import read_captioned_videos, shortened
from vidembed.errors import AnnotationError
from vidembed.evaluation import dataset_files as files
from vidembed.evaluation.dataset_files import caption, captions, video_id


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Videos, texts, and which text is true of which video, as one protocol has it; a ValueError if they misfit."""

    name: str  # as `vidembed evaluate --benchmark` takes it, such as ``"msrvtt"``
    title: str  # as papers write it, such as ``"MSR-VTT 1k-A"``
    split: str  # which part of the data, such as ``"test 1k-A"``
    protocol: str  # what counts as right, in a sentence or two
    source: str  # where the annotation file is published (URL), or the file itself for a benchmark of the user's
    video_ids: tuple[str, ...]  # names of the V videos, as the annotations have them; all different
    videos: tuple[Path, ...]  # their files, in the same order
    texts: tuple[str, ...]  # T texts. Equal ones are not merged where the protocol keeps them apart
    owners: tuple[tuple[int, ...], ...]  # for each text the places of the videos it is true of, at least one
    missing: tuple[str, ...] = ()  # ids of videos left out with their texts, without a file (``allow_missing``)
    notes: tuple[str, ...] = ()  # what a reader of the result should know about this data, one sentence each

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        if len(self.videos) != len(self.video_ids) or len(set(self.video_ids)) != len(self.video_ids):
            raise ValueError(f"video_ids: {len(self.video_ids)} ids, all different, expected for {len(self.videos)}")
        if len(self.owners) != len(self.texts):
            raise ValueError(f"owners: got {len(self.owners)}, expected one per text, {len(self.texts)}")
        for row, places in enumerate(self.owners):
            if not places or not all(0 <= place < len(self.videos) for place in places):
                raise ValueError(f"owners[{row}]={places}: expected at least one place below {len(self.videos)}")
        owned = {place for places in self.owners for place in places}
        if bare := [one for place, one in enumerate(self.video_ids) if place not in owned]:
            raise ValueError(f"owners: {len(bare)} videos have no text; the first is {bare[0]!r}")

    @property
    def positives(self) -> NDArray[np.bool_]:
        """Which videos each text is true of, ``(T, V)``; its transpose is for the other direction."""
        mask = np.zeros((len(self.texts), len(self.videos)), dtype=np.bool_)
        for row, places in enumerate(self.owners):
            mask[row, list(places)] = True
        return mask


Captions = Mapping[str, Sequence[str]]  # captions by the id of the video, "" for a blank one


def _msrvtt(file: Path) -> Captions:
    """Read ``MSRVTT_JSFUSION_test.csv``, one sentence a video (``video7020.mp4``); the split of arXiv:1808.02559."""
    rows = files.read_csv(file, ("key", "vid_key", "video_id", "sentence"))
    found = ((at, video_id(at, row["video_id"]), [caption(at, "sentence", row["sentence"])]) for at, row in rows)
    return files.keyed(file, found, "expected one caption a video")


def _msvd(file: Path) -> Captions:
    """Read the captions of MSVD (``mv89psg6zh4_33_46.avi``) in one of three forms, by suffix.

    - ``.txt``: ``AllVideoDescriptions.txt``, lines of an id and a caption, ``#`` before comments.
    - ``.csv``: Microsoft's corpus (https://www.microsoft.com/en-us/download/details.aspx?id=52422), its English rows.
    - ``.json``: ``{id: [caption, ...]}`` (or lists of words) as CLIP4Clip pickles them (``raw-captions.pkl``).

    The 670 test clips are ``misc/datasets/msvd/test_list.txt`` of https://github.com/albanie/collaborative-experts.
    """
    readers = {".txt": _msvd_text, ".csv": _msvd_csv, ".json": _msvd_json}
    if file.suffix.lower() not in readers:
        raise AnnotationError(f"{file}: expected a file that ends in .txt, .csv or .json, got {file.suffix!r}")
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, text in readers[file.suffix.lower()](file):
        found[name].append(text)
    return found


def _msvd_text(file: Path) -> Iterator[tuple[str, str]]:
    name = ""
    for where, line in files.read_lines(file):
        if not line.startswith("#"):
            name, *text = line.split(maxsplit=1)
            yield video_id(where, name), caption(where, "caption", " ".join(text))
    if not name:
        raise AnnotationError(f"{file}: no captions found; expected lines of an id and a caption")


def _msvd_csv(file: Path) -> Iterator[tuple[str, str]]:
    name = ""
    for where, row in files.read_csv(file, ("VideoID", "Start", "End", "Language", "Description")):
        if row["Language"].strip() == "English":
            name = row["VideoID"].strip()
            for column in ("Start", "End"):
                if (whole := re.fullmatch(r"([0-9]{1,9})(?:\.0*)?", row[column].strip())) is None:
                    raise AnnotationError(f"{where}: {column}={shortened(row[column])}: expected whole seconds")
                name += f"_{int(whole[1])}"
            name = video_id(where, name)
            yield name, caption(where, "Description", row["Description"])
    if not name:
        raise AnnotationError(f"{file}: no row has 'English' as its Language")


def _msvd_json(file: Path) -> Iterator[tuple[str, str]]:
    for where, name, value in files.items(file, files.read_json(file), "ids and lists of captions"):
        if not isinstance(value, list) or not value:
            raise AnnotationError(f"{where}: {shortened(value)}: expected a list of at least one caption")
        for place, one in enumerate(value):
            words = one if isinstance(one, list) else [one]
            yield name, " ".join(caption(where, f"captions[{place}]", word) for word in words).strip()


def _vatex(file: Path) -> Captions:
    """Read the English captions of VATEX (``Ptf_2VRj-V0_000122_000132.mp4``), ten a video, in its own or in HGR's form.

    ``vatex_validation_v1.0.json`` is a list of ``{"videoID": ..., "enCap": [...]}``, HGR's ``ref_captions.json``
    ``{id: [caption, ...]}``; the 1,500 test ids are its ``tst_names.npy`` (https://github.com/cshizhe/hgr_v2t).
    """
    value = files.read_json(file)
    if isinstance(value, dict):
        listed = files.items(file, value, "ids and lists of captions")
        return {name: captions(where, "captions", texts) for where, name, texts in listed}
    rows = files.entries(file, value, ("videoID", "enCap"))
    found = ((at, video_id(at, row["videoID"]), captions(at, "enCap", row["enCap"])) for at, row in rows)
    return files.keyed(file, found, "expected one entry a video")


def _didemo(file: Path) -> Captions:
    """Read DiDeMo's ``test_data.json``, a list of ``{"video": ..., "description": ...}``."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for where, entry in files.entries(file, files.read_json(file), ("video", "description")):
        found[video_id(where, entry["video"])].append(caption(where, "description", entry["description"]))
    return found


def _activitynet(file: Path) -> Captions:
    """Read ActivityNet Captions' ``val_1.json``, ``{id: {"timestamps": [...], "sentences": [...]}}``."""
    found: dict[str, list[str]] = {}
    for where, name, entry in files.items(file, files.read_json(file), "ids and objects with 'sentences'"):
        if not isinstance(entry, dict) or "sentences" not in entry:
            raise AnnotationError(f"{where}: expected an object with 'sentences', got {shortened(entry)}")
        found[name] = captions(where, "sentences", entry["sentences"])
    return found


@dataclass(frozen=True)
class _Published:
    """An entry of ``benchmarks.toml``."""

    title: str
    split: str
    protocol: str
    source: str
    videos: int
    texts: int
    files: list[str]
    lists: list[str] = field(default_factory=list)
    list_needed: bool = False
    paragraph: bool = False
    hint: str = ""


_TABLE = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8"))
_PUBLISHED: Final = {name: _Published(**entry) for name, entry in _TABLE.items()}
_READERS: Final = {"msrvtt": _msrvtt, "msvd": _msvd, "vatex": _vatex, "didemo": _didemo, "activitynet": _activitynet}
_FILE_NAMES: Final = {
    # an id holds the suffix as it was uploaded (``....mov``, some only a dot)
    "didemo": lambda name: files.FileNames(stems=(name, name.rpartition(".")[0] or name), whole=(name,)),
    "activitynet": lambda name: files.FileNames((name, name.removeprefix("v_") or name)),  # ids begin with ``v_``
}

_CUSTOM: Final = (
    "Every different text searches once, and every video that it is true of is right; for a video, any of its texts."
)

BENCHMARKS: Final = (*_PUBLISHED, "custom")  # what `read_benchmark` reads, by name


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

    The folder of the videos may hold more than the split has, in folders of any depth; a file's name is the id with any
    suffix of `vidembed.uri.VIDEO_SUFFIXES`, in either case.

    Args:
        name: One of `BENCHMARKS`.
        annotations: The annotation file, or a folder that holds it under the name that it is published under. For
            ``msvd``, ``vatex`` and ``didemo`` the folder also holds the list of the split's ids.
        videos: The folder of the videos. Only ``custom`` does without: its paths are then relative to the annotations.
        split: A list of ids, one a line (or ``.json``, ``.npy``), or a folder that holds it: only these videos, in this
            order. Needed for ``msvd`` where `annotations` is a file; not for ``custom``.
        allow_missing: Leave out videos without a file, with their texts, into `Benchmark.missing`. Not for ``custom``.
        check_counts: Stop, and not only note, where the annotations have not the published number of videos and texts.

    Raises:
        ValueError: The name is none of `BENCHMARKS`, or an argument does not go with it.
        AnnotationError: A file is missing, is not what is published, or names videos that are not there.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(BENCHMARKS)}")
    given = Path(annotations).expanduser()
    folder = None if videos is None else Path(videos).expanduser()
    if name == "custom":
        if split is not None or allow_missing:
            which = "split" if split is not None else "allow_missing"
            raise ValueError(f"{which}: not for 'custom'; keep only the rows to use in the file")
        return _read_custom(given, folder)
    if folder is None:
        raise ValueError(f"videos: needed for {name!r}; give the folder of its videos")
    published = _PUBLISHED[name]
    file = files.annotation_file(given, published.files, f"the captions of {published.title}")
    texts, blank = _texts_of_split(name, file, given, None if split is None else Path(split).expanduser())
    notes = [f"Blank captions left out: {blank}."] if blank else []
    notes += _check_counts(published, file, texts, blank, stop=check_counts)
    located = files.locate(folder, list(texts), _FILE_NAMES.get(name, files.by_stem))
    missing = tuple(one for one in texts if one not in located)
    if missing:
        notes.append(_check_missing(texts, missing, folder, allow=allow_missing))
    present = [one for one in texts if one in located]
    owned = [(text, place) for place, one in enumerate(present) for text in texts[one]]
    videos_of = Counter(text for text, _ in set(owned))
    if shared := sum(videos_of[text] > 1 for text, _ in owned):
        several = f"{shared} of {len(owned)} texts belong to several videos"
        notes.append(f"{several}; as published, each is true of its own one only.")
    return Benchmark(
        name,
        *(published.title, published.split, published.protocol, published.source),
        video_ids=tuple(present),
        videos=tuple(located[one] for one in present),
        texts=tuple(text for text, _ in owned),
        owners=tuple((place,) for _, place in owned),
        missing=missing,
        notes=tuple(notes),
    )


def _texts_of_split(name: str, file: Path, given: Path, split: Path | None) -> tuple[dict[str, list[str]], int]:
    """The texts of each video of the split, and how many captions were blank."""
    published = _PUBLISHED[name]
    what = f"the list of the test ids of {published.title}"
    if published.list_needed and split is None and not given.is_dir():
        remedy = "give the list of the test ids as split, or a folder that holds both as annotations"
        raise AnnotationError(f"{file}: holds the captions of all clips; {remedy}")
    found = _READERS[name](file)
    ids = list(found)
    if split is not None:
        ids = files.read_ids(files.annotation_file(split, published.lists or ["test_list.txt"], what))
    elif published.lists and given.is_dir():  # who names one file means that file, whatever lies beside it
        ids = files.read_ids(files.annotation_file(given, published.lists, what))
    if without := [one for one in ids if one not in found]:
        count = f"{len(without)} of {len(ids)} videos of the split"
        raise AnnotationError(f"{file}: no captions for {count}: {files.some(without)}")
    texts = {one: [text for text in found[one] if text] for one in ids}
    if bare := [one for one, of_video in texts.items() if not of_video]:
        raise AnnotationError(f"{file}: only blank captions for {len(bare)} videos: {files.some(bare)}")
    blank = sum(len(found[one]) - len(of_video) for one, of_video in texts.items())
    if published.paragraph:
        texts = {one: [" ".join(of_video)] for one, of_video in texts.items()}
    return texts, blank


def _check_counts(
    published: _Published, file: Path, texts: Mapping[str, Sequence[str]], blank: int, *, stop: bool
) -> list[str]:
    """Stop, or note, where the numbers of videos and texts are not the published ones."""
    counts = f"{len(texts)} videos and {sum(map(len, texts.values()))} texts"
    if counts == f"{published.videos} videos and {published.texts} texts":
        return []
    expected = f"{published.videos} and {published.texts}"
    if stop:
        raise AnnotationError(
            f"{file}: got {counts}, expected {expected} for {published.title} ({published.split})"
            + (f", after {blank} blank captions were left out" if blank else "")
            + (f". {published.hint}" if published.hint else ".")
            + " To use a part of the data, give check_counts=False; the result records that."
        )
    note = f"The annotations have {counts}, where the published split has {expected}"
    return [f"{note}: figures cannot be compared with published ones."]


def _check_missing(texts: Mapping[str, Sequence[str]], missing: Sequence[str], folder: Path, *, allow: bool) -> str:
    """Stop, or return a note, where videos have no file."""
    count = f"{len(missing)} of {len(texts)} videos have no file"
    found = f"videos: {count} in {folder}: {files.some(missing)}"
    if len(missing) == len(texts):
        raise AnnotationError(f"{found}. A file must have the id as its name, with the suffix of a video.")
    if not allow:
        remedy = "Get them, or give allow_missing=True, which leaves them out with their texts"
        raise AnnotationError(f"{found}. {remedy}; the figures are then not comparable with published ones.")
    lost = sum(len(texts[one]) for one in missing)
    return f"{count} and are left out with their {lost} texts: figures cannot be compared with published ones."


def _read_custom(annotations: Path, videos: Path | None) -> Benchmark:
    """Read a JSONL or CSV file of captioned videos; a video's id is its path below the folder of the videos."""
    pairs = read_captioned_videos(annotations, videos=videos)
    if any(pair.label is not None for pair in pairs):
        remedy = "retrieval takes every row for true, so leave out the rows that are false, and the column"
        raise AnnotationError(f"{annotations}: rows have a label; {remedy}")
    base = (annotations.parent if videos is None else videos).expanduser()
    first: dict[Path, Path] = {}  # by which of its spellings a file is known
    places: dict[Path, int] = {}
    owners: dict[str, set[int]] = {}
    for pair in pairs:
        # one spelling of each path; a link keeps its own name, as two names may be two videos with one content
        path = Path(os.path.realpath(pair.video.parent), pair.video.name)
        first.setdefault(path, pair.video)
        owners.setdefault(pair.text, set()).add(places.setdefault(path, len(places)))
    merged = len(pairs) - len(owners)
    return Benchmark(
        name="custom",
        title=annotations.stem,
        split="all rows",
        protocol=_CUSTOM,
        source=str(annotations),
        video_ids=tuple((v.relative_to(base) if v.is_relative_to(base) else v).as_posix() for v in first.values()),
        videos=tuple(first.values()),
        texts=tuple(owners),
        owners=tuple(tuple(sorted(one)) for one in owners.values()),
        notes=(f"{len(pairs)} rows have {len(owners)} different texts; equal ones are merged.",) if merged else (),
    )
