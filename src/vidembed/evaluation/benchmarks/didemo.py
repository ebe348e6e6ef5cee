"""DiDeMo: all descriptions of a video as one paragraph."""

from __future__ import annotations

from collections import defaultdict

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import caption, entries, read_json, video_id
from vidembed.evaluation.benchmarks._published import Published, Request, build
from vidembed.evaluation.benchmarks._videos import FileNames

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
    return build(DIDEMO, request, file, captions, names=_names)


def _names(name: str) -> FileNames:
    return FileNames(stems=tuple(dict.fromkeys((name, name.rpartition(".")[0] or name))), whole=(name,))
