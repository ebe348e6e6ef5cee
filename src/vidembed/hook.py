"""The hook by which ``SentenceTransformer("vidembed/<name>")`` finds bundled and locally built models.

``import vidembed`` installs it on `SentenceTransformer` and `CrossEncoder`. It looks at the first argument of their
constructor, only if that is a string under ``vidembed/``, and touches no other name. `remove` undoes it. A directory,
such as `vidembed.model_path` returns, works without it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from vidembed.models import resolve_model

_HOST = "sentence_transformers"
_CLASSES = ("SentenceTransformer", "CrossEncoder")
_originals: dict[type, Any] = {}


def install() -> None:
    """Install the hook: now if sentence-transformers is imported, else at the moment it is.

    Waiting keeps ``import vidembed`` and ``vidembed --help`` free of torch.
    """
    host = sys.modules.get(_HOST)
    if host is not None and getattr(host, _CLASSES[0], None) is not None:
        _patch(host)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def remove() -> None:
    """Undo `install`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WhenImported)]
    for cls, original in _originals.items():
        cls.__init__ = original  # type: ignore[misc]
    _originals.clear()


def _patch(host: ModuleType) -> None:
    for name in _CLASSES:
        cls = getattr(host, name)
        if cls not in _originals:
            _originals[cls] = cls.__init__
            cls.__init__ = _resolving(cls.__init__)


def _resolving(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> None:
        if isinstance(model_name_or_path, str):
            model_name_or_path = resolve_model(model_name_or_path)
        original(self, model_name_or_path, *args, **kwargs)

    return init


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself; has the host patched right after its import has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _HOST:
            return None
        sys.meta_path.remove(self)  # once: and the lookup below must not find us again
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_then_patch(module: ModuleType) -> None:
            run(module)
            _patch(module)

        spec.loader.exec_module = run_then_patch  # type: ignore[method-assign]
        return spec
