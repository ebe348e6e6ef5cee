"""The real command with the bundled models, as a process: the clients of OpenAI and Cohere, and many at once."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import cohere
import httpx
import numpy as np
import openai
import pytest

from tests.serve.conftest import Served
from vidembed.uri import video_uri


@pytest.fixture(scope="module")
def client(process: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{process.address}/v1", api_key="any", max_retries=0)


def test_openai(process: Served, client: openai.OpenAI) -> None:
    words = [record.caption for _, record in process.clips]
    made = client.embeddings.create(model="vidembed/shapes", input=words)  # base64, as the client asks by default
    plain = client.embeddings.create(model="text-embedding-3-small", input=words[0], encoding_format="float")
    assert (made.model, plain.model) == ("vidembed/shapes", "vidembed/shapes")
    vectors = np.array([each.embedding for each in made.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], plain.data[0].embedding, atol=1e-5)
    assert made.usage.prompt_tokens > 4 * 5
    cut = client.embeddings.create(model="vidembed/shapes", input=words[0], dimensions=16).data[0].embedding
    np.testing.assert_allclose(cut, vectors[0, :16] / np.linalg.norm(vectors[0, :16]), atol=1e-5)
    assert "vidembed/shapes-rerank" in [each.id for each in client.models.list()]


def test_openai_s_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' is not available") as missing:
        client.embeddings.create(model="other", input="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="token arrays are not supported"):
        client.embeddings.create(model="vidembed/shapes", input=[1, 2])


def test_cohere(process: Served) -> None:
    uris = [video_uri(path) for path, _ in process.clips]
    query = process.clips[2][1].caption
    new = cohere.ClientV2(api_key="any", base_url=process.address)
    ranked = new.rerank(model="vidembed/shapes-rerank", query=query, documents=uris, top_n=3)
    assert len(ranked.results) == 3
    scores = [each.relevance_score for each in ranked.results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert ranked.results[0].index == 2
    old = cohere.Client(api_key="any", base_url=process.address)
    again = old.rerank(model="vidembed/shapes-rerank", query=query, documents=[uris[0], uris[2]], return_documents=True)
    assert again.results[0].index == 1
    assert again.results[0].document.text == uris[2]
    assert again.results[0].relevance_score == pytest.approx(scores[0], abs=1e-4)
    with pytest.raises(cohere.BadRequestError, match="got words, not a video URI"):
        new.rerank(model="vidembed/shapes-rerank", query=query, documents=["some words"])


def test_64_clients_at_once(process: Served) -> None:
    words = [record.caption for _, record in process.clips]

    async def main() -> list[httpx.Response]:
        # A client, and so a connection, for each.
        async def ask(number: int) -> httpx.Response:
            async with httpx.AsyncClient(base_url=process.address, timeout=120) as client:
                if number % 2:
                    return await client.get("/search", params={"q": words[number % 4], "k": 2})
                return await client.post(
                    "/v1/embeddings", json={"model": "vidembed/shapes", "input": words[number % 4]}
                )

        return await asyncio.gather(*map(ask, range(64)))

    def batches() -> float:
        return float(httpx.get(f"{process.address}/metrics").text.split("vidembed_batch_items_count ")[1].split()[0])

    before = batches()
    answers = asyncio.run(main())
    assert batches() - before < 64  # some of them were run together
    assert [answer.status_code for answer in answers] == [200] * 64
    for number in range(8, 64):  # each got the answer to its own question, up to rounding in another batch
        one, other = answers[number].json(), answers[number % 4].json()
        if number % 2:
            assert one["hits"][0]["uri"] == other["hits"][0]["uri"]
        else:
            np.testing.assert_allclose(one["data"][0]["embedding"], other["data"][0]["embedding"], atol=1e-5)


def test_an_upload_and_what_is_no_http(process: Served) -> None:
    path, _ = process.clips[1]
    form = {"files": {"file": path.read_bytes()}, "data": {"model": "vidembed/shapes"}}
    uploaded = httpx.post(f"{process.address}/v1/embeddings/video", timeout=60, **form).json()
    named = httpx.post(
        f"{process.address}/v1/embeddings",
        json={"model": "vidembed/shapes", "input": {"video": video_uri(path)}},
        timeout=60,
    ).json()
    np.testing.assert_allclose(uploaded["data"][0]["embedding"], named["data"][0]["embedding"], atol=1e-5)
    place = urlsplit(process.address)
    for noise in (
        b"\x00\xff" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"POST /search HTTP/1.1\r\n",
    ):
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            raw.sendall(noise)
    evil = httpx.get(f"{process.address}/health", headers={"Host": "evil.example"})
    assert evil.status_code == 421
    assert httpx.get(f"{process.address}/health").json()["status"] == "ok"
    assert "Traceback" not in process.log.read_text()
