"""VATEX: ten English captions for each of 1,500 ten-second clips."""

from __future__ import annotations

from typing import Any

from vidembed.annotations import AnnotationError
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import captions, entries, items, read_json, video_id
from vidembed.evaluation.benchmarks._published import Published, Request, build

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
