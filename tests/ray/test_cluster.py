from __future__ import annotations

import logging
import os
import sys
from typing import Any

import pytest

from vidembed.index import MissingExtraError, Windows
from vidembed.ray import ClusterError, cluster
from vidembed.ray.cluster import CALL_BYTES, Resources, connected, require_ray, segments_a_call
from vidembed.video import Sampling
from vidembed.video.segments import Scenes


class FakeRay:
    """What `connected` asks of Ray."""

    def __init__(self, *, joined: bool = False, **there: float) -> None:
        self.joined, self.there, self.calls = joined, there, []  # type: ignore[var-annotated]

    def is_initialized(self) -> bool:
        return self.joined

    def init(self, **options: Any) -> None:
        self.calls.append(options)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return self.there


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay(CPU=100)
    monkeypatch.setattr(cluster, "require_ray", lambda: made)
    monkeypatch.setattr(cluster, "core_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return made


def test_one_is_started_here_with_cpus_enough(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(None, Resources(3, 2, 1.5, 0)):
        pass
    started, ended = ray.calls
    assert (started["address"], started["num_cpus"], started["include_dashboard"]) == ("local", 7, False)
    assert ended == "shutdown"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_address_is_joined_as_it_is(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), connected("auto", Resources(1, 1, 1, 0)):
        raise KeyError
    assert ray.calls == [{"address": "auto", "log_to_driver": False, "logging_level": logging.WARNING}, "shutdown"]
    ray.calls.clear()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with connected(None, Resources(1, 1, 1, 0)):
        pass
    assert ray.calls[0]["address"] is None
    assert "num_cpus" not in ray.calls[0]


def test_one_that_was_joined_before_is_left_as_it_is(ray: FakeRay) -> None:
    ray.joined = True
    with connected(None, Resources(1, 1, 1, 0)):
        pass
    assert ray.calls == []


def test_gpus_that_a_machine_has_not_are_refused_at_once(ray: FakeRay) -> None:
    refused = pytest.raises(ValueError, match=r"2 workers with 0\.5 each need 1 GPUs, and this machine has 0")
    with refused, connected(None, Resources(2, 1, 1, 0.5)):
        pytest.fail("it began")
    assert ray.calls[-1] == "shutdown"


def test_a_small_cluster_is_said_to_be_small(ray: FakeRay, caplog: pytest.LogCaptureFixture) -> None:
    ray.there = {"CPU": 3, "GPU": 1}
    with connected("auto", Resources(4, 2, 1, 1)):
        pass
    assert "the cluster has 3 CPUs and 6 are asked for" in caplog.text
    assert "the cluster has 1 GPUs and 4 are asked for" in caplog.text


def test_a_cluster_that_is_not_there(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no route")))
    refused = pytest.raises(ClusterError, match=r"address: no Ray cluster at '10\.0\.0\.1:1': no route")
    with refused, connected("10.0.0.1:1", Resources(1, 1, 1, 0)):
        pytest.fail("it began")


@pytest.mark.parametrize(
    ("values", "name"),
    [((0, 1, 1, 0), "workers"), ((1, 0, 1, 0), "decoders"), ((1, 1, -1, 0), "num_cpus"), ((1, 1, 1, -1), "num_gpus")],
)
def test_numbers_out_of_range(values: tuple[int, int, float, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got"):
        Resources(*values)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "vidembed\[ray\]"'):
        require_ray()


@pytest.mark.parametrize(
    ("sampling", "cut", "batch_size", "expected"),
    [
        (Sampling(2, 8, max_pixels=100), Windows(2), 32, 32),
        (Sampling(), None, 32, 4),  # 180 frames of 640 x 360 as RGB are 124 MB
        (Sampling(), Windows(10), 32, 32),
        (Sampling(), Windows(60), 32, 6),
        (Sampling(), Scenes(max_length_s=60), 32, 6),
        (Sampling(max_pixels=None), None, 32, 1),
    ],
)
def test_how_many_segments_a_call_gets(sampling: Sampling, cut: Any, batch_size: int, expected: int) -> None:
    assert segments_a_call(sampling, cut, batch_size) == expected


def test_their_frames_are_bounded() -> None:
    for length in (1, 5, 20, 60, 300):
        frames = min(180, 2 * length + 1)
        assert segments_a_call(Sampling(), Windows(length), 10**6) * frames * 640 * 360 * 3 <= CALL_BYTES
