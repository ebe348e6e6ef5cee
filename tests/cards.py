"""Runs the snippets of a model card, as a reader pastes them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any


def snippets(card: str) -> str:
    """The Python of a card."""
    return "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))


def run_snippets(card: str, video: Path) -> dict[str, Any]:
    """Run them in the current folder, with the videos that they name.

    Returns:
        The names that they leave.
    """
    code = snippets(card)
    for name in re.findall(r'"(\w+\.mp4)"', code):
        shutil.copyfile(video, name)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert {"model", "reranker"} & set(namespace)
    return namespace
