"""The packages of the extra ``train``, and the error that names it."""

from __future__ import annotations

import importlib.util

from vidembed.index.errors import MissingExtraError

_PACKAGES = ("peft", "accelerate", "datasets")


def require_extra() -> None:
    """Check that the packages of the extra are there, before anything is loaded.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'training needs {", ".join(missing)}, which is not installed; pip install "vidembed[train]"'
        )
