"""ActivityNet Captions: all sentences about a video as one paragraph."""

from __future__ import annotations

from vidembed.annotations import AnnotationError, shortened
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import captions, items, read_json
from vidembed.evaluation.benchmarks._published import Published, Request, build
from vidembed.evaluation.benchmarks._videos import FileNames

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
