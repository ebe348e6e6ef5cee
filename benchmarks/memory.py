"""Peak memory of what a user runs, as a ratio to the bytes of the model's weights.

    python -m benchmarks.memory [--small]

Writes a random model with the sizes of Qwen/Qwen2.5-VL-3B-Instruct in bfloat16 (7.5 GB, into a temporary folder,
removed afterwards), builds a search model of it, indexes two short clips, searches them, searches with ``--rerank``,
and serves an embeddings and a rerank request. Each command is a process of its own.

Counted is the high-water mark of resident memory of the process that holds the model, as the kernel keeps it
(``VmHWM``, read every 20 ms): everything private to it, and those pages of mapped files that it has touched, among them
the weights where they are used from the file. It includes the interpreter and its libraries, about 1 GB, most of it
torch: `libraries_bytes` is what a search with ``--rerank`` takes with `vidembed/shapes`, whose weights are 3 MB.
Decoders are processes of their own and hold no weights: `decoders_bytes` is the sum of their marks. (``ru_maxrss`` is
not used: a process inherits it from the one that starts it.)

The clips are small. Activations come on top, and grow with the frames and pixels of a batch.

With ``--small`` the model has some 400 MB, so that libraries weigh as much as it; they are taken off then, and nothing
is written. Exits with status 1 if a ratio is over 1.15, or a recipe over 1 MB.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.backbone import tiny
from tests.clips import write_folder

from benchmarks.common import children, environment, high_water_mark, keep
from vidembed.uri import video_uri

LIMIT = 1.15  # of peak memory over the bytes of the weights
RECIPE_BYTES = 1_000_000  # most that building a recipe may write
SHARD_BYTES = 4_000_000_000  # as the published checkpoint is split
BLOCK = 3_000_017  # values that are drawn once and repeated: no multiple of a row
QUERY, CLIPS = "a square moves to the right", 2
STEP_S = 900.0  # longest that a command may take

# config.json of Qwen/Qwen2.5-VL-3B-Instruct, but for the ids of special tokens
TEXT: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
}
VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
SMALL_TEXT = {**TEXT, "vocab_size": 16384, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 9}
SMALL_TEXT |= {"num_attention_heads": 8}
SMALL_VISION = {**VISION, "depth": 3, "out_hidden_size": 1024, "fullatt_block_indexes": [2]}


def shards(weights: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Split weights into files of at most `SHARD_BYTES`, in order."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in weights.items():
        if part and size + value.nbytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = value
        size += value.nbytes
    yield part


def write_shard(file: Path, weights: dict[str, torch.Tensor], blocks: dict[bool, bytes]) -> int:
    """Write one safetensors file of random values of the shapes of `weights`; returns their bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in weights.items():
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, value in weights.items():
            block = blocks["norm" in name]
            whole, rest = divmod(value.nbytes, len(block))
            for _ in range(whole):
                out.write(block)
            out.write(block[:rest])
    return end


def empty_model(text: dict[str, Any], vision: dict[str, Any]) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of some sizes in bfloat16, without values."""
    config = tiny.config("qwen2_5_vl", **text)
    for name, number in vision.items():
        setattr(config.vision_config, name, number)
    config.tie_word_embeddings = text["tie_word_embeddings"]
    config.dtype = torch.bfloat16
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    with torch.device("meta"):
        return transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)


def bytes_of(text: dict[str, Any], vision: dict[str, Any]) -> int:
    """Bytes of the weights of such a model."""
    return sum(value.nbytes for value in empty_model(text, vision).parameters())


def write_model(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> int:
    """Write a random Qwen2.5-VL of some sizes in bfloat16, with names of weights as published; returns their bytes.

    No more than a block of values is held.
    """
    model = empty_model(text, vision)
    weights = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in model.named_parameters()  # a tied head is not among them
    }
    draws = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    blocks = {
        is_norm: (1 + 0.1 * draws if is_norm else 0.02 * draws).bfloat16().view(torch.uint8).numpy().tobytes()
        for is_norm in (True, False)
    }
    folder.mkdir()
    files = list(shards(weights))
    where: dict[str, str] = {}
    total = 0
    for number, part in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        total += write_shard(folder / name, part, blocks)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(folder)
    tiny.processor("qwen2_5_vl").save_pretrained(folder)
    return total


@dataclass
class Peak:
    """What one command took."""

    bytes: int  # high-water mark of the process that holds the model
    decoders_bytes: int  # sum of those of its children
    seconds: float


class Watch(threading.Thread):
    """Reads the high-water marks of a process and of its children, every 20 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.marks: dict[int, int] = {pid: 0}
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        while True:  # at least once, however busy the machine is
            for pid in (self._pid, *children(self._pid)):
                self.marks[pid] = max(self.marks.get(pid, 0), high_water_mark(pid))
            if self._done.wait(0.02):
                return

    def stop(self) -> tuple[int, int]:
        """The mark of the process, and the sum of those of its children."""
        self._done.set()
        self.join()
        own = self.marks.pop(self._pid)
        return own, sum(self.marks.values())


def run(log: Path, *arguments: object, meanwhile: Callable[[Path], None] | None = None) -> Peak:
    """Run a command of the command line; `meanwhile` gets its log, and the command is ended after it."""
    command = [sys.executable, "-c", "from vidembed.cli import main; main()", *map(str, arguments)]
    began = time.perf_counter()
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    watch = Watch(running.pid)
    watch.start()
    try:
        if meanwhile is not None:
            meanwhile(log)
            running.send_signal(signal.SIGINT)
        status = running.wait(STEP_S)
    finally:
        running.kill()
        own, decoders = watch.stop()
    if status:
        raise RuntimeError(f"{arguments} ended with status {status}:\n{log.read_text()[-2000:]}")
    return Peak(own, decoders, round(time.perf_counter() - began, 1))


def ask_server(log: Path, clips: list[Path], embeddings: str, reranker: str) -> None:
    """Have a server that has been started embed a text and rerank clips."""
    for _ in range(int(STEP_S * 10)):
        if found := re.search(r"on (http://\S+)/", log.read_text()):
            break
        time.sleep(0.1)
    else:
        raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
    uris = [video_uri(clip) for clip in clips]
    post(f"{found[1]}/v1/embeddings", {"model": embeddings, "input": QUERY})
    answer = post(f"{found[1]}/v2/rerank", {"model": reranker, "query": QUERY, "documents": uris})
    assert len(answer["results"]) == len(clips), answer


def post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post JSON and read JSON."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=STEP_S) as answer:
        return dict(json.load(answer))


def steps(work: Path, clips: Path, model: object, reranker: object) -> Iterator[tuple[str, Peak]]:
    """Index, search, search and rerank, serve and rerank; each with its peak memory."""
    index, files = work / "index", sorted(clips.iterdir())
    searched = ["search", QUERY, "--in", index, "--device", "cpu"]
    served = ["serve", "--in", index, "--root", clips, "--port", 0, "--device", "cpu", "--timeout", STEP_S]
    public = [Path(str(name)).name if Path(str(name)).is_absolute() else str(name) for name in (model, reranker)]
    yield "index", run(work / "log", "index", clips, "--to", index, "--model", model, "--device", "cpu")
    yield "search_rerank", run(work / "log", *searched, "--rerank", len(files), "--reranker", reranker)
    yield "search", run(work / "log", *searched)
    asked = functools.partial(ask_server, clips=files, embeddings=public[0], reranker=public[1])
    yield "serve_rerank", run(work / "log", *served, "--reranker", reranker, meanwhile=asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a model of 400 MB, to see that it works; writes nothing")
    args = parser.parse_args()
    text, vision, layer = (SMALL_TEXT, SMALL_VISION, 8) if args.small else (TEXT, VISION, 31)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        clips = work / "clips"
        write_folder(clips, CLIPS)
        mllm, model = work / "mllm", work / "model"
        weights = write_model(mllm, text, vision)
        peaks = {"build": run(work / "log", "build", mllm, "--layer", layer, "--out", model, "--device", "cpu")}
        written = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        for step, peak in steps(work, clips, model, mllm):
            peaks[step] = peak
            print(step, peak, f"{peak.bytes / weights:.3f}", file=sys.stderr)
        (work / "bundled").mkdir()
        bundled = steps(work / "bundled", clips, "vidembed/shapes", "vidembed/shapes-rerank")
        libraries = max(peak.bytes for _, peak in itertools.islice(bundled, 2))
    rows = {}
    for step, peak in peaks.items():
        counted = peak.bytes - (libraries if args.small else 0)
        rows[step] = {
            "peak_bytes": peak.bytes,
            "ratio": round(counted / weights, 3),
            "ratio_without_libraries": round((peak.bytes - libraries) / weights, 3),
            "decoders_bytes": peak.decoders_bytes,
            "seconds": peak.seconds,
            "ok": counted <= LIMIT * weights,
        }
    result = {
        "weights_bytes": weights,
        "dtype": "bfloat16",
        "limit": LIMIT,
        "libraries_bytes": libraries,
        "steps": rows,
        "build_wrote_bytes": written,
        "build_ok": written <= RECIPE_BYTES,
        "clips": f"{CLIPS} of 96 x 72, some 20 frames",
        **environment(),
    }
    if args.small:
        print(json.dumps(result, indent=2))
    else:
        keep(__file__, result)
    sys.exit(not (result["build_ok"] and all(row["ok"] for row in rows.values())))


if __name__ == "__main__":
    main()
