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


def high_water_mark(pid: int) -> int:
    """Most bytes of memory that a running process has had resident; 0 once it has ended (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that run (Linux)."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
            int(each)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if task.name != str(pid)
            for each in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def keep(script: str, result: dict[str, Any]) -> None:
    """Print the result and write it beside the script."""
    text = json.dumps(result, indent=2)
    Path(script).with_suffix(".json").write_text(text + "\n")
    print(text)
