"""`vidembed compare`: of models, and of finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import vidembed
from tests.evaluation.made_up import made_up
from vidembed import model_path

DRAWN = ("--benchmark", "shapes-short", "--clips", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_mllm: Callable[[str], Path]) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("compare") / "run"
    random_model = f"{tiny_mllm('qwen2_5_vl')}@1"
    return out, vidembed("compare", random_model, "vidembed/shapes", *DRAWN, "--out", out, "--json")


def test_two_models(run: tuple[Path, Any]) -> None:
    out, done = run
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content == json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert content["models"][1] == "vidembed/shapes"
    assert len(content["rows"]) == 8
    assert [row["difference"] is None for row in content["rows"]] == [True, False] * 4
    runs = sorted(path.name for path in out.iterdir() if path.is_dir() and path.name != "clips")
    assert [name[:2] for name in runs] == ["1-", "2-"]
    assert runs[1] == "2-vidembed-shapes"
    assert "2 of 2: vidembed/shapes" in done.stderr


def test_finished_runs_need_no_model(run: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.evaluation.embedder.load_any", lambda *_, **__: pytest.fail("a model was loaded"))
    folders = sorted(path for path in run[0].iterdir() if (path / "result.json").exists())
    done = vidembed("compare", "--results", *folders, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(run[1].stdout)


def test_table(tmp_path: Path) -> None:
    for name, skill in (("weak", 0.1), ("strong", 3.0)):
        made_up(1, skill=skill, name=name).save(tmp_path / name)
    done = vidembed("compare", "--results", tmp_path / "weak", tmp_path / "strong")
    assert done.exit_code == 0
    assert done.stdout.count("strong") == 4
    assert done.stdout.count(" (+") == 4
    assert "R@1 less the first" in done.stdout


def test_a_model_without_video_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path("shapes"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(
        str(tmp_path / "text")
    )
    done = vidembed("compare", "vidembed/shapes", tmp_path / "text", *DRAWN, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "not video" in done.stderr
    assert not list((tmp_path / "out").glob("*/result.json"))
    assert not list((tmp_path / "out").glob("*/cache"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a",), "got 1 of models; give at least 2"),
        (("a", "--results"), "got 1 of runs; give at least 2"),
        (("a", "b"), "give --benchmark, or --results"),
        (("a", "b", "--results", "--benchmark", "shapes"), "it cannot be used with --results"),
        (("a", "b@x", "--benchmark", "shapes"), "expected NAME or NAME@LAYER"),
        (("nowhere/a", "nowhere/b", "--results"), "not a result of `vidembed evaluate`"),
    ],
)
def test_misuse(arguments: tuple[str, ...], message: str) -> None:
    done = vidembed("compare", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
