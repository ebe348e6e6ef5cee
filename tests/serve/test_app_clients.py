"""What clients of other servers send: real clients where they are installed, and else the requests that they make."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cohere
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from starlette.testclient import TestClient

from tests.serve.conftest import Served, ServedEncoder
from vidembed.uri import video_uri

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
NEEDED = {"langchain_openai", "llama_index.embeddings.openai_like"}

# The whole of vLLM's requests, with its defaults: vllm/entrypoints/pooling/base/protocol.py.
VLLM: dict[str, Any] = {
    "model": None,
    "user": None,
    "truncate_prompt_tokens": None,
    "padding": None,
    "truncation_side": None,
    "request_id": "8a0e",
    "priority": 0,
    "mm_processor_kwargs": None,
    "cache_salt": None,
    "use_activation": None,
}
VLLM_EMBEDDINGS = {
    **VLLM,
    "add_special_tokens": True,
    "encoding_format": "float",
    "embed_dtype": "float32",
    "endianness": "native",
    "dimensions": None,
}
JINA = {
    "task": "retrieval.query",
    "normalized": True,
    "embedding_type": "float",
    "late_chunking": False,
    "truncate": True,
}
MINIMAL = {
    "/v1/embeddings": {"input": ["red", "blue"]},
    "/embeddings": {"input": ["red", "blue"]},
    "/embed": {"inputs": ["red", "blue"]},
    "/v1/embed": {"texts": ["red", "blue"]},
    "/v2/embed": {"texts": ["red", "blue"]},
    "/v1/rerank": {"query": "red", "documents": ["URI"]},
    "/v2/rerank": {"query": "red", "documents": ["URI"]},
    "/rerank": {"query": "red", "texts": ["URI"]},
    "/search": {"q": "red"},
}
TASKS = {
    "/v1/embeddings": ({"task": "retrieval.passage"}, {"input_type": "document"}, {"input_type": "passage"}),
    "/embed": ({"prompt_name": "document"}, {"prompt_name": "passage"}),
    "/v1/embed": ({"input_type": "search_document"},),
    "/v2/embed": ({"input_type": "search_document"},),
}


def queries(*texts: str) -> np.ndarray:
    return ServedEncoder().encode_query([{"text": text} for text in texts])


def ask(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer: Any) -> np.ndarray:
    """Of any of the forms of an answer."""
    found = answer if isinstance(answer, list) else answer.get("data") or answer["embeddings"]
    if isinstance(found, dict):
        found = found["float"]
    return np.array([each["embedding"] if isinstance(each, dict) else each for each in found])


@pytest.fixture
def minimal(uri: Callable[..., str]) -> dict[str, dict[str, Any]]:
    """A request to each address with the fields that it needs."""
    return {
        path: {name: [uri("red")] if value == ["URI"] else value for name, value in body.items()}
        for path, body in MINIMAL.items()
    }


# -- the page of the docs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_docs_run(process: Served, number: int) -> None:
    block = BLOCKS[number]
    for name in NEEDED:
        if f"from {name} " in block:
            pytest.importorskip(name)
    assert "http://127.0.0.1:8000" in block
    block = block.replace("http://127.0.0.1:8000", process.address)
    for name, (path, _) in zip("ab", process.clips, strict=False):
        block = block.replace(f"video+file:///data/videos/{name}.mp4", video_uri(path))
    exec(compile(block, "<docs>", "exec", dont_inherit=True), {"__name__": "docs"})  # our own page


# -- OpenAI's client, by itself and in the frameworks ------------------------------------------------------------------


def test_openai_finds_a_model_by_its_name(process: Served) -> None:
    client = openai.OpenAI(base_url=f"{process.address}/v1", api_key="any", max_retries=0)
    for each in client.models.list():
        assert client.models.retrieve(each.id).id == each.id
    with pytest.raises(
        openai.NotFoundError, match="'vidembed/other' is not available; this server has 'vidembed/shapes'"
    ) as e:
        client.models.retrieve("vidembed/other")
    assert (e.value.code, e.value.param, e.value.type) == ("model_not_found", "model", "invalid_request_error")


def test_langchain_s_openai_embeddings(process: Served) -> None:
    client = pytest.importorskip("langchain_openai").OpenAIEmbeddings(
        model="vidembed/shapes",
        base_url=f"{process.address}/v1",
        api_key="any",
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    assert client.chunk_size == 1000  # texts of one request
    made = np.array(client.embed_documents([f"a red square {number % 50}" for number in range(1001)]))
    assert made.shape == (1001, 128)
    np.testing.assert_allclose(made[3], client.embed_query("a red square 3"), atol=1e-4)


def test_llama_index_s_openai_embeddings(process: Served) -> None:
    client = pytest.importorskip("llama_index.embeddings.openai_like").OpenAILikeEmbedding(
        model_name="vidembed/shapes",
        api_base=f"{process.address}/v1",
        api_key="any",
        embed_batch_size=100,
        max_retries=0,
    )
    made = np.array(client.get_text_embedding_batch([f"a red square {number % 50}" for number in range(101)]))
    assert made.shape == (101, 128)
    np.testing.assert_allclose(made[3], client.get_query_embedding("a red square 3"), atol=1e-4)


def test_2048_texts_at_once_and_no_more(serve: Callable[..., SimpleNamespace]) -> None:
    server = serve()
    made = vectors(ask(server.client, "/v1/embeddings", {"input": ["red", "blue"] * 1024}))
    np.testing.assert_allclose(made, np.tile(queries("red", "blue"), (1024, 1)), rtol=1e-6)
    assert max(server.encoder.batches) <= 32
    answer = server.client.post("/v1/embeddings", json={"input": ["red"] * 2049})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "got 2049; at most 2048" in answer.json()["error"]["message"]


# -- Cohere's client ---------------------------------------------------------------------------------------------------


def test_cohere_s_embeddings(process: Served) -> None:
    texts = [record.caption for _, record in process.clips] * 30  # version 1 sends 96 at once
    new, old = (make(api_key="any", base_url=process.address) for make in (cohere.ClientV2, cohere.Client))
    how: dict[str, Any] = {"texts": texts, "model": "vidembed/shapes", "input_type": "search_document"}
    wanted = np.array(new.embed(**how, embedding_types=["float"]).embeddings.float_)
    assert wanted.shape == (120, 128)
    np.testing.assert_allclose(np.array(old.embed(**how, truncate="NONE").embeddings), wanted, atol=1e-4)
    by_type = old.embed(**how, embedding_types=["float"]).embeddings
    np.testing.assert_allclose(np.array(by_type.float_), wanted, atol=1e-4)
    cut = new.embed(**how, embedding_types=["float"], output_dimension=16, truncate="END").embeddings.float_
    np.testing.assert_allclose(
        np.array(cut), wanted[:, :16] / np.linalg.norm(wanted[:, :16], axis=1)[:, None], atol=1e-4
    )
    with pytest.raises(cohere.BadRequestError, match="'float' or 'base64'; got 'int8'"):
        new.embed(**how, embedding_types=["int8"])
    with pytest.raises(cohere.BadRequestError, match="'search_query' or 'search_document'; got 'clustering'"):
        new.embed(texts=["a"], model="vidembed/shapes", input_type="clustering", embedding_types=["float"])


def test_cohere_s_rerank_with_all_that_langchain_and_llama_index_give_it(process: Served) -> None:
    uris = [video_uri(path) for path, _ in process.clips]
    query = process.clips[2][1].caption
    new = cohere.ClientV2(api_key="any", base_url=process.address)
    how: dict[str, Any] = {"query": query, "model": "vidembed/shapes-rerank"}
    best = new.rerank(documents=uris, top_n=None, max_tokens_per_doc=None, **how).results
    assert (len(best), best[0].index) == (4, 2)
    old = cohere.Client(api_key="any", base_url=process.address)
    documents = [{"text": uri} for uri in uris]
    again = old.rerank(documents=documents, rank_fields=["text"], max_chunks_per_doc=10, return_documents=True, **how)
    assert [each.index for each in again.results] == [each.index for each in best]
    assert again.results[0].document.text == uris[2]


# -- text-embeddings-inference, vLLM and Jina --------------------------------------------------------------------------


def test_hugging_face_s_inference_client(process: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # tests are offline; this is not the hub
    client = InferenceClient(model=f"{process.address}/embed")
    made = client.feature_extraction(["a red square", "a blue ring"], normalize=True, truncate=True)
    assert made.shape == (2, 128)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(client.feature_extraction("a red square", prompt_name="query")[0], made[0], atol=1e-4)


def test_llama_index_s_text_embeddings_inference(client: TestClient, uri: Callable[..., str]) -> None:
    made = ask(client, "/embed", {"inputs": ["red", "blue"], "truncate": True})
    np.testing.assert_allclose(np.array(made), queries("red", "blue"), rtol=1e-6)
    ranked = ask(client, "/rerank", {"query": "red", "texts": [uri("blue"), uri("red")]})
    assert [each["index"] for each in ranked] == [1, 0]
    assert all(set(each) == {"index", "score"} for each in ranked)
    whole = {"raw_scores": False, "return_text": True, "truncate": False, "truncation_direction": "Right"}
    named = ask(client, "/rerank", {"query": "red", "texts": [uri("blue"), uri("red")], **whole})
    assert named == [{**each, "text": uri(name)} for each, name in zip(ranked, ("red", "blue"), strict=True)]


def test_jina_and_vllm(client: TestClient, uri: Callable[..., str]) -> None:
    wanted = queries("red", "blue")
    for body in (
        {"input": ["red", "blue"], **VLLM_EMBEDDINGS},
        {"input": [{"text": "red"}, {"text": "blue"}], "model": "fake", **JINA},
    ):
        np.testing.assert_allclose(vectors(ask(client, "/v1/embeddings", body)), wanted, rtol=1e-6)
    ranking = {"query": "red", "documents": [uri("blue"), uri("red")]}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        for more in (
            {**VLLM, "top_n": 0},
            {"model": "fake-rerank", "top_n": 2, "truncation": True, "return_embeddings": False},
        ):
            made = ask(client, path, {**ranking, **more})
            assert [each["index"] for each in made["results"]] == [1, 0]
            assert made["model"] == "fake-rerank"
    assert "meta" not in ask(client, "/rerank", ranking)  # Cohere's


def test_one_address_takes_two_forms_and_says_which_one_is_wrong(client: TestClient, uri: Callable[..., str]) -> None:
    for body, param, part in (
        ({"query": "red"}, "documents", "Field required"),
        ({"texts": [uri("red")]}, "query", "Field required"),
        ({"query": "red", "texts": ["words"]}, "texts[0]", "got words, not a video URI"),
        ({"query": "red", "texts": [uri("missing")]}, "texts[0]", "VideoNotFound"),
        (
            {"query": "red", "texts": [uri("red")], "top_n": 1},
            "top_n",
            "not supported; got 1; allowed are query, texts, ",
        ),
        ({"query": "red", "texts": [uri("red")], "documents": [uri("red")]}, "texts", "not supported"),
        ({"query": "red", "texts": [uri("red")], "raw_scores": True}, "raw_scores", "should be False; got True"),
        ([], None, "valid dictionary"),
    ):
        answer = client.post("/rerank", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert part in error["message"]


# -- every address -----------------------------------------------------------------------------------------------------


def without_id(answer: Any) -> Any:
    return {name: value for name, value in answer.items() if name != "id"} if isinstance(answer, dict) else answer


@pytest.mark.parametrize("path", MINIMAL)
def test_null_means_absent(client: TestClient, minimal: dict[str, dict[str, Any]], path: str) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = {"anything"}
    for form in body.get("oneOf", [body]):
        names |= set(document["components"]["schemas"][form["$ref"].rsplit("/", 1)[1]]["properties"])
    nulls = {name: None for name in names if name not in minimal[path]}
    assert len(nulls) > 4
    wanted = without_id(ask(client, path, minimal[path]))
    assert without_id(ask(client, path, {**minimal[path], **nulls})) == wanted


@pytest.mark.parametrize(
    "ignored",
    [
        {"user": "someone"},
        {"request_id": "x", "priority": 7, "cache_salt": "x"},
        {"truncation_side": "left", "truncate_prompt_tokens": -1},
        {"truncate": True},
        {"truncate": "START"},
        {"truncation": True},
        {"truncation_direction": "Left"},
    ],
)
@pytest.mark.parametrize("path", MINIMAL)
def test_a_field_that_is_not_used_changes_nothing_where_it_is_taken(
    client: TestClient, minimal: dict[str, dict[str, Any]], path: str, ignored: dict[str, Any]
) -> None:
    answer = client.post(path, json={**minimal[path], **ignored})
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] in ignored
    else:
        assert without_id(answer.json()) == without_id(ask(client, path, minimal[path]))


@pytest.mark.parametrize("path", TASKS)
def test_words_get_the_prompt_that_is_asked_for(
    client: TestClient, minimal: dict[str, dict[str, Any]], path: str
) -> None:
    wanted = ServedEncoder().encode_document([{"text": "red"}, {"text": "blue"}])
    for task in TASKS[path]:
        np.testing.assert_allclose(vectors(ask(client, path, {**minimal[path], **task})), wanted, rtol=1e-6)
    np.testing.assert_allclose(vectors(ask(client, path, minimal[path])), queries("red", "blue"), rtol=1e-6)


def test_names_of_all_models(client: TestClient) -> None:
    names = ["fake", "alias", "fake-rerank", "rerank-alias"]
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == names
    for name in names:
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    for name in ("other", "a/b", "fake/", "%00"):
        answer = client.get(f"/v1/models/{name}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert set(error) == {"message", "type", "param", "code"}
