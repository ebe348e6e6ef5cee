"""What the package gives is what it gave. After a change that is meant, `python -m tests.golden` writes it anew.

Texts and structures are compared exactly. Numbers come from matrix products, which CPUs add up in different orders:
vectors may turn by 1e-6 (one minus their cosine), scores and cells may differ by 1e-5, and figures of an evaluation,
whose clips are encoded with loss, by 1e-3 of their value. A fitted temperature alone may differ by 5e-3: it follows the
spread of the scores, and the clips' bytes are not the same each time (1.1e-3 was seen).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.sections import HERE, SECTIONS, load

TURN = 1e-6
SCORE = 1e-5
FIGURE = 1e-3
TEMPERATURE = 5e-3


def differences(found: Any, kept: Any, at: str = "", *, relative: float = 0.0) -> list[str]:
    """Where two JSON values differ."""
    if isinstance(kept, dict) and isinstance(found, dict):
        names = sorted({*kept, *found})
        parts = [(f"{at}.{name}", found.get(name, "(none)"), kept.get(name, "(none)")) for name in names]
    elif isinstance(kept, list) and isinstance(found, (list, tuple)) and len(found) == len(kept):
        parts = [(f"{at}[{place}]", *pair) for place, pair in enumerate(zip(found, kept, strict=True))]
    elif isinstance(kept, float) and isinstance(found, (int, float)) and not isinstance(found, bool):
        share = TEMPERATURE if relative and at.startswith(".temperatures.") else relative
        return [] if abs(found - kept) <= max(SCORE, share * abs(kept)) else [f"{at}: {found} was {kept}"]
    else:
        same = found == kept and isinstance(found, bool) == isinstance(kept, bool)
        return [] if same else [f"{at}: {found!r} was {kept!r}"]
    return [each for place, one, other in parts for each in differences(one, other, place, relative=relative)]


@pytest.mark.parametrize("section", [name for name in SECTIONS if name.startswith("vectors")])
def test_vectors(section: str, tmp_path: Path) -> None:
    found, kept = SECTIONS[section](tmp_path), load(section)
    assert set(found) == set(kept)
    for name, array in kept.items():
        assert found[name].shape == array.shape, name
        lengths = np.linalg.norm(found[name], axis=1) * np.linalg.norm(array, axis=1)  # (N,)
        cosines = (found[name].astype(np.float64) * array).sum(axis=1) / lengths
        assert (1 - cosines).max() <= TURN, name


@pytest.mark.parametrize("section", [name for name in SECTIONS if not name.startswith("vectors")])
def test_values(section: str, tmp_path: Path) -> None:
    relative = FIGURE if section == "report" else 0.0
    assert differences(SECTIONS[section](tmp_path), load(section), relative=relative) == []


def test_the_files_are_small_and_none_is_left_over() -> None:
    files = [path for path in HERE.iterdir() if path.suffix in {".json", ".safetensors"}]
    assert {path.stem for path in files} == set(SECTIONS)
    assert sum(path.stat().st_size for path in files) < 300_000


@pytest.mark.parametrize("found", [{"a": 1.1}, {"a": 1.0, "b": 1}, {"a": True}, {"a": "1.0"}, {}, []])
def test_a_difference_is_found(found: Any) -> None:
    assert differences(found, {"a": 1.0})
    assert differences({"a": 1.000001}, {"a": 1.0}) == []
