"""Builds the three distributions and checks them as a user gets them: `make release-check`.

Each gets an sdist, and a wheel that is built from it. `twine check --strict` reads them; sizes are checked, and what
the wheels hold. Then they are installed into an environment of their own, and the demo and `tools/installed.py` run
there, away from the repository. Needs an index of packages. What is left in build/release is what `twine upload` takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = (ROOT, *sorted((ROOT / "integrations").glob("*vidembed*")))
MAX_BYTES: Final = 20_000_000  # of a wheel or an sdist (our choice; the Python Package Index takes 100 MB)
NOT_SHIPPED: Final = frozenset({"tests", "tools", "benchmarks", "docs"})  # folders that no wheel holds
DEMO_CLIPS: Final = 12


def project(package: Path) -> dict[str, Any]:
    """Return the table `project` of the pyproject.toml in a folder."""
    table: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def problems_of(file: Path) -> list[str]:
    """Return what is wrong with a wheel or an sdist, a sentence each: its size, or, of a wheel, what it holds."""
    found = []
    if (size := file.stat().st_size) > MAX_BYTES:
        found.append(f"{file.name} has {size:,} bytes; at most {MAX_BYTES:,} are allowed")
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            names = wheel.namelist()
        found += [f"{file.name} holds {name}" for name in names if NOT_SHIPPED & set(Path(name).parts[:-1])]
        if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
            found.append(f"{file.name} holds no LICENSE")
    return found


def build(out: Path) -> list[Path]:
    """Build an sdist and a wheel of each package into an empty folder, and return the files."""
    shutil.rmtree(out, ignore_errors=True)
    for package in PACKAGES:
        _run([sys.executable, "-m", "build", "--outdir", out, package])
    return sorted(out.iterdir())


def try_out(wheels: Sequence[Path], folder: Path) -> None:
    """Install wheels into a new environment in `folder`, and run the demo and `tools/installed.py` there."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    install: list[str | Path] = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, *wheels, "vidembed[index]"], folder)  # the wheel of that name; the demo needs the extra
    _run([programs / "vidembed", "--version"], folder)
    _run([programs / "vidembed", "demo", "--clips", str(DEMO_CLIPS), "--out", "demo"], folder)
    _run([programs / "python", "-I", ROOT / "tools" / "installed.py"], folder)


def _run(command: Sequence[str | Path], folder: Path = ROOT) -> None:
    """Run a command without this process's paths of modules; CalledProcessError if it fails."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    subprocess.run(command, check=True, cwd=folder, env=clean)  # noqa: S603 - our own commands


def main() -> None:
    """Build, check and try the distributions; exit with what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "release", metavar="FOLDER", help="for the files")
    files = build(parser.parse_args().to.resolve())
    _run([sys.executable, "-m", "twine", "check", "--strict", *files])
    if problems := [problem for file in files for problem in problems_of(file)]:
        sys.exit("\n".join(problems))
    with tempfile.TemporaryDirectory(prefix="vidembed-release-") as folder:
        try_out([file for file in files if file.suffix == ".whl"], Path(folder))
    sys.stdout.write("".join(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB\n" for file in files))


if __name__ == "__main__":
    main()
