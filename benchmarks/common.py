"""What every benchmark here shares: the machine, the versions, and where the result goes."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("vidembed", "torch", "transformers", "sentence-transformers", "av")


def environment() -> dict[str, Any]:
    """Versions and hardware of this run."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "cpu": model,
        "cores": cores,
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def keep(script: str, result: dict[str, Any]) -> None:
    """Print the result and write it beside the script."""
    text = json.dumps(result, indent=2)
    Path(script).with_suffix(".json").write_text(text + "\n")
    print(text)
