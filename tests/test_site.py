"""The documentation site: its navigation, its API pages and its links. `make docs` builds it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES_BESIDE = {"changelog.md", "contributing.md", "security.md"}  # which tools/docs/links.py adds
API_NAMES = {
    name
    for page in (DOCS / "api").glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
PACKAGES = [
    "vidembed",
    "langchain_vidembed",
    "llama_index.embeddings.vidembed",
    "llama_index.postprocessor.vidembed_rerank",
    "llama_index.readers.vidembed",
]


class Loader(yaml.SafeLoader):
    """Reads what MkDocs would call as nothing."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation_pages(entry: object) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation_pages(part)


def test_navigation_names_every_page_once() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)  # a SafeLoader
    pages = list(navigation_pages(config["nav"]))
    assert len(pages) == len(set(pages))
    assert set(pages) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} | PAGES_BESIDE


def test_index_links_to_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)#\s]+)", index))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize("package", PACKAGES)
def test_api_pages_cover_the_public_names(package: str) -> None:
    documented = {id(pkgutil.resolve_name(name)) for name in API_NAMES}
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if id(getattr(module, name)) not in documented] == []


def test_api_pages_cover_what_other_pages_import() -> None:
    documented = {id(pkgutil.resolve_name(name)) for name in API_NAMES}
    documented |= {id(importlib.import_module(name.rpartition(".")[0])) for name in API_NAMES if name.count(".") > 1}
    missing = set()
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"^from (vidembed[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
            for name in names.replace(" ", "").split(","):
                if id(getattr(importlib.import_module(module), name)) not in documented:
                    missing.add(f"{module}.{name}")
    assert missing == set()


@pytest.mark.parametrize(
    ("target", "source", "page", "expected"),
    [
        ("search.md", "docs/encoder.md", "encoder.md", "search.md"),
        ("../encoder.md", "docs/api/models.md", "api/models.md", "../encoder.md"),
        ("../SECURITY.md", "docs/serving.md", "serving.md", "security.md"),
        ("docs/serving.md", "SECURITY.md", "security.md", "serving.md"),
        ("../benchmarks/train.json", "docs/training.md", "training.md", "repository:benchmarks/train.json"),
        ("../../Makefile", "docs/api/models.md", "api/models.md", "repository:Makefile"),
        ("https://example.org/a", "docs/encoder.md", "encoder.md", "https://example.org/a"),
    ],
)
def test_links_on_the_site(target: str, source: str, page: str, expected: str) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    from tools.docs.links import site_target

    assert site_target(target, source, page) == expected
