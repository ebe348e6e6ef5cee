"""What a retrieval benchmark is: videos, texts, and which belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Videos, texts, and which text is true of which video, as one published protocol has it.

    Attributes:
        name: As `vidembed evaluate --benchmark` takes it, such as ``"msrvtt"``.
        title: As papers write it, such as ``"MSR-VTT 1k-A"``.
        split: Which part of the data, such as ``"test 1k-A"``.
        protocol: What counts as right, in a sentence or two.
        source: Where the annotation file is published (URL), or the file itself for a benchmark of the user's.
        video_ids: Names of the V videos, as the annotations have them; all different.
        videos: Their files, in the same order.
        texts: T texts. Equal ones are not merged where the protocol keeps them apart.
        owners: For each text the places of the videos it is true of, at least one.
        missing: Ids of videos that were left out with their texts, because there is no file (``allow_missing``).
        notes: What a reader of the result should know about this data, one sentence each.
    """

    name: str
    title: str
    split: str
    protocol: str
    source: str
    video_ids: tuple[str, ...]
    videos: tuple[Path, ...]
    texts: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: They do not.
        """
        if len(self.videos) != len(self.video_ids) or len(set(self.video_ids)) != len(self.video_ids):
            raise ValueError(f"video_ids: {len(self.video_ids)} ids, all different, expected for {len(self.videos)}")
        if len(self.owners) != len(self.texts):
            raise ValueError(f"owners: got {len(self.owners)}, expected one a text, {len(self.texts)}")
        for row, places in enumerate(self.owners):
            if not places or not all(0 <= place < len(self.videos) for place in places):
                raise ValueError(f"owners[{row}]={places}: expected at least one place below {len(self.videos)}")
        owned = {place for places in self.owners for place in places}
        if bare := [one for place, one in enumerate(self.video_ids) if place not in owned]:
            raise ValueError(f"owners: no text is true of {len(bare)} videos, the first is {bare[0]!r}")

    @property
    def positives(self) -> NDArray[np.bool_]:
        """Which videos each text is true of, ``(T, V)``; its transpose is for the other direction."""
        mask = np.zeros((len(self.texts), len(self.videos)), dtype=np.bool_)
        for row, places in enumerate(self.owners):
            mask[row, list(places)] = True
        return mask
