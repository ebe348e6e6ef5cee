"""Models: loaded late, checked early, and used by one thread at a time."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel

if TYPE_CHECKING:
    from vidembed import VideoEncoder, VideoReranker

DEFAULT_MODEL: Final = "vidembed/shapes"
DEFAULT_RERANKER: Final = "vidembed/shapes-rerank"

_NOT_THE_CALLER = frozenset({"langchain_vidembed", "pydantic"})
OnError = Literal["raise", "skip"]

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def lock_of(model: VideoEncoder | VideoReranker) -> threading.RLock:
    """Return the lock of the weights of a model: an encoder and a reranker that share weights share it.

    LangChain calls models from the threads of an executor. Tokenizers and the hooks of a shared prefix are not made for
    several at once.
    """
    weights = model if model.backbone is None else model.backbone.model
    with _locks_lock:
        return _locks.setdefault(weights, threading.RLock())


def warn_of_default(model: str) -> None:
    """Say once a call site that the bundled model is no model for real videos."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_CALLER:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{model} knows only a drawn world of moving shapes; pass model=... for videos of the real one.",
        stacklevel=level,
    )


def check_ready(owner: BaseModel, name: str, needed: Iterable[str], excluded: Collection[str]) -> None:
    """Check a model that was given ready.

    Args:
        owner: What it was given to.
        name: Of the field.
        needed: Methods that it must have.
        excluded: Fields that would say how to load one.

    Raises:
        ValueError: It is no such model, or one of `excluded` was given beside it.
    """
    model = getattr(owner, name)
    if lacking := [method for method in needed if not callable(getattr(model, method, None))]:
        raise ValueError(f"{name}: got {type(model).__name__}, which has no {', '.join(lacking)}; a model is needed")
    if given := sorted(owner.model_fields_set & set(excluded)):
        raise ValueError(f"{', '.join(given)}: {name} is given and loaded already; set this where it is made instead")


def check_model_kwargs(given: dict[str, Any], fields: dict[str, str]) -> None:
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


def check_urls(allowed_schemes: Collection[str], model: VideoEncoder | VideoReranker, name: str) -> None:
    """Refuse a ready model that does not fetch what the schemes allow.

    Raises:
        ValueError: It is so.
    """
    if wants_urls(allowed_schemes) and not getattr(model, "allow_url", False):
        raise ValueError(f"allowed_schemes: http(s) is allowed here, but {name} was made with allow_url=False")


def wants_urls(allowed_schemes: Collection[str]) -> bool:
    """Whether addresses are to be fetched."""
    return bool({"http", "https"} & set(allowed_schemes))
