from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.index.made import file_rows
from tests.serve.conftest import FakeReranker, ServedEncoder
from vidembed.calibration import Ranking
from vidembed.captions import CaptionedVideo, CaptionRecord
from vidembed.index import (
    Condition,
    Filter,
    IndexMeta,
    IndexMismatchError,
    VideoIndex,
    Windows,
    add_captions,
    fit_hybrid,
    index_videos,
    search,
)
from vidembed.scoring import PriorCorrection
from vidembed.serve import Engine, Limits, create_app
from vidembed.video.clip import content_fingerprint
from vidembed.yes_no import Answers


def test_hits_are_those_of_a_search(client: TestClient, index_folder: Path, videos: Path) -> None:
    body = client.get("/search", params={"q": "red", "k": 3}).json()
    wanted = search(VideoIndex.open(index_folder), ServedEncoder(), "red", k=3)
    assert [(hit["uri"], hit["start_s"], hit["end_s"], hit["score"]) for hit in body["hits"]] == [
        (hit.uri, hit.start_s, hit.end_s, hit.score) for hit in wanted
    ]
    assert (body["query"], body["approximate"], body["method"]["name"]) == ("red", False, "exact")
    assert [hit["name"] for hit in body["hits"][:2]] == ["red.mp4", "long <b>.mp4"]
    assert all("probability" not in hit for hit in body["hits"])
    assert client.post("/search", json={"q": "red", "k": 3}).json() == body


def test_reranking_orders_the_first_hits(client: TestClient) -> None:
    plain = client.get("/search", params={"q": "blue", "k": 6}).json()["hits"]
    hits = client.get("/search", params={"q": "blue", "k": 6, "rerank": 3}).json()["hits"]
    probabilities = [hit["probability"] for hit in hits[:3]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert hits[0]["uri"] != plain[0]["uri"]  # the blue one is the least red
    assert hits[3:] == plain[3:]
    assert client.get("/search", params={"q": "blue", "k": 2, "rerank": 3}).json()["hits"] == hits[:2]


def asked(client: TestClient, **options: Any) -> list[dict[str, Any]]:
    """The hits for red, asked for by address and by body alike."""
    by_body = client.post("/search", json={"q": "red", "k": 9, **options})
    by_address = client.get("/search", params={"q": "red", "k": 9, **options})
    assert by_body.status_code == 200, by_body.text
    assert by_address.json() == by_body.json()
    return by_body.json()["hits"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({"path": "*e*.mp4"}, Filter(path="*e*.mp4")),
        ({"path": "videos/red.mp4"}, Filter(path="videos/red.mp4")),
        ({"path": "nothing"}, Filter(path="nothing")),
        ({"after": 1.5}, Filter(after=1.5)),
        ({"before": 1}, Filter(before=1)),
        ({"after": 0.5, "before": 1.5, "path": "long*"}, Filter("long*", 0.5, 1.5)),
        ({"where": ["duration < 2", "start_s=0"]}, Filter(where=(Condition("duration", "<", "2"),))),
        ({"where": ["uri != x"], "path": "*"}, Filter()),
    ],
)
def test_filters_are_those_of_a_search(
    client: TestClient, index_folder: Path, options: dict[str, Any], keep: Filter
) -> None:
    wanted = search(VideoIndex.open(index_folder), ServedEncoder(), "red", k=9, keep=keep)
    hits = asked(client, **options)
    assert [(hit["uri"], hit["start_s"], hit["score"]) for hit in hits] == [
        (hit.uri, hit.start_s, hit.score) for hit in wanted
    ]
    assert len(hits) < 6 or not keep.any


@pytest.mark.parametrize(
    ("options", "param", "part"),
    [
        ({"path": ""}, "path", "at least 1"),
        ({"path": "x" * 4097}, "path", "at most 4096"),
        ({"after": -1}, "after", "greater than or equal to 0"),
        ({"after": "x"}, "after", "valid number"),
        ({"after": 2, "before": 2}, "before", "is not after 2"),
        ({"where": ["duration"]}, "where[0]", "COLUMN, one of"),
        ({"where": ["duration > 1", ""]}, "where[1]", "at least 1"),
        ({"where": ["duration > 1", "x" * 1001]}, "where[1]", "at most 1000"),
        ({"where": ["duration > 1"] * 17}, "where", "at most 16"),
        ({"where": ["colour = red"]}, "where", "no column 'colour'; it has id, uri"),
        ({"where": ["duration = long"]}, "where", "a finite number is needed"),
        ({"where": ["vector = 1"]}, "where", "no column 'vector'"),
        ({"merge": "all"}, "merge", "'moments'"),
        ({"around": -1}, "around", "greater than or equal to 0"),
        ({"around": 3601}, "around", "less than or equal to 3600"),
        ({"ater": 3}, "ater", "it is not supported; got "),
    ],
)
def test_filters_that_cannot_be_are_named(client: TestClient, options: dict[str, Any], param: str, part: str) -> None:
    for answer in (
        client.get("/search", params={"q": "red", **options}),
        client.post("/search", json={"q": "red", **options}),
    ):
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param
        assert part in error["message"]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_times_that_are_not_finite_are_refused(client: TestClient, text: str) -> None:
    for name in ("after", "before", "around"):
        by_address = client.get(f"/search?q=red&{name}={text}")
        by_body = client.post(
            "/search", content=f'{{"q": "red", "{name}": {text}}}', headers={"Content-Type": "application/json"}
        )
        assert (by_address.status_code, by_body.status_code) == (400, 400)
        assert by_address.json()["error"]["param"] == by_body.json()["error"]["param"] == name


def test_a_column_that_came_while_the_server_runs_can_be_asked_for(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    index_videos([videos], tmp_path / "index", ServedEncoder(), model="fake", cut=Windows(1.0), progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    assert client.get("/search?q=red&where=camera%3Dleft").json()["error"]["param"] == "where"
    table = lancedb.connect(tmp_path / "index").open_table("segments")
    table.add_columns({"camera": "'left'"})
    table.update(where="start_s > 0", values={"camera": "right"})
    assert [hit["start_s"] for hit in asked(client, where=["camera=right"])] == [2, 1]


def test_hits_are_merged_to_moments_unless_asked_otherwise(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    index_videos([videos], tmp_path / "index", ServedEncoder(), model="fake", cut=Windows(1.0, 0.5), progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    every = asked(client, merge="none")
    moments = asked(client)
    assert moments == asked(client, merge="moments")
    assert len(moments) < len(every)
    assert all(hit in every for hit in moments)
    assert client.get("/search?q=red").json()["method"]["merge"] == "moments"
    best = asked(client, merge="videos")
    assert [hit["name"] for hit in best] == list(dict.fromkeys(hit["name"] for hit in every))
    assert {hit["name"]: hit["segments"] for hit in best}["long <b>.mp4"] == sum(
        hit["name"] == "long <b>.mp4" for hit in every
    )
    assert client.get("/search?q=red&k=2&merge=videos&rerank=3").json()["hits"][0]["probability"] > 0


def test_hits_tell_what_is_around_them(client: TestClient) -> None:
    for hit in asked(client, around=1.25, path="long*"):
        assert hit["context_start_s"] == max(0, hit["start_s"] - 1.25)
        assert hit["context_end_s"] == min(3, hit["end_s"] + 1.25)
    assert all("context_start_s" not in hit for hit in asked(client))


def test_a_video_that_is_elsewhere_is_found_and_has_no_media(
    serve: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    encoder = ServedEncoder()
    meta = IndexMeta(
        "fake", None, {}, encoder.fingerprint, encoder.fingerprint_fields(), 8, 1.0, 0.0, "2026-01-01T00:00:00+00:00"
    )
    index = VideoIndex.create(tmp_path / "index", meta)
    index.put([file_rows("s3://bucket/some%20dir/a%20b.mp4", np.eye(8)[:1])], replace=False)
    server = serve(index=VideoIndex.open(tmp_path / "index"))
    for pattern in ("a b.mp4", "some dir/*", "s3://bucket/*", "*"):
        (hit,) = asked(server.client, path=pattern)
        assert (hit["name"], "media" in hit) == ("a b.mp4", False)
    media_id = server.engine.media.id_of("s3://bucket/some%20dir/a%20b.mp4")
    assert server.client.get(f"/media/{media_id}").status_code == 404


def test_no_hits_once_the_model_was_changed(serve: Callable[..., SimpleNamespace]) -> None:
    server = serve()
    assert asked(server.client)
    server.encoder.name = "trained"
    assert server.client.get("/search?q=red").status_code == 500  # the operator's to mend: the log has how
    server.encoder.name = "fake"
    assert asked(server.client)


def test_the_description_has_the_limits(serve: Callable[..., SimpleNamespace]) -> None:
    described = serve(limits={"max_k": 7, "max_rerank": 3, "max_chars": 50}).client.get("/openapi.json").json()
    parameters = described["paths"]["/search"]["get"]["parameters"]
    by_address = {each["name"]: each["schema"] for each in parameters}
    by_body = described["components"]["schemas"]["SearchRequest"]["properties"]
    assert set(by_address) == set(by_body)
    for fields in (by_address, by_body):
        forms = {name: each.get("anyOf", [each])[0] for name, each in fields.items()}  # a body may have null too
        assert forms["q"]["maxLength"] == 50
        assert forms["rerank"]["maximum"] == 3
        assert forms["k"]["maximum"] == 7
        assert forms["path"]["maxLength"] == 4096
        assert (forms["where"]["maxItems"], forms["where"]["items"]["maxLength"]) == (16, 1000)
        assert (forms["merge"]["enum"], fields["merge"]["default"]) == (["none", "moments", "videos"], "moments")


def test_words_that_look_like_a_path_are_words(client: TestClient, videos: Path) -> None:
    for words in (str(videos / "red.mp4"), "file:///etc/passwd", "' OR 1=1 --", "<script>"):
        assert len(client.get("/search", params={"q": words}).json()["hits"]) == 6


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "  "}, "q"),
        ({"q": "x" * 21}, "q"),
        ({"q": "a", "k": 0}, "k"),
        ({"q": "a", "k": 6}, "k"),
        ({"q": "a", "k": "x"}, "k"),
        ({"q": "a", "rerank": -1}, "rerank"),
        ({"q": "a", "rerank": 4}, "rerank"),
        ({"q": "marker"}, "q"),
    ],
)
def test_bad_searches_name_what_is_wrong(
    serve: Callable[..., SimpleNamespace], query: dict[str, object], param: str
) -> None:
    client = serve(limits={"max_chars": 20, "max_k": 5, "max_rerank": 3}).client
    for answer in (client.get("/search", params=query), client.post("/search", json=query)):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_the_usual_number_of_hits_is_within_the_limit(serve: Callable[..., SimpleNamespace]) -> None:
    client = serve(limits={"max_k": 4}).client
    for answer in (client.get("/search?q=a"), client.post("/search", json={"q": "a"})):
        assert len(answer.json()["hits"]) == 4


def test_without_a_reranker_or_an_index(serve: Callable[..., SimpleNamespace]) -> None:
    answer = serve(reranker=None).client.get("/search", params={"q": "a", "rerank": 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_reranker")
    client = serve(index=None).client
    answer = client.get("/search", params={"q": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_index")
    assert client.get("/media/" + "0" * 32).status_code == 404
    assert client.get("/health").json()["index"] is False


def test_the_index_of_another_model_is_refused(serve: Callable[..., SimpleNamespace]) -> None:
    with pytest.raises(IndexMismatchError, match="the index was made by 'fake'"):
        serve(encoder=ServedEncoder("other"))


def test_searches_at_once_share_a_batch(serve: Callable[..., SimpleNamespace]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder, free, busy = ServedEncoder(), threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(20)

    encoder.hold = hold
    server = serve(encoder=encoder)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.client.get, "/search?q=blue&k=1")]
        assert busy.wait(20)
        answers += [pool.submit(server.client.get, f"/search?q={word}&k=1") for word in ("red", "green", "blue")]
        while server.engine.batcher.waiting < 3:
            pass
        free.set()
        names = [answer.result().json()["hits"][0]["name"] for answer in answers]
    assert names == ["blue.mp4", "red.mp4", "green.mp4", "blue.mp4"]
    assert encoder.batches == [1, 3]


# -- media -------------------------------------------------------------------------------------------------------------


def test_media_is_the_file_in_whole_or_in_part(client: TestClient, videos: Path) -> None:
    hit = client.get("/search?q=red&k=1").json()["hits"][0]
    content = (videos / "red.mp4").read_bytes()
    whole = client.get(hit["media"])
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["Content-Type"] == "video/mp4"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert "red.mp4" not in str(whole.headers)
    assert client.head(hit["media"]).headers["Content-Length"] == str(len(content))
    part = client.get(hit["media"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    assert client.get(hit["media"], headers={"Range": "bytes=-5"}).content == content[-5:]
    for ignored in ("bytes=0-1,5-6", "bytes=x", "bytes=9-1"):
        assert client.get(hit["media"], headers={"Range": ignored}).content == content
    outside = client.get(hit["media"], headers={"Range": f"bytes={len(content)}-"})
    assert (outside.status_code, outside.headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    assert outside.json()["error"]["code"] == "range_not_satisfiable"


def test_a_file_that_was_changed_is_not_served(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clips" / "a.mp4"
    clip.parent.mkdir()
    clip.write_bytes((videos / "red.mp4").read_bytes())
    index_videos([clip], tmp_path / "index", ServedEncoder(), model="fake", cut=Windows(1.0), progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    media = client.get("/search?q=red").json()["hits"][0]["media"]
    assert client.get(media).status_code == 200
    clip.write_bytes(b"a secret")
    answer = client.get(media)
    assert (answer.status_code, "secret" in answer.text) == (404, False)
    assert str(tmp_path) not in answer.text


def test_an_index_that_grew_is_searched_and_served(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes((videos / "blue.mp4").read_bytes())
    index_videos([clips], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    server = serve(index=VideoIndex.open(tmp_path / "index"))
    assert len(server.client.get("/search?q=red").json()["hits"]) == 1
    (clips / "b.mp4").write_bytes((videos / "red.mp4").read_bytes())
    index_videos([clips], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    hits = server.client.get("/search?q=red").json()["hits"]
    assert [hit["name"] for hit in hits] == ["b.mp4", "a.mp4"]
    assert server.client.get(hits[0]["media"]).status_code == 200


@pytest.mark.parametrize("by", ["caption", "text", "hybrid"])
def test_a_search_by_captions_needs_some(client: TestClient, by: str) -> None:
    answer = client.get("/search", params={"q": "red", "by": by})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], "no captions" in error["message"]) == ("by", True)
    assert client.get("/search", params={"q": "red", "by": "colour"}).status_code == 400


def test_searches_by_captions(videos: Path, tmp_path: Path) -> None:
    encoder, folder = ServedEncoder(), tmp_path / "captioned"
    index_videos([videos / "red.mp4", videos / "green.mp4"], folder, encoder, model="fake", progress=False)
    texts = {"red.mp4": "red <b>bold</b>", "green.mp4": "green"}
    given = [
        CaptionRecord(name, content_fingerprint(videos / name), {"dense": text}, fingerprint="p" * 64)
        for name, text in texts.items()
    ]
    add_captions(folder, encoder, given, progress=False)
    index = VideoIndex.open(folder)
    engine = Engine(encoder, model="fake", index=index, limits=Limits(batch_wait_ms=1.0))
    with TestClient(create_app(engine), base_url="http://127.0.0.1") as client:
        for by in ("video", "caption", "text", "hybrid"):
            body = client.post("/search", json={"q": "red", "k": 2, "by": by}).json()
            assert client.get("/search", params={"q": "red", "k": 2, "by": by}).json() == body
            wanted = search(VideoIndex.open(folder), encoder, "red", k=2, by=by, merge="moments")
            keys = ("uri", "score", "caption", "caption_score", "text_score", "hybrid_score")
            assert [{key: hit.get(key) for key in keys} for hit in body["hits"]] == [
                {key: getattr(hit, key) for key in keys} for hit in wanted
            ]
            assert body["hits"][0]["caption"] == "red <b>bold</b>"
            assert body["method"] == wanted.method.to_dict()


class FusingReranker(FakeReranker):
    """Says of the red video that it is red, and so on, and fuses by what it is given."""

    mode, source, prior_correction, weights = "yes_no", "fusing", PriorCorrection(), "w"

    def fingerprint_fields(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def answers(self, pairs: list[Any], **_how: Any) -> Answers:
        odds = np.array([1.0 if text["text"] in Path(video.path).stem else -1.0 for text, video in pairs])
        return Answers(odds, odds)

    def rank(self, query: Any, documents: list[Any], *, fusion: Any = None, first_stage: Any, **how: Any) -> Ranking:
        if fusion is None:
            return super().rank(query, documents, **how)
        odds = self.answers([(query, video) for video in documents]).yes
        scores = fusion(odds, first_stage)
        order = np.argsort(-scores)
        found = [{"corpus_id": int(n), "score": float(scores[n]), "match": 0.5} for n in order]
        return Ranking(found, asked=len(documents), candidates=len(documents))


def test_hybrid_hits_are_reranked_by_the_fusion_of_the_index(videos: Path, tmp_path: Path) -> None:
    encoder, folder, reranker = ServedEncoder(), tmp_path / "captioned", FusingReranker()
    names = ("red", "green", "blue")
    index_videos([videos / f"{name}.mp4" for name in names], folder, encoder, model="fake", progress=False)
    texts = ("red", "green", "blue and red")
    given = [
        CaptionRecord(name, content_fingerprint(videos / f"{name}.mp4"), {"dense": text}, fingerprint="p" * 64)
        for name, text in zip(names, texts, strict=True)
    ]
    add_captions(folder, encoder, given, progress=False)
    rows = [CaptionedVideo(videos / f"{name}.mp4", name) for name in names]
    engine = Engine(encoder, model="fake", index=VideoIndex.open(folder), reranker=reranker)  # type: ignore[arg-type]
    with TestClient(create_app(engine), base_url="http://127.0.0.1") as client:
        asked = {"q": "blue", "k": 3, "by": "hybrid", "rerank": 3}
        assert client.get("/search", params=asked).json()["method"]["reranked"] == "head"
        fit_hybrid(folder, encoder, rows, reranker=reranker)  # type: ignore[arg-type]
        body = client.get("/search", params=asked).json()
        assert (body["method"]["reranked"], body["hits"][0]["name"]) == ("hybrid", "blue.mp4")
        reranker.weights = "trained"
        answer = client.get("/search", params=asked)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rerank")
        assert "another reranker" in answer.json()["error"]["message"]
