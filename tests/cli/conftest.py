from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.index.fakes import FakeEncoder, write_video, write_videos
from vidembed.cli import app


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of a red, a green and a blue video, and one of three seconds."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, colour in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        write_video(folder / f"{name}.mp4", [colour])
    write_video(folder / "long.mp4", [(90, 90, 90), (90, 90, 90), (150, 60, 40)])
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of twenty videos."""
    write_videos(tmp_path / "many", 20)
    return tmp_path / "many"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Loads the fake model in place of a real one; holds how it was asked for, and the model as `encoder`."""
    calls: list[dict[str, Any]] = []

    def load(name: str, **how: Any) -> FakeEncoder:
        encoder = FakeEncoder(name)
        for key, value in (how.get("sampling") or {}).items():
            object.__setattr__(encoder.sampling, key, value)
        calls.append({"name": name, **how, "encoder": encoder})
        return encoder

    monkeypatch.setattr("vidembed.encoder.load_encoder", load)
    return calls


def vidembed(*arguments: object, typed: str | bytes | None = None) -> Result:
    """Run the command line in this process, with `typed` as its standard input, which is no terminal."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file in a folder, with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
