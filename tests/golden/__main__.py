"""Write the golden files anew, all or those that are named: `python -m tests.golden [SECTION...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.golden.sections import SECTIONS, save


def main(names: list[str]) -> None:
    if unknown := set(names) - set(SECTIONS):
        sys.exit(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in names or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            path = save(name, SECTIONS[name](Path(folder)))
        sys.stderr.write(f"wrote {path.name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1:])
