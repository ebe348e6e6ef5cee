from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from vidembed.uri import video_uri


def post(client: TestClient, documents: Any, version: int = 2, **more: Any) -> Any:
    body = {"model": "fake-rerank", "query": "red", "documents": documents, **more}
    return client.post(f"/v{version}/rerank", json=body)


@pytest.mark.parametrize("version", [1, 2])
def test_the_answer_is_that_of_cohere(client: TestClient, uri: Callable[..., str], version: int) -> None:
    answer = post(client, [uri("blue"), {"video": uri("red")}, uri("green")], version)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert uuid.UUID(body["id"])
    assert body["meta"] == {"api_version": {"version": str(version)}, "billed_units": {"search_units": 1}}
    assert body["results"][0]["index"] == 1
    scores = [each["relevance_score"] for each in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(set(each) == {"index", "relevance_score"} for each in body["results"])


def test_top_n_and_documents(client: TestClient, uri: Callable[..., str]) -> None:
    body = post(client, [uri("blue"), uri("red")], 1, top_n=1, return_documents=True).json()
    assert [each["document"] for each in body["results"]] == [{"text": uri("red")}]
    for most in (9, 0, None):  # 0 is vLLM's default, and means all
        assert len(post(client, [uri("blue"), uri("red")], top_n=most).json()["results"]) == 2


def test_ties_keep_their_order_and_parts_are_parts(client: TestClient, uri: Callable[..., str]) -> None:
    parts = [uri("long <b>", None, 1), uri("long <b>", 2, 3), uri("long <b>", None, 1)]
    assert [each["index"] for each in post(client, parts).json()["results"]] == [1, 0, 2]


@pytest.mark.parametrize(
    ("documents", "status", "param", "part"),
    [
        (["GOOD", "a red square"], 400, "documents[1]", "got words, not a video URI"),
        (["GOOD", {"text": "a red square"}], 400, "documents[1]", "got words, not a video URI"),
        (["GOOD", {"video": "GOOD", "text": "x"}], 400, "documents", "item 1: got {'text': 'x', "),
        (["GOOD", 3], 400, "documents", "item 1: got 3; a video URI, as a string"),
        (["GOOD", None], 400, "documents", "item 1: got None; a video URI, as a string"),
        (["GOOD", "\u0000"], 400, "documents[1]", "not a video URI"),
        ([], 400, "documents", "at least 1 item"),
        ("GOOD", 400, "documents", "a valid list; got 'GOOD'"),
        (["GOOD"] * 5, 400, "documents", "got 5; at most 4"),
        (["GOOD", "MISSING"], 400, "documents[1]", "documents[1]: VideoNotFound"),
        (["GOOD", "NOISE"], 400, "documents[1]", "documents[1]: NotAVideo"),
    ],
)
def test_bad_documents_are_named(
    serve: Callable[..., SimpleNamespace],
    videos: Path,
    tmp_path: Path,
    documents: list[Any],
    status: int,
    param: str,
    part: str,
) -> None:
    (tmp_path / "good.mp4").write_bytes((videos / "red.mp4").read_bytes())
    (tmp_path / "noise.mp4").write_bytes(b"noise")
    made = {name: video_uri(tmp_path / f"{name.lower()}.mp4") for name in ("GOOD", "MISSING", "NOISE")}
    client = serve(root=tmp_path, limits={"max_documents": 4}).client
    if isinstance(documents, list):
        documents = [made.get(each, each) if isinstance(each, str) else each for each in documents]
    answer = post(client, documents)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert part in error["message"]
    assert str(tmp_path) not in answer.text


def test_other_fields(client: TestClient, uri: Callable[..., str]) -> None:
    for change, param in (
        ({"query": " "}, "query"),
        ({"query": "x" * 10_001}, "query"),
        ({"top_n": -1}, "top_n"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields[0]"),
        ({"return_embeddings": True}, "return_embeddings"),
        ({"raw_scores": True}, "raw_scores"),
        ({"relevant_spans": {"mode": "enabled"}}, "relevant_spans"),
        ({"texts": [uri("red")]}, "texts"),
    ):
        answer = post(client, [uri("red")], **change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_model_must_be_the_reranker(
    client: TestClient, serve: Callable[..., SimpleNamespace], uri: Callable[..., str]
) -> None:
    for name in ("fake-rerank", "rerank-alias", None):
        assert post(client, [uri("red")], model=name).json()["model"] == "fake-rerank"
    for name in ("fake", "rerank-v3.5"):
        answer = post(client, [uri("red")], model=name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "'fake-rerank'" in answer.json()["error"]["message"]
    without = post(serve(reranker=None).client, [uri("red")])
    assert (without.status_code, without.json()["error"]["code"]) == (404, "model_not_found")
    assert "--rerank" in without.json()["error"]["message"]
