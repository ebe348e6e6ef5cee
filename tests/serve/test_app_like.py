"""Searches by a segment and by an upload, and what the index holds."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.index.fakes import write_videos
from tests.index.made import file_rows
from tests.serve.conftest import ServedEncoder
from vidembed.captions import CaptionRecord
from vidembed.index import IndexMeta, VideoIndex, Windows, add_captions, index_videos
from vidembed.video.clip import content_fingerprint


def hits_of(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    return client.get("/search", params={"q": "red", "k": 9, **options}).json()["hits"]  # type: ignore[no-any-return]


def like(client: TestClient, segment: str, **options: Any) -> dict[str, Any]:
    answer = client.get("/search/like", params={"segment": segment, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


# -- like a segment ----------------------------------------------------------------------------------------------------


def test_what_is_like_a_hit_comes_without_the_hit(client: TestClient) -> None:
    every = hits_of(client)
    red = next(hit for hit in every if hit["name"] == "red.mp4")
    found = like(client, red["id"])
    assert found["hits"][0]["id"] == next(
        hit["id"] for hit in every if hit["name"] == "long <b>.mp4" and hit["start_s"] == 2
    )  # the red second of another video
    assert {hit["id"] for hit in found["hits"]} == {hit["id"] for hit in every} - {red["id"]}
    told = {name: red[name] for name in ("id", "uri", "name", "start_s", "end_s", "duration", "media", "thumbnail")}
    assert found["like"] == told
    assert (found["approximate"], found["method"]["name"]) == (False, "exact")
    assert len(like(client, red["id"], k=2)["hits"]) == 2


def test_its_similarity_is_that_of_the_stored_vectors(client: TestClient, index_folder: Path) -> None:
    rows = lancedb.connect(index_folder).open_table("segments").to_arrow().to_pylist()
    vectors = {row["id"]: np.array(row["vector"]) / np.linalg.norm(row["vector"]) for row in rows}
    first = rows[0]["id"]
    for hit in like(client, first, k=9)["hits"]:
        assert hit["score"] == pytest.approx(vectors[first] @ vectors[hit["id"]], abs=1e-5)


def test_filters_hold_for_it_too(client: TestClient) -> None:
    red = next(hit for hit in hits_of(client) if hit["name"] == "red.mp4")
    found = like(client, red["id"], path="long*", after=1.5, around=0.5)["hits"]
    assert [(hit["start_s"], hit["context_start_s"]) for hit in found] == [(2, 1.5), (1, 0.5)]
    assert {hit["name"] for hit in like(client, red["id"], merge="videos")["hits"]} >= {"blue.mp4", "green.mp4"}


def test_what_overlaps_it_is_the_same_moment(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    index_videos([videos], tmp_path / "index", ServedEncoder(), model="fake", cut=Windows(1.0, 0.5), progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    long = next(hit for hit in hits_of(client, path="long*", merge="none") if hit["start_s"] == 1)
    starts = {hit["start_s"] for hit in like(client, long["id"], path="long*")["hits"]}
    assert starts == {0, 2}
    starts = {hit["start_s"] for hit in like(client, long["id"], path="long*", merge="none")["hits"]}
    assert starts == {0, 0.5, 1.5, 2}


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({}, 400, "segment"),
        ({"segment": "x"}, 400, "segment"),
        ({"segment": "' OR 1=1 --"}, 400, "segment"),
        ({"segment": "00000000-0000-0000-0000-000000000000"}, 404, "segment"),
        ({"segment": "00000000-0000-0000-0000-000000000000", "k": 101}, 400, "k"),
        ({"segment": "00000000-0000-0000-0000-000000000000", "q": "red"}, 400, "q"),
        ({"segment": "00000000-0000-0000-0000-000000000000", "rerank": 3}, 400, "rerank"),
    ],
)
def test_what_cannot_be_like_anything(client: TestClient, options: dict[str, Any], status: int, param: str) -> None:
    answer = client.get("/search/like", params=options)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_a_segment_of_a_video_that_is_elsewhere(serve: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    encoder = ServedEncoder()
    about: Any = ("fake", None, {}, encoder.fingerprint, encoder.fingerprint_fields(), 8, 1.0, 0.0)
    index = VideoIndex.create(tmp_path / "index", IndexMeta(*about, "2026-01-01T00:00:00+00:00"))
    index.put([file_rows("s3://bucket/a.mp4", np.eye(8)[:2]), file_rows("s3://b/b.mp4", np.eye(8)[:1])], replace=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    hit = next(each for each in hits_of(client) if each["uri"] == "s3://bucket/a.mp4" and each["start_s"] == 0)
    found = like(client, hit["id"])
    assert "media" not in found["like"]
    assert "thumbnail" not in found["hits"][0]
    assert found["hits"][0]["uri"] == "s3://b/b.mp4"  # of the same vector


# -- like an upload ----------------------------------------------------------------------------------------------------


def upload(client: TestClient, content: bytes, **options: Any) -> Any:
    return client.post("/search/video", params=options, files={"file": content})


def png(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(out, kind)
    return out.getvalue()


def test_an_uploaded_clip_finds_itself(client: TestClient, videos: Path) -> None:
    for name in ("red", "green", "blue"):
        answer = upload(client, (videos / f"{name}.mp4").read_bytes(), k=1)
        assert answer.status_code == 200, answer.text
        (hit,) = answer.json()["hits"]
        assert (hit["name"], round(hit["score"], 4)) == (f"{name}.mp4", 1)
        assert "like" not in answer.json()
    filtered = upload(client, (videos / "red.mp4").read_bytes(), path="blue*").json()["hits"]
    assert [hit["name"] for hit in filtered] == ["blue.mp4"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_an_uploaded_picture_finds_clips_like_it(client: TestClient, kind: str) -> None:
    answer = upload(client, png((30, 200, 30), kind), k=1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["hits"][0]["name"] == "green.mp4"


def test_uploads_that_cannot_be_searched_by(serve: Callable[..., SimpleNamespace]) -> None:
    client = serve(limits={"max_upload_bytes": 2000, "max_uploads": 1}).client
    for content, status, code in (
        (b"no picture", 400, "invalid_video"),
        (png((1, 2, 3))[:60], 400, "invalid_video"),
        (b"x" * 2001, 413, "body_too_large"),
    ):
        answer = upload(client, content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert answer.json()["error"]["param"] == "file"
        assert "/tmp" not in answer.text
    form = client.post("/search/video", files={"file": png((1, 2, 3))}, data={"model": "fake"})
    assert (form.status_code, form.json()["error"]["code"]) == (400, "bad_form")
    assert "allowed are file" in form.json()["error"]["message"]
    for options in ({"q": "red"}, {"k": 0}, {"rerank": 1}):
        assert upload(client, png((1, 2, 3)), **options).status_code == 400
    assert client.post("/search/video", json={}).status_code == 400
    assert upload(serve(index=None).client, png((1, 2, 3))).json()["error"]["code"] == "no_index"


def test_it_needs_the_key(serve: Callable[..., SimpleNamespace]) -> None:
    client = serve(api_key="the key").client
    for answer in (upload(client, png((1, 2, 3))), client.get("/search/like?segment=x"), client.get("/index")):
        assert answer.status_code == 401


# -- what the index holds ----------------------------------------------------------------------------------------------


def test_what_the_index_holds(client: TestClient) -> None:
    held = client.get("/index").json()
    assert (held["model"], held["videos"], held["segments"], held["seconds"]) == ("fake", 4, 6, 6)
    assert held["examples"] == []  # of a model that nothing is known of
    assert [each["name"] for each in held["samples"]] == ["blue.mp4", "green.mp4", "long <b>.mp4", "red.mp4"]
    for each in held["samples"]:
        assert client.get(each["thumbnail"]).status_code == 200
        assert len(like(client, each["id"], k=9)["hits"]) == 5


def test_samples_are_spread_over_a_large_index(serve: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 20)
    index_videos([tmp_path / "videos"], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    held = serve(index=VideoIndex.open(tmp_path / "index")).client.get("/index").json()
    assert held["videos"] == 20
    names = [each["name"] for each in held["samples"]]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "000.mp4"
    assert names[-1] >= "015.mp4"


def test_the_bundled_models_have_queries_of_their_world(serve: Callable[..., SimpleNamespace]) -> None:
    held = serve(model="vidembed/shapes").client.get("/index").json()
    assert len(set(held["examples"])) == 3
    assert all(words.startswith("A ") for words in held["examples"])


def test_captions_of_the_index_are_queries(serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path) -> None:
    encoder = ServedEncoder()
    # others may be beside them
    files = [videos / name for name in ("red.mp4", "green.mp4", "blue.mp4", "long <b>.mp4")]
    index_videos(files, tmp_path / "index", encoder, model="fake", cut=Windows(1.0), progress=False)
    red = "A red\nvideo is  shown. Nothing else."
    texts = {
        "red.mp4": red,
        "blue.mp4": "x" * 121,
        "long <b>.mp4": "A video. It ends",
    }
    captions = [
        CaptionRecord(name, content_fingerprint(videos / name), {"dense": text}, start_s=start, end_s=start + 1.0)
        for name, text in texts.items()
        for start in (0.0, 1.0)
    ]
    add_captions(tmp_path / "index", encoder, captions, progress=False)
    held = serve(index=VideoIndex.open(tmp_path / "index")).client.get("/index").json()
    assert held["examples"] == ["A video", "A red video is shown"]
    assert {each["name"]: each.get("caption") for each in held["samples"]} == {
        "red.mp4": red,
        "blue.mp4": "x" * 121,
        "green.mp4": None,
        "long <b>.mp4": "A video. It ends",
    }


def test_an_empty_index_and_none(serve: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    encoder = ServedEncoder()
    about: Any = ("fake", None, {}, encoder.fingerprint, encoder.fingerprint_fields(), 8, 1.0, 0.0)
    VideoIndex.create(tmp_path / "index", IndexMeta(*about, "2026-01-01T00:00:00+00:00"))
    held = serve(index=VideoIndex.open(tmp_path / "index")).client.get("/index").json()
    assert (held["videos"], held["segments"], held["seconds"], held["samples"]) == (0, 0, 0, [])
    answer = serve(index=None).client.get("/index")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_index")
