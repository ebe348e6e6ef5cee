"""`vidembed reproduce shapes`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from vidembed.cli import app

FEW = ["--clips", "6", "--layer-clips", "24", "--fit-clips", "10"]


def test_figures_as_json_and_files(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reproduce", "shapes", *FEW, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["clips"], figures["fit_clips"], figures["captions"]["sets"]) == (6, 10, 3)
    assert json.loads((tmp_path / "out" / "shapes.json").read_text()) == figures
    assert (tmp_path / "out" / "layers.png").stat().st_size > 2000


def test_misuse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["coco"], "'coco' is not"),
        (["shapes", "--out", str(tmp_path / "file")], "is a file"),
        (["shapes", "--clips", "6", "--layer-clips", "8", "--fit-clips", "9"], "fit_clips=9"),
        (["shapes", "--device", "abacus"], "abacus"),
    ):
        result = CliRunner().invoke(app, ["reproduce", *arguments])
        assert result.exit_code == 2
        assert message in result.output
