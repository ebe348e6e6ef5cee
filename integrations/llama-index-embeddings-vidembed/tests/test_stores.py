"""Round trips on real stores: what goes in comes out, in the order of the encoder itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MediaResource, Node, NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.vector_stores.chroma import ChromaVectorStore
from vidembed import VideoEncoder, VideoError, VideoReranker
from vidembed.errors import VideoUriError
from vidembed.uri import parse_video_uri, video_uri

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoClips, VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader
from tests.conftest import QUERIES, RECORDS, Watched, uris, write_scenes
from tests.stores import KINDS, close_store, faiss_store, lacking, open_store

HERE = Path(__file__).parent


def opened(kind: str, place: Path, request: pytest.FixtureRequest) -> BasePydanticVectorStore:
    """A store; skips the test where what it needs is not installed."""
    if package := lacking(kind):
        pytest.skip(f"{kind} needs {package}, which is not installed")
    return open_store(kind, place, request.getfixturevalue("postgres") if kind == "postgres" else None)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BasePydanticVectorStore]:
    made = opened(request.param, tmp_path / "store", request)
    yield made
    close_store(request.param, made, tmp_path / "store")


def pipeline_of(
    embedding: VideoEmbedding, store: BasePydanticVectorStore | None, **options: object
) -> IngestionPipeline:
    return IngestionPipeline(
        transformations=[VideoNodeParser(segment_s=4), embedding],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        **options,
    )


def stored(store: BasePydanticVectorStore, embedding: VideoEmbedding, query: str = QUERIES[0]) -> list[str]:
    """The URIs of all nodes, best first."""
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    return [one.node.get_content() for one in index.as_retriever(similarity_top_k=50).retrieve(query)]


def ranks(encoder: VideoEncoder, texts: list[str], query: str) -> list[str]:
    vectors = encoder.encode([parse_video_uri(text).segment() for text in texts])
    return [texts[place] for place in np.argsort(-(vectors @ encoder.encode_query({"text": query})))]


def test_ranks_are_those_of_the_encoder(
    store: BasePydanticVectorStore, embedding: VideoEmbedding, encoder: VideoEncoder, drawn: Path
) -> None:
    nodes = pipeline_of(embedding, store).run(documents=VideoReader().load_data(drawn))
    texts = [node.get_content() for node in nodes]
    for query in QUERIES:
        assert stored(store, embedding, query) == ranks(encoder, texts, query)


def test_nodes_come_back_whole(store: BasePydanticVectorStore, embedding: VideoEmbedding, drawn: Path) -> None:
    made = {node.node_id: node for node in pipeline_of(embedding, store).run(documents=VideoReader().load_data(drawn))}
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=6).retrieve(QUERIES[0])
    assert len(found) == 6
    for one in found:
        assert type(one.node) is TextNode
        assert one.text == one.get_text() == made[one.node.node_id].text
        assert one.node.metadata == made[one.node.node_id].metadata
        assert one.node.relationships == made[one.node.node_id].relationships
        assert one.node.get_content("embed") == one.text


@pytest.mark.parametrize("is_async", [False, True])
async def test_filters_and_a_reranker(
    store: BasePydanticVectorStore,
    embedding: VideoEmbedding,
    reranker: VideoReranker,
    drawn: Path,
    is_async: bool,
    request: pytest.FixtureRequest,
) -> None:
    if is_async and any(kind in request.node.name for kind in ("qdrant", "milvus")):
        pytest.skip("the store is opened without its async client")
    pipeline_of(embedding, store).run(documents=VideoReader().load_data(drawn))
    words = Document(text=QUERIES[4], metadata={"kind": "text"}, excluded_embed_metadata_keys=["kind"])
    IngestionPipeline(transformations=[SentenceSplitter(), embedding], vector_store=store).run(documents=[words])
    assert stored(store, embedding, QUERIES[4])[0] == QUERIES[4]  # which the filters leave out
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key="kind", value="video"),
            MetadataFilter(key="start_s", value=4, operator=FilterOperator.GTE),
        ]
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=6, filters=filters)
    found = await retriever.aretrieve(QUERIES[4]) if is_async else retriever.retrieve(QUERIES[4])
    assert {one.text for one in found} == {uri for uri in uris(drawn, a_mp4=3, b_MP4=2) if "t=," not in uri}
    ranked = VideoRerank(reranker=reranker).postprocess_nodes(found, query_str=QUERIES[4])
    assert len(ranked) == 3
    assert ranked[0].text == video_uri(drawn / "b.MP4", 4, 8)


@pytest.mark.parametrize("splitter_first", [True, False])
def test_text_and_video_in_one_pipeline(
    store: BasePydanticVectorStore, embedding: VideoEmbedding, drawn: Path, splitter_first: bool
) -> None:
    parts = [SentenceSplitter(chunk_size=512, chunk_overlap=0), VideoNodeParser(segment_s=4)]
    documents = [Document(text="A talk about shapes. " * 300), *VideoReader().load_data(drawn)]
    pipeline = IngestionPipeline(
        transformations=[*(parts if splitter_first else parts[::-1]), embedding],
        vector_store=store,
        docstore=SimpleDocumentStore(),
    )
    nodes = pipeline.run(documents=documents)
    assert all(type(node) is TextNode for node in nodes)
    assert {one for one in stored(store, embedding) if one.startswith("video+")} == uris(
        drawn, a_mp4=3, b_MP4=2, c_mp4=1
    )
    assert len(stored(store, embedding)) == len(nodes) > 8
    assert pipeline.run(documents=documents) == []  # the docstore knows them all


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_plain_nodes_that_were_stored_before_are_found_and_reranked(
    kind: str, embedding: VideoEmbedding, reranker: VideoReranker, drawn: Path, tmp_path: Path
) -> None:
    store = open_store(kind, tmp_path / "store")
    old = [
        Node(
            text_resource=MediaResource(text=node.text),
            video_resource=MediaResource(path=drawn / "a.mp4"),
            metadata={key: value for key, value in node.metadata.items() if key != "kind"},
        )
        for node in VideoNodeParser(segment_s=4)(VideoReader().load_data(drawn / "a.mp4"))
    ]
    IngestionPipeline(transformations=[embedding], vector_store=store).run(nodes=old)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=3).retrieve(QUERIES[1])
    assert all(type(one.node) is Node for one in found)
    ranked = VideoRerank(reranker=reranker, top_n=1).postprocess_nodes(found, query_str=QUERIES[1])
    assert ranked[0].get_content() == video_uri(drawn / "a.mp4", 4, 8)
    (clip,) = VideoClips().postprocess_nodes(ranked)
    assert clip.node.video_resource.data
    close_store(kind, store, tmp_path / "store")


def test_only_what_changed_is_embedded_again(
    store: BasePydanticVectorStore, embedding: VideoEmbedding, folder: Path, watched: Watched, tmp_path: Path
) -> None:
    pipeline = pipeline_of(embedding, store)

    def run() -> list[str]:
        pipeline.run(documents=VideoReader().load_data(folder))
        return watched.files()

    assert run() == ["a.mp4"] * 3 + ["b.MP4"] * 2 + ["c.mp4"]
    assert run() == []
    (folder / "c.mp4").touch()  # written to, and the same
    assert run() == []
    write_scenes(folder / "c.mp4", 7)  # another, and as long
    assert run() == ["c.mp4"]
    write_scenes(folder / "a.mp4", 0, 6)  # a segment less
    assert run() == ["a.mp4"] * 2
    assert sorted(stored(store, embedding)) == sorted(uris(folder, a_mp4=2, b_MP4=2, c_mp4=1))
    assert stored(store, embedding, RECORDS[6].summary)[0] == video_uri(folder / "a.mp4", 4, 8)

    pipeline.persist(str(tmp_path / "pipeline"))
    pipeline = pipeline_of(embedding, store, docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE)
    pipeline.load(str(tmp_path / "pipeline"))
    watched.inputs.clear()
    (folder / "b.MP4").unlink()
    assert run() == []
    assert set(stored(store, embedding)) == uris(folder, a_mp4=2, c_mp4=1)


def test_the_cache_of_a_pipeline_keeps_videos_apart(watched: Watched, drawn: Path) -> None:
    documents = VideoReader().load_data(drawn)
    pipeline = IngestionPipeline(transformations=[VideoEmbedding(encoder=watched)])
    first = [pipeline.run(documents=[document])[0] for document in documents]
    assert len(watched.files()) == 3
    assert len({tuple(node.embedding) for node in first}) == 3
    again = [pipeline.run(documents=[document])[0] for document in documents]
    assert watched.files() == []
    assert [node.embedding for node in again] == [node.embedding for node in first]
    for other in ({"dimensions": 8}, {"text_instruction": "Keep:"}):  # else: the vectors of other options
        pipeline.transformations = [VideoEmbedding(encoder=watched, **other)]
        pipeline.run(documents=documents[2:])
        assert watched.files() == ["c.mp4"]
    # what goes wrong without the URI in the text: all such nodes are one to the cache
    bare = [Node(video_resource=MediaResource(path=drawn / name)) for name in ("a.mp4", "c.mp4")]
    pipeline = IngestionPipeline(transformations=[VideoEmbedding(encoder=watched)])
    one, other = (pipeline.run(nodes=[node])[0] for node in bare)
    assert other.video_resource.path == one.video_resource.path == drawn / "a.mp4"


def test_the_cache_knows_a_model_that_was_trained_since(watched: Watched, drawn: Path) -> None:
    documents = VideoReader().load_data(drawn / "c.mp4")
    embedding = VideoEmbedding(encoder=watched)
    pipeline = IngestionPipeline(transformations=[embedding])
    before = list(pipeline.run(documents=documents)[0].embedding)
    weight = next(watched.parameters())
    kept = weight.data.clone()
    try:
        weight.data.add_(0.1)
        watched.inputs.clear()
        after = list(pipeline.run(documents=documents)[0].embedding)
        assert watched.files() == ["c.mp4"]
        assert after != before
        assert embedding.to_dict()["fingerprint"] == watched.fingerprint
    finally:
        weight.data = kept
    watched.inputs.clear()
    assert pipeline.run(documents=documents)[0].embedding == before
    assert watched.files() == []


def test_the_cache_knows_a_changed_file(watched: Watched, folder: Path) -> None:
    pipeline = IngestionPipeline(transformations=[VideoNodeParser(segment_s=4), VideoEmbedding(encoder=watched)])
    pipeline.run(documents=VideoReader().load_data(folder / "c.mp4"))
    write_scenes(folder / "c.mp4", 7)  # the same name and length
    watched.inputs.clear()
    pipeline.run(documents=VideoReader().load_data(folder / "c.mp4"))
    assert watched.files() == ["c.mp4"]


def test_deleted_documents_are_gone(store: BasePydanticVectorStore, embedding: VideoEmbedding, drawn: Path) -> None:
    documents = VideoReader().load_data(drawn)
    pipeline_of(embedding, store).run(documents=documents)
    store.delete(documents[0].id_)
    assert set(stored(store, embedding)) == uris(drawn, b_MP4=2, c_mp4=1)
    store.delete_nodes([VideoNodeParser(segment_s=4)(documents[1:2])[0].node_id])
    assert set(stored(store, embedding)) == uris(drawn, b_MP4=2, c_mp4=1) - {video_uri(drawn / "b.MP4", 0, 4)}


def test_skip_stores_the_rest(
    store: BasePydanticVectorStore, encoder: VideoEncoder, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = VideoEmbedding(encoder=encoder, on_error="skip")
    documents = VideoReader().load_data(folder)
    (folder / "b.MP4").unlink()  # between reading and embedding
    nodes = pipeline_of(embedding, store).run(documents=documents)
    assert {node.get_content() for node in nodes if node.embedding is None} == uris(folder, b_MP4=2)
    assert set(stored(store, embedding)) == uris(folder, a_mp4=3, c_mp4=1)
    assert "b.MP4#t=4,8" in caplog.text


def test_video_to_video(store: BasePydanticVectorStore, embedding: VideoEmbedding, drawn: Path) -> None:
    pipeline_of(embedding, store).run(documents=VideoReader().load_data(drawn))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    query = QueryBundle("like this", embedding=embedding.get_video_embedding(drawn / "c.mp4"))
    (best,) = index.as_retriever(similarity_top_k=1).retrieve(query)
    assert best.node.get_content() == video_uri(drawn / "c.mp4", 0, 4)


def test_min_score_means_the_same_with_every_store(
    store: BasePydanticVectorStore, embedding: VideoEmbedding, reranker: VideoReranker, drawn: Path
) -> None:
    nodes = pipeline_of(embedding, store).run(documents=VideoReader().load_data(drawn))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=6).retrieve(QUERIES[3])
    cosines = {node.node_id: np.dot(node.embedding, embedding.get_query_embedding(QUERIES[3])) for node in nodes}
    same_scores = np.allclose([one.score for one in found], [cosines[one.node.node_id] for one in found], atol=1e-4)
    assert same_scores != isinstance(store, ChromaVectorStore)  # a similarity cutoff means another thing with Chroma
    given = [NodeWithScore(node=node) for node in nodes]
    ranked = VideoRerank(reranker=reranker).postprocess_nodes(given, query_str=QUERIES[3])
    expected = ranked[:3]
    rerank = VideoRerank(reranker=reranker, min_score=(ranked[2].score + ranked[3].score) / 2)
    kept = rerank.postprocess_nodes(found, query_str=QUERIES[3])
    assert [one.node.node_id for one in kept] == [one.node.node_id for one in expected]


def test_a_piece_of_a_uri_is_an_error(embedding: VideoEmbedding, drawn: Path) -> None:
    documents = VideoReader().load_data(drawn / "c.mp4")
    documents[0].metadata = {}  # else its length is taken from that of the pieces
    splitter = SentenceSplitter(chunk_size=24, chunk_overlap=0, tokenizer=list)  # one token a character
    assert len(splitter(documents)) > 1
    with pytest.raises((VideoError, VideoUriError)):
        VectorStoreIndex.from_documents(documents, transformations=[splitter], embed_model=embedding)


# -- indexes -----------------------------------------------------------------------------------------------------------


def test_an_index_in_memory(embedding: VideoEmbedding, encoder: VideoEncoder, drawn: Path, tmp_path: Path) -> None:
    parser = VideoNodeParser(segment_s=4)
    documents = VideoReader().load_data(drawn)
    index = VectorStoreIndex.from_documents(documents[:2], transformations=[parser], embed_model=embedding)
    index.insert_nodes(parser(documents[2:]))
    texts = [node.get_content() for node in parser(documents)]
    retriever = index.as_retriever(similarity_top_k=6)
    for query in QUERIES[:2]:
        assert [one.node.get_content() for one in retriever.retrieve(query)] == ranks(encoder, texts, query)
    index.delete_ref_doc(documents[0].id_, delete_from_docstore=True)
    assert {one.node.get_content() for one in retriever.retrieve("red")} == uris(drawn, b_MP4=2, c_mp4=1)
    index.storage_context.persist(str(tmp_path / "index"))


def test_a_document_survives_the_default_splitter(
    embedding: VideoEmbedding, encoder: VideoEncoder, drawn: Path
) -> None:
    index = VectorStoreIndex.from_documents(VideoReader().load_data(drawn / "c.mp4"), embed_model=embedding)
    (found,) = index.as_retriever(similarity_top_k=5).retrieve(QUERIES[5])
    assert type(found.node) is TextNode
    cosine = encoder.encode(str(drawn / "c.mp4")) @ encoder.encode_query({"text": QUERIES[5]})
    assert found.score == pytest.approx(float(cosine), abs=1e-5)


def test_video_without_text_is_never_stored_as_the_vector_of_nothing(
    embedding: VideoEmbedding, drawn: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = Node(video_resource=MediaResource(path=drawn / "c.mp4"))
    index = VectorStoreIndex([bare], embed_model=embedding)
    assert "missing content" in capsys.readouterr().out  # and stores nothing
    with pytest.raises(ValueError, match="VideoReader"):  # LlamaIndex would store the vector of ""
        index.insert_nodes([bare])


def test_faiss_with_one_cached_run_for_each_file(
    watched: Watched, encoder: VideoEncoder, folder: Path, tmp_path: Path
) -> None:
    embedding = VideoEmbedding(encoder=watched)
    pipeline = IngestionPipeline(transformations=[VideoNodeParser(segment_s=4), embedding])

    def build() -> tuple[VectorStoreIndex, list[str]]:
        nodes = [node for one in VideoReader().load_data(folder) for node in pipeline.run(documents=[one])]
        context = StorageContext.from_defaults(vector_store=faiss_store(encoder.get_embedding_dimension()))
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
        return index, watched.files()

    index, embedded = build()
    assert len(embedded) == 6
    texts = sorted(uris(folder, a_mp4=3, b_MP4=2, c_mp4=1))
    for query in QUERIES:
        found = [one.node.get_content() for one in index.as_retriever(similarity_top_k=6).retrieve(query)]
        assert found == ranks(encoder, texts, query)
    write_scenes(folder / "a.mp4", 0, 6)
    (folder / "b.MP4").unlink()
    index, embedded = build()
    assert embedded == ["a.mp4"] * 2
    found = [one.node.get_content() for one in index.as_retriever(similarity_top_k=6).retrieve(RECORDS[6].summary)]
    assert set(found) == uris(folder, a_mp4=2, c_mp4=1)
    assert found[0] == video_uri(folder / "a.mp4", 4, 8)


def test_stores_open_again_in_another_process(
    tmp_path: Path, drawn: Path, embedding: VideoEmbedding, request: pytest.FixtureRequest
) -> None:
    documents = VideoReader().load_data(drawn)
    kinds = [kind for kind in KINDS if not lacking(kind)]  # the tests of each say that it is skipped
    address = request.getfixturevalue("postgres") if "postgres" in kinds else ""
    expected: dict[str, list[str]] = {}
    for kind in kinds:
        store = open_store(kind, tmp_path / kind, address)
        nodes = pipeline_of(embedding, store).run(documents=documents)
        expected[kind] = stored(store, embedding)
        close_store(kind, store, tmp_path / kind)
    context = StorageContext.from_defaults(vector_store=faiss_store(len(nodes[0].embedding)))
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)
    expected["faiss"] = [one.node.get_content() for one in index.as_retriever(similarity_top_k=6).retrieve(QUERIES[0])]
    index.storage_context.persist(str(tmp_path / "faiss"))
    code = """
        import json, sys
        import torch
        torch.set_num_threads(1)
        from pathlib import Path
        from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
        from llama_index.embeddings.vidembed import VideoEmbedding
        from llama_index.vector_stores.faiss import FaissVectorStore
        from tests.stores import open_store

        place, query, address, *kinds = Path(sys.argv[1]), *sys.argv[2:]
        embedding = VideoEmbedding("vidembed/shapes")
        context = StorageContext.from_defaults(
            vector_store=FaissVectorStore.from_persist_dir(str(place / "faiss")), persist_dir=str(place / "faiss")
        )
        indexes = {"faiss": load_index_from_storage(context, embed_model=embedding)}
        for kind in kinds:
            store = open_store(kind, place / kind, address)
            indexes[kind] = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        found = {
            kind: [one.node.get_content() for one in index.as_retriever(similarity_top_k=6).retrieve(query)]
            for kind, index in indexes.items()
        }
        print(json.dumps(found))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), QUERIES[0], address, *kinds],
        cwd=HERE.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.strip().splitlines()[-1]) == expected
