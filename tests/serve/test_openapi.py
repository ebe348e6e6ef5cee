"""Requests that schemathesis makes from the server's own description, right and wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

EXAMPLES = 10
# Words that are no video URI, noise for an upload, and ids that no search gave out are refused by what they mean, which
# a schema cannot say.
LEFT_OUT = {"positive_data_acceptance"}


def test_schemathesis(serve: Callable[..., SimpleNamespace]) -> None:
    load_all_checks()
    checks = [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]
    assert len(checks) > 8
    app = serve(limits={"max_items": 3, "max_documents": 3}).client.app
    tried: dict[tuple[str, GenerationMode], list[int]] = {}
    for result in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = result.ok()
        takes_something = any(True for _ in operation.iter_parameters()) or bool(operation.body)
        for mode in GenerationMode if takes_something else [GenerationMode.POSITIVE]:
            statuses = tried[operation.label, mode] = []
            try_out(operation.as_strategy(generation_mode=mode), checks, statuses)
    assert len({label for label, _ in tried}) == 22
    assert all(len(statuses) >= 1 for statuses in tried.values())
    assert 200 in tried["POST /v1/embeddings", GenerationMode.POSITIVE]
    for label in ("GET /search", "GET /v1/models/{model}", "POST /embed", "POST /v1/embed", "POST /v2/embed"):
        assert 200 in tried[label, GenerationMode.POSITIVE]
    assert 400 in tried["POST /v1/embeddings", GenerationMode.NEGATIVE]
    assert 200 not in tried["POST /v1/embeddings", GenerationMode.NEGATIVE]


def try_out(strategy: Any, checks: list[Any], statuses: list[int]) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        response = case.call()
        statuses.append(response.status_code)
        case.validate_response(response, checks=checks)

    send()
