"""Names under ``vidembed/``: a model bundled with the package, else one in the store, else an error; no hub is asked.

``hf://vidembed/<name>`` is that name on the Hugging Face Hub. The store is ``$VIDEMBED_HOME/models``, by default
``~/.cache/vidembed/models``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

NAMESPACE = "vidembed/"
HUB = "hf://"
CONFIG_FILE = "vidembed_config.json"  # of an encoder: beside its weights, or alone, when it names those (a recipe)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")  # no separators, no leading dot: cannot leave the store
BUNDLED = {"shapes": "embedder", "shapes-mllm": "checkpoint", "shapes-rerank": "reranker"}  # names and folders


def store_dir() -> Path:
    """The folder that locally built models live in."""
    home = os.environ.get("VIDEMBED_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "vidembed") / "models"


def check_name(name: str) -> str:
    """Return `name` without the namespace; ValueError if it is no plain name."""
    bare = name.removeprefix(NAMESPACE)
    if not _NAME.fullmatch(bare):
        raise ValueError(
            f"model name {name!r} is not valid. Allowed: letters, digits, '.', '_' and '-', starting with a letter or "
            "digit, at most 96 characters, optionally after 'vidembed/'."
        )
    return bare


def find_model(name: str) -> Path | None:
    """The directory of a bundled or locally built model (with or without ``vidembed/``), or None; as `check_name`."""
    bare = check_name(name)
    if bare in BUNDLED:
        folder = Path(__file__).parent / "shapes" / BUNDLED[bare]
        return folder if folder.is_dir() else None
    folder = store_dir() / bare
    return folder if any((folder / file).is_file() for file in ("config.json", CONFIG_FILE)) else None


def model_path(name: str) -> Path:
    """The directory that ``vidembed/<name>`` (or ``<name>``) resolves to; usable wherever a path is, without the hook.

    Raises:
        ValueError: `name` is no plain name.
        FileNotFoundError: No such model is bundled or built.
    """
    folder = find_model(name)
    if folder is None:
        names, bare = model_names(), name.removeprefix(NAMESPACE)
        close = difflib.get_close_matches(bare, [known.removeprefix(NAMESPACE) for known in names], n=1)
        hint = f" Did you mean {NAMESPACE + close[0]!r}?" if close else ""
        raise FileNotFoundError(
            f"no model named {name!r} is bundled or built.{hint} There are: {', '.join(names) or 'none'} "
            f"(store: {store_dir()}). Build one with `vidembed build MLLM --layer N --name {bare}`. "
            f"One of that name on the Hugging Face Hub is '{HUB}{NAMESPACE}{bare}'."
        )
    return folder


def model_names() -> list[str]:
    """Names of the bundled and locally built models, with the namespace, sorted."""
    names = {name for name in BUNDLED if find_model(name)}
    store = store_dir()
    if store.is_dir():
        names |= {entry.name for entry in store.iterdir() if _NAME.fullmatch(entry.name) and find_model(entry.name)}
    return sorted(NAMESPACE + name for name in names)


def own_name(folder: str | Path) -> str | None:
    """The name under ``vidembed/`` that a folder has or will have, None for one elsewhere than in package and store."""
    path = Path(folder).expanduser().resolve()
    for name, bundled in BUNDLED.items():
        if path == Path(__file__).resolve().parent / "shapes" / bundled:
            return NAMESPACE + name
    in_store = path.parent == store_dir().resolve() and path.name not in BUNDLED and _NAME.fullmatch(path.name)
    return NAMESPACE + path.name if in_store else None


def portable_name(name: str) -> str:
    """Name a model without a path of this machine: a folder by its `own_name`, or else by its last part."""
    return own_name(name) or Path(name).name if Path(name).exists() else name


def loading_name(folder: str | Path) -> str:
    """What to paste into a constructor to load a folder: its `own_name`, else a path that works where it was given.

    Of an absolute path, which would work on this machine only, the last part is left, which works beside the folder.
    """
    path = Path(folder)
    if name := own_name(path):
        return name
    shown = path.name if path.expanduser().is_absolute() else path.as_posix()
    return shown if shown.startswith(("./", "../")) else f"./{shown}"


def resolve_model(name_or_path: str) -> str:
    """Resolve ``vidembed/<name>`` to a local directory, and ``hf://vidembed/<name>`` to the name on the Hub.

    Anything else, and a folder of that name, comes back as it is; raises as `model_path`.
    """
    if name_or_path.startswith(HUB + NAMESPACE):
        return name_or_path.removeprefix(HUB)
    if not name_or_path.startswith(NAMESPACE) or Path(name_or_path).exists():
        return name_or_path
    return str(model_path(name_or_path))


_LIBRARY = "sentence_transformers"
_CLASSES = {"SentenceTransformer": "VideoEncoder", "CrossEncoder": "VideoReranker"}
_FILES = (CONFIG_FILE, "vidembed_reranker.json")  # what vidembed writes beside the weights
_originals: dict[type, Callable[..., None]] = {}


def install() -> None:
    """Install the hook: now if sentence-transformers is imported, else when it is, so that ours needs no torch."""
    library = sys.modules.get(_LIBRARY)
    if library is not None and hasattr(library, next(iter(_CLASSES))):
        _patch(library)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


def remove() -> None:
    """Undo `install`."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WhenImported)]
    for cls, original in _originals.items():
        cls.__init__ = original  # type: ignore[misc]
    _originals.clear()


def _patch(library: ModuleType) -> None:
    for name, ours in _CLASSES.items():
        cls = getattr(library, name)
        if cls not in _originals:
            _originals[cls] = cls.__init__
            cls.__init__ = _patched_init(cls, ours)


def _patched_init(cls: type, ours: str) -> Callable[..., None]:
    original = _originals[cls]

    @functools.wraps(original)
    def init(self: object, model_name_or_path: object = None, *args: object, **kwargs: object) -> None:
        name = model_name_or_path
        if isinstance(name, os.PathLike) and _is_ours(os.fspath(name)):
            name = os.fspath(name)
        # our own classes have resolved the name before they come here
        if not _is_ours(name) or isinstance(self, kind := getattr(importlib.import_module("vidembed"), ours)):
            original(self, name, *args, **kwargs)
        elif type(self) is cls and Path(resolve_model(name)).is_dir():
            self.__class__ = kind
            kind.__init__(self, name, *args, **kwargs)
        else:
            original(self, resolve_model(name), *args, **kwargs)

    return init


def _is_ours(name: object) -> TypeGuard[str]:
    """Whether it is a name under ``vidembed/`` or a folder that vidembed wrote."""
    return isinstance(name, str) and (
        name.startswith((NAMESPACE, HUB + NAMESPACE)) or any(Path(name, file).is_file() for file in _FILES)
    )


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds nothing itself; patches the library right after its import has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _LIBRARY:
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
