from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.index.captioned import DIMENSION, Words, add, content_of, made, record, records
from tests.index.fakes import FakeEncoder, write_video
from tests.index.made import file_rows
from vidembed.index import (
    Filter,
    IndexMismatchError,
    Report,
    VideoIndex,
    add_captions,
    captioning,
    captions,
    hybrid,
    search,
    search_many,
)
from vidembed.index.hits import Hits
from vidembed.index.ingest import Derived, facts, refresh

QUERIES = ["a red square", "blue circle runs left", "café"]
QUERIES_OF_SYNTAX = [
    '"red',
    "red AND",
    "+red -blue",
    "a:b*",
    "(((",
    "red~2^3",
    "\\",
    "'; DROP",
    "NOT",
    "\x00\x1b[31m",
    "🎬",
    "the of",
]


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    """24 segments; those of the last file, and one more, have no caption."""
    made_index = made(tmp_path / "ix")
    add(made_index, records(7)[:-1])
    return made_index


def places(hits: Hits) -> list[tuple[str, float]]:
    return [(hit.uri, hit.start_s) for hit in hits]


def test_report(tmp_path: Path) -> None:
    given = [
        *records(2),
        record("c3", 0, "x", problems={"dense": "empty"}),
        record("c3", 1, "", texts={"short": "A square."}),
        record("c3", 2, "", texts={}, error="cannot be read"),
        record("other", 0, "red"),
        record("c3", 0.5, "red"),
        replace(record("c3", 0, "red"), start_s=None, end_s=None),  # of the whole video, where segments are indexed
        replace(record("c3", 0, "red"), content=None),
    ]
    encoder = Words()
    report = add(made(tmp_path / "ix"), given, encoder).to_dict()
    assert report == {
        "added": 6,
        "unchanged": 0,
        "marked": 1,
        "without_text": 2,
        "unmatched": 4,
        "refused": [],
        "captioned": 6,
        "segments": 24,
    }
    assert len(encoder.asked) == 6
    again = add(VideoIndex.open(tmp_path / "ix"), given, encoder, marked=True)
    assert (again.added, again.unchanged, again.marked, again.captioned) == (1, 6, 0, 7)
    assert encoder.asked[6:] == ["x"]


def test_rows_of_the_index_are_not_written_to(tmp_path: Path) -> None:
    index = made(tmp_path / "ix")
    before, hits = index.stamp(), search(index, Words(), "red", k=24)
    add(index, records())
    index.latest()
    assert index.stamp() == before  # so that ANN index, mirror and query bank are those of these rows
    assert [replace(hit, caption=None) for hit in search(index, Words(), "red", k=24)] == list(hits)


def test_an_index_without_captions_is_as_before(tmp_path: Path) -> None:
    index = made(tmp_path / "ix")
    hits = search(index, Words(), "red", k=1)
    assert set(hits[0].to_dict()) == {"uri", "start_s", "end_s", "score"}
    assert set(hits.method.to_dict()) == {"approximate", "name", "rows"}
    assert "captions" not in facts(index)
    assert not (index.folder / "captions.lance").exists()


@pytest.mark.parametrize("by", ["caption", "text", "hybrid"])
def test_an_index_without_captions_says_what_to_run(tmp_path: Path, by: Any) -> None:
    index = made(tmp_path / "ix")
    with pytest.raises(IndexMismatchError, match=r"no captions; .*vidembed caption .*--captions captions\.jsonl"):
        search(index, Words(), "red", by=by)
    assert not (index.folder / "captions.lance").exists()


def test_by_caption_is_the_cosine_of_query_and_caption(index: VideoIndex) -> None:
    hits = search(index, Words(), QUERIES[0], k=99, by="caption")
    query = Words().encode_query([{"text": QUERIES[0]}])[0]
    expected = []
    for each in records(7)[:-1]:
        vector = Words().encode_query([{"text": each.texts["dense"]}])[0].astype(np.float32).astype(np.float64)
        cosine = vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)
        expected.append((-round(cosine, 6), f"file:///v/{str(each.content)[1:]}.mp4", each.start_s))
    assert [(-(hit.caption_score or 0), hit.uri, hit.start_s) for hit in hits] == sorted(expected)
    assert (hits.method.by, hits.method.captioned, hits.method.rows) == ("caption", 20, 24)
    by_video = {(hit.uri, hit.start_s): hit.score for hit in search(index, Words(), QUERIES[0], k=99)}
    assert all(hit.score == by_video[hit.uri, hit.start_s] for hit in hits)


def test_by_text_is_bm25(index: VideoIndex) -> None:
    hits = search(index, Words(), "the SQUARES, café!", k=99, by="text")
    texts = {(f"file:///v/{str(each.content)[1:]}.mp4", each.start_s): each.texts["dense"] for each in records(7)[:-1]}
    assert set(places(hits)) == {key for key, text in texts.items() if "square" in text or "café" in text}
    scores = [hit.text_score or 0 for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    # Robertson & Zaragoza 2009, with k1 = 1.2 and b = 0.75; all captions have four words
    counts = {word: sum(word in text for text in texts.values()) for word in ("square", "café")}
    for hit in hits:
        assert hit.caption == texts[hit.uri, hit.start_s]
        expected = 0.0
        for word, among in counts.items():
            often = hit.caption.split().count(word)
            expected += np.log(1 + (len(texts) - among + 0.5) / (among + 0.5)) * often * 2.2 / (often + 1.2)
        assert hit.text_score == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("query", QUERIES)
def test_without_weights_a_hybrid_search_fuses_ranks(index: VideoIndex, query: str) -> None:
    hits = search(index, Words(), query, k=99, by="hybrid")
    assert (hits.method.fusion, hits.method.by) == ("reciprocal_rank", "hybrid")
    expected: dict[tuple[str, float], float] = {}
    for by, name in (("video", "score"), ("caption", "caption_score"), ("text", "text_score")):
        ranked = search(index, Words(), query, k=99, by=by)
        for hit in ranked:
            rank = 1 + sum((getattr(other, name) > getattr(hit, name)) for other in ranked)
            expected[hit.uri, hit.start_s] = expected.get((hit.uri, hit.start_s), 0) + 1 / (60 + rank)
    assert len(hits) == 24  # also those without a caption
    assert {key: pytest.approx(value, abs=1e-6) for key, value in expected.items()} == {
        (hit.uri, hit.start_s): hit.hybrid_score for hit in hits
    }
    order = [(-(hit.hybrid_score or 0), hit.uri, hit.start_s) for hit in hits]
    assert order == sorted(order)
    assert [hit.caption for hit in hits if hit.uri == "file:///v/7.mp4"] == [None] * 3


def test_what_a_pool_leaves_out_is_found_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(tmp_path / "ix", 40)
    add(index, records(40)[:100])
    whole = {(hit.uri, hit.start_s): hit for hit in search(index, Words(), QUERIES[1], k=120, by="hybrid")}
    monkeypatch.setattr(hybrid, "POOL", 5)
    hits = search(index, Words(), QUERIES[1], k=5, by="hybrid")
    for hit in hits:
        same = whole[hit.uri, hit.start_s]
        assert replace(same, hybrid_score=0) == replace(hit, hybrid_score=0)
    best = [search(index, Words(), QUERIES[1], k=5, by=by)[0] for by in ("video", "caption", "text")]
    pooled = search(index, Words(), QUERIES[1], k=15, by="hybrid")
    assert set(places(best)) <= set(places(pooled))


@pytest.mark.parametrize("by", ["caption", "text", "hybrid"])
def test_filters_merging_and_many_queries(index: VideoIndex, by: Any) -> None:
    keep = Filter(path="[0-5].mp4", after=1.5)
    every = search(index, Words(), QUERIES[0], k=99, by=by)
    fit = [hit for hit in every if hit.uri[-5] in "012345" and hit.end_s > 1.5]
    found = search(index, Words(), QUERIES[0], k=99, by=by, keep=keep)
    if by == "hybrid":
        assert set(places(found)) == set(places(fit))
    else:
        assert list(found) == fit
    videos = search(index, Words(), QUERIES[0], k=4, by=by, merge="videos", around=0.5)
    first = dict(reversed([(hit.uri, hit.start_s) for hit in every]))
    assert places(videos) == [(uri, first[uri]) for uri in dict.fromkeys(hit.uri for hit in every)][:4]
    assert videos.method.merge == "videos"
    assert videos[0].context_end_s is not None
    together = search_many(index, Words(), QUERIES, k=7, by=by)
    assert together == [search(index, Words(), query, k=7, by=by) for query in QUERIES]


@pytest.mark.parametrize("query", [*QUERIES_OF_SYNTAX, "red " * 2500, "x" * 10_000, " ".join(map(str, range(2000)))])
@pytest.mark.parametrize("by", ["text", "hybrid"])
def test_a_query_is_words_and_no_syntax(index: VideoIndex, query: str, by: Any) -> None:
    hits = search(index, Words(), query, k=99, by=by)
    if "red" in query and "🎬" not in query:
        assert search(index, Words(), "red", k=99, by="text")[0].uri in {hit.uri for hit in hits}
    elif by == "text":
        assert hits == [] or "blue" in query


def test_words_of_any_script(tmp_path: Path) -> None:
    index = made(tmp_path / "ix")
    add(index, [record("c0", 0, "一个红色的正方形在移动"), record("c1", 0, "Ein Würfel fällt")])
    assert places(search(index, Words(), "红色", by="text")) == [("file:///v/0.mp4", 0.0)]
    assert places(search(index, Words(), "würfel", by="text")) == [("file:///v/1.mp4", 0.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "colour"}, "by: got 'colour'; one of video, caption, text, hybrid"),
        ({"by": "hybrid", "bank": True}, "bank: it works on vectors of videos only"),
        ({"by": "text", "copy": "int8"}, "compact: it works on vectors of videos only"),
    ],
)
def test_misuse(index: VideoIndex, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(index, Words(), "red", **options)


def test_captions_that_are_all_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal scores are ordered by URI, then start, and no more rows than are asked for are compared."""
    index = made(tmp_path / "ix", 40)
    add(index, [replace(each, texts={"dense": "red"}) for each in records(40)])
    monkeypatch.setattr(captions, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(hybrid, "ROWS_AT_ONCE", 7)
    order = sorted((f"file:///v/{n}.mp4", float(start)) for n in range(40) for start in range(3))
    for by in ("text", "caption"):
        assert places(search(index, Words(), "red", k=50, by=by)) == order[:50]  # type: ignore[arg-type]
    assert len(search(index, Words(), "red", k=999, by="hybrid")) == 120


def test_an_approximate_search_says_so(tmp_path: Path) -> None:
    index = made(tmp_path / "ix", 200)
    add(index, records(200))
    refresh(index, Words(), Derived(exact_up_to=50), progress=False)
    hits = search(index, Words(), QUERIES[0], by="hybrid")
    assert (hits.method.name, hits.method.recall_at, hits.method.by) == ("ann", 100, "hybrid")
    assert hits.method.approximate
    assert not search(index, Words(), QUERIES[0], by="caption").method.approximate
    assert search(index, Words(), QUERIES[0], by="hybrid", exact=True).method.name == "exact"


def test_captions_of_another_model_are_refused(index: VideoIndex) -> None:
    other = [replace(each, fingerprint="q" * 64, model="other", texts={"dense": "up"}) for each in records(2)]
    encoder = Words()
    with pytest.raises(IndexMismatchError, match=r"those of 'mllm' \(fingerprint pppppppppppp, dense\).*'other'"):
        add(index, other, encoder)
    with pytest.raises(IndexMismatchError, match="of two models or prompts"):
        add(index, [*other, *records(2)], encoder, replace=True)
    with pytest.raises(IndexMismatchError, match="made by 'made'"):
        add(index, records(2), Words("0" * 64))
    # Records that fit nothing remove nothing.
    assert add(index, [replace(each, content="gone") for each in other], encoder, replace=True).captioned == 20
    assert encoder.asked == []
    report = add(index, other, encoder, replace=True)
    assert (report.added, report.captioned) == (6, 6)
    assert {hit.caption for hit in search(index, Words(), "up", k=99, by="caption")} == {"up"}


def test_texts_of_another_kind_are_other_captions(index: VideoIndex) -> None:
    short = [replace(each, texts={"short": "A square."}) for each in records(2)]
    with pytest.raises(IndexMismatchError, match="short"):
        add(index, short, kind="short")


def test_a_run_that_is_interrupted_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "BATCH", 10)
    index, calls = made(tmp_path / "ix"), iter([False, True])

    def stop(_: list[str]) -> None:
        if next(calls):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, records(), Words(before=stop))
    assert len(search(index, Words(), "red", k=99, by="caption")) == 10
    with pytest.raises(IndexMismatchError, match="run `vidembed index` again"):
        search(index, Words(), "red", k=99, by="text")
    encoder = Words()
    report = add(index, records(), encoder)
    assert (report.added, report.unchanged, report.captioned) == (14, 10, 24)
    assert len(encoder.asked) == 14
    assert search(index, Words(), "red", k=99, by="text")


KILLED = """
import os, signal, sys
from tests.index.test_captions import Words, VideoIndex, add, records
from vidembed.index import captioning
captioning.BATCH = 10
seen = []
def kill(texts):
    seen.append(texts)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
add(VideoIndex.open(sys.argv[1]), records(), Words(before=kill))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_is_taken_up(tmp_path: Path) -> None:
    index = made(tmp_path / "ix")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "ix")], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    encoder = Words()
    report = add(index, records(), encoder)
    assert (report.added, report.unchanged, len(encoder.asked)) == (14, 10, 14)
    assert len(search(index, Words(), "red", k=99, by="hybrid")) == 24


def test_a_caption_without_a_vector_is_named(tmp_path: Path) -> None:
    def refuse(texts: list[str]) -> None:
        if any("<image>" in text for text in texts):
            raise ValueError("text: it holds the marker <image>")

    index = made(tmp_path / "ix")
    given = [*records(1), replace(record("c1", 0, "an <image>"), video="bad.mp4")]
    report = add(index, given, Words(before=refuse))
    assert (report.added, report.captioned) == (3, 3)
    assert [(each.uri, each.kind) for each in report.refused] == [("bad.mp4", "ValueError")]


def test_copies_have_the_same_caption(index: VideoIndex) -> None:
    index.put([file_rows("file:///v/copy.mp4", np.eye(DIMENSION)[:3], content="c0")], replace=False)
    hits = search(index, Words(), records()[0].texts["dense"], k=2, by="caption")
    assert [hit.uri for hit in hits] == ["file:///v/0.mp4", "file:///v/copy.mp4"]
    assert hits[0].caption_score == hits[1].caption_score == 1.0


# With videos, and runs of `index_videos`.


class Spoken(FakeEncoder):
    """Counts the texts that it embeds."""

    def encode_query(self, inputs: Any) -> np.ndarray:
        if isinstance(inputs, list):
            self.seen += [f"text {each['text']}" for each in inputs]
        return super().encode_query(inputs)


@pytest.fixture
def spoken(run: Callable[..., Report], clips: Path, folder: Path) -> Spoken:
    """An index of six whole videos, each with a caption."""
    encoder = Spoken()
    run(encoder)
    whole = {"start_s": None, "end_s": None}
    given = [record(content_of(path), 0, f"clip {path.stem}", **whole) for path in sorted(clips.iterdir())]
    report = add_captions(folder, encoder, given, progress=False)
    assert (report.added, report.captioned) == (6, 6)
    encoder.seen.clear()
    return encoder


def captioned(folder: Path, encoder: FakeEncoder) -> dict[str, str | None]:
    hits = search(VideoIndex.open(folder), encoder, "red", k=99)
    return {hit.uri.rpartition("/")[2]: hit.caption for hit in hits}


def test_whole_videos_and_runs_that_change_nothing(run: Callable[..., Report], folder: Path, spoken: Spoken) -> None:
    assert run(spoken).unchanged == 6
    assert spoken.seen == []
    assert captioned(folder, spoken) == {f"{n:03}.mp4": f"clip {n:03}" for n in range(6)}


def test_captions_follow_the_bytes(run: Callable[..., Report], clips: Path, folder: Path, spoken: Spoken) -> None:
    (clips / "000.mp4").rename(clips / "moved.mp4")
    (clips / "copy.mp4").write_bytes((clips / "001.mp4").read_bytes())
    write_video(clips / "002.mp4", [(1, 2, 3), (200, 100, 0)])  # the same name, another clip
    (clips / "003.mp4").unlink()
    run(spoken, prune=True)
    assert captioned(folder, spoken) == {
        "moved.mp4": "clip 000",
        "001.mp4": "clip 001",
        "copy.mp4": "clip 001",
        "002.mp4": None,
        "004.mp4": "clip 004",
        "005.mp4": "clip 005",
    }
    hits = search(VideoIndex.open(folder), spoken, "clip", k=99, by="text")
    assert sorted(hit.caption or "" for hit in hits) == [f"clip {n:03}" for n in (0, 1, 1, 4, 5)]
    held = facts(VideoIndex.open(folder))["captions"]
    assert (held["segments"], held["words_fresh"], held["fusion"]) == (5, True, "reciprocal_rank")
