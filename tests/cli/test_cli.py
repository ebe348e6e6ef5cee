"""The command line as a process: what it imports, what it prints where, and the whole way with a real model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from tests.index.fakes import rows
from vidembed.index import VideoIndex

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from vidembed.cli import main; main()"
AFTER = """
import atexit, sys
heavy = ("torch", "lancedb", "transformers")
atexit.register(lambda: print(*(name for name in heavy if name in sys.modules), file=sys.stderr))
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def process(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", before + MAIN, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def checkpoint(tiny_mllm: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made by `vidembed build` of a random small model."""
    out = tmp_path_factory.mktemp("built") / "checkpoint"
    result = vidembed("build", tiny_mllm("qwen2_5_vl"), "--layer", "3", "--standalone", "--out", out)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out))
    return out


def test_help_is_quick_to_import() -> None:
    result = process("--help", before=AFTER)
    assert (result.returncode, result.stderr.strip()) == (0, "")
    for command in ("index", "search", "info", "build", "demo"):
        assert command in result.stdout


def test_info_does_not_import_torch(clips: Path, tmp_path: Path, loaded: list[dict[str, Any]]) -> None:
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    result = process("info", tmp_path / "ix", "--json", before=AFTER)
    assert (result.returncode, result.stderr.strip()) == (0, "lancedb")
    facts = json.loads(result.stdout)
    assert {key: facts[key] for key in ("files", "segments", "dimension", "model", "segment_s", "schema_version")} == {
        "files": 4, "segments": 4, "dimension": 8, "model": "fake", "segment_s": None, "schema_version": 1,
    }  # fmt: skip
    assert facts["fingerprint_fields"]["name"] == "fake"
    assert facts["bytes"] > 1000
    assert "fingerprint: name" in vidembed("info", tmp_path / "ix", "--verbose").stdout
    assert "fingerprint" not in vidembed("info", tmp_path / "ix").stdout


def test_info_of_a_video(clips: Path) -> None:
    facts = json.loads(vidembed("info", clips / "red.mp4", "--json").stdout)
    assert (facts["mirrored"], facts["stream"], facts["discontinuities"], facts["start_s"]) == (False, 0, 0, 0.0)
    assert facts["colour"]["conversion"] == "none"
    assert "colour: conversion" in vidembed("info", clips / "red.mp4", "--verbose").stdout


def test_info_of_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    result = vidembed("info", tmp_path / "a.mp4")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a.mp4" in result.stderr


def test_version() -> None:
    import vidembed as package

    assert vidembed("--version").stdout == f"vidembed {package.__version__}\n"


def test_the_whole_way_with_a_real_model(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    (clips / "bad.mp4").write_bytes(b"no video")
    indexed = process("index", clips, "--to", tmp_path / "ix", "--model", checkpoint, "--segment", "1", "--json")
    assert indexed.returncode == 0, indexed.stderr
    report = json.loads(indexed.stdout)
    assert (report["indexed"], report["segments"], len(report["skipped"])) == (4, 6, 1)
    assert "Indexing" in indexed.stderr  # the bar
    found = json.loads(vidembed("search", "a red square", "--in", tmp_path / "ix", "--json").stdout)
    assert {(hit["uri"], hit["start_s"]) for hit in found} == {
        (row["uri"], row["start_s"]) for row in rows(tmp_path / "ix")
    }
    assert vidembed("index", clips, "--to", tmp_path / "ix").stdout.count("4 unchanged") == 1


def test_an_mllm_with_a_layer_needs_no_build(
    tiny_mllm: Callable[[str], Path], checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    mllm = tiny_mllm("qwen2_5_vl")
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", mllm, "--layer", "3").exit_code == 0
    direct = vidembed("search", "a red square", "--in", tmp_path / "ix", "--json")
    built = vidembed("search", "a red square", "--in", tmp_path / "ix", "--json", "--model", checkpoint)
    assert (direct.exit_code, built.exit_code) == (0, 0)
    assert json.loads(direct.stdout) == json.loads(built.stdout)


def test_models_that_cannot_serve(
    tiny_mllm: Callable[[str], Path], checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    mllm = tiny_mllm("qwen2_5_vl")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in mllm.iterdir():
        if "processor" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    text_only = tmp_path / "bert"
    text_only.mkdir()
    (text_only / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    before = tree(tmp_path)
    for arguments, message in [
        (["--model", mllm, "--layer", "7"], "1..6"),
        (["--model", mllm, "--layer", "0"], "1..6"),
        (["--model", checkpoint, "--layer", "2"], "reads layer 3"),
        (["--model", bare, "--layer", "3"], "processor"),
        (["--model", text_only, "--layer", "1"], "bert"),
        (["--model", tmp_path / "nowhere"], "nowhere"),
        (["--model", checkpoint, "--device", "nonsense"], "device='nonsense'"),
    ]:
        result = vidembed("index", clips, "--to", tmp_path / "ix", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert message in result.stderr
        assert tree(tmp_path) == before


def test_build_misuse(tiny_mllm: Callable[[str], Path], tmp_path: Path) -> None:
    mllm = tiny_mllm("qwen2_5_vl")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    before = tree(tmp_path)
    for arguments, message in [
        ([mllm, "--layer", "3"], "give either --out DIR or --name NAME"),
        ([mllm, "--layer", "3", "--out", tmp_path / "a", "--name", "b"], "give either --out DIR or --name NAME"),
        ([mllm, "--layer", "7", "--out", tmp_path / "a"], "1..6"),
        ([mllm, "--layer", "3", "--out", tmp_path / "taken"], "exists"),
        ([mllm, "--layer", "3", "--name", "../up"], "not valid"),
        ([mllm, "--layer", "3", "--out", tmp_path / "a", "--dtype", "int8"], "int8"),
        ([tmp_path / "nowhere", "--layer", "3", "--out", tmp_path / "a"], "nowhere"),
    ]:
        result = vidembed("build", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert message in result.stderr
        assert tree(tmp_path) == before


def test_a_recipe_from_build_to_a_reranked_search(
    tiny_mllm: Callable[[str], Path], clips: Path, tmp_path: Path
) -> None:
    mllm = tmp_path / "mllm"
    shutil.copytree(tiny_mllm("qwen2_5_vl"), mllm)
    recipe, index = tmp_path / "recipe", tmp_path / "ix"
    result = vidembed("build", mllm, "--layer", "3", "--out", recipe, "--device", "cpu")
    assert (result.exit_code, result.stdout.strip()) == (0, str(recipe)), result.stderr
    assert {file.name for file in recipe.iterdir()} == {"README.md", "vidembed_config.json"}
    assert vidembed("index", clips, "--to", index, "--model", recipe, "--device", "cpu").exit_code == 0
    search = ("search", "a red square", "--in", index, "--device", "cpu", "--json")
    result = vidembed(*search, "--rerank", "2")
    assert result.exit_code == 0, result.stderr
    assert all("probability" in hit for hit in json.loads(result.stdout)[:2])
    again = tmp_path / "again"
    result = vidembed("build", recipe, "--layer", "3", "--standalone", "--out", again, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert (again / "model.safetensors").is_file()
    result = vidembed("build", again, "--layer", "3", "--standalone", "--out", tmp_path / "third")
    assert (result.exit_code, "cannot be built from" in result.stderr) == (2, True)

    mllm.rename(tmp_path / "moved")
    before = tree(tmp_path)
    for arguments in (search, ("index", clips, "--to", tmp_path / "new", "--model", recipe)):
        result = vidembed(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "this model is a recipe, and the video MLLM that it refers to is missing" in " ".join(
            result.stderr.split()
        )
    assert tree(tmp_path) == before


def test_demo(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    out = tmp_path / "demo"
    result = vidembed("demo", "--out", out, "--clips", "6", "--model", checkpoint)
    assert result.exit_code == 0, result.stderr
    assert "6 indexed" in result.stdout
    assert "recall@1" in result.stdout
    assert result.stdout.count("what it shows") == 2
    assert "vidembed search" in result.stdout
    assert "by chance @1" in result.stdout
    assert (out / "index.html").read_text(encoding="utf-8").count("<img") == 3 * 6
    assert "No browser" not in result.stderr
    assert len(rows(out / "index-6-0")) == 6
    again = vidembed("demo", "--out", out, "--clips", "6", "--model", checkpoint, "--open")
    assert "6 unchanged" in again.stdout
    assert f"No browser could be opened; open {out / 'index.html'} in one." in again.stderr


# In place of the whole module, which takes torch: the index needs no more of it.
FAKE = """
import sys
from types import SimpleNamespace
from tests.index.fakes import FakeEncoder
sys.modules["vidembed.encoder"] = SimpleNamespace(load_encoder=lambda name, **_: FakeEncoder(name, delay=0.05))
"""


def test_ctrl_c_in_a_terminal(many: Path, tmp_path: Path, loaded: list[dict[str, Any]]) -> None:
    index = tmp_path / "ix"
    arguments = ["index", many, "--to", index, "--model", "fake", "--segment", "0.25", "--batch-size", "1"]
    command = [sys.executable, "-c", FAKE + MAIN, *map(str, arguments)]
    running = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while running.poll() is None and not (VideoIndex.exists(index) and len(VideoIndex.open(index))):
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    assert 0 < len(rows(index)) < 80
    assert len(rows(index)) % 4 == 0  # whole files
    assert vidembed("index", many, "--to", index).exit_code == 0
    assert len(rows(index)) == 80
