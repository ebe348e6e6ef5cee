"""Every exported name of every package can be imported."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import vidembed

PACKAGES = ["vidembed", *(m.name for m in pkgutil.walk_packages(vidembed.__path__, "vidembed.") if m.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_exist(package: str) -> None:
    module = importlib.import_module(package)
    missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert missing == []
