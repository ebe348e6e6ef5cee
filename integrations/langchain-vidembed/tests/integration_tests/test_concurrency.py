from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from langchain_core.indexing import InMemoryRecordManager
from vidembed import VideoEncoder, VideoReranker

from langchain_vidembed import VideoEmbeddings, VideoLoader, VideoRerank, VideoRetriever, index_videos
from tests.conftest import RECORDS, Watched

QUERIES = [record.summary for record in RECORDS[:8]]


@pytest.mark.parametrize("kind", ["chroma", "in_memory"])
async def test_queries_run_while_videos_are_indexed(
    kind: str, folder: Path, encoder: VideoEncoder, reranker: VideoReranker, tmp_path: Path
) -> None:
    alone = VideoEmbeddings(encoder=encoder)
    expected = [alone.embed_query(query) for query in QUERIES]
    watched = Watched(encoder, pause_s=0.01)
    embeddings = VideoEmbeddings(encoder=watched, batch_size=1)
    place = {"path": str(tmp_path / "store")} if kind == "chroma" else {}
    retriever = VideoRetriever.from_config({"store": {"kind": kind, **place}}, embeddings=embeddings).model_copy(
        update={"reranker": VideoRerank(reranker=reranker, on_error="skip")}
    )
    records = InMemoryRecordManager("videos")
    records.create_schema()
    indexing = asyncio.to_thread(
        index_videos, VideoLoader(folder, segment_s=4), records, retriever.vectorstore, batch_size=2
    )
    work = asyncio.gather(
        indexing,
        *(embeddings.aembed_query(query) for query in QUERIES),
        *(retriever.ainvoke(query, k=1) for query in QUERIES),
    )
    report, *found = await asyncio.wait_for(work, timeout=120)
    assert report.added == 6
    assert found[:8] == expected
    assert watched.overlaps == 0  # without the lock, threads of the executor use the model at once
    for query in QUERIES[:6]:
        assert len(await retriever.ainvoke(query, k=2)) == 2


async def test_queries_come_in_between_batches(folder: Path, encoder: VideoEncoder) -> None:
    watched = Watched(encoder, pause_s=0.02)
    embeddings = VideoEmbeddings(encoder=watched, batch_size=1)
    documents = [document.page_content for document in VideoLoader(folder, segment_s=4).lazy_load()]
    indexing = asyncio.create_task(embeddings.aembed_documents(documents))
    await asyncio.sleep(0.05)
    await embeddings.aembed_query(QUERIES[0])
    assert len(watched.inputs) < len(documents)
    await indexing
