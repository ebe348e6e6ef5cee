"""What a type checker is told of the public methods: checked by mypy, and true at run time."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from vidembed import VideoEncoder, VideoReranker

SCRIPT = """
from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from vidembed import VideoEncoder, VideoReranker, VideoSegment


def encodes(encoder: VideoEncoder, flag: bool) -> None:
    assert_type(encoder.encode("a"), np.ndarray)
    assert_type(encoder.encode(["a", Path("b.mp4"), VideoSegment("c.mp4", 0.0, 1.0), b"d"], batch_size=2), np.ndarray)
    assert_type(encoder.encode({"video": Path("b.mp4")}, on_error="skip", truncate_dim=8), np.ndarray)
    assert_type(encoder.encode_query({"text": "a"}), np.ndarray)
    assert_type(encoder.encode_document([Path("b.mp4")], prompt="find"), np.ndarray)
    assert_type(encoder.encode(["a"], convert_to_tensor=True), torch.Tensor)
    assert_type(encoder.encode(["a"], convert_to_numpy=False), list[torch.Tensor])
    encoder.encode(["a"], convert_to_tensor=flag).shape  # E: union-attr
    encoder.encode(["a"], batch_size="2")  # E: call-overload


def predicts(reranker: VideoReranker) -> None:
    assert_type(reranker.predict(("a", "b.mp4")), np.ndarray)
    assert_type(reranker.predict([("a", Path("b.mp4")), (VideoSegment("c.mp4", 0.0, 1.0), "b")]), np.ndarray)
    assert_type(reranker.predict([{"text": "a", "video": "b.mp4"}], on_error="skip"), np.ndarray)
    assert_type(reranker.predict([("a", "b.mp4")], convert_to_tensor=True), torch.Tensor)
    reranker.predict([("a", "b.mp4")], batch_size="2")  # E: call-overload
"""


def test_mypy_agrees(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(file)],
        capture_output=True,
        check=False,
        text=True,
        cwd=root,
        timeout=280,
    )
    found = {
        (int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]"))
        for line in done.stdout.splitlines()
        if "script.py" in line and " error: " in line
    }
    wanted = {
        (number, line.partition("# E: ")[2]) for number, line in enumerate(SCRIPT.splitlines(), 1) if "# E: " in line
    }
    assert found == wanted, done.stderr


@pytest.mark.parametrize(("ours", "host"), [(VideoEncoder, SentenceTransformer), (VideoReranker, CrossEncoder)])
def test_every_argument_of_the_host_is_declared(ours: type, host: type) -> None:
    method = "encode" if ours is VideoEncoder else "predict"
    wanted = {
        name
        for name, one in inspect.signature(getattr(host, method)).parameters.items()
        if one.kind != inspect.Parameter.VAR_KEYWORD
    }
    module = sys.modules[ours.__module__]
    options = module.EncodeOptions if ours is VideoEncoder else module.PredictOptions
    declared = set(options.__annotations__) | {
        name for one in typing.get_overloads(getattr(ours, method)) for name in inspect.signature(one).parameters
    }
    assert wanted <= declared


def test_at_run_time(encoder: VideoEncoder) -> None:
    assert isinstance(encoder.encode("a"), np.ndarray)
    assert isinstance(encoder.encode(["a"], convert_to_tensor=True), torch.Tensor)
    assert [type(one) for one in encoder.encode(["a"], convert_to_numpy=False)] == [torch.Tensor]


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes", device="cpu")
