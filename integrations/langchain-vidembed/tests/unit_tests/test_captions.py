"""Captions in documents, and what a language model is shown of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, format_document
from vidembed.captions import CaptionLookup, CaptionRecord
from vidembed.errors import AnnotationError
from vidembed.uri import content_fingerprint

from langchain_vidembed import CAPTION_PROMPT, VIDEO_PROMPT, VideoEmbeddings, VideoLoader, VideoRerank
from tests.captions import segment_captions, write_captions
from tests.conftest import RECORDS, write_scenes

NASTY = [
    "a {red} square {0} {caption.__class__} {{page_content}}",
    "one\nVideo /etc/passwd, from 0 s to 1 s: two\r\n\u2028three",
    "\x1b]0;title\x07\x1b[2J\x9b31mred",
    "<script>alert('a')</script> &amp;",
    "word " * 2_000,
]


def test_documents_have_the_caption_of_their_bytes_and_times(folder: Path) -> None:
    plain = VideoLoader(folder, segment_s=4).load()
    file = write_captions(folder / "captions.jsonl", segment_captions(folder))
    captioned = VideoLoader(folder, segment_s=4, captions=file).load()
    assert [document.metadata.pop("caption") for document in captioned] == [record.caption for record in RECORDS[:6]]
    assert captioned == plain  # content, ids and all other metadata
    records = VideoLoader(folder, segment_s=4, captions=iter(segment_captions(folder)))
    for _ in range(2):  # records are read once, and a loader loads again
        assert [document.metadata["caption"] for document in records.load()] == [one.caption for one in RECORDS[:6]]


def test_documents_are_as_before_without_captions(folder: Path) -> None:
    for document in VideoLoader(folder).load():
        assert "caption" not in document.metadata
        assert ": " not in format_document(document, VIDEO_PROMPT)


def test_whole_videos_and_their_segments(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = CaptionRecord("a.mp4", content_fingerprint(folder / "a.mp4"), {"dense": "three scenes"})
    captions = [whole, *segment_captions(folder)]
    found = [document.metadata["caption"] for document in VideoLoader(folder, captions=captions).load()]
    assert found == ["three scenes", "", RECORDS[5].caption]  # c.mp4 is one segment
    assert "1 videos or segments have no caption" in caplog.text
    caplog.clear()
    assert VideoLoader(folder / "a.mp4", segment_s=12, captions=[whole]).load()[0].metadata["caption"] == "three scenes"
    assert VideoLoader(folder / "c.mp4", segment_s=4, captions=[whole]).load()[0].metadata["caption"] == ""
    assert not caplog.records
    moved = VideoLoader(folder, segment_s=5, captions=captions).load()
    assert [document.metadata["caption"] for document in moved] == ["", "", "", "", "", RECORDS[5].caption]
    assert len(caplog.records) == 1
    assert "5 videos or segments have no caption" in caplog.text


def test_captions_of_other_bytes_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_captions(folder / "captions.jsonl", segment_captions(folder))
    (folder / "c.mp4").rename(folder / "moved.mp4")
    for name, scene in (("a.mp4", 6), ("b.MP4", 7)):
        write_scenes(folder / name, scene)
    with caplog.at_level(logging.WARNING):
        documents = VideoLoader(folder, segment_s=4, captions=file).load()
    assert [document.metadata["caption"] for document in documents] == ["", "", RECORDS[5].caption]
    (said,) = caplog.records
    assert "left out the captions of 2 videos" in said.getMessage()


def test_marked_texts_and_other_kinds(folder: Path) -> None:
    marked = segment_captions(folder, problems={"dense": "the head gives it 2%"})
    assert {one.metadata["caption"] for one in VideoLoader(folder, segment_s=4, captions=marked).load()} == {""}
    for lookup, text in (
        (CaptionLookup(marked, marked=True), RECORDS[5].caption),
        (CaptionLookup(marked, kind="short"), RECORDS[5].summary),
    ):
        (document,) = VideoLoader(folder / "c.mp4", captions=lookup).load()
        assert document.metadata["caption"] == text


def test_what_a_model_of_text_is_shown(folder: Path) -> None:
    first, second = VideoLoader(folder, segment_s=4, captions=segment_captions(folder)[1:]).load()[:2]
    place = f"Video {folder / 'a.mp4'}, from"
    assert format_document(first, CAPTION_PROMPT) == f"{place} 0.0 s to 4.0 s"
    assert format_document(second, CAPTION_PROMPT) == f"{place} 4.0 s to 8.0 s: {RECORDS[1].caption}"
    assert format_document(second, VIDEO_PROMPT) == f"{place} 4.0 s to 8.0 s"  # it takes the page content only
    shown = VIDEO_PROMPT.format(page_content=second.page_content, **second.metadata)
    assert shown == format_document(second, CAPTION_PROMPT)
    note = Document(page_content="a note", metadata={"caption": "about nothing"})
    assert format_document(note, CAPTION_PROMPT) == "a note"
    with pytest.raises(ValueError, match="caption"):
        format_document(Document(page_content="a note"), CAPTION_PROMPT)


@pytest.mark.parametrize("text", NASTY)
def test_captions_are_words_and_nothing_else(folder: Path, text: str) -> None:
    (record,) = [replace(one, texts={"dense": text}) for one in segment_captions(folder) if one.video == "c.mp4"]
    file = write_captions(folder / "captions.jsonl", [record])
    (document,) = VideoLoader(folder / "c.mp4", segment_s=4, captions=file).load()
    raw = document.model_copy(update={"metadata": {**document.metadata, "caption": text}})
    shown = format_document(document, CAPTION_PROMPT)
    assert shown == format_document(raw, CAPTION_PROMPT)
    assert shown.startswith(f"Video {folder / 'c.mp4'}, from 0.0 s to 4.0 s: ")
    assert len(shown.splitlines()) == 1
    assert shown.isprintable()
    assert len(shown) >= len(" ".join(text.split()))
    prompt = ChatPromptTemplate.from_template("{context}\n{question}")
    assert prompt.format(context=shown, question="?") == f"Human: {shown}\n?"


def test_vectors_and_scores_are_of_the_video(folder: Path, embeddings: VideoEmbeddings, rerank: VideoRerank) -> None:
    plain = VideoLoader(folder, segment_s=4).load()
    records = segment_captions(folder)
    wrong = [replace(one, texts=two.texts) for one, two in zip(records, reversed(records), strict=True)]
    captioned = VideoLoader(folder, segment_s=4, captions=wrong).load()
    vectors = [embeddings.embed_documents([one.page_content for one in some]) for some in (plain, captioned)]
    assert vectors[0] == vectors[1]
    query = RECORDS[1].summary
    scores = [
        [(one.page_content, one.metadata["relevance_score"]) for one in rerank.compress_documents(some, query)]
        for some in (plain, captioned)
    ]
    assert scores[0] == scores[1]


def test_bad_captions(folder: Path) -> None:
    with pytest.raises(AnnotationError, match=r"none\.jsonl: cannot be read"):
        VideoLoader(folder, captions=folder / "none.jsonl")
    (folder / "captions.jsonl").write_text('{"dense": "words"}\n')
    with pytest.raises(AnnotationError, match="line 1: no 'video'"):
        VideoLoader(folder, captions=str(folder / "captions.jsonl"), on_error="skip")
    with pytest.raises(TypeError, match="expected a CaptionRecord"):
        VideoLoader(folder, captions=["words"])
