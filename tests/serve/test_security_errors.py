from __future__ import annotations

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from vidembed.serve.schemas import Options
from vidembed.serve.security import MAX_MESSAGE, MAX_PARAM, ApiError, install


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install(app)
    app.post("/")(_route)
    return TestClient(app)


class Body(Options):
    input: str = ""


def _route(body: Body) -> str:
    return body.input


@pytest.mark.parametrize("name", ["n" * 10_000, "a\nb\x1b[31m", "<script>"])
def test_a_name_that_the_client_made_up_comes_back_short_and_printable(client: TestClient, name: str) -> None:
    answer = client.post("/", json={name: 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unknown_parameter")
    assert len(error["param"]) <= MAX_PARAM
    assert len(error["message"]) <= MAX_MESSAGE
    assert error["param"].isprintable()
    assert error["message"].isprintable()
    assert error["param"].startswith(name[0])


def test_what_fits_is_left_as_it_is() -> None:
    message, param = "m" * MAX_MESSAGE, "p" * MAX_PARAM
    error = json.loads(bytes(ApiError(400, message, code="x", param=param).response().body))["error"]
    assert error == {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
