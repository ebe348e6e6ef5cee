"""Small JSON files that hold fitted numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidembed.scoring._checks import number

FORMAT_VERSION = 1


def check_header(file: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Check what a file says it is.

    Raises:
        ValueError: It is of another kind or format.
    """
    if content.get("kind") != kind or str(content.get("format_version")) != str(FORMAT_VERSION):
        raise ValueError(
            f"{file}: expected kind {kind!r} of format_version {FORMAT_VERSION}, got kind {content.get('kind')!r} of "
            f"format_version {content.get('format_version')!r}; fit and save it again"
        )


def write_numbers(file: str | Path, kind: str, numbers: Mapping[str, float]) -> None:
    """Write finite numbers as JSON, with what they are."""
    content = {"kind": kind, "format_version": FORMAT_VERSION, **numbers}
    Path(file).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_numbers(file: str | Path, kind: str, names: Sequence[str]) -> dict[str, float]:
    """Read back what `write_numbers` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, of another kind or format, or a number is missing or not finite.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")  # noqa: TRY004 - of the file
    check_header(file, kind, content)
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{file}: {', '.join(missing)} missing; fit and save it again")
    return {name: number(f"{file}: {name}", content[name]) for name in names}
