"""MSVD: some forty captions for each of 670 short clips."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from vidembed.annotations import AnnotationError, shortened
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import caption, items, read_csv, read_json, read_lines, video_id
from vidembed.evaluation.benchmarks._published import Published, Request, build

COLUMNS = ("VideoID", "Start", "End", "Language", "Description")

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
    for where, row in read_csv(file, COLUMNS):
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
