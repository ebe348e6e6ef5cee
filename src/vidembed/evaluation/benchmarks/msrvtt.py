"""MSR-VTT 1k-A: one caption for each of a thousand videos."""

from __future__ import annotations

from vidembed.annotations import AnnotationError
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks._files import caption, read_csv, video_id
from vidembed.evaluation.benchmarks._published import Published, Request, build

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
