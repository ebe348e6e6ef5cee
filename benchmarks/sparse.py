"""What a sparse grid costs: a long video read one frame in 5 s, with the frames nobody needs undecoded, and decoded.

    python -m benchmarks.sparse [VIDEO ...] [--minutes 10] [--step 5]

Without a video, one is made: 640 x 360, 30 frames a second, H.264 with B-frames and a key frame every 8 s (three groups
of pictures, repeated), as MP4, and as a transport stream, which is never sought in. Each is read by `load_video` with
one decoding thread, as it is, and with leaving out switched off (`dropping.MIN_STEP_S`). CPU time of this process, the
better of two runs that alternate. The clips must be equal in every field, or the script fails. "Reading a packet" is
`probe(scan=True)`, which decodes one frame.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np

from benchmarks.common import environment, keep
from vidembed.video import Clip, Sampling, dropping, load_video, probe

WIDTH, HEIGHT, RATE, GOP_S, GROUPS = 640, 360, 30, 8, 3
REPEATS = 2


def encode(path: Path) -> None:
    """Write some groups of pictures of a moving, slightly noisy scene."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (60, 120, 3)).astype(np.float32)
    ground = np.kron(rough, np.ones((16, 16, 1), np.float32))  # (960, 1920, 3)
    with av.open(str(path), "w") as container:
        options = {"preset": "fast", "crf": "23", "x264-params": f"keyint={GOP_S * RATE}:min-keyint=60:scenecut=0"}
        stream: Any = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(GROUPS * GOP_S * RATE):
            turn = 2 * math.pi * number / (GROUPS * GOP_S * RATE)
            top, left = int(300 + 250 * math.sin(3 * turn)), int(600 + 550 * math.sin(2 * turn))
            picture = ground[top : top + HEIGHT, left : left + WIDTH] + rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def repeat(source: Path, target: Path, minutes: float) -> None:
    """Write a video over and over again, by stream copy."""
    rounds = math.ceil(minutes * 60 / (GROUPS * GOP_S))
    with av.open(str(target), "w") as new:
        stream = None
        for number in range(rounds):
            with av.open(str(source)) as old:
                video = old.streams.video[0]
                stream = stream or new.add_stream_from_template(video)
                for packet in old.demux(video):
                    if packet.pts is None or packet.dts is None:
                        continue
                    shift = int(number * GROUPS * GOP_S / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    new.mux(packet)


def difference(a: Clip, b: Clip) -> list[str]:
    """Fields in which two clips differ."""
    return [each.name for each in fields(Clip) if not np.array_equal(getattr(a, each.name), getattr(b, each.name))]


def measure(path: Path, step: float) -> dict[str, Any]:
    """CPU seconds of both ways."""
    taken: dict[str, list[float]] = {"decoding through": [], "as it is": []}
    clips: dict[str, Clip] = {}
    for _ in range(REPEATS):
        for name, times in taken.items():
            wide = dropping.MIN_STEP_S if name == "as it is" else math.inf
            with patch.object(dropping, "MIN_STEP_S", wide):
                began = time.process_time()
                clips[name] = load_video(path, Sampling(fps=1 / step, max_frames=10_000), threads=1)
                times.append(time.process_time() - began)
    if differing := difference(*clips.values()):
        raise RuntimeError(f"{path}: the clips differ in {differing}")
    began = time.process_time()
    probe(path, scan=True)
    packets = clips["as it is"].total_num_frames
    found: dict[str, Any] = {name: round(min(times), 2) for name, times in taken.items()}
    found["ratio"] = round(found["as it is"] / found["decoding through"], 3)
    found |= {
        "frames": packets,
        "chosen": len(clips["as it is"].frames),
        "decoding a frame, ms": round(1000 * found["decoding through"] / packets, 3),
        "reading a packet, ms": round(1000 * (time.process_time() - began) / packets, 3),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--step", type=float, default=5.0, help="seconds between two frames")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos
        if not videos:
            encode(Path(folder, "part.mp4"))
            videos = [Path(folder, f"long{suffix}") for suffix in (".mp4", ".ts")]
            for path in videos:
                repeat(Path(folder, "part.mp4"), path, options.minutes)
        for path in videos:
            results[path.name] = measure(path, options.step)
    keep(__file__, {"environment": environment(), "step": options.step, "cpu_s": results})


if __name__ == "__main__":
    main()
