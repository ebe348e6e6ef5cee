"""What is checked of a distribution before it is published, and that all files name one version."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import yaml
from tools.release import MAX_BYTES, PACKAGES, ROOT, problems_of, project

import vidembed

LICENSE = "vidembed-0.dist-info/licenses/LICENSE"


def wheel(folder: Path, *names: str, size: int = 0) -> Path:
    file = folder / "vidembed-0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"0" * size)
    return file


def test_accepts_a_wheel_of_the_package_alone(tmp_path: Path) -> None:
    assert problems_of(wheel(tmp_path, "vidembed/__init__.py", "vidembed/tests.py", LICENSE)) == []


@pytest.mark.parametrize("name", ["tests/conftest.py", "tools/release.py", "vidembed/benchmarks/feed.json"])
def test_rejects_a_wheel_with_files_that_are_not_for_users(tmp_path: Path, name: str) -> None:
    assert problems_of(wheel(tmp_path, name, LICENSE)) == [f"vidembed-0-py3-none-any.whl holds {name}"]


def test_rejects_a_wheel_without_its_licence(tmp_path: Path) -> None:
    assert problems_of(wheel(tmp_path, "vidembed/__init__.py")) == ["vidembed-0-py3-none-any.whl holds no LICENSE"]


def test_rejects_a_large_file(tmp_path: Path) -> None:
    assert problems_of(wheel(tmp_path, LICENSE, size=MAX_BYTES - 10_000)) == []
    (problem,) = problems_of(wheel(tmp_path, LICENSE, size=MAX_BYTES))
    assert "20,000,000 are allowed" in problem


def test_all_files_name_one_version() -> None:
    version = vidembed.__version__
    assert len(PACKAGES) == 3
    assert {project(package)["version"] for package in PACKAGES} == {version}
    major, minor, _ = map(int, version.split("."))
    for package in PACKAGES[1:]:
        assert f"vidembed>={major}.{minor},<{major}.{minor + 1}" in project(package)["dependencies"]
    langchain = (PACKAGES[1] / "langchain_vidembed" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version}"' in langchain
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest is not None
    assert newest.groups() == (version, cited["date-released"].isoformat())
    assert cited["version"] == version
    assert cited["preferred-citation"]["url"].endswith("/2602.08099")
