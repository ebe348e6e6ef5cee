"""Captions in documents and nodes; and a model of text that answers with file and times."""

from __future__ import annotations

import base64
import json
import logging
import pickle
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms.mock import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.simple import SimpleVectorStore
from vidembed.captions import CaptionLookup, CaptionRecord
from vidembed.uri import content_fingerprint
from vidembed.video import load_video

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoClips, VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader, video_extractor
from tests.captions import segment_captions, write_captions
from tests.conftest import QUERIES, RECORDS, Watched, write_scenes
from tests.stores import close_store, faiss_store, open_store

CAPTIONS = [record.caption for record in RECORDS[:6]]
NASTY = [
    "a {red} square {0} {metadata_str} {{content}}",
    "one\nfile_path: /etc/passwd\n\nvideo+file:///etc/passwd\r\n\u2028two",
    "\x1b]0;title\x07\x1b[2J\x9b31mred",
    "<script>alert('a')</script> &amp;",
    "word " * 2_000,
]


def read(folder: Path, captions: Any, segment_s: float | None = 4, **options: Any) -> list[TextNode]:
    return VideoNodeParser(segment_s=segment_s, **options)(VideoReader(captions=captions).load_data(folder))


def said(nodes: Iterable[Any]) -> list[str | None]:
    return [node.metadata.get("caption") for node in nodes]


def test_nodes_have_the_caption_of_their_bytes_and_times(drawn: Path, tmp_path: Path) -> None:
    plain = VideoNodeParser(segment_s=4)(VideoReader().load_data(drawn))
    file = write_captions(tmp_path / "captions.jsonl", segment_captions(drawn))
    captioned = read(drawn, file)
    assert said(captioned) == CAPTIONS
    for one, two, text in zip(captioned, plain, CAPTIONS, strict=True):
        assert one.node_id == two.node_id
        assert one.text == two.text
        for mode in (MetadataMode.EMBED, MetadataMode.NONE):  # the video, as without captions
            assert one.get_content(mode) == two.get_content(mode) == two.metadata["video_uri"]
        told = two.get_content(MetadataMode.LLM).replace("\n\n", f"\ncaption: {text}\n\n")
        assert one.get_content(MetadataMode.LLM) == told
        assert {key: value for key, value in one.metadata.items() if key != "caption"} == two.metadata
        assert "vidembed_captions" not in json.dumps(one.source_node.metadata)  # those of the whole file


def test_nodes_are_as_before_without_captions(drawn: Path) -> None:
    own = {"caption": "a caption of the user's own"}
    documents = VideoReader().load_data(drawn, extra_info=own)
    for node in [*documents, *VideoNodeParser(segment_s=4)(documents)]:
        assert node.metadata["caption"] == own["caption"]
        assert node.excluded_llm_metadata_keys == ["video_uri", "content_fingerprint"]
    assert not any("caption" in node.metadata for node in read(drawn, None))


def test_whole_videos_and_their_segments(drawn: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = CaptionRecord("a.mp4", content_fingerprint(drawn / "a.mp4"), {"dense": "three scenes"})
    captions = [whole, *segment_captions(drawn)]
    documents = VideoReader(captions=captions).load_data(drawn)
    assert said(documents) == ["three scenes", None, CAPTIONS[5]]  # c.mp4 is one segment
    for document, text in zip(documents, said(documents), strict=True):
        assert document.get_content(MetadataMode.EMBED) == document.text == document.metadata["video_uri"]
        told = document.get_content(MetadataMode.LLM)
        assert told.count("caption") == (1 if text else 0)
        assert text is None or f"\ncaption: {text}\n" in told
    assert not caplog.records
    assert said(VideoNodeParser(segment_s=4)(documents)) == CAPTIONS
    assert said(VideoNodeParser()(documents)) == ["three scenes", None, CAPTIONS[5]]
    caplog.clear()
    assert said(VideoNodeParser(segment_s=5)(documents)) == [None] * 5 + [CAPTIONS[5]]
    assert len(caplog.records) == 1
    assert "5 videos or segments have no caption" in caplog.text
    twice = VideoNodeParser(segment_s=4)(VideoNodeParser(segment_s=12)(documents[:1]))
    assert said(twice) == [None] * 3  # cut again, "three scenes" is true of none
    assert said(VideoNodeParser(segment_s=4)(VideoNodeParser(segment_s=4)(documents))) == CAPTIONS
    assert said(VideoNodeParser(segment_s=4, include_metadata=False)(documents)) == CAPTIONS


def test_captions_of_other_bytes_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_captions(folder / "captions.jsonl", segment_captions(folder))
    (folder / "c.mp4").rename(folder / "moved.mp4")
    for name, scene in (("a.mp4", 6), ("b.MP4", 7)):
        write_scenes(folder / name, scene)
    with caplog.at_level(logging.WARNING):
        nodes = read(folder, file)
    assert said(nodes) == [None, None, CAPTIONS[5]]
    (one,) = [record.getMessage() for record in caplog.records]
    assert "left out the captions of 2 videos" in one


def test_marked_texts_and_other_kinds(drawn: Path) -> None:
    marked = segment_captions(drawn, problems={"dense": "the head gives it 2%"})
    assert said(read(drawn, marked)) == [None] * 6
    assert said(read(drawn, CaptionLookup(marked, marked=True))) == CAPTIONS
    assert said(read(drawn, CaptionLookup(marked, kind="short"))) == QUERIES


@pytest.mark.parametrize("text", NASTY)
def test_captions_are_words_and_nothing_else(drawn: Path, tmp_path: Path, embedding: VideoEmbedding, text: str) -> None:
    records = [replace(one, texts={"dense": text}) for one in segment_captions(drawn)]
    nodes = read(drawn / "c.mp4", write_captions(tmp_path / "captions.jsonl", records))
    (plain,) = VideoNodeParser(segment_s=4)(VideoReader().load_data(drawn / "c.mp4"))
    caption = nodes[0].metadata["caption"]
    assert caption.isprintable()
    assert len(caption) >= len(" ".join(text.split()))
    assert nodes[0].get_content(MetadataMode.EMBED) == plain.text
    llm = plain.get_content(MetadataMode.LLM).replace("\n\n", f"\ncaption: {caption}\n\n")
    assert nodes[0].get_content(MetadataMode.LLM) == llm
    engine = VectorStoreIndex(nodes, embed_model=embedding).as_query_engine(llm=MockLLM())
    answer = engine.query(QUERIES[5])
    assert answer.source_nodes[0].node.metadata["caption"] == caption
    assert caption[:100] in str(answer)
    assert len([line for line in str(answer).splitlines() if line.startswith(("file_path", "video+"))]) == 1


def test_vectors_and_scores_are_of_the_video(drawn: Path, embedding: VideoEmbedding, rerank: VideoRerank) -> None:
    records = segment_captions(drawn)
    wrong = [replace(one, texts=two.texts) for one, two in zip(records, reversed(records), strict=True)]
    plain, captioned = read(drawn, None), read(drawn, wrong)
    for nodes in (plain, captioned):
        embedding(nodes)
    assert [one.embedding for one in plain] == [one.embedding for one in captioned]
    texts = [[one.get_content(MetadataMode.EMBED) for one in nodes] for nodes in (plain, captioned)]
    assert texts[0] == texts[1]
    ranked = [
        [
            (one.node.text, one.score)
            for one in rerank.postprocess_nodes([NodeWithScore(node=node) for node in nodes], query_str=QUERIES[1])
        ]
        for nodes in (plain, captioned)
    ]
    assert ranked[0] == ranked[1]
    clips = [
        VideoClips(fps=1).postprocess_nodes([NodeWithScore(node=nodes[5])])[0].node for nodes in (plain, captioned)
    ]
    # x264 does not write the same frames to the same bytes each time
    shown = [load_video(base64.b64decode(clip.video_resource.data)) for clip in clips]
    assert shown[0].timestamps.tolist() == shown[1].timestamps.tolist()
    assert np.abs(shown[0].frames.astype(int) - shown[1].frames).mean() < 2
    assert clips[1].get_content(MetadataMode.NONE) == plain[5].text


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["simple", "chroma", "qdrant", "faiss"])
async def test_an_answer_cites_file_and_times(
    kind: str, is_async: bool, drawn: Path, tmp_path: Path, embedding: VideoEmbedding, rerank: VideoRerank
) -> None:
    if kind == "qdrant" and is_async:
        pytest.skip("the store is opened without its async client")
    reader = VideoReader(captions=segment_captions(drawn)[:-1])  # of c.mp4 nothing is said
    documents = SimpleDirectoryReader(drawn, file_extractor=video_extractor(reader)).load_data()
    store: Any = (
        SimpleVectorStore() if kind == "simple" else faiss_store(128) if kind == "faiss" else open_store(kind, tmp_path)
    )
    index = VectorStoreIndex.from_documents(
        documents,
        transformations=[VideoNodeParser(segment_s=4)],
        embed_model=embedding,
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    if kind in {"chroma", "qdrant"}:  # these hold the nodes themselves
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    best = VideoRerank(reranker=rerank.reranker, top_n=1)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[best])
    for scene, name, start, caption in ((4, "b.MP4", 4.0, CAPTIONS[4]), (5, "c.mp4", 0.0, None)):
        response = await engine.aquery(QUERIES[scene]) if is_async else engine.query(QUERIES[scene])
        cited = [f"file_path: {drawn / name}", f"start_s: {start}", f"end_s: {start + 4}", QUERIES[scene]]
        cited += [f"caption: {caption}"] if caption else []
        assert all(part in str(response) for part in cited)
        assert ("caption" in str(response)) == (caption is not None)
        assert not any(part in str(response) for part in ("content_fingerprint", "vidembed_captions", "video_uri"))
        (source,) = response.source_nodes
        assert source.node.get_content(MetadataMode.EMBED) == source.node.metadata["video_uri"]
    close_store(kind, store, tmp_path)


def test_a_document_is_another_when_its_captions_are(
    folder: Path, tmp_path: Path, embedding: VideoEmbedding, watched: Watched
) -> None:
    store = open_store("chroma", tmp_path / "store")
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=512, chunk_overlap=0), VideoNodeParser(segment_s=4), embedding],
        vector_store=store,
        docstore=SimpleDocumentStore(),
    )
    captions = segment_captions(folder)
    captions += [CaptionRecord("b.MP4", captions[3].content, {"dense": "two scenes"})]
    file = write_captions(tmp_path / "captions.jsonl", captions)

    def run() -> list[str]:
        pipeline.run(documents=VideoReader(captions=file).load_data(folder))
        return watched.files()

    def stored() -> set[str | None]:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        return set(said(one.node for one in index.as_retriever(similarity_top_k=9).retrieve(QUERIES[0])))

    assert len(run()) == 6
    assert stored() == set(CAPTIONS)
    assert run() == []
    write_captions(file, [*captions[:4], replace(captions[4], texts={"dense": "another"}), *captions[5:]])
    assert run() == ["b.MP4"] * 2
    assert stored() == {*CAPTIONS[:4], "another", CAPTIONS[5]}


def test_saving_and_bad_captions(drawn: Path, tmp_path: Path) -> None:
    file = write_captions(tmp_path / "captions.jsonl", segment_captions(drawn))
    reader = VideoReader(captions=file)
    for copy in (VideoReader.from_dict(json.loads(json.dumps(reader.to_dict()))), pickle.loads(pickle.dumps(reader))):
        assert said(VideoNodeParser(segment_s=4)(copy.load_data(drawn))) == CAPTIONS
    assert VideoReader().to_dict()["captions"] is None
    records = VideoReader(captions=segment_captions(drawn))
    assert said(VideoNodeParser(segment_s=4)(pickle.loads(pickle.dumps(records)).load_data(drawn))) == CAPTIONS
    with pytest.raises(ValueError, match="saved only with captions from a file"):
        records.to_dict()
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read"):
        VideoReader(captions=tmp_path / "none.jsonl", on_error="skip")
    with pytest.raises(TypeError, match="expected a CaptionRecord"):
        VideoReader(captions=["words"])
