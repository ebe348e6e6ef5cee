"""The hook by which sentence-transformers' own classes open vidembed models as vidembed does.

``import vidembed`` installs it on `SentenceTransformer` and `CrossEncoder`. Given a name under ``vidembed/`` that is
bundled or built locally, or a folder that vidembed wrote, they become their subclasses `VideoEncoder` and
`VideoReranker`, which decode videos themselves and refuse a checkpoint of the other kind. No other name or folder is
touched, and for other subclasses only the name is resolved. `remove` undoes it. A folder, such as `vidembed.model_path`
returns, loads without it too, as sentence-transformers does it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vidembed.models import HUB, NAMESPACE, resolve_model

_HOST = "sentence_transformers"
_CLASSES = {"SentenceTransformer": "VideoEncoder", "CrossEncoder": "VideoReranker"}
_FILES = ("vidembed_config.json", "vidembed_reranker.json")  # what vidembed writes beside the weights
_originals: dict[type, Any] = {}


def install() -> None:
    """Install the hook: now if sentence-transformers is imported, else at the moment it is.

    Waiting keeps ``import vidembed`` and ``vidembed --help`` free of torch.
    """
    host = sys.modules.get(_HOST)
    if host is not None and hasattr(host, next(iter(_CLASSES))):
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
    for name, ours in _CLASSES.items():
        cls = getattr(host, name)
        if cls not in _originals:
            _originals[cls] = cls.__init__
            cls.__init__ = _opening(cls, ours)


def _opening(cls: type, ours: str) -> Any:
    original = _originals[cls]

    @functools.wraps(original)
    def init(self: Any, model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> None:
        name = model_name_or_path
        if not _is_ours(name) or isinstance(self, kind := getattr(importlib.import_module("vidembed"), ours)):
            original(self, name, *args, **kwargs)  # our own classes have resolved it
        elif type(self) is cls and Path(resolve_model(name)).is_dir():
            self.__class__ = kind
            kind.__init__(self, name, *args, **kwargs)
        else:
            original(self, resolve_model(name), *args, **kwargs)

    return init


def _is_ours(name: Any) -> bool:
    """Whether it is a name under ``vidembed/`` or a folder that vidembed wrote."""
    if not isinstance(name, str):
        return False
    return name.startswith((NAMESPACE, HUB + NAMESPACE)) or any(Path(name, file).is_file() for file in _FILES)


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
