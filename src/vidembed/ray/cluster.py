"""The Ray cluster: joined or started, and what of it is used."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vidembed.errors import ClusterError, MissingExtraError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run asks of a cluster.

    Attributes:
        workers: Forward actors at most, each with the model.
        decoders: Decoding actors at most, each with one CPU.
        num_cpus: CPUs of a forward actor.
        num_gpus: GPUs of a forward actor; a fraction shares one.

    Raises:
        ValueError: A number is out of range.
    """

    workers: int
    decoders: int
    num_cpus: float
    num_gpus: float

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("workers", "decoders"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {value}; at least 1 is needed")
        for name in ("num_cpus", "num_gpus"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}: got {value}; 0 or more is needed")

    @property
    def cpus(self) -> float:
        """CPUs of all actors together."""
        return self.workers * self.num_cpus + self.decoders

    @property
    def gpus(self) -> float:
        """GPUs of all actors together."""
        return self.workers * self.num_gpus


@contextmanager
def connected(address: str | None, resources: Resources) -> Iterator[None]:
    """Join a cluster for the length of a block.

    Args:
        address: As `ray.init` takes it: `auto` for the cluster of this machine, or its address. None: the one that this
            process has joined already, else that of the variable `RAY_ADDRESS`, else one that is started here, with
            enough CPUs for `resources`, and ends with the block.
        resources: What will be asked of it.

    Raises:
        ClusterError: It cannot be reached or started.
        ValueError: One that is started here has not the GPUs.
        MissingExtraError: Ray is not installed.
    """
    ray = require_ray()
    if ray.is_initialized():
        if address is not None:
            logger.info("address: this process has joined a cluster already, which is used")
        _warn(ray, resources)
        yield
        return
    own = address is None and not os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what this command starts tells nobody of it
        # CPUs are counted and not bound: a small machine runs more actors than it has cores, only slower.
        options |= {"num_cpus": max(cores(), math.ceil(resources.cpus)), "include_dashboard": False}
    try:
        with warnings.catch_warnings():
            # Ray starts its processes by fork and exec, which uses nothing of LanceDB's between the two.
            warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
            ray.init(address="local" if own else address, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"address: no Ray cluster at {address or 'this machine'!r}: {error}") from error
    try:
        if own and (there := ray.cluster_resources().get("GPU", 0)) < resources.gpus:
            raise ValueError(
                f"num_gpus: {resources.workers} workers with {resources.num_gpus:g} each need {resources.gpus:g} GPUs, "
                f"and this machine has {there:g}; ask for fewer, or give the address of a cluster"
            )
        _warn(ray, resources)
        yield
    finally:
        ray.shutdown()


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _warn(ray: Any, resources: Resources) -> None:
    """Say so where the cluster has too little by now; one that grows may have more soon."""
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if there.get(kind, 0) < wanted:
            logger.warning(
                "the cluster has %g %ss and %g are asked for: it works with fewer actors, or waits for more",
                there.get(kind, 0),
                kind,
                wanted,
            )


def require_ray() -> Any:
    """Return Ray with Ray Data, imported.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - it takes a second, which --help need not wait for
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(f'Ray is needed ({error}); install it with: pip install "vidembed[ray]"') from error
    return ray
