"""`VideoEmbedding`: what is a video and what is text, options, events, errors and saving."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.llama_debug import LlamaDebugHandler
from llama_index.core.embeddings import BaseEmbedding, MultiModalEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageNode, MediaResource, MetadataMode, Node, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image
from vidembed import ModelOptions, VideoEncoder, VideoError, VideoSegment
from vidembed.errors import VideoUriError
from vidembed.uri import video_uri

from llama_index.embeddings.vidembed import NothingToEmbedError, VideoEmbedding
from tests.conftest import QUERIES, Events, Watched, damage

WORDS = "a red square moves down"


@pytest.fixture
def uri(drawn: Path) -> str:
    return video_uri(drawn / "a.mp4", 0, 4)


def close(one: object, other: object) -> bool:
    return bool(np.allclose(one, other, atol=1e-5))


def test_it_is_an_embedding_model() -> None:
    assert [base.__name__ for base in VideoEmbedding.__mro__].count("BaseEmbedding") == 1
    assert issubclass(VideoEmbedding, (BaseEmbedding, MultiModalEmbedding))
    assert VideoEmbedding.class_name() == "VideoEmbedding"


# -- what is a video ---------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_encoder(
    embedding: VideoEmbedding, encoder: VideoEncoder, uri: str, drawn: Path
) -> None:
    segment = VideoSegment(drawn / "a.mp4", 0, 4)
    video, text, query = encoder.encode(segment), encoder.encode({"text": WORDS}), encoder.encode_query({"text": WORDS})
    assert close(embedding.get_text_embedding(uri), video)
    assert close(embedding.get_text_embedding_batch([WORDS, f" {uri}\n"]), [text, video])
    assert close(embedding.get_query_embedding(WORDS), query)
    assert close(embedding.get_video_embedding(segment), video)
    assert close(embedding.get_video_embeddings([uri, segment]), [video, video])
    whole = encoder.encode(str(drawn / "c.mp4"))
    assert close(embedding.get_video_embedding(drawn / "c.mp4"), whole)
    assert close(embedding.get_video_embedding((drawn / "c.mp4").read_bytes()), whole)
    assert type(embedding.get_text_embedding(uri)[0]) is float


async def test_async_methods_give_the_same(embedding: VideoEmbedding, uri: str, drawn: Path) -> None:
    assert close(await embedding.aget_text_embedding(uri), embedding.get_text_embedding(uri))
    texts = [WORDS, uri]
    assert close(await embedding.aget_text_embedding_batch(texts), embedding.get_text_embedding_batch(texts))
    assert close(await embedding.aget_query_embedding(WORDS), embedding.get_query_embedding(WORDS))
    assert close(await embedding.aget_video_embedding(uri), embedding.get_video_embedding(uri))
    assert close(await embedding.aget_video_embeddings([uri]), embedding.get_video_embeddings([uri]))


async def test_async_methods_leave_the_event_loop_free(encoder: VideoEncoder, uri: str) -> None:
    embedding = VideoEmbedding(encoder=Watched(encoder, pause_s=0.3))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.02)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await embedding.aget_text_embedding(WORDS)  # the base class runs it on the event loop
    ticking.cancel()
    assert ticks >= 5


def test_metadata_that_leaked_into_the_text_is_left_out(embedding: VideoEmbedding, uri: str) -> None:
    node = TextNode(text=uri, metadata={"title": "Shapes", "notes": "two\nlines"})
    leaked = node.get_content(MetadataMode.EMBED)
    assert leaked.startswith("title: Shapes\n")
    assert close(embedding.get_text_embedding(leaked), embedding.get_text_embedding(uri))


@pytest.mark.parametrize(
    "text", ["see {uri}", "{uri} {uri}", "The film:\n{uri}", "A day.\n\n{uri}", "A day.\n\na.mp4", "see clips/a.mp4"]
)
def test_text_that_merely_looks_like_a_uri_is_text(
    text: str, embedding: VideoEmbedding, encoder: VideoEncoder, uri: str
) -> None:
    words = text.format(uri=uri)
    assert close(embedding.get_text_embedding(words), encoder.encode({"text": words}))
    assert close(embedding([TextNode(text=words)])[0].embedding, encoder.encode({"text": words}))


@pytest.mark.parametrize("name", ["{uri}", "a.mp4", "clip.jpg"])
def test_queries_are_words_whatever_they_look_like(
    name: str, embedding: VideoEmbedding, watched: Watched, uri: str
) -> None:
    query = name.format(uri=uri)
    expected = watched.real.encode_query({"text": query})
    assert close(embedding.get_query_embedding(query), expected)
    assert watched.inputs == []


@pytest.mark.parametrize("name", ["DRAWN/c.mp4", "missing/a.mp4", "C:\\v\\a.mov", "~/v/a.mp4", "file:///a.mp4"])
async def test_a_bare_path_is_never_words(
    name: str, encoder: VideoEncoder, drawn: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(encoder)
    embedding = VideoEmbedding(encoder=watched, embed_batch_size=1)
    text = name.replace("DRAWN", str(drawn))
    named = r"VideoReader.*video_uri"
    with pytest.raises(VideoUriError, match=rf"^text: .*{named}"):
        embedding.get_text_embedding(text)
    for texts in ([WORDS, WORDS, text], [WORDS, WORDS, f"title: Shapes\n\n{text}"]):
        with pytest.raises(VideoUriError, match=rf"^texts\[2\]: .*{named}"):
            embedding.get_text_embedding_batch(texts)
        with pytest.raises(VideoUriError, match=rf"^texts\[2\]: .*{named}"):
            await embedding.aget_text_embedding_batch(texts)
    node = TextNode(id_="some-id", text=text, metadata={"title": "Shapes"})
    with pytest.raises(VideoUriError, match=rf"some-id.*{named}"):
        embedding([node])
    with pytest.raises(VideoUriError, match=named):
        IngestionPipeline(transformations=[SentenceSplitter(), embedding]).run(documents=[Document(text=text)])
    with pytest.raises(VideoUriError, match=rf"^texts\[0\]: .*{named}"):
        VectorStoreIndex.from_documents([Document(text=text, metadata={"title": "Shapes"})], embed_model=embedding)
    assert watched.inputs == []
    skipping = VideoEmbedding(encoder=encoder, on_error="skip")
    assert skipping([node])[0].embedding is None
    assert "skipped node some-id" in caplog.text
    assert close(embedding.get_query_embedding(text), encoder.encode_query({"text": text}))  # a query is words


def test_images(embedding: VideoEmbedding, encoder: VideoEncoder, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    expected = encoder.encode({"image": str(tmp_path / "red.png")})
    assert close(embedding.get_image_embedding(str(tmp_path / "red.png")), expected)
    raw = io.BytesIO((tmp_path / "red.png").read_bytes())
    assert close(embedding.get_image_embedding_batch([raw]), [expected])
    assert close(asyncio.run(embedding.aget_image_embedding(str(tmp_path / "red.png"))), expected)
    nodes = [
        ImageNode(image_path=str(tmp_path / "red.png")),
        Node(image_resource=MediaResource(data=raw.getvalue())),
    ]
    assert all(close(node.embedding, expected) for node in embedding(nodes))


def test_nodes_by_their_uri_else_their_video(embedding: VideoEmbedding, encoder: VideoEncoder, drawn: Path) -> None:
    path, uri = drawn / "a.mp4", video_uri(drawn / "a.mp4", 4, 8)
    resource = MediaResource(path=path)
    nodes = [
        Node(text_resource=MediaResource(text=uri), video_resource=resource),
        Node(video_resource=resource),
        Node(text_resource=MediaResource(text="a caption"), video_resource=resource),
        Node(video_resource=MediaResource(data=(drawn / "c.mp4").read_bytes())),
        TextNode(text=WORDS, metadata={"title": "Shapes"}),
    ]
    part, whole, other = encoder.encode([VideoSegment(path, 4, 8), str(path), str(drawn / "c.mp4")])
    text = encoder.encode({"text": f"title: Shapes\n\n{WORDS}"})
    for node, vector in zip(embedding(nodes), [part, whole, whole, other, text], strict=True):
        assert close(node.embedding, vector)
    again = asyncio.run(embedding.acall([Node(video_resource=resource)]))
    assert close(again[0].embedding, whole)


def test_batches_are_as_large_as_asked_for(watched: Watched, drawn: Path) -> None:
    calls = []
    stream = watched.encode_stream
    watched.encode_stream = lambda inputs, **how: calls.append(len(inputs)) or stream(inputs, **how)
    embedding = VideoEmbedding(encoder=watched, embed_batch_size=2)
    embedding([TextNode(text=query) for query in QUERIES[:5]])
    assert calls == [2, 2, 1]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_nothing_to_embed_is_an_error(embedding: VideoEmbedding) -> None:
    for query in ("", "  "):
        with pytest.raises(NothingToEmbedError, match="query"):
            embedding.get_query_embedding(query)
        with pytest.raises(NothingToEmbedError, match="VideoReader"):
            embedding.get_text_embedding(query)
        with pytest.raises(NothingToEmbedError, match=r"texts\[1\]"):
            embedding.get_text_embedding_batch([WORDS, query])
    with pytest.raises(TypeError, match=r"texts\[0\]: got None"):
        embedding.get_text_embedding_batch([None])
    with pytest.raises(NothingToEmbedError, match="some-id"):
        embedding([TextNode(id_="some-id", text="")])
    assert embedding.get_text_embedding_batch([]) == []
    assert embedding.get_video_embeddings([]) == []
    assert embedding([]) == []


def test_uris_are_never_embedded_as_words(embedding: VideoEmbedding, watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("missing.mp4", "text.mp4", "empty.mp4"):
        with pytest.raises(VideoError, match=name):
            embedding.get_text_embedding_batch([WORDS, video_uri(tmp_path / name)])
    for text in ("video+https://example.org/a.mp4", "video+ftp://example.org/a.mp4", "video+file:///a.mp4#t=9,1"):
        for form in (text, f"title: x\n\n{text}"):
            with pytest.raises(VideoUriError):
                embedding.get_text_embedding(form)
        with pytest.raises(VideoUriError):
            embedding([TextNode(text=text)])
    assert not any(isinstance(one, dict) and "video+" in one["text"] for one in watched.inputs)


def test_files_outside_of_root_are_refused(encoder: VideoEncoder, folder: Path, tmp_path: Path) -> None:
    embedding = VideoEmbedding(encoder=encoder, root=folder)
    outside = tmp_path / "c.mp4"
    outside.write_bytes((folder / "c.mp4").read_bytes())
    (folder / "link.mp4").symlink_to(outside)
    assert embedding.get_video_embedding(folder / "c.mp4")
    for path in (outside, folder / "link.mp4", folder / ".." / "c.mp4"):
        for attempt in (
            lambda path=path: embedding.get_text_embedding(video_uri(path)),
            lambda path=path: embedding.get_video_embedding(path),
            lambda path=path: embedding.get_video_embedding(VideoSegment(path, 0, 1)),
            lambda path=path: embedding.get_image_embedding(str(path)),
            lambda path=path: embedding([Node(video_resource=MediaResource(path=path))]),
        ):
            with pytest.raises(VideoUriError, match="outside root"):
                attempt()


def test_addresses_are_refused_unless_allowed(encoder: VideoEncoder) -> None:
    embedding = VideoEmbedding(encoder=encoder)
    address = "https://example.org/a.mp4"
    for attempt in (
        lambda: embedding.get_video_embedding(address),
        lambda: embedding.get_image_embedding("https://example.org/a.png"),
        lambda: embedding([Node(video_resource=MediaResource(url=address))]),
    ):
        with pytest.raises(VideoUriError, match="not allowed"):
            attempt()
    with pytest.raises(ValueError, match="allow_url=False"):
        VideoEmbedding(encoder=encoder, allowed_schemes=("file", "https"))
    assert VideoEmbedding("vidembed/shapes", allowed_schemes=("file", "https")).encoder.allow_url


def test_skip_leaves_out_what_fails_and_logs_it(
    encoder: VideoEncoder, folder: Path, caplog: pytest.LogCaptureFixture, events: Events
) -> None:
    embedding = VideoEmbedding(encoder=encoder, on_error="skip", root=folder)
    damage(folder / "a.mp4")
    texts = [WORDS, video_uri(folder / "a.mp4", 8, 12), video_uri(folder / "c.mp4"), video_uri(folder / "gone.mp4")]
    nodes = [TextNode(text=text) for text in [*texts, video_uri("/etc/a.mp4"), ""]]
    with caplog.at_level(logging.WARNING):
        found = embedding(nodes)
    assert [node.embedding is None for node in found] == [False, True, False, True, True, True]
    for name in ("a.mp4#t=8,12", "gone.mp4", "/etc/a.mp4", nodes[-1].node_id):
        assert name in caplog.text
    (end,) = [event for event in events.seen if event.class_name() == "EmbeddingEndEvent"]
    assert end.chunks == [texts[0], texts[2]]
    vectors = embedding.get_video_embeddings([folder / "gone.mp4", folder / "c.mp4"])
    assert vectors[0] is None
    assert len(vectors[1]) == encoder.get_embedding_dimension()
    for needs_all in (embedding.get_text_embedding, embedding.get_video_embedding):
        with pytest.raises(VideoError, match=r"gone\.mp4"):  # it must give a vector
            needs_all(texts[3])


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_default_model_warns_once_and_names_what_it_knows() -> None:
    with pytest.warns(UserWarning, match="generated videos") as caught:
        VideoEmbedding()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoEmbedding("vidembed/shapes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_such": 1}, "no_such"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 10**6}, "dimensions: got 1000000"),
        ({"fps": -1}, "fps"),
        ({"max_frames": 0}, "max_frames"),
        ({"embed_batch_size": 0}, "embed_batch_size"),
        ({"on_error": "ignore"}, "on_error"),
        ({"allowed_schemes": ("ftp",)}, "'ftp'"),
        ({"embeddings_cache": SimpleKVStore()}, "keyed by text alone"),
        ({"model_kwargs": {"layer": 3}}, "layer"),
        ({"fingerprint": "0" * 64}, "other vectors"),
        ({"layer": 3}, "layer"),
        ({"model_name": "ready:0123"}, "encoder="),
    ],
)
def test_bad_options_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoEmbedding(**{"model_name": "vidembed/shapes", **options})


def test_a_ready_encoder_takes_no_options_of_loading(encoder: VideoEncoder) -> None:
    for options in ({"layer": 3}, {"fps": 1.0}, {"max_frames": 2}, {"device": "cpu"}, {"model_kwargs": {"a": 1}}):
        with pytest.raises(ValueError, match="already loaded"):
            VideoEmbedding(encoder=encoder, **options)
    with pytest.raises(ValueError, match="encode_stream"):
        VideoEmbedding(encoder="vidembed/shapes")


def test_the_cache_of_embeddings_would_confuse_queries_and_documents(embedding: VideoEmbedding, uri: str) -> None:
    assert not close(embedding.get_query_embedding(uri), embedding.get_text_embedding(uri))  # hence it is refused


def test_options_change_vectors(encoder: VideoEncoder, drawn: Path, uri: str) -> None:
    plain = VideoEmbedding(encoder=encoder)
    short = VideoEmbedding(encoder=encoder, dimensions=8)
    vector = np.array(plain.get_text_embedding(uri)[:8])
    assert close(short.get_text_embedding(uri), vector / np.linalg.norm(vector))
    assert len(short.get_query_embedding(WORDS)) == 8
    assert encoder.truncate_dim is None  # what is shared stays as it is
    asked = VideoEmbedding(encoder=encoder, query_instruction="Find:", text_instruction="Keep:")
    assert not close(asked.get_query_embedding(WORDS), plain.get_query_embedding(WORDS))
    assert not close(asked.get_text_embedding(WORDS), plain.get_text_embedding(WORDS))
    assert close(asked.get_text_embedding_batch([uri, WORDS])[0], plain.get_text_embedding(uri))
    slow = VideoEmbedding("vidembed/shapes", fps=1, max_frames=2)
    assert (slow.encoder.sampling.fps, slow.encoder.sampling.max_frames) == (1, 2)
    assert not close(slow.get_text_embedding(uri), plain.get_text_embedding(uri))


def test_every_option_that_changes_vectors_is_saved(encoder: VideoEncoder) -> None:
    plain = VideoEmbedding(encoder=encoder).to_dict()
    changed = [
        VideoEmbedding(encoder=encoder, dimensions=8),
        VideoEmbedding(encoder=encoder, query_instruction="Find:"),
        VideoEmbedding(encoder=encoder, text_instruction="Keep:"),
        VideoEmbedding("vidembed/shapes", fps=1),
        VideoEmbedding(encoder=VideoEncoder("vidembed/shapes", truncate_dim=8)),  # the same name, other vectors
    ]
    saved = [json.dumps(one.to_dict(), sort_keys=True) for one in changed]
    assert len({json.dumps(plain, sort_keys=True), *saved}) == len(changed) + 1


# -- events and saving -------------------------------------------------------------------------------------------------


def test_both_kinds_of_events(encoder: VideoEncoder, drawn: Path, events: Events) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embedding = VideoEmbedding(encoder=encoder, callback_manager=CallbackManager([debug]), embed_batch_size=2)
    texts = [video_uri(drawn / "c.mp4"), WORDS, "a blue ring"]

    def counted() -> tuple[list[str], int]:
        names, pairs = events.names(), len(debug.get_event_pairs(CBEventType.EMBEDDING))
        events.seen.clear()
        debug.flush_event_logs()
        return [name for name in names if "Embedding" in name], pairs

    one = ["EmbeddingStartEvent", "EmbeddingEndEvent"]
    embedding([TextNode(text=text) for text in texts])
    assert counted() == (one * 2, 2)
    asyncio.run(embedding.acall([TextNode(text=text) for text in texts]))
    assert counted() == (one * 2, 2)
    embedding.get_text_embedding_batch(texts)
    assert counted() == (one * 2, 2)
    embedding.get_video_embedding(texts[0])
    assert counted() == (one, 1)
    embedding.get_video_embeddings([texts[0]] * 3)
    assert counted() == (one * 2, 2)
    with pytest.raises(VideoError):
        embedding([TextNode(text=video_uri(drawn / "gone.mp4"))])
    names, _ = counted()
    assert "EmbeddingEndEvent" not in names


def test_dict_json_and_pickle(uri: str) -> None:
    embedding = VideoEmbedding("vidembed/shapes", dimensions=16, root=Path("/"), text_instruction="Keep:")
    expected = embedding.get_text_embedding(uri)
    pickled = pickle.dumps(embedding)
    assert len(pickled) < 10_000  # no weights
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = [
            VideoEmbedding.from_dict(embedding.to_dict()),
            VideoEmbedding.from_json(embedding.to_json()),
            pickle.loads(pickled),
        ]
    for copy in copies:
        assert copy.to_dict() == embedding.to_dict()
        assert close(copy.get_text_embedding(uri), expected)


def test_saving_one_with_a_ready_encoder(encoder: VideoEncoder) -> None:
    embedding = VideoEmbedding(encoder=encoder, dimensions=8)
    assert embedding.model_name.startswith("ready:")
    with pytest.raises(ValueError, match="encoder="):
        VideoEmbedding.from_dict(embedding.to_dict())
    again = VideoEmbedding.from_dict(embedding.to_dict(), encoder=encoder)
    copy = pickle.loads(pickle.dumps(embedding))
    for one in (again, copy):
        assert one.to_dict() == embedding.to_dict()
        assert close(one.get_query_embedding(WORDS), embedding.get_query_embedding(WORDS))
    named = VideoEmbedding("vidembed/shapes", encoder=encoder)
    assert VideoEmbedding.from_dict(named.to_dict()).fingerprint == named.fingerprint


def test_saving_one_whose_encoder_was_trained_since() -> None:
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    embedding = VideoEmbedding(encoder=encoder)
    before = embedding.to_dict()
    next(encoder.parameters()).data.add_(0.1)
    assert embedding.to_dict()["fingerprint"] == encoder.fingerprint != before["fingerprint"]
    copy = pickle.loads(pickle.dumps(embedding))
    assert close(copy.get_query_embedding(WORDS), embedding.get_query_embedding(WORDS))
    with pytest.raises(ValueError, match="now gives other vectors"):
        VideoEmbedding.from_dict(before, encoder=encoder)


def test_it_is_a_setting(embedding: VideoEmbedding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = embedding
    assert Settings.embed_model is embedding


def test_documents_go_in_too(embedding: VideoEmbedding, uri: str) -> None:
    (document,) = embedding([Document(text=uri)])
    assert close(document.embedding, embedding.get_text_embedding(uri))


def test_what_is_no_string_is_named_by_its_place(embedding: VideoEmbedding) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\]: got None; a string is needed"):
        embedding.get_text_embedding_batch(["a", None])  # type: ignore[list-item]
    with pytest.raises(NothingToEmbedError, match="query: got None"):
        embedding.get_query_embedding(None)  # type: ignore[arg-type]


def test_model_options_are_saved() -> None:
    made = VideoEmbedding("vidembed/shapes", model_options={"dtype": "bfloat16", "device": "cpu"})
    assert made.model_options == ModelOptions(dtype="bfloat16", device="cpu")
    assert str(made.encoder.dtype) == "torch.bfloat16"
    saved = json.loads(json.dumps(made.to_dict()))
    again = VideoEmbedding.from_dict(saved)
    assert again.model_options == made.model_options
    assert again.fingerprint == made.fingerprint != VideoEmbedding("vidembed/shapes").fingerprint
