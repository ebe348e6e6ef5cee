"""`VideoReader` and `VideoNodeParser`: files become documents, and documents become timed nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import uuid
from pathlib import Path

import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MediaResource, MetadataMode, Node, TextNode
from vidembed.errors import VideoUriError
from vidembed.uri import VIDEO_SUFFIXES, content_fingerprint, video_uri
from vidembed.video import VideoError

from llama_index.embeddings.vidembed import NotAVideoError
from llama_index.readers.vidembed import VideoNodeParser, VideoReader, video_extractor
from tests.conftest import uris, write_scenes


def read(folder: Path, **options: object) -> list[Document]:
    return SimpleDirectoryReader(folder, file_extractor=video_extractor(), **options).load_data()


def test_a_document_of_each_file(drawn: Path) -> None:
    documents = VideoReader().load_data(drawn)
    assert [document.metadata["video_uri"] for document in documents] == [
        video_uri(drawn / name) for name in ("a.mp4", "b.MP4", "c.mp4")
    ]
    first = documents[0]
    assert first.text == first.get_content(MetadataMode.EMBED) == video_uri(drawn / "a.mp4")
    assert first.video_resource.path == drawn / "a.mp4"
    assert (first.metadata["start_s"], first.metadata["end_s"], first.metadata["duration_s"]) == (0.0, 12.0, 12.0)
    assert first.metadata["kind"] == "video"
    assert first.metadata["content_fingerprint"] == content_fingerprint(drawn / "a.mp4")
    assert "content_fingerprint" not in first.get_content(MetadataMode.LLM)
    assert "end_s: 12.0" in first.get_content(MetadataMode.LLM)
    assert uuid.UUID(first.id_)
    assert [document.id_ for document in VideoReader().load_data(drawn)] == [document.id_ for document in documents]
    (one,) = asyncio.run(VideoReader().aload_data(drawn / "c.mp4", extra_info={"title": "Shapes"}))
    assert one.metadata["title"] == "Shapes"
    assert one.get_content(MetadataMode.EMBED) == one.text


def test_directory_reader_takes_every_suffix_in_both_cases(drawn: Path, tmp_path: Path) -> None:
    extractor = video_extractor()
    assert set(extractor) == {case for suffix in VIDEO_SUFFIXES for case in (suffix, suffix.upper())}
    for name in ("a.MP4", "b.mkv", "c.MoV", "d.mp4"):
        shutil.copy(drawn / "c.mp4", tmp_path / name)
    (tmp_path / "notes.txt").write_text("words")
    documents = read(tmp_path)
    by_name = {document.metadata["file_name"]: document for document in documents}
    assert by_name.pop("notes.txt").text == "words"
    assert {name: document.text for name, document in by_name.items()} == {
        name: video_uri(tmp_path / name) for name in ("a.MP4", "b.mkv", "c.MoV", "d.mp4")
    }
    assert {document.metadata["file_name"] for document in read(tmp_path, required_exts=list(extractor))} == {
        "a.MP4",
        "b.mkv",
        "d.mp4",
    }
    # what the extractor is for: bytes as text, or a transcript, and one case only
    plain = SimpleDirectoryReader(tmp_path, required_exts=[".mkv", ".mp4"], file_extractor={}).load_data()
    assert {document.metadata["file_name"] for document in plain} <= {"b.mkv", "d.mp4"}
    assert not any(document.text.startswith("video+") for document in plain)


def test_nothing_leaks_into_what_is_embedded(drawn: Path) -> None:
    documents = read(drawn)
    assert all("file_path" in document.metadata for document in documents)  # which LlamaIndex does not exclude
    for node in VideoNodeParser(segment_s=4)(documents):
        assert node.get_content(MetadataMode.EMBED) == node.metadata["video_uri"]


def test_a_document_is_another_when_its_content_is(folder: Path) -> None:
    before = {document.id_: document.hash for document in read(folder)}
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))  # read and written on another day
    assert {document.id_: document.hash for document in read(folder)} == before
    write_scenes(folder / "c.mp4", 7)
    os.utime(folder / "c.mp4", (1_000_000_000, 1_000_000_000))
    changed = {document.id_: document for document in read(folder) if document.hash != before[document.id_]}
    assert [document.metadata["file_name"] for document in changed.values()] == ["c.mp4"]
    resources = {MediaResource(path=folder / "c.mp4").hash, next(iter(changed.values())).video_resource.hash}
    assert len(resources) == 1  # what LlamaIndex hashes of a video is its path, hence the fingerprint


def test_files_that_cannot_be_read(
    folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    (folder / "bad.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    os.mkfifo(folder / "pipe.mp4")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        VideoReader().load_data(folder)
    with caplog.at_level(logging.WARNING):
        documents = VideoReader(on_error="skip").load_data(folder)
    assert len(documents) == 3
    assert all(f"skipped {folder / name}" in caplog.text for name in ("bad.mp4", "empty.mp4", "pipe.mp4"))
    (folder / "pipe.mp4").unlink()
    assert len(read(folder)) == 3
    assert "bad.mp4" in capsys.readouterr().out  # LlamaIndex prints it
    with pytest.raises(Exception, match="Error loading file"):
        read(folder, raise_on_error=True)


def test_bad_arguments(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        VideoReader().load_data(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="no video"):
        VideoReader().load_data(tmp_path)
    with pytest.raises(ValueError, match="fs"):
        VideoReader().load_data(drawn, fs=object())
    with pytest.raises(ValueError, match="no_such"):
        VideoReader(no_such=1)
    for options in ({"segment_s": 0}, {"segment_s": 4, "overlap_s": 4}, {"overlap_s": 1}, {"segment_s": 4, "no": 1}):
        with pytest.raises(ValueError, match=r"segment|overlap|no"):
            VideoNodeParser(**options)


def test_timed_nodes(drawn: Path) -> None:
    documents = VideoReader().load_data(drawn)
    nodes = VideoNodeParser(segment_s=4)(documents)
    assert {node.metadata["video_uri"] for node in nodes} == uris(drawn, a_mp4=3, b_MP4=2, c_mp4=1)
    assert all(type(node) is TextNode for node in nodes)  # the class that all stores take and give back
    assert {node.metadata["kind"] for node in nodes} == {"video"}
    second = nodes[1]
    assert (second.metadata["start_s"], second.metadata["end_s"], second.metadata["duration_s"]) == (4.0, 8.0, 12.0)
    assert second.get_text() == second.get_content(MetadataMode.EMBED) == second.metadata["video_uri"]
    assert second.ref_doc_id == documents[0].id_
    assert (second.prev_node.node_id, second.next_node.node_id) == (nodes[0].node_id, nodes[2].node_id)
    assert len({uuid.UUID(node.node_id) for node in nodes} | {uuid.UUID(one.id_) for one in documents}) == 9
    assert [node.node_id for node in VideoNodeParser(segment_s=4)(documents)] == [node.node_id for node in nodes]
    assert "start_s: 4.0" in second.get_content(MetadataMode.LLM)
    overlapping = VideoNodeParser(segment_s=4, overlap_s=2)(documents[:1])
    assert [node.metadata["start_s"] for node in overlapping] == [0.0, 2.0, 4.0, 6.0, 8.0]
    (whole,) = VideoNodeParser()(documents[2:])
    assert (whole.metadata["video_uri"], whole.metadata["end_s"]) == (video_uri(drawn / "c.mp4"), 4.0)
    assert whole.node_id != whole.ref_doc_id
    assert [node.hash for node in asyncio.run(VideoNodeParser(segment_s=4).acall(documents))] == [
        node.hash for node in nodes
    ]


def test_documents_made_by_hand(drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parser = VideoNodeParser(segment_s=4)
    nodes = parser([Document(text=video_uri(drawn / "b.MP4"))])
    assert {node.metadata["video_uri"] for node in nodes} == uris(drawn, b_MP4=2)
    assert nodes[0].metadata["content_fingerprint"] == content_fingerprint(drawn / "b.MP4")
    part = parser([Node(text_resource=MediaResource(text=video_uri(drawn / "a.mp4", 2, 8)))])
    assert [(node.metadata["start_s"], node.metadata["end_s"]) for node in part] == [(2.0, 6.0), (4.0, 8.0)]
    missing = Document(text=video_uri(tmp_path / "gone.mp4"))
    with pytest.raises(VideoError, match=r"gone\.mp4"):
        parser([missing])
    assert VideoNodeParser(segment_s=4, on_error="skip")([missing]) == []
    assert "gone.mp4" in caplog.text
    with pytest.raises(VideoUriError, match="outside root"):
        VideoNodeParser(root=tmp_path)([Document(text=video_uri(drawn / "b.MP4"))])


def test_text_passes_as_it_is(drawn: Path) -> None:
    documents = [Document(text="words " * 400, id_="words"), *VideoReader().load_data(drawn / "b.MP4")]
    nodes = VideoNodeParser(segment_s=4)(SentenceSplitter(chunk_size=128, chunk_overlap=0)(documents))
    texts = [node for node in nodes if node.metadata.get("kind") != "video"]
    videos = [node for node in nodes if node.metadata.get("kind") == "video"]
    assert len(texts) > 1
    assert {node.ref_doc_id for node in texts} == {"words"}
    assert {node.metadata["video_uri"] for node in videos} == uris(drawn, b_MP4=2)
    assert {node.ref_doc_id for node in videos} == {documents[1].id_}


def test_videos_without_text_are_refused(drawn: Path) -> None:
    document = Document(video_resource=MediaResource(path=drawn / "c.mp4"), id_="bare")
    with pytest.raises(NotAVideoError, match="bare"):
        VideoNodeParser()([document])


def test_names_that_are_not_utf8_can_be_stored(drawn: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.mp4"
    shutil.copy(drawn / "c.mp4", name)
    (document,) = VideoReader().load_data(tmp_path, extra_info={"file_path": os.fsdecode(name)})
    (node,) = VideoNodeParser()([document])
    assert json.loads(node.to_json())["metadata"]["video_uri"].endswith("/%FF.mp4")
    node.to_json().encode()


def test_saving() -> None:
    parser = VideoNodeParser(segment_s=4, overlap_s=1, root=Path("/"))
    saved = parser.to_dict()
    assert json.loads(json.dumps(saved))["segment_s"] == 4
    assert saved != VideoNodeParser(segment_s=5, overlap_s=1, root=Path("/")).to_dict()  # the key of a pipeline's cache
    assert VideoReader.from_dict(VideoReader(on_error="skip").to_dict()).on_error == "skip"
