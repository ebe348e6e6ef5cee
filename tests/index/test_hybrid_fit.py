"""Weights of a hybrid search, and fusions with a reranker's head: fitted, kept in the index, used and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.index.captioned import DIMENSION, Words, add, content_of, made, record
from tests.index.made import MODEL, file_rows
from vidembed.calibration import Ranking
from vidembed.captions import CaptionedVideo
from vidembed.index import (
    IndexMeta,
    IndexMismatchError,
    VideoIndex,
    fit_hybrid,
    hybrid,
    rerank,
    search,
    search_many,
    stored_fusion,
)
from vidembed.index.ingest import facts
from vidembed.scoring import PriorCorrection, ScoreFusion
from vidembed.yes_no import Answers

Labelled = tuple[VideoIndex, list[CaptionedVideo]]


@pytest.fixture
def labelled(tmp_path: Path) -> Labelled:
    """An index of 60 videos whose vectors say little and whose captions say much, and a text about each."""
    meta = IndexMeta("made", None, {}, MODEL, {}, DIMENSION, None, 0.0, "2026-01-01T00:00:00+00:00")
    index, rng = VideoIndex.create(tmp_path / "ix", meta), np.random.default_rng(0)
    rows, files, given = [], [], []
    for n in range(60):
        path = tmp_path / f"{n}.mp4"
        path.write_bytes(b"video %d" % n)
        text = " ".join(rng.choice([f"w{each}" for each in range(40)], 5))
        vector = Words().encode_query([{"text": text}])[0] + 4 * rng.normal(size=DIMENSION)
        files.append(file_rows(path.as_uri(), vector[None], content=content_of(path)))
        given.append(record(content_of(path), 0, text, start_s=None, end_s=None))
        rows.append(CaptionedVideo(path, " ".join(text.split()[:3])))
    index.put(files, replace=False)
    add(index, given[:-1])
    return index, rows


def recall(index: VideoIndex, rows: list[CaptionedVideo], by: Any) -> float:
    found = search_many(index, Words(), [row.text for row in rows], k=1, by=by)
    return float(np.mean([hits[0].uri == row.video.as_uri() for hits, row in zip(found, rows, strict=True)]))


def test_fitted_weights_are_stored_and_used(labelled: Labelled) -> None:
    index, rows = labelled
    report = fit_hybrid(index.folder, Words(), rows[:30])
    assert (report.queries, report.matches, report.missed) == (30, 30, 0)
    assert report.weights.caption_weight > 0
    hits = search(index, Words(), rows[30].text, by="hybrid")
    assert hits.method.fusion == "fitted"
    assert hits[0].hybrid_score is not None
    assert facts(index)["captions"]["fusion"] == "fitted"
    assert recall(index, rows[30:], "hybrid") > recall(index, rows[30:], "video") + 0.2
    last = search(index, Words(), rows[-1].text, k=60, by="hybrid")  # its video has no caption, and is there
    assert rows[-1].video.as_uri() in {hit.uri for hit in last}
    assert all(np.isfinite(hit.hybrid_score or np.nan) for hit in last)


def test_labels_say_which_pairs_are_fitted_on(labelled: Labelled) -> None:
    index, rows = labelled
    pairs = [replace(row, label=True) for row in rows[:20]]
    pairs += [CaptionedVideo(rows[(n + 7) % 20].video, row.text, False) for n, row in enumerate(rows[:20])]
    report = fit_hybrid(index.folder, Words(), pairs, candidates=60)
    assert (report.queries, report.pairs, report.matches) == (20, 40, 20)


def test_weights_of_other_captions_are_refused(labelled: Labelled) -> None:
    index, rows = labelled
    fit_hybrid(index.folder, Words(), rows)
    whole = [record(content_of(row.video), 0, "w1", start_s=None, end_s=None, fingerprint="q" * 64) for row in rows]
    add(index, whole, replace=True)
    with pytest.raises(IndexMismatchError, match=r"fitted on other captions.*vidembed calibrate INDEX --hybrid"):
        search(index, Words(), "w1", by="hybrid")
    assert "other captions" in facts(index)["captions"]["fusion"]
    index.derived(hybrid.FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(IndexMismatchError, match="weights of hybrid search"):
        search(index, Words(), "w1", by="hybrid")
    index.derived(hybrid.FILE).unlink()
    assert search(index, Words(), "w1", by="hybrid").method.fusion == "reciprocal_rank"


def test_nothing_to_fit_on(labelled: Labelled, tmp_path: Path) -> None:
    index, rows = labelled
    (tmp_path / "other.mp4").write_bytes(b"other")
    with pytest.raises(ValueError, match="none of 1 texts has its video among 50 candidates"):
        fit_hybrid(index.folder, Words(), [CaptionedVideo(tmp_path / "other.mp4", rows[0].text)])
    with pytest.raises(IndexMismatchError, match="no captions"):
        fit_hybrid(made(tmp_path / "bare").folder, Words(), rows)


# Fusions with a reranker's head.


@dataclass
class Head:
    """Says that a video matches where all words of the text are about it, but for some that it mistakes."""

    rows: list[CaptionedVideo]
    weights: str = "w"
    mode: str = "yes_no"
    prior_correction: PriorCorrection = field(default_factory=PriorCorrection)
    source: str = "a head"
    fusion: ScoreFusion | None = None
    first_stage: None = None
    can_fuse: bool = False
    asked: list[tuple[str, Path]] = field(default_factory=list)
    fails: Callable[[Path], bool] = lambda _: False

    def fingerprint_fields(self) -> dict[str, Any]:
        return {"weights": self.weights, "sampling": {"fps": 1}}

    def odds(self, text: str, path: Path) -> float:
        rng = np.random.default_rng([len(text), int(path.stem)])
        about = {row.text: row.video for row in self.rows}
        return float("nan") if self.fails(path) else 2.0 * (about[text] == path) + rng.normal()

    def answers(self, pairs: list[Any], *, priors: bool, on_error: str, show_progress_bar: bool) -> Answers:
        assert (priors, on_error) == (False, "skip")
        self.asked += [(text["text"], Path(segment.path)) for text, segment in pairs]
        odds = np.array([self.odds(*one) for one in self.asked[-len(pairs) :]])
        return Answers(odds, odds)

    def rank(self, query: Any, documents: list[Any], *, first_stage: Any, fusion: Any, on_error: str) -> Ranking:
        odds = np.array([self.odds(query["text"], Path(document.path)) for document in documents])
        scores, more = odds, {}
        if fusion is not None:
            scores, more = fusion(odds, np.array(first_stage)), {"match": 0.5}
        found = [{"corpus_id": int(at), "score": float(scores[at]), **more} for at in np.argsort(-scores)]
        return Ranking(found, asked=len(found), candidates=len(found))


def reranked_recall(index: VideoIndex, rows: list[CaptionedVideo], head: Head, by: Any, *, fused: bool) -> float:
    fusion = stored_fusion(index, by, head) if fused else None  # type: ignore[arg-type]
    right = []
    for row, hits in zip(rows, search_many(index, Words(), [row.text for row in rows], k=10, by=by), strict=True):
        again = rerank(hits, head, row.text, fusion=fusion)  # type: ignore[arg-type]
        assert again.method.reranked == (by if fused else "head")
        right.append(again[0].uri == row.video.as_uri())
    return float(np.mean(right))


def test_fusions_are_fitted_stored_and_better_than_either_alone(labelled: Labelled) -> None:
    index, rows = labelled
    head = Head(rows)
    report = fit_hybrid(index.folder, Words(), rows[:30], reranker=head)  # type: ignore[arg-type]
    assert report.rerank is not None
    assert set(report.rerank.fusions) == {"caption", "text", "hybrid"}
    assert (report.rerank.reranker, report.rerank.k, report.rerank.skipped) == ("a head", 10, 0)
    assert report.rerank.asked == len(head.asked) == len(set(head.asked))  # each pair once
    assert facts(index)["captions"]["rerank"] == {"reranker": "a head", "k": 10, "by": ["caption", "text", "hybrid"]}
    assert stored_fusion(index, "hybrid", head) == report.rerank.fusions["hybrid"]  # type: ignore[arg-type]
    for by in ("caption", "text", "hybrid"):
        fused, alone = (reranked_recall(index, rows[30:], head, by, fused=fused) for fused in (True, False))
        assert fused > alone
        assert fused >= recall(index, rows[30:], by)


def test_without_a_reranker_there_is_no_fusion(labelled: Labelled) -> None:
    index, rows = labelled
    head = Head(rows)
    assert stored_fusion(index, "hybrid", head) is None  # type: ignore[arg-type]
    fit_hybrid(index.folder, Words(), rows[:30], reranker=head)  # type: ignore[arg-type]
    assert stored_fusion(index, "video", head) is None  # type: ignore[arg-type]
    fit_hybrid(index.folder, Words(), rows[:30])  # the weights are others, for which nothing was fitted
    assert stored_fusion(index, "hybrid", head) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("changed", "named"), [({"weights": "v"}, "weights"), ({"mode": "yes"}, "mode")])
def test_rejects_a_fusion_of_another_reranker(labelled: Labelled, changed: dict[str, str], named: str) -> None:
    index, rows = labelled
    fit_hybrid(index.folder, Words(), rows[:30], reranker=Head(rows))  # type: ignore[arg-type]
    with pytest.raises(IndexMismatchError, match=rf"another reranker \(a head; {named} differ\).*vidembed calibrate"):
        stored_fusion(index, "caption", Head(rows, **changed))  # type: ignore[arg-type]


def test_rejects_a_fusion_of_other_captions(labelled: Labelled) -> None:
    index, rows = labelled
    head = Head(rows)
    fit_hybrid(index.folder, Words(), rows[:30], reranker=head)  # type: ignore[arg-type]
    whole = [record(content_of(row.video), 0, "w1", start_s=None, end_s=None, fingerprint="q" * 64) for row in rows]
    add(index, whole, replace=True)
    with pytest.raises(IndexMismatchError, match="fitted on other captions"):
        stored_fusion(index, "text", head)  # type: ignore[arg-type]


def test_pairs_that_cannot_be_asked_about_are_left_out(labelled: Labelled) -> None:
    index, rows = labelled
    head = Head(rows, fails=lambda path: int(path.stem) % 2 == 0)
    report = fit_hybrid(index.folder, Words(), rows[:30], reranker=head)  # type: ignore[arg-type]
    assert report.rerank is not None
    assert 0 < report.rerank.skipped < report.rerank.asked
    assert set(report.rerank.fusions) == {"caption", "text", "hybrid"}
    with pytest.raises(ValueError, match="rerank: no fusion can be fitted"):
        fit_hybrid(index.folder, Words(), rows[:30], reranker=Head(rows, fails=lambda _: True))  # type: ignore[arg-type]
