"""The packages of the `index` extra."""

from __future__ import annotations

from typing import Any

from vidembed.index.errors import MissingExtraError


def require_packages() -> tuple[Any, Any]:
    """Return lancedb and pyarrow, imported here since they take a second, which `--help` need not wait for.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import lancedb  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f'the index needs LanceDB ({error}); install it with: pip install "vidembed[index]"'
        ) from error
    return lancedb, pa
