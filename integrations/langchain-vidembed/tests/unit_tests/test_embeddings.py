from __future__ import annotations

import functools
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError
from vidembed import ModelOptions, VideoEncoder, VideoSegment
from vidembed.errors import VideoUriError
from vidembed.uri import video_uri
from vidembed.video import NotAVideo, VideoError, VideoNotFound

from langchain_vidembed import VideoEmbeddings
from tests.conftest import RECORDS, Watched, write_scenes

WORDS = RECORDS[0].summary


def same(found: Any, expected: Any) -> bool:
    return np.allclose(found, expected, atol=1e-5)


# -- what is a video, and what is text ---------------------------------------------------------------------------------


def test_video_uris_are_videos_and_the_rest_is_text(
    folder: Path, embeddings: VideoEmbeddings, watched: Watched, encoder: VideoEncoder
) -> None:
    segment = VideoSegment(folder / "a.mp4", 4, 8)
    texts = [video_uri(folder / "a.mp4", 4, 8), WORDS, f"see {video_uri(folder / 'a.mp4')}", "see clips/a.mp4"]
    found = embeddings.embed_documents(texts)
    assert watched.inputs == [segment, *({"text": text} for text in texts[1:])]
    assert same(found, encoder.encode([segment, *({"text": text} for text in texts[1:])]))
    assert not same(found[0], encoder.encode({"text": texts[0]}))


def test_line_breaks_around_a_uri_do_not_make_it_text(
    folder: Path, embeddings: VideoEmbeddings, watched: Watched
) -> None:
    embeddings.embed_documents([f"\n{video_uri(folder / 'c.mp4')}\n", f"words\n{video_uri(folder / 'c.mp4')}"])
    assert watched.inputs == [
        VideoSegment(folder / "c.mp4", 0, None),
        {"text": f"words\n{video_uri(folder / 'c.mp4')}"},
    ]


def test_a_query_is_always_text(folder: Path, embeddings: VideoEmbeddings, encoder: VideoEncoder) -> None:
    for query in (WORDS, video_uri(folder / "c.mp4"), str(folder / "c.mp4"), video_uri("/missing.mp4", 1, 2)):
        assert same(embeddings.embed_query(query), encoder.encode_query({"text": query}))


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query_is_refused(embeddings: VideoEmbeddings, query: str) -> None:
    with pytest.raises(ValueError, match="give some words"):
        embeddings.embed_query(query)


@pytest.mark.parametrize("vectors", ["documents", "query", "videos"])
def test_vectors_are_python_floats(folder: Path, embeddings: VideoEmbeddings, vectors: str) -> None:
    found = {
        "documents": lambda: embeddings.embed_documents([video_uri(folder / "c.mp4"), WORDS])[0],
        "query": lambda: embeddings.embed_query(WORDS),
        "videos": lambda: embeddings.embed_videos([folder / "c.mp4"])[0],
    }[vectors]()
    assert {type(value) for value in found} == {float}  # numpy's are no JSON, and some stores refuse them


def test_nothing_gives_nothing(embeddings: VideoEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []
    assert embeddings.embed_videos([]) == []


async def test_videos_come_in_every_form(folder: Path, embeddings: VideoEmbeddings, encoder: VideoEncoder) -> None:
    file = folder / "c.mp4"
    expected = encoder.encode([file])[0]
    forms = [file, str(file), VideoSegment(file), file.read_bytes(), video_uri(file)]
    assert all(same(one, expected) for one in await embeddings.aembed_videos(forms))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_an_error_and_never_text(folder: Path, embeddings: VideoEmbeddings) -> None:
    (folder / "bad.mp4").write_text("no video")
    for name, error in (("bad.mp4", NotAVideo), ("missing.mp4", VideoNotFound)):
        with pytest.raises(error, match=name):
            embeddings.embed_documents([video_uri(folder / "c.mp4"), video_uri(folder / name)])


@pytest.mark.parametrize("name", ["FOLDER/c.mp4", "missing/a.mp4", "C:\\v\\a.mov", "~/v/a.mp4", "file:///a.mp4"])
def test_a_bare_path_is_never_words(folder: Path, watched: Watched, name: str) -> None:
    embeddings = VideoEmbeddings(encoder=watched, on_error="skip")
    text = name.replace("FOLDER", str(folder))
    with pytest.raises(VideoUriError, match=r"^texts\[1\]: .*VideoLoader.*video_uri") as caught:
        embeddings.embed_documents([WORDS, text, WORDS])
    assert repr(text)[1:-1] in str(caught.value) or text in str(caught.value)
    assert watched.inputs == []  # found before anything is embedded
    with pytest.raises(VideoUriError):
        InMemoryVectorStore(embeddings).add_documents([Document(page_content=text)])
    assert len(embeddings.embed_query(text)) == 128  # a query is words


def test_documents_without_words_are_refused(embeddings: VideoEmbeddings, watched: Watched) -> None:
    for text in ("", "  "):
        with pytest.raises(ValueError, match=r"texts\[1\]: got '\s*'"):
            embeddings.embed_documents([WORDS, text])
    with pytest.raises(TypeError, match=r"texts\[0\]: got None"):
        embeddings.embed_documents([None])  # type: ignore[list-item]
    assert watched.inputs == []


@pytest.mark.parametrize("uri", ["video+https://example.org/a.mp4", "video+file:///a.mp4#t=x", "video+file://h/a.mp4"])
def test_uris_that_are_not_allowed_are_errors(embeddings: VideoEmbeddings, uri: str) -> None:
    with pytest.raises(VideoUriError):
        embeddings.embed_documents(["words", uri])
    with pytest.raises(VideoUriError):
        embeddings.embed_videos([uri])


def test_root_confines(folder: Path, tmp_path: Path, watched: Watched) -> None:
    embeddings = VideoEmbeddings(encoder=watched, root=folder)
    (folder / "out.mp4").symlink_to(write_scenes(tmp_path / "out.mp4", 0))
    embeddings.embed_documents([video_uri(folder / "c.mp4")])
    for path in (tmp_path / "out.mp4", folder / "out.mp4"):
        with pytest.raises(VideoUriError, match="outside root"):
            embeddings.embed_documents([video_uri(path)])


def test_skip_leaves_a_gap_among_videos_and_raises_among_documents(folder: Path, watched: Watched) -> None:
    embeddings = VideoEmbeddings(encoder=watched, on_error="skip")
    found = embeddings.embed_videos([folder / "missing.mp4", folder / "c.mp4"])
    assert [vector is None for vector in found] == [True, False]
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        embeddings.embed_documents([video_uri(folder / "missing.mp4")])


def test_a_piece_of_a_split_uri_is_an_error(folder: Path, embeddings: VideoEmbeddings) -> None:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    pieces = RecursiveCharacterTextSplitter(chunk_size=30, chunk_overlap=0).split_text(video_uri(folder / "c.mp4"))
    assert len(pieces) > 1
    with pytest.raises((VideoError, VideoUriError)):
        embeddings.embed_documents(pieces)


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_default_model_warns_in_one_line() -> None:
    with pytest.warns(UserWarning, match="generated videos") as caught:
        VideoEmbeddings()
    assert len(caught) == 1, [(each.category, str(each.message), each.filename) for each in caught]
    (warned,) = caught
    assert "\n" not in str(warned.message)
    assert warned.filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle": "vidembed/shapes"}, "modle"),
        ({"batch_size": 0}, "batch_size"),
        ({"dimensions": 0}, "dimensions"),
        ({"fps": float("inf")}, "fps"),
        ({"max_frames": 0}, "max_frames"),
        ({"on_error": "ignore"}, "on_error"),
        ({"allowed_schemes": ["s3"]}, "'s3': allowed are 'file', 'http', 'https'"),
        ({"encode_kwargs": {"truncate_dim": 2}}, "'truncate_dim': allowed are prompt"),
        ({"model_kwargs": {"truncate_dim": 2}}, "'truncate_dim' is set by the field 'dimensions'"),
        ({"encoder": object()}, "object, which has no encode_stream"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VideoEmbeddings(**options)


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dimensions: got 4096; vidembed/shapes gives vectors of 128"):
        VideoEmbeddings(model="vidembed/shapes", dimensions=4096)


@pytest.mark.parametrize("name", ["model", "layer", "dimensions", "fps", "max_frames", "device"])
def test_a_ready_encoder_takes_no_loading_options(encoder: VideoEncoder, name: str) -> None:
    values = {"model": "vidembed/shapes", "device": "cpu"}
    with pytest.raises(ValidationError, match=f"{name}: encoder is already loaded"):
        VideoEmbeddings(encoder=encoder, **{name: values.get(name, 1)})


def test_urls_need_an_encoder_that_fetches(encoder: VideoEncoder) -> None:
    with pytest.raises(ValidationError, match="allow_url=False"):
        VideoEmbeddings(encoder=encoder, allowed_schemes=["file", "https"])


def test_options_reach_the_model(folder: Path, encoder: VideoEncoder) -> None:
    made = VideoEmbeddings(model="vidembed/shapes", dimensions=16, fps=1, max_frames=3, allowed_schemes=["https"])
    assert (made.encoder.sampling.fps, made.encoder.sampling.max_frames) == (1, 3)
    assert made.encoder.allow_url
    vector = np.asarray(made.embed_query(WORDS))
    assert np.linalg.norm(vector) == pytest.approx(1)
    whole = encoder.encode_query({"text": WORDS})[:16]
    assert same(vector, whole / np.linalg.norm(whole))
    assert np.linalg.norm(made.embed_videos([folder / "c.mp4"])[0]) == pytest.approx(1)


def test_an_mllm_is_cut_at_a_layer() -> None:
    made = VideoEmbeddings(model="vidembed/shapes-mllm", layer=7, model_kwargs={"prefix": None})
    assert made.encoder.layer == 7
    assert len(made.embed_query(WORDS)) == 128


def test_model_options_are_a_type_or_plain_fields() -> None:
    plain = {"dtype": "bfloat16", "device": "cpu"}
    for options in (plain, ModelOptions(**plain)):
        made = VideoEmbeddings(model="vidembed/shapes", model_options=options)
        assert str(made.encoder.dtype) == "torch.bfloat16"
        assert made.model_options == ModelOptions(**plain)
    with pytest.raises(ValidationError, match="dtype='int3' is not known"):
        VideoEmbeddings(model="vidembed/shapes", model_options={"dtype": "int3"})


# -- pickling ----------------------------------------------------------------------------------------------------------


def test_pickles_load_the_model_again(folder: Path) -> None:
    made = VideoEmbeddings(model="vidembed/shapes", fps=1)
    text = pickle.dumps(made)
    assert len(text) < 10_000
    again = pickle.loads(text)
    assert again.encoder is not made.encoder
    assert again.embed_query(WORDS) == made.embed_query(WORDS)
    assert again.embed_videos([folder / "c.mp4"]) == made.embed_videos([folder / "c.mp4"])


def test_pickles_hold_a_ready_encoder(encoder: VideoEncoder) -> None:
    made = VideoEmbeddings(encoder=encoder)
    assert pickle.loads(pickle.dumps(made)).embed_query(WORDS) == made.embed_query(WORDS)


def test_the_serial_form_holds_no_model(embeddings: VideoEmbeddings) -> None:
    assert dumpd(embeddings)["type"] == "not_implemented"
    assert "encoder" not in embeddings.model_dump()
    assert "encoder" not in repr(embeddings)


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_addresses_are_fetched_where_they_are_allowed(folder: Path, encoder: VideoEncoder) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        local = VideoEncoder("vidembed/shapes", device="cpu", allow_url=["127.0.0.1"])
        embeddings = VideoEmbeddings(encoder=local, allowed_schemes=["file", "http"])
        address = f"http://127.0.0.1:{server.server_port}/c.mp4"
        found = embeddings.embed_documents([video_uri(address, 1, 3), video_uri(folder / "c.mp4", 1, 3)])
        server.shutdown()
    assert same(found[0], found[1])
    assert same(found[0], encoder.encode([VideoSegment(folder / "c.mp4", 1, 3)])[0])


def test_what_is_no_string_is_named_by_its_place(embeddings: VideoEmbeddings) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\]: got None; a string is needed"):
        embeddings.embed_documents(["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="query: got None"):
        embeddings.embed_query(None)  # type: ignore[arg-type]
