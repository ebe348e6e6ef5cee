"""Models: loaded late, and used by one thread at a time."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from vidembed import VideoEncoder, VideoReranker

DEFAULT_MODEL: Final = "vidembed/shapes"
DEFAULT_RERANKER: Final = "vidembed/shapes-rerank"
READY: Final = "ready:"
"""Beginning of the name of a model that was given ready, and cannot be loaded by that name."""

_NOT_THE_CALLER = ("llama_index.embeddings.vidembed", "llama_index.postprocessor.vidembed_rerank", "pydantic")
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def lock_of(model: VideoEncoder | VideoReranker) -> threading.RLock:
    """Return the lock of the weights of a model: an encoder and a reranker that share weights share it.

    LlamaIndex calls models from several threads. Tokenizers and the hooks of a shared prefix are not made for that.
    """
    weights = model if model.backbone is None else model.backbone.model
    with _locks_lock:
        return _locks.setdefault(weights, threading.RLock())


def warn_of_default(model: str) -> None:
    """Say that the bundled model is no model for real videos, at the line that made one."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_CALLER):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{model} knows only a drawn world of moving shapes; name a model for real videos.", stacklevel=level)


def check_ready(name: str, model: Any, needed: str, given: Mapping[str, Any]) -> None:
    """Check a model that was given ready.

    Args:
        name: Of the argument.
        model: Its value.
        needed: A method that it must have.
        given: Fields that say how to load one, with their values.

    Raises:
        ValueError: It is no such model, or one of `given` is set beside it.
    """
    if not callable(getattr(model, needed, None)):
        raise ValueError(  # noqa: TRY004 - as for every other field
            f"{name}: got {type(model).__name__}, which has no {needed}(); a vidembed model is needed"
        )
    if said := sorted(field for field, value in given.items() if value):
        raise ValueError(f"{', '.join(said)}: {name} is given and loaded already; set this where it is made instead")


def check_loadable(name: str, argument: str) -> None:
    """Refuse the name of a model that was given ready.

    Raises:
        ValueError: It is one.
    """
    if name.startswith(READY):
        raise ValueError(
            f"{name!r} is no model that can be loaded: it was given ready. Give it again as {argument}=..., for "
            f"example from_dict(saved, {argument}=...)."
        )


def check_model_kwargs(given: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Refuse what has a field of its own.

    Args:
        given: The field ``model_kwargs``.
        fields: Names of arguments, and of the fields that they are.

    Raises:
        ValueError: One of them is in `given`.
    """
    for argument, field in fields.items():
        if argument in given:
            raise ValueError(f"model_kwargs: {argument!r} is set by the field {field!r}; give it there")


def check_urls(*, wants_urls: bool, model: Any, name: str) -> None:
    """Refuse a ready model that does not fetch what the schemes allow.

    Raises:
        ValueError: It is so.
    """
    if wants_urls and not getattr(model, "allow_url", False):
        raise ValueError(f"allowed_schemes: http(s) is allowed here, but {name} was made with allow_url=False")
