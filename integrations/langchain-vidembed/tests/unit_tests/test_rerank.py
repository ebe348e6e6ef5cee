from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import format_document
from pydantic import ValidationError
from vidembed import VideoEncoder, VideoReranker, VideoSegment
from vidembed.adapters import lock_of
from vidembed.errors import InputError, VideoUriError
from vidembed.video import VideoNotFound

from langchain_vidembed import (
    VIDEO_PROMPT,
    NotAVideoError,
    VideoCrossEncoder,
    VideoEmbeddings,
    VideoLoader,
    VideoRerank,
)
from tests.conftest import RECORDS

QUERY = RECORDS[1].summary


@pytest.fixture
def documents(folder: Path) -> list[Document]:
    return VideoLoader(folder, segment_s=4).load()


@pytest.fixture
def expected(folder: Path, reranker: VideoReranker) -> list[float]:
    places = [("a.mp4", 0), ("a.mp4", 4), ("a.mp4", 8), ("b.MP4", 0), ("b.MP4", 4), ("c.mp4", 0)]
    segments = [VideoSegment(folder / name, at, at + 4) for name, at in places]
    encoder = VideoEncoder("vidembed/shapes")
    similarities = (encoder.encode([{"text": QUERY}]) @ encoder.encode(segments).T)[0]
    ranking = reranker.rank({"text": QUERY}, segments, first_stage=similarities)
    return [one["score"] for one in sorted(ranking, key=lambda one: one["corpus_id"])]


def test_scores_are_those_of_the_reranker(
    documents: list[Document], rerank: VideoRerank, expected: list[float]
) -> None:
    found = rerank.compress_documents(documents, QUERY)
    scores = [document.metadata["relevance_score"] for document in found]
    assert {type(score) for score in scores} == {float}
    assert scores == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    best = max(range(6), key=expected.__getitem__)
    assert found[0].page_content == documents[best].page_content


def test_documents_are_copied_and_keep_their_ids(documents: list[Document], rerank: VideoRerank) -> None:
    before = [document.model_dump_json() for document in documents]
    found = rerank.compress_documents(documents, QUERY)
    assert [document.model_dump_json() for document in documents] == before
    assert {document.id for document in found} == {document.id for document in documents}
    assert all(document.metadata["source"] for document in found)


def test_top_n_and_min_score(documents: list[Document], reranker: VideoReranker, expected: list[float]) -> None:
    ranked = sorted(expected, reverse=True)
    assert len(VideoRerank(reranker=reranker, top_n=2).compress_documents(documents, QUERY)) == 2
    threshold = (ranked[2] + ranked[3]) / 2
    assert len(VideoRerank(reranker=reranker, min_score=threshold).compress_documents(documents, QUERY)) == 3
    assert VideoRerank(reranker=reranker, min_score=1).compress_documents(documents, QUERY) == []


async def test_async_is_the_same(documents: list[Document], rerank: VideoRerank) -> None:
    assert await rerank.acompress_documents(documents, QUERY) == rerank.compress_documents(documents, QUERY)


def test_nothing_and_empty_queries(documents: list[Document], rerank: VideoRerank) -> None:
    assert rerank.compress_documents([], QUERY) == []
    for given in ([], documents):
        with pytest.raises(ValueError, match="give some words"):
            rerank.compress_documents(given, " ")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_document_that_is_no_video_is_named(
    documents: list[Document], reranker: VideoReranker, on_error: str
) -> None:
    mixed = [documents[0], Document(id="note-7", page_content="a note about a video"), documents[1]]
    with pytest.raises(NotAVideoError, match=r"documents\[1\] \(id 'note-7'\) is not a video: its text is 'a note"):
        VideoRerank(reranker=reranker, on_error=on_error).compress_documents(mixed, QUERY)


@pytest.mark.parametrize("not_video", ["keep", "drop"])
def test_texts_stay_behind_the_videos_or_are_dropped(
    documents: list[Document], reranker: VideoReranker, not_video: str
) -> None:
    notes = [Document(page_content="a note"), Document(page_content="another")]
    rerank = VideoRerank(reranker=reranker, not_video=not_video)
    found = rerank.compress_documents([notes[0], *documents, notes[1]], QUERY)
    assert found[:6] == rerank.compress_documents(documents, QUERY)
    assert found[6:] == (notes if not_video == "keep" else [])
    assert rerank.compress_documents(notes, QUERY) == (notes if not_video == "keep" else [])
    shown = [format_document(one, VIDEO_PROMPT) for one in (documents[1], notes[0])]
    assert shown == [f"Video {documents[1].metadata['source']}, from 4.0 s to 8.0 s", "a note"]


def test_what_a_fused_score_is_made_of(documents: list[Document], reranker: VideoReranker) -> None:
    fused = VideoRerank(reranker=reranker).compress_documents(documents, QUERY)
    assert all({"similarity", "match", "relevance_score"} <= set(one.metadata) for one in fused)
    alone = VideoRerank(reranker=reranker, fuse=False).compress_documents(documents, QUERY)
    assert not any("similarity" in one.metadata for one in alone)
    head = VideoReranker("vidembed/shapes-mllm")
    assert len(VideoRerank(reranker=head).compress_documents(documents, QUERY)) == 6
    with pytest.raises(ValidationError, match="fuse: this reranker has no fusion"):
        VideoRerank(reranker=head, fuse=True)


def test_a_video_that_is_gone(documents: list[Document], folder: Path, reranker: VideoReranker) -> None:
    (folder / "c.mp4").unlink()
    with pytest.raises(VideoNotFound, match=r"c\.mp4"):
        VideoRerank(reranker=reranker).compress_documents(documents, QUERY)
    found = VideoRerank(reranker=reranker, on_error="skip", min_score=0).compress_documents(documents, QUERY)
    assert len(found) == 5
    assert not any("c.mp4" in document.page_content for document in found)


def test_what_may_be_read_is_confined(documents: list[Document], tmp_path: Path, reranker: VideoReranker) -> None:
    with pytest.raises(VideoUriError, match="outside root"):
        VideoRerank(reranker=reranker, root=tmp_path / "else").compress_documents(documents, QUERY)


# -- the cross-encoder -------------------------------------------------------------------------------------------------


def test_a_cross_encoder_takes_either_side(documents: list[Document], reranker: VideoReranker) -> None:
    cross_encoder = VideoCrossEncoder(reranker=reranker)
    alone = VideoRerank(reranker=reranker, fuse=False).compress_documents(documents, QUERY)
    scores = {document.page_content: document.metadata["relevance_score"] for document in alone}
    expected = [scores[document.page_content] for document in documents]
    uris = [document.page_content for document in documents]
    found = cross_encoder.score([(QUERY, uri) for uri in uris])
    assert {type(score) for score in found} == {float}
    assert found == pytest.approx(expected, abs=1e-5)
    assert cross_encoder.score([(uris[0], QUERY)]) == pytest.approx(expected[:1], abs=1e-5)
    assert cross_encoder.score([]) == []


def test_pairs_without_one_video_are_named(documents: list[Document], reranker: VideoReranker) -> None:
    cross_encoder = VideoCrossEncoder(reranker=reranker)
    uri = documents[0].page_content
    for pair, count in ((("a", "b"), 0), ((uri, uri), 2)):
        with pytest.raises(NotAVideoError, match=rf"text_pairs\[1\]: {count} video URIs"):
            cross_encoder.score([(QUERY, uri), pair])
    with pytest.raises(InputError, match="the text is empty"):
        cross_encoder.score([("", uri)])
    with pytest.raises(VideoUriError, match="not allowed"):
        cross_encoder.score([(QUERY, "video+https://example.org/a.mp4")])


# -- models ------------------------------------------------------------------------------------------------------------


def test_weights_are_shared_where_they_can_be(folder: Path) -> None:
    embeddings = VideoEmbeddings(
        model="vidembed/shapes-mllm", layer=7, model_kwargs={"prefix": None}, root=folder, allowed_schemes=["file"]
    )
    rerank = VideoRerank.from_embeddings(embeddings, top_n=1)
    assert rerank.reranker.backbone.model is embeddings.encoder.backbone.model
    assert lock_of(rerank.reranker) is lock_of(embeddings.encoder)
    assert (rerank.root, rerank.top_n) == (folder, 1)
    (found,) = rerank.compress_documents(VideoLoader(folder, segment_s=4).load(), QUERY)
    assert 0 < found.metadata["relevance_score"] < 1


def test_a_cut_checkpoint_gets_the_reranker_beside_it() -> None:
    rerank = VideoRerank.from_embeddings(VideoEmbeddings(model="vidembed/shapes"))
    assert rerank.reranker.can_fuse
    assert "shapes" in rerank.reranker.source


def test_an_encoder_that_is_loaded_gets_the_reranker_of_its_own_name(tmp_path: Path) -> None:
    ready = VideoEmbeddings(encoder=VideoEncoder("vidembed/shapes"))
    assert VideoRerank.from_embeddings(ready).reranker.can_fuse
    ready.encoder.save_pretrained(str(tmp_path / "elsewhere"))
    other = VideoEmbeddings(encoder=VideoEncoder(tmp_path / "elsewhere"))  # its `model` says vidembed/shapes
    reranker = VideoRerank.from_embeddings(other).reranker
    assert not reranker.can_fuse  # of the MLLM that it was built from
    assert reranker.loaded_as == "vidembed/shapes-mllm"


@pytest.mark.parametrize("kind", [VideoRerank, VideoCrossEncoder])
def test_options_are_checked(kind: type, reranker: VideoReranker) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"topn": 1}, "topn"),
        ({"reranker": object()}, "has no predict"),
        ({"reranker": reranker, "model": "vidembed/shapes-rerank"}, "reranker is already loaded"),
        ({"allowed_schemes": ["ftp"]}, "'ftp'"),
        ({"reranker": reranker, "allowed_schemes": ["https"]}, "allow_url=False"),
        ({"model_kwargs": {"device": "cpu"}}, "field 'device'"),
    ]
    if kind is VideoRerank:
        bad += [({"top_n": 0}, "top_n"), ({"min_score": 1.5}, "min_score"), ({"on_error": "x"}, "on_error")]
    for options, message in bad:
        with pytest.raises(ValidationError, match=message):
            kind(**options)


def test_the_default_warns_and_pickles_load_it_again(documents: list[Document]) -> None:
    with pytest.warns(UserWarning, match="generated videos") as caught:
        rerank = VideoRerank(top_n=2)
    assert caught[0].filename == __file__
    text = pickle.dumps(rerank)
    assert len(text) < 10_000
    assert pickle.loads(text).compress_documents(documents, QUERY) == rerank.compress_documents(documents, QUERY)
