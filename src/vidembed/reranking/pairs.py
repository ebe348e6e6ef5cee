"""Pairs told apart, and grouped by the video that they are about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from vidembed.encoding.inputs import Input, kind_of
from vidembed.encoding.pipeline import InputError
from vidembed.video import VideoError, VideoSegment

PairInput: TypeAlias = "tuple[Input, Input] | list[Input] | Mapping[str, Any]"
"""One pair of `VideoReranker.predict`."""


@dataclass(frozen=True)
class Pair:
    """One pair to score.

    Attributes:
        index: Position among the pairs of the call.
        video: A video (or image) source of any kind that `VideoEncoder` takes.
        text: The sentence.
    """

    index: int
    video: Any
    text: str


@dataclass
class VideoGroup:
    """All pairs about one video.

    Attributes:
        video: The source.
        pairs: In the order of the call.
    """

    video: Any
    pairs: list[Pair] = field(default_factory=list)


def as_pair(index: int, pair: Any) -> Pair:
    """Tell the two sides of a pair apart.

    Args:
        index: Position among the pairs of the call.
        pair: (text, video), (video, text) or ``{"text": ..., "video": ...}``.

    Raises:
        InputError: It is not one text and one video, or the text is empty; the message names the pair.
    """
    if isinstance(pair, Mapping):
        if set(pair) != {"text", "video"}:
            raise InputError(f"pairs[{index}] has keys {sorted(map(str, pair))}; allowed are 'text' and 'video', both.")
        return Pair(index, pair["video"], _checked(index, pair["text"]))
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"pairs[{index}] is no pair but {type(pair).__name__}; give (text, video) or (video, text).")
    kinds = [_kind(index, side) for side in pair]
    is_text = [kind == "text" for kind in kinds]
    if is_text == [True, False]:
        text, video = pair
    elif is_text == [False, True]:
        video, text = pair
    else:
        raise InputError(
            f"pairs[{index}] holds {kinds[0]} and {kinds[1]}; one text and one video are needed. Pass {{'text': ...}} "
            "for words that look like a file name."
        )
    return Pair(index, video["video"] if _wraps_video(video) else video, _checked(index, text))


def check_indexed(name: str, items: Any) -> None:
    """Refuse what has no positions, such as a generator or a set, or numbers its items itself, as a Series does.

    Raises:
        TypeError: It is no list, tuple, array or other sequence.
    """
    if not isinstance(items, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: got a {type(items).__name__}; a list is needed. Pass list({name}).")


def _wraps_video(source: Any) -> bool:
    return isinstance(source, Mapping) and set(source) == {"video"}


def _kind(index: int, side: Any) -> str:
    try:
        return kind_of(side)
    except VideoError:
        raise
    except ValueError as error:
        raise InputError(f"pairs[{index}]: {error}") from error


def _checked(index: int, text: Any) -> str:
    words = text["text"] if isinstance(text, Mapping) else text
    if not isinstance(words, str) or not words.strip():
        raise InputError(f"pairs[{index}]: the sentence is empty; there is nothing to ask of the video.")
    return words


def by_video(pairs: Sequence[Pair]) -> list[VideoGroup]:
    """Group pairs by their video, in order of first appearance. Equal paths and segments are one video."""
    groups: dict[Any, VideoGroup] = {}
    for pair in pairs:
        groups.setdefault(_identity(pair.video), VideoGroup(pair.video)).pairs.append(pair)
    return list(groups.values())


def _identity(video: Any) -> Any:
    if isinstance(video, (str, os.PathLike)):
        return os.fspath(video)
    if isinstance(video, VideoSegment) and isinstance(video.path, (str, os.PathLike)):
        return (os.fspath(video.path), video.start, video.end)
    return id(video)  # arrays, bytes, handles: the same object is the same video
