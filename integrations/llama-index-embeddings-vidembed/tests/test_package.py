"""What is installed, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "llama_index.embeddings.vidembed",
    "llama_index.postprocessor.vidembed_rerank",
    "llama_index.readers.vidembed",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_are_there(package: str) -> None:
    module = __import__(package, fromlist=["_"])
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_it_takes_no_torch_and_no_store() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "lancedb", "chromadb", "qdrant_client", "faiss"}
    code = f"import sys, {', '.join(PACKAGES)}; sys.exit(', '.join({heavy!r} & set(sys.modules)) or None)"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_namespaces_are_left_to_llama_index() -> None:
    for folder in ("llama_index", "llama_index/embeddings", "llama_index/postprocessor", "llama_index/readers"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_packages_that_break_others_are_no_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    # on lancedb 0.40 its delete() fails
    assert not any(one.startswith("llama-index-vector-stores-lancedb") for one in named)


def test_the_wheel_installs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    made = subprocess.run(build, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert not any(name.startswith("tests/") for name in names)
    assert {name.rpartition("/")[0].replace("/", ".") for name in names if name.endswith("/__init__.py")} == set(
        PACKAGES
    )
    assert {name.rpartition("/")[0].replace("/", ".") for name in names if name.endswith("/py.typed")} == set(PACKAGES)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\nimport llama_index.core\n" + "\n".join(
        f"import {package} as p; assert p.__file__.startswith({str(tmp_path)!r}), p" for package in PACKAGES
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
