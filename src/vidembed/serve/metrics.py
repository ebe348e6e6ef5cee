"""Figures of the server in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts and times. Each server has its own registry, so two in one process do not mix.

    Args:
        waiting: Returns the number of inputs that wait for the model.
    """

    def __init__(self, *, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vidembed_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "vidembed_request_seconds",
            "Time to the end of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.active = Gauge("vidembed_requests_active", "Requests being answered.", registry=self.registry)
        self.batch_items = Histogram(
            "vidembed_batch_items", "Inputs of a batch for the model.", buckets=_ITEMS, registry=self.registry
        )
        Gauge("vidembed_queue_items", "Inputs that wait for the model.", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self.registry)
