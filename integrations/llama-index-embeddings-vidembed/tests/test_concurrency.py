from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from vidembed import VideoEncoder, VideoReranker

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader
from tests.conftest import RECORDS, Watched
from tests.stores import open_store

QUERIES = [record.summary for record in RECORDS[:8]]


@pytest.mark.parametrize("how", ["arun", "run"])
async def test_queries_run_while_videos_are_indexed(
    how: str, drawn: Path, encoder: VideoEncoder, reranker: VideoReranker, tmp_path: Path
) -> None:
    alone = VideoEmbedding(encoder=encoder)
    expected = [alone.get_query_embedding(query) for query in QUERIES]
    documents = VideoReader().load_data(drawn)
    vectors = {
        node.node_id: node.embedding
        for node in IngestionPipeline(transformations=[VideoNodeParser(segment_s=4), alone]).run(documents=documents)
    }
    watched = Watched(encoder, pause_s=0.01)
    embedding = VideoEmbedding(encoder=watched, embed_batch_size=1)
    store = open_store("chroma", tmp_path / "store")
    pipeline = IngestionPipeline(transformations=[VideoNodeParser(segment_s=4), embedding], vector_store=store)
    indexing = (
        pipeline.arun(documents=documents) if how == "arun" else asyncio.to_thread(pipeline.run, documents=documents)
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    rerank = VideoRerank(reranker=reranker)

    async def search(query: str) -> None:
        found = await index.as_retriever(similarity_top_k=2).aretrieve(query)
        await rerank.apostprocess_nodes(found, query_str=query)

    work = asyncio.gather(
        indexing,
        *(embedding.aget_query_embedding(query) for query in QUERIES),
        *(search(query) for query in QUERIES),
    )
    nodes, *found = await asyncio.wait_for(work, timeout=120)
    assert found[:8] == expected
    assert {node.node_id: node.embedding for node in nodes} == vectors
    assert watched.overlaps == 0  # without the lock, several threads use the model at once
    assert len(await index.as_retriever(similarity_top_k=6).aretrieve(QUERIES[0])) == 6


async def test_queries_come_in_between_batches(drawn: Path, encoder: VideoEncoder) -> None:
    watched = Watched(encoder, pause_s=0.02)
    embedding = VideoEmbedding(encoder=watched, embed_batch_size=1)
    nodes = VideoNodeParser(segment_s=4)(VideoReader().load_data(drawn))
    indexing = asyncio.create_task(embedding.acall(nodes))
    await asyncio.sleep(0.05)
    await embedding.aget_query_embedding(QUERIES[0])
    assert len(watched.inputs) < len(nodes)
    await indexing


def test_one_lock_for_what_shares_weights() -> None:
    from vidembed.adapters import lock_of

    mllm = VideoReranker("vidembed/shapes-mllm")
    assert lock_of(mllm) is lock_of(VideoEncoder(backbone=mllm.backbone, layer=7))
    assert lock_of(mllm) is lock_of(VideoReranker("vidembed/shapes-mllm", device=str(mllm.device)))
    assert lock_of(mllm) is not lock_of(VideoEncoder("vidembed/shapes"))
