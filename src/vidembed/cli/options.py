"""Options that several commands have, so that they mean and say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the model's.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Inputs embedded at once.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

# of what reads an index
IndexModel = Annotated[
    str | None, typer.Option(help="Load the model from here. Default: the name stored in the index.")
]

# of what reranks when it is asked to
Reranker = Annotated[
    str | None,
    typer.Option(help="With --rerank: a saved reranker or a video MLLM. Default: the one that fits the model."),
]
ScoreMode = Annotated[
    str | None, typer.Option(help="With --rerank: yes, yes_no or prior_corrected. Default: the reranker's own.")
]
Calibration = Annotated[Path | None, typer.Option(help="With --rerank: file that `vidembed calibrate` wrote.")]

# of what reads captioned videos
PairVideos = Annotated[
    Path | None, typer.Option(help="Folder of the videos that --pairs names. Default: the file's own.")
]

# of what evaluates on a benchmark
Annotations = Annotated[Path | None, typer.Option(help="The published annotation file, or the folder that holds it.")]
BenchmarkVideos = Annotated[Path | None, typer.Option(help="Folder of the videos.")]
ValidationVideos = Annotated[
    Path | None, typer.Option(help="Folder of the videos that --validation names. Default: the file's own.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave out videos without a file, and say so in the result.")
]
CheckCounts = Annotated[
    bool, typer.Option(help="Stop where the numbers of videos and texts are not the published ones.")
]
OnUnreadable = Annotated[
    Literal["raise", "count"],
    typer.Option(help="At a video that cannot be read: stop, or count it against the model and list it."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap, and of drawn videos.")]
