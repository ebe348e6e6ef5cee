"""End to end: a folder of videos, a question, and a model that is shown the right clip."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, VideoBlock
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from vidembed import VideoEncoder, VideoSegment
from vidembed.errors import VideoUriError
from vidembed.uri import video_uri
from vidembed.video import probe

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import VideoClips, VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader, video_extractor
from tests.conftest import QUERIES


class Chat(MockLLM):
    """A chat model that takes video, and keeps what it is sent."""

    sent: list[ChatMessage] = []  # noqa: RUF012 - pydantic copies it

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=100_000)

    def chat(self, messages: Any, **_: Any) -> ChatResponse:
        self.sent += messages
        return ChatResponse(message=ChatMessage(role="assistant", content="It moves down."))

    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    def shown(self) -> tuple[bytes, str]:
        """The video and all words that it was sent."""
        blocks = [block for message in self.sent for block in message.blocks]
        (video,) = [block for block in blocks if isinstance(block, VideoBlock)]
        kind, _, data = str(video.url).partition(",")
        assert kind == "data:video/mp4;base64"
        return base64.b64decode(data), "\n".join(block.text for block in blocks if hasattr(block, "text"))


@pytest.fixture
def index(embedding: VideoEmbedding, drawn: Path) -> VectorStoreIndex:
    documents = SimpleDirectoryReader(drawn, file_extractor=video_extractor()).load_data()
    return VectorStoreIndex.from_documents(
        documents, transformations=[VideoNodeParser(segment_s=4)], embed_model=embedding
    )


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_model_is_shown_the_right_clip(
    index: VectorStoreIndex, rerank: VideoRerank, encoder: VideoEncoder, drawn: Path, is_async: bool
) -> None:
    chat = Chat()
    best = VideoRerank(reranker=rerank.reranker, top_n=1, keep_retrieval_score=True)
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=2), llm=chat, node_postprocessors=[best, VideoClips()], multimodal=True
    )
    response = await engine.aquery(QUERIES[1]) if is_async else engine.query(QUERIES[1])
    assert str(response) == "It moves down."
    (source,) = response.source_nodes
    assert source.node.get_content() == video_uri(drawn / "a.mp4", 4, 8)
    assert 0 <= source.score <= 1
    video, text = chat.shown()
    assert probe(video).duration == pytest.approx(4, abs=0.3)  # of a file of 12 seconds
    parts = encoder.encode([VideoSegment(drawn / "a.mp4", at, at + 4) for at in (0, 4, 8)])
    assert np.argmax(parts @ encoder.encode(video)) == 1
    for said in ("start_s: 4.0", "end_s: 8.0", source.node.get_content(), QUERIES[1]):
        assert said in text
    assert "content_fingerprint" not in text
    assert "retrieval_score" not in text


def test_without_clips_a_model_sees_where_it_is(index: VectorStoreIndex, drawn: Path) -> None:
    chat = Chat()
    RetrieverQueryEngine.from_args(index.as_retriever(similarity_top_k=1), llm=chat, multimodal=True).query(QUERIES[5])
    blocks = [block for message in chat.sent for block in message.blocks]
    assert not any(isinstance(block, VideoBlock) for block in blocks)
    assert any(video_uri(drawn / "c.mp4", 0, 4) in getattr(block, "text", "") for block in blocks)


def test_a_model_of_text_sees_where_it_is(index: VectorStoreIndex, drawn: Path) -> None:
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    assert video_uri(drawn / "c.mp4", 0, 4) in str(engine.query(QUERIES[5]))


def test_clips_are_new_nodes(drawn: Path, tmp_path: Path) -> None:
    (node, *_) = VideoNodeParser(segment_s=2)(VideoReader().load_data(drawn / "c.mp4"))
    words, degraded = TextNode(text="a red square"), TextNode(text=node.get_content(), metadata={"title": "Shapes"})
    before = node.to_dict()
    given = [NodeWithScore(node=one, score=0.5) for one in (node, words, degraded)]
    clips = VideoClips(fps=2, max_pixels=64 * 64).postprocess_nodes(given)
    assert node.to_dict() == before
    assert clips[1].node is words
    for clip in (clips[0], clips[2]):
        info = probe(base64.b64decode(clip.node.video_resource.data))
        assert info.duration == pytest.approx(2, abs=0.1)
        assert info.width * info.height <= 64 * 64
    assert (clips[0].node.node_id, clips[0].node.metadata) == (node.node_id, node.metadata)
    assert clips[2].node.metadata == {"title": "Shapes"}
    with pytest.raises(VideoUriError, match="outside root"):
        VideoClips(root=tmp_path).postprocess_nodes(given)
    with pytest.raises(ValueError, match="fps"):
        VideoClips(fps=0)
