"""What the count of modules on a journey counts."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.journeys import entered

MODULES = {
    "__init__": "",
    "work": "def run():\n    return [each for each in range(3)]\n",
    "lazily": "def run():\n    from parcel import late\n    return late.VALUE\n",
    "late": "from parcel import helper\nVALUE = helper.run()\n",
    "helper": "def run():\n    return 1\n",
    "models": """
from parcel import helper


class VideoEncoder:
    def __init__(self):
        helper.run()

    def encode(self):
        return 1
""",
    "sub.__init__": "def run():\n    return 1\n",
    "script": """
import sys


def main():
    sys.path.insert(0, sys.argv[1])
    from parcel import work

    work.run()


if __name__ == "__main__":
    main()
""",
}


@pytest.fixture
def parcel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of modules that call each other."""
    for name, text in MODULES.items():
        path = tmp_path / "parcel" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "parcel"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "parcel"


def loaded(name: str) -> ModuleType:
    return importlib.import_module(f"parcel.{name}")


def in_thread(call: object) -> None:
    thread = threading.Thread(target=call)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_functions_are_counted_in_every_thread(parcel: Path) -> None:
    work, sub = loaded("work"), loaded("sub")
    assert entered(work.run, parcel) == {"process": ["work"], "workers": []}
    assert entered(lambda: in_thread(sub.run), parcel)["process"] == ["sub"]
    assert entered(lambda: [work.run(), sub.run()], parcel)["process"] == ["sub", "work"]
    assert entered(lambda: None, parcel)["process"] == []


def test_imports_are_not_counted(parcel: Path) -> None:
    lazily = loaded("lazily")
    assert "parcel.late" not in sys.modules
    assert entered(lazily.run, parcel)["process"] == ["lazily"]  # neither `late` nor what its body calls
    assert "parcel.late" in sys.modules


def test_loading_is_not_counted_and_work_is(parcel: Path) -> None:
    models, helper = loaded("models"), loaded("helper")
    assert entered(models.VideoEncoder, parcel)["process"] == []
    assert entered(lambda: models.VideoEncoder().encode(), parcel)["process"] == ["models"]
    assert entered(lambda: [models.VideoEncoder(), helper.run()], parcel)["process"] == ["helper"]


def test_worker_processes_are_counted(parcel: Path) -> None:
    command = [sys.executable, "-P", str(parcel / "script.py"), str(parcel.parent)]
    found = entered(lambda: subprocess.run(command, check=True), parcel)
    assert found == {"process": [], "workers": ["script", "work"]}
