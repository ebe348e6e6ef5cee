"""`VideoRerank`: order, options, events and errors."""

from __future__ import annotations

import asyncio
import logging
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.llama_debug import LlamaDebugHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MediaResource, Node, NodeWithScore, QueryBundle, TextNode
from vidembed import VideoEncoder, VideoError, VideoReranker
from vidembed.errors import VideoUriError
from vidembed.uri import video_uri

from llama_index.embeddings.vidembed import VideoEmbedding
from llama_index.postprocessor.vidembed_rerank import NotAVideoError, VideoRerank
from llama_index.readers.vidembed import VideoNodeParser, VideoReader
from tests.conftest import QUERIES, Events, damage


@pytest.fixture
def found(drawn: Path) -> list[NodeWithScore]:
    nodes = VideoNodeParser(segment_s=4)(VideoReader().load_data(drawn))
    return [NodeWithScore(node=node, score=0.1 * place) for place, node in enumerate(nodes)]


def names(nodes: list[NodeWithScore]) -> list[str]:
    return [one.node.metadata["video_uri"] for one in nodes]


def test_it_is_a_postprocessor() -> None:
    assert issubclass(VideoRerank, BaseNodePostprocessor)
    assert VideoRerank.class_name() == "VideoRerank"


def test_order_and_scores_are_those_of_the_reranker(
    rerank: VideoRerank, reranker: VideoReranker, found: list[NodeWithScore]
) -> None:
    ranked = rerank.postprocess_nodes(found, query_str=QUERIES[3])
    segments = [rerank.video_in(one.node.get_content()).segment() for one in found]
    encoder = VideoEncoder("vidembed/shapes")
    similarities = (encoder.encode([{"text": QUERIES[3]}]) @ encoder.encode(segments).T)[0]
    expected = reranker.rank(QUERIES[3], segments, first_stage=similarities)
    assert names(ranked) == [names(found)[one["corpus_id"]] for one in expected]
    assert [one.score for one in ranked] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert all(type(one.score) is float for one in ranked)
    again = asyncio.run(rerank.apostprocess_nodes(found, QueryBundle(QUERIES[3])))
    assert names(again) == names(ranked)


def test_what_is_given_stays_as_it_is(reranker: VideoReranker, found: list[NodeWithScore]) -> None:
    before = [one.to_dict() for one in found]
    rerank = VideoRerank(reranker=reranker, keep_retrieval_score=True)
    ranked = rerank.postprocess_nodes(found, query_str=QUERIES[3])
    assert [one.to_dict() for one in found] == before
    kept = {one.node.metadata["video_uri"]: one.node.metadata["retrieval_score"] for one in ranked}
    assert kept == {one.node.metadata["video_uri"]: one.score for one in found}
    assert "retrieval_score" not in ranked[0].node.get_content("llm")
    assert "retrieval_score" not in ranked[0].node.get_content("embed")
    plain = VideoRerank(reranker=reranker).postprocess_nodes(found, query_str=QUERIES[3])
    assert not any("retrieval_score" in one.node.metadata for one in plain)


def test_top_n_and_min_score(reranker: VideoReranker, found: list[NodeWithScore]) -> None:
    scores = [one.score for one in VideoRerank(reranker=reranker).postprocess_nodes(found, query_str=QUERIES[3])]
    assert len(VideoRerank(reranker=reranker, top_n=2).postprocess_nodes(found, query_str=QUERIES[3])) == 2
    least = VideoRerank(reranker=reranker, min_score=scores[2]).postprocess_nodes(found, query_str=QUERIES[3])
    assert [one.score for one in least] == scores[:3]
    assert VideoRerank(reranker=reranker, min_score=1).postprocess_nodes(found, query_str=QUERIES[3]) == []


def test_videos_come_from_the_text_or_the_resource(rerank: VideoRerank, drawn: Path) -> None:
    path = drawn / "c.mp4"
    nodes = [
        TextNode(text=video_uri(path)),  # what from_documents makes of a document
        Node(video_resource=MediaResource(path=path)),
        Node(video_resource=MediaResource(data=path.read_bytes())),
    ]
    ranked = rerank.postprocess_nodes([NodeWithScore(node=node) for node in nodes], query_str=QUERIES[5])
    assert np.allclose([one.score for one in ranked], ranked[0].score, atol=1e-5)


def test_bad_input(
    rerank: VideoRerank,
    reranker: VideoReranker,
    found: list[NodeWithScore],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="Missing query bundle"):
        rerank.postprocess_nodes(found)
    with pytest.raises(ValueError, match="query"):
        rerank.postprocess_nodes(found, query_str=" ")
    assert rerank.postprocess_nodes([], query_str=QUERIES[0]) == []
    words = NodeWithScore(node=TextNode(id_="words", text="a red square"))
    for mode in ("raise", "skip"):
        with pytest.raises(NotAVideoError, match=r"nodes\[2\], node words"):
            VideoRerank(reranker=reranker, on_error=mode).postprocess_nodes([*found[:2], words], query_str="red")
    with pytest.raises(VideoUriError, match="outside root"):
        VideoRerank(reranker=reranker, root=folder).postprocess_nodes(found, query_str="red")
    damage(folder / "a.mp4")
    bad = NodeWithScore(node=TextNode(id_="bad", text=video_uri(folder / "a.mp4", 8, 12)))
    with pytest.raises(VideoError, match=r"a\.mp4"):
        rerank.postprocess_nodes([*found, bad], query_str="red")
    with caplog.at_level(logging.WARNING):
        kept = VideoRerank(reranker=reranker, on_error="skip").postprocess_nodes([*found, bad], query_str="red")
    assert sorted(names(kept)) == sorted(names(found))
    assert "node bad" in caplog.text


@pytest.mark.parametrize("not_video", ["keep", "drop"])
def test_texts_stay_behind_the_videos_or_are_dropped(
    reranker: VideoReranker, found: list[NodeWithScore], not_video: str
) -> None:
    notes = [NodeWithScore(node=TextNode(text=text), score=0.9) for text in ("a note", "another")]
    rerank = VideoRerank(reranker=reranker, not_video=not_video)
    ranked = rerank.postprocess_nodes([notes[0], *found, notes[1]], query_str=QUERIES[3])
    assert names(ranked[:6]) == names(rerank.postprocess_nodes(found, query_str=QUERIES[3]))
    assert ranked[6:] == (notes if not_video == "keep" else [])
    assert rerank.postprocess_nodes(notes, query_str="red") == (notes if not_video == "keep" else [])


def test_what_a_fused_score_is_made_of(reranker: VideoReranker, found: list[NodeWithScore]) -> None:
    fused = VideoRerank(reranker=reranker).postprocess_nodes(found, query_str=QUERIES[3])
    assert all({"similarity", "match"} <= set(one.node.metadata) for one in fused)
    assert "similarity" not in fused[0].node.get_content("llm")
    alone = VideoRerank(reranker=reranker, fuse=False).postprocess_nodes(found, query_str=QUERIES[3])
    assert not any("similarity" in one.node.metadata for one in alone)


def test_bad_options(reranker: VideoReranker) -> None:
    for options in (
        {"top_n": 0},
        {"min_score": 2},
        {"no_such": 1},
        {"device": "cpu"},
        {"model_kwargs": {"mode": "yes"}},
    ):
        with pytest.raises(ValueError, match="|".join(options)):
            VideoRerank(reranker=reranker, **options)
    with pytest.raises(ValueError, match="rank"):
        VideoRerank(reranker="vidembed/shapes-rerank")
    with pytest.raises(ValueError, match="fuse: this reranker has no fusion"):
        VideoRerank(reranker=VideoReranker("vidembed/shapes-mllm"), fuse=True)


def test_both_kinds_of_events(reranker: VideoReranker, found: list[NodeWithScore], events: Events) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    rerank = VideoRerank(reranker=reranker, callback_manager=CallbackManager([debug]), top_n=1)
    rerank.postprocess_nodes(found, query_str=QUERIES[0])
    start, end = [event for event in events.seen if "ReRank" in event.class_name()]
    assert (start.class_name(), start.top_n, len(start.nodes)) == ("ReRankStartEvent", 1, 6)
    assert (end.class_name(), len(end.nodes)) == ("ReRankEndEvent", 1)
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1


def test_saving(found: list[NodeWithScore]) -> None:
    with pytest.warns(UserWarning, match="generated videos") as caught:
        rerank = VideoRerank(top_n=2, model_kwargs={"shared_prefix": False})
    assert len(caught) == 1
    expected = rerank.postprocess_nodes(found, query_str=QUERIES[0])
    pickled = pickle.dumps(rerank)
    assert len(pickled) < 10_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [VideoRerank.from_dict(rerank.to_dict()), pickle.loads(pickled)]
    for copy in copies:
        assert copy.to_dict() == rerank.to_dict()
        assert copy.postprocess_nodes(found, query_str=QUERIES[0])[0].score == pytest.approx(expected[0].score)


def test_weights_are_in_memory_once() -> None:
    mllm = VideoReranker("vidembed/shapes-mllm")  # as an MLLM from elsewhere: one copy for embeddings and reranking
    embedding = VideoEmbedding(encoder=VideoEncoder(backbone=mllm.backbone, layer=7))
    rerank = VideoRerank.from_embedding(embedding, top_n=3)
    assert rerank.reranker.backbone is embedding.encoder.backbone
    shared = {one.data_ptr() for one in rerank.reranker.parameters()}
    assert all(one.data_ptr() in shared for name, one in embedding.encoder.named_parameters() if "layers.0" in name)
    assert rerank.top_n == 3


def test_a_reranker_that_goes_with_a_checkpoint(tmp_path: Path) -> None:
    embedding = VideoEmbedding("vidembed/shapes", root=tmp_path)
    rerank = VideoRerank.from_embedding(embedding)
    assert rerank.root == str(tmp_path)
    assert rerank.reranker.sampling == embedding.encoder.sampling
    assert rerank.reranker.can_fuse


def test_an_encoder_that_is_loaded_gets_the_reranker_of_its_own_name(tmp_path: Path) -> None:
    encoder = VideoEncoder("vidembed/shapes")
    assert VideoRerank.from_embedding(VideoEmbedding(encoder=encoder)).reranker.can_fuse
    encoder.save_pretrained(str(tmp_path / "elsewhere"))
    other = VideoEmbedding(encoder=VideoEncoder(tmp_path / "elsewhere"))
    reranker = VideoRerank.from_embedding(other).reranker
    assert not reranker.can_fuse  # of the MLLM that it was built from
    assert reranker.loaded_as == "vidembed/shapes-mllm"
