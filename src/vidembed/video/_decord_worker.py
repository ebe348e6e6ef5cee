"""Runs decord in a process of its own, which can be killed: its native loops cannot be interrupted.

Started as a script, so that it imports neither this package nor anything heavy. Reads one JSON request from
standard input; writes one line of JSON and the raw bytes of the frames to standard output.

Request: ``path``, ``width``, ``height`` (of the upright frames), ``threads``, ``grid`` (seconds from the first frame).
Answer: ``count`` (frames in the video), ``end`` (s), ``indices`` and ``times`` (one a grid time that is before the
end), ``unique`` (number of frames that follow, in ascending order of index), or ``error``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np

MAX_TIME = 1e6  # seconds; decord reads a missing time as about 1e16


def read(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Decode what the request asks for."""
    import decord  # noqa: PLC0415 - it prints and may fail to load: inside the guarded part

    reader = decord.VideoReader(
        request["path"],
        ctx=decord.cpu(0),
        width=request["width"],
        height=request["height"],
        num_threads=request["threads"],
    )
    count = len(reader)
    stamps = np.asarray(reader.get_frame_timestamp(range(count)), dtype=np.float64)  # (N, 2): begin, end
    begins = stamps[:, 0]
    if not np.isfinite(stamps).all() or (np.diff(begins) < 0).any() or np.abs(stamps).max() > MAX_TIME:
        raise ValueError("decord reports times that are missing, fall or are absurd")
    begins, end = begins - begins[0], float(stamps[-1, 1] - begins[0])
    grid = np.asarray(request["grid"], dtype=np.float64)
    grid = grid[grid < end]
    if not grid.size:
        return {"count": count, "end": end, "indices": [], "times": [], "unique": 0}, b""
    margin = 1e-6 + 2.4e-7 * grid  # its times are float32
    indices = np.searchsorted(begins, grid + margin, side="right") - 1
    unique = np.unique(indices)
    frames = reader.get_batch(unique.tolist()).asnumpy()  # (U, H, W, 3)
    if frames.shape != (len(unique), request["height"], request["width"], 3) or frames.dtype != np.uint8:
        raise ValueError(f"decord returned frames of shape {frames.shape} and dtype {frames.dtype}")
    header = {
        "count": count,
        "end": end,
        "indices": indices.tolist(),
        "times": begins[indices].tolist(),
        "unique": len(unique),
    }
    return header, frames.tobytes()


def main(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Answer one request."""
    try:
        header, frames = read(json.load(stdin))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent names the item and raises
        text = " ".join(str(error).split())
        header, frames = {"error": f"{type(error).__name__}: {text[:300]}"}, b""
    stdout.write(json.dumps(header).encode() + b"\n")
    stdout.write(frames)
    stdout.flush()


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "wb")  # native code may print to 1
    os.dup2(2, 1)
    main(sys.stdin.buffer, answer)
