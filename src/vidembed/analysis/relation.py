"""Which text is true of which video, and the two halves: one to choose a layer on, one to report it on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidembed.annotations import CaptionedVideo

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]

_LEAST = 2  # videos and texts of a half: with one there is nothing to rank


@dataclass(frozen=True, eq=False)
class Relation:
    """Videos and texts, each once, and which belong together.

    Attributes:
        videos: The files, in order of first appearance.
        texts: The texts, in order of first appearance.
        positives: ``(T, V)``; every row and every column holds at least one True.
    """

    videos: tuple[Path, ...]
    texts: tuple[str, ...]
    positives: BoolArray

    def without(self, videos: Iterable[int], texts: Iterable[int]) -> tuple[Relation, IndexArray, IndexArray]:
        """Leave out videos and texts, and what is then without a partner.

        Args:
            videos: Positions of videos to leave out.
            texts: Positions of texts to leave out.

        Returns:
            The relation of the others, and the positions of its videos ``(V',)`` and texts ``(T',)`` in this one.
        """
        rest = self.positives.copy()
        rest[list(texts)] = False
        rest[:, list(videos)] = False
        kept_videos, kept_texts = np.flatnonzero(rest.any(axis=0)), np.flatnonzero(rest.any(axis=1))
        relation = Relation(
            tuple(self.videos[index] for index in kept_videos),
            tuple(self.texts[index] for index in kept_texts),
            rest[np.ix_(kept_texts, kept_videos)],
        )
        return relation, kept_videos, kept_texts


def relation_of(pairs: Iterable[CaptionedVideo]) -> Relation:
    """Merge equal videos (by resolved path) and equal texts. Pairs with a label of False are left out.

    Raises:
        ValueError: There are no pairs, or all have a label of False.
    """
    videos: dict[str, Path] = {}
    places: dict[str, int] = {}
    texts: dict[str, int] = {}
    true: set[tuple[int, int]] = set()
    for pair in pairs:
        if pair.label is False:
            continue
        key = os.path.realpath(pair.video)
        videos.setdefault(key, pair.video)
        true.add((texts.setdefault(pair.text, len(texts)), places.setdefault(key, len(places))))
    if not true:
        raise ValueError("pairs: there is no text that is true of a video; give pairs without a label or with label 1")
    positives = np.zeros((len(texts), len(videos)), dtype=np.bool_)
    positives[tuple(np.array(sorted(true)).T)] = True
    return Relation(tuple(videos.values()), tuple(texts), positives)


@dataclass(frozen=True, eq=False)
class Half:
    """Part of a relation.

    Attributes:
        videos: ``(V',)`` positions of its videos, ascending.
        texts: ``(T',)`` positions of its texts, ascending.
        positives: ``(T', V')``; every row and every column holds at least one True.
    """

    videos: IndexArray
    texts: IndexArray
    positives: BoolArray


def split_halves(positives: BoolArray, *, seed: int) -> tuple[Half, Half]:
    """Split at random into a half to choose on and a half to report on, which share no video and no text.

    Texts go with their videos. Videos that share a text go to the same half as far as the halves allow: groups of
    videos connected by texts are shuffled, then the videos within each, and the row is cut in the middle. A text with
    videos on both sides of the cut goes where it has more of them (of equals to the reporting half), and a video
    left without a text is left out.

    Args:
        positives: ``(T, V)``, every row and column with at least one True.
        seed: Of the shuffle, at least 0.

    Returns:
        The choosing half (``V // 2`` videos, less those left out) and the reporting half.

    Raises:
        ValueError: A half has fewer than two videos or texts.
    """
    rng = np.random.default_rng(seed)
    groups = _connected(positives)  # (V,)
    place = rng.permutation(int(groups.max()) + 1)[groups]  # (V,) of its group in the shuffled row
    order = np.lexsort((rng.permutation(groups.size), place))
    chooses = np.zeros(groups.size, dtype=np.bool_)  # (V,)
    chooses[order[: groups.size // 2]] = True
    text_chooses = positives[:, chooses].sum(axis=1) > positives[:, ~chooses].sum(axis=1)  # (T,)
    first, second = (_half(positives, text_chooses == side, chooses == side) for side in (True, False))
    for half in (first, second):
        if min(half.videos.size, half.texts.size) < _LEAST:
            raise ValueError(
                f"pairs: {positives.shape[1]} videos with {positives.shape[0]} texts are too few: a layer is chosen on "
                f"one half of the videos and reported on the other, and a half has {half.videos.size} videos with "
                f"{half.texts.size} texts of their own. Give at least {2 * _LEAST} videos with a text each; intervals "
                "worth reading take a few hundred."
            )
    return first, second


def _half(positives: BoolArray, text_in: BoolArray, video_in: BoolArray) -> Half:
    texts = np.flatnonzero(text_in)
    inside = positives[texts] & video_in
    videos = np.flatnonzero(inside.any(axis=0))
    return Half(videos, texts, inside[:, videos])


def _connected(positives: BoolArray) -> IndexArray:
    """Number of the group of each video (V,): videos that share a text are in one group, and so on through others."""
    parent = list(range(positives.shape[1]))

    def root(video: int) -> int:
        while parent[video] != video:
            parent[video] = parent[parent[video]]
            video = parent[video]
        return video

    for row in positives:
        first, *others = np.flatnonzero(row).tolist()
        for other in others:
            parent[root(other)] = root(first)
    return np.unique([root(video) for video in range(len(parent))], return_inverse=True)[1]
