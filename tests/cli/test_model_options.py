"""Options of loading a model: on each command that loads one, and what reaches the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group

from tests.cli.conftest import vidembed
from vidembed.backbone.options import ModelOptions
from vidembed.cli import app

COMMANDS = get_group(app).commands
LOADING = {"--device", "--device-map", "--dtype", "--attn", "--revision", "--model-kwargs", "--quantize-model"}
LOADS = {
    *(
        "index",
        "search",
        "clip",
        "serve",
        "build",
        "check",
        "layers",
        "train",
        "adapt",
        "calibrate",
        "evaluate",
        "compare",
        "mteb",
    ),
    "caption",
    "demo",
}
GIVEN = (
    *("--device", "cpu", "--dtype", "float32", "--attn", "eager", "--revision", "main", "--quantize-model", "int8"),
    *("--model-kwargs", '{"max_memory": {"cpu": "4GB"}}'),
)
ASKED = ModelOptions(
    "float32", "cpu", None, "eager", "int8", "main", {"max_memory": {"cpu": "4GB"}}
)  # fmt: skip


def spellings(command: str) -> set[str]:
    """Names of a command's options."""
    return {name for each in COMMANDS[command].params for name in each.opts}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_that_loads_a_model_has_them(command: str) -> None:
    own = spellings(command)
    if command in LOADS:
        assert own >= LOADING
        # the word is of vectors there
        assert ("--quantize" in own) == (command != "search")
    else:
        assert not own & (LOADING - {"--device"})


def test_quantize_is_of_the_vectors_where_there_are_some(
    clips: Path, tmp_path: Path, loaded: list[dict[str, Any]]
) -> None:
    index = tmp_path / "ix"
    result = vidembed("index", clips, "--to", index, "--model", "fake", "--quantize", "int8", *GIVEN)
    assert result.exit_code == 0, result.stderr
    assert loaded[0]["options"] == ASKED
    assert vidembed("search", "red", "--in", index, "--quantized", "int8", *GIVEN).exit_code == 0
    assert loaded[1]["options"] == ASKED
    assert vidembed("search", "red", "--in", index).exit_code == 0
    assert loaded[2]["options"] is None
    assert vidembed("clip", "red", "--in", index, "--out", tmp_path / "a.mp4", "--quantize", "int4").exit_code == 0
    assert loaded[3]["options"] == ModelOptions(quantize="int4")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--dtype", "int3"), "dtype='int3' is not known"),
        (("--quantize-model", "int2"), "'int2'"),
        (("--device", "cpu", "--device-map", "auto"), "give one"),
        (("--quantize-model", "int4", "--dtype", "float16"), "computes in bfloat16"),
        (("--model-kwargs", "{"), "model-kwargs: "),
        (("--model-kwargs", "[1]"), "mapping of argument names"),
        (("--model-kwargs", '{"dtype": "auto"}'), "give dtype instead"),
        (("--model-kwargs", '{"trust_remote_code": true}'), "refused"),
        (("--quantize-model", "int4", "--device", "meta"), "on meta it is not tested"),
    ],
)
def test_misuse_writes_nothing(clips: Path, tmp_path: Path, given: tuple[str, ...], words: str) -> None:
    result = vidembed("index", clips, "--to", tmp_path / "ix", *given)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "ix").exists()


def test_an_index_of_quantized_vectors_is_searched_by_the_quantized_model(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    index, quantized = tmp_path / "ix", ("--quantize-model", "int8", "--device", "cpu")
    assert vidembed("index", clips, "--to", index, *quantized).exit_code == 0
    assert vidembed("search", "a red square", "--in", index, *quantized).exit_code == 0
    result = vidembed("search", "a red square", "--in", index, "--device", "cpu")
    assert result.exit_code == 2
    assert "quantization 'torchao Int8WeightOnlyConfig' in the index, None now" in " ".join(result.stderr.split())


def test_checkpoints_and_training_take_no_quantized_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("dense,summary\n" + "a red square moves,red square\n" * 8)
    quantized = ("--quantize", "int8", "--out", tmp_path / "out")
    built = vidembed("build", "vidembed/shapes-mllm", "--layer", 1, *quantized)
    trained = vidembed("train", "--model", "vidembed/shapes-mllm", "--pairs", pairs, "--kind", "plain", *quantized)
    assert (built.exit_code, trained.exit_code) == (2, 2)
    assert "quantize it where it is loaded" in " ".join(built.stderr.split())
    assert "quantized weights" in " ".join(trained.stderr.split()), trained.stderr
    assert not (tmp_path / "out").exists()
