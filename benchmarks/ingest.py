"""A big folder with bad files in it: what is indexed, what is reported, how fast, and in how much memory.

    python -m benchmarks.ingest [--clips 1000] [--bad 0.05] [--seed 0] [--long]

1. A folder of clips, of which a share is bad in all the ways that the tests of reading know, and two ways that no file
   can be made for: a decoder that loops in native code, and one that crashes. `vidembed index` runs on it as a user
   runs it, with the bundled model. Every good file must be in the index, every bad one reported with the right kind,
   and those whose content is bad in quarantine. Printed: files per second, and peak memory of the run and of its
   largest decoder.
2. With `--long`: a two-hour video, and one of 4K, each indexed by segments: peak memory of run and decoder, next to
   that of a short one.

Exits with status 1 if a file is missing, or reported wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image
from tests.zoo import Recipe, Zoo, draw, encode

from benchmarks.common import children, environment, high_water_mark, keep
from vidembed.shapes import write_clips

TIMEOUT_S = 20
# Read by every Python that the run starts; only the decoders open a file of such a name as a video.
HOOK = """
import os, re, signal, sys
from pathlib import Path
if any("vidembed.video.worker" in argument for argument in sys.orig_argv):
    opened = Path.open
    def open_(self, *args, **kwargs):
        if self.name.startswith("loops"):
            re.match(r"(a+)+$", "a" * 60 + "b")  # in C, without end, and holding the interpreter's lock
        if self.name.startswith("crashes"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return opened(self, *args, **kwargs)
    Path.open = open_
"""


def bad_files(zoo: Zoo) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Ways of being bad: the kind that must be reported, and what makes a file so, by name."""

    def data(source: Path) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(source.read_bytes())

    def text(content: str) -> Callable[[Path], object]:
        return lambda path: path.write_text(content)

    def picture(suffix: str) -> Callable[[Path], object]:
        image = zoo.root / f"picture.{suffix}"
        Image.fromarray(draw(1)).save(image)
        return data(image)

    rng = np.random.default_rng(0)
    good = zoo.path("h264.mp4")
    encode(zoo.root / "huge.gif", Recipe("gif", frames=1, rate=10, pix_fmt="rgb8"))
    huge = bytearray((zoo.root / "huge.gif").read_bytes())
    huge[6:10] = b"\xff\xff\xff\xff"  # the logical screen: 65535 x 65535
    (zoo.root / "huge.gif").write_bytes(huge)
    return {
        "missing_link": ("VideoNotFound", lambda path: path.symlink_to(f"nowhere-{path.stem}")),
        "circular_link": ("VideoNotFound", lambda path: path.symlink_to(path.name)),
        "fifo": ("NotAFile", os.mkfifo),
        "empty": ("EmptyFile", lambda path: path.write_bytes(b"")),
        "noise": ("NotAVideo", lambda path: path.write_bytes(rng.bytes(200_000))),
        "zeros": ("NotAVideo", lambda path: path.write_bytes(bytes(10_000))),
        "page": ("NotAVideo", text("<!DOCTYPE html><html><body>404</body></html>")),
        "subtitles": ("NotAVideo", text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")),
        "concat_list": ("NotAVideo", text(f"ffconcat version 1.0\nfile '{good}'\n")),
        "hls_list": ("NotAVideo", text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{good}\n#EXT-X-ENDLIST\n")),
        "jpg": ("NotAVideo", picture("jpg")),
        "png": ("NotAVideo", picture("png")),
        "audio": ("NoVideoStream", data(zoo.path("audio.m4a"))),
        "cover_mp3": ("NoVideoStream", data(zoo.path("cover.mp3"))),
        "cover_mp4": ("NoVideoStream", data(zoo.path("cover.mp4"))),
        "codec_mp4": (
            "UnsupportedCodec",
            data(zoo.patched("h264.mp4", b"avc1\x00\x00\x00\x00", b"zzzz\x00\x00\x00\x00")),
        ),
        "codec_mkv": ("UnsupportedCodec", data(zoo.patched("h264.mkv", b"V_MPEG4/ISO/AVC", b"V_UNHEARD/OF/XX"))),
        "cut": ("CorruptVideo", data(zoo.cut("h264.mp4", 0.8))),
        "much_lost": ("CorruptVideo", data(zoo.zeroed("faststart.mp4", 0.3, 0.9))),
        "huge": ("VideoTooLarge", data(zoo.root / "huge.gif")),
        "loops": ("DecodeTimeout", data(good)),
        "crashes": ("DecoderCrashed", data(good)),
    }


def make_folder(folder: Path, zoo: Zoo, count: int, bad: int, seed: int) -> dict[str, str]:
    """Fill a folder; return the kind that must be reported of each bad file, by name."""
    write_clips(folder, count - bad, "test", seed)
    ways = bad_files(zoo)
    rare = {"loops": 2, "crashes": 2}  # the first takes the whole time limit
    expected: dict[str, str] = {}
    while len(expected) < bad:
        for name, (kind, make) in ways.items():
            number = sum(each.startswith(name) for each in expected)
            if len(expected) < bad and number < rare.get(name, bad):
                path = folder / f"{name}-{number}.mp4"
                make(path)
                if path.is_file() and path.stat().st_size and not path.is_symlink():
                    with path.open("ab") as file:  # of its own content: twins are decoded once
                        file.write(path.name.encode())
                expected[path.name] = kind
    return expected


class Memory(threading.Thread):
    """Watches the peak resident memory of a process and of its largest child, from the system's own counters."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.run_bytes = self.decoder_bytes = 0
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self.run_bytes = max(self.run_bytes, high_water_mark(self._pid))
            for child in children(self._pid):
                self.decoder_bytes = max(self.decoder_bytes, high_water_mark(child))

    def stop(self) -> dict[str, int]:
        self._done.set()
        self.join()
        return {"peak_run_mib": self.run_bytes >> 20, "peak_decoder_mib": self.decoder_bytes >> 20}


def index(clips: Path, folder: Path, hook: Path | None = None, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `vidembed index`; return its report, and time and memory."""
    path = os.pathsep.join(filter(None, [str(hook) if hook else "", os.environ.get("PYTHONPATH", "")]))
    command = [
        sys.executable,
        "-c",
        "from vidembed.cli import main; main()",
        "index",
        str(clips),
        "--to",
        str(folder),
        "--json",
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--timeout", str(TIMEOUT_S), "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    ) as run:
        memory = Memory(run.pid)
        memory.start()
        out, _ = run.communicate()
        figures: dict[str, Any] = memory.stop()
    if run.returncode:
        raise RuntimeError(f"vidembed index ended with status {run.returncode}")
    return json.loads(out), {"seconds": round(time.perf_counter() - began, 1), **figures}


def big_folder(work: Path, *, count: int, bad: int, seed: int) -> dict[str, Any]:
    """Part 1."""
    (work / "hook").mkdir()
    (work / "hook" / "sitecustomize.py").write_text(HOOK)
    (work / "zoo").mkdir()
    expected = make_folder(work / "clips", Zoo(work / "zoo"), count, bad, seed)
    report, figures = index(work / "clips", work / "index", work / "hook")
    found = {Path(unquote(urlsplit(each["uri"]).path)).name: each["kind"] for each in report["skipped"]}
    wrong = {name: [kind, found.get(name)] for name, kind in expected.items() if found.get(name) != kind}
    again, repeated = index(work / "clips", work / "index", work / "hook")
    return {
        "files": count,
        "bad": bad,
        "indexed": report["indexed"],
        "reported": dict(Counter(found.values())),
        "reported_wrongly": wrong,
        "good_reported": sorted(set(found) - set(expected)),
        "quarantined": report["quarantined"],
        **figures,
        "files_per_second": round(count / figures["seconds"], 2),
        "second_run_seconds": repeated["seconds"],
        "ok": not wrong
        and set(found) == set(expected)
        and report["indexed"] == report["files"] == count - bad
        and (again["unchanged"], len(again["skipped"])) == (count - bad, bad),
    }


def long_video(path: Path, *, seconds: int, size: tuple[int, int], rate: int) -> None:
    """A video of numbered frames."""
    encode(path, Recipe(frames=seconds * rate, rate=rate, gop=10 * rate, size=size))


def long_videos(work: Path) -> dict[str, Any]:
    """Part 2."""
    results = {}
    for name, recipe in {
        "short": {"seconds": 20, "size": (320, 192), "rate": 5},
        "two_hours": {"seconds": 7200, "size": (320, 192), "rate": 5},
        "4k": {"seconds": 20, "size": (3840, 2160), "rate": 25},
    }.items():
        folder = work / name
        folder.mkdir()
        long_video(folder / "video.mp4", **recipe)  # type: ignore[arg-type]
        report, figures = index(folder, work / f"{name}.index", None, "--segment", "10")
        results[name] = {"video": recipe, "segments": report["segments"], **figures}
    return results


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--bad", type=float, default=0.05, help="share of bad files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bad = round(asked.clips * asked.bad)
        result = {"folder": big_folder(Path(name), count=asked.clips, bad=bad, seed=asked.seed)}
        if asked.long:
            result["long"] = long_videos(Path(name))
    keep(__file__, {"environment": environment(), **result})
    sys.exit(not result["folder"]["ok"])


if __name__ == "__main__":
    main()
