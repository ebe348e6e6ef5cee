"""End to end: a folder of videos, captions, a question, and a model of text that answers with file and times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.indexing import InMemoryRecordManager
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import create_retriever_tool

from langchain_vidembed import CAPTION_PROMPT, VideoEmbeddings, VideoLoader, VideoRerank, VideoRetriever, index_videos
from tests.captions import segment_captions, write_captions
from tests.conftest import RECORDS, Watched

PROMPT = ChatPromptTemplate.from_template("Cite file and times.\n\n{context}\n\nQuestion: {input}")
STORES = ["in_memory", "chroma", "qdrant", "faiss"]


@pytest.mark.parametrize("kind", STORES)
async def test_an_answer_cites_file_and_times(
    kind: str, folder: Path, tmp_path: Path, embeddings: VideoEmbeddings, rerank: VideoRerank
) -> None:
    captions = segment_captions(folder)[:-1]  # of c.mp4 nothing is said
    config: dict[str, Any] = {"kind": kind}
    if kind in {"chroma", "qdrant"}:
        config["path"] = str(tmp_path / "store")
    store = VideoRetriever.from_config({"store": config}, embeddings=embeddings).vectorstore
    store.add_documents(VideoLoader(folder, segment_s=4, captions=captions).load())
    retriever = VideoRetriever(vectorstore=store, reranker=rerank, k=1)
    model = ParrotFakeChatModel()
    chain = create_retrieval_chain(
        retriever, create_stuff_documents_chain(model, PROMPT, document_prompt=CAPTION_PROMPT)
    )
    tool = create_retriever_tool(retriever, "videos", "Finds videos.", document_prompt=CAPTION_PROMPT)
    for scene, name, start, caption in ((4, "b.MP4", 4.0, f": {RECORDS[4].caption}"), (5, "c.mp4", 0.0, "")):
        question = RECORDS[scene].summary
        shown = f"Video {folder / name}, from {start} s to {start + 4} s{caption}"
        answers = [chain.invoke({"input": question}), await chain.ainvoke({"input": question})]
        for answer in answers:
            assert answer["answer"] == f"Cite file and times.\n\n{shown}\n\nQuestion: {question}"
            assert answer["context"][0].page_content.startswith("video+file://")  # what is embedded and reranked
        assert tool.invoke(question) == shown


@pytest.mark.parametrize("kind", ["in_memory", "chroma"])
def test_a_document_is_another_when_its_caption_is(
    kind: str, folder: Path, tmp_path: Path, embeddings: VideoEmbeddings, watched: Watched
) -> None:
    config = {"kind": kind} | ({"path": str(tmp_path / "store")} if kind == "chroma" else {})
    store = VideoRetriever.from_config({"store": config}, embeddings=embeddings).vectorstore
    records = InMemoryRecordManager("videos")
    records.create_schema()
    captions = segment_captions(folder)
    file = write_captions(folder / "captions.jsonl", captions)

    def run() -> tuple[int, int]:
        report = index_videos(VideoLoader(folder, segment_s=4, captions=file), records, store)
        return report.added, report.deleted

    assert run() == (6, 0)
    assert run() == (0, 0)
    write_captions(file, [*captions[:-1]])
    assert run() == (1, 1)
    (found,) = store.similarity_search(RECORDS[5].summary, k=1)
    assert (found.metadata["source"], found.metadata["caption"]) == (str(folder / "c.mp4"), "")
