from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidembed import VideoEncoder, VideoReranker, build
from vidembed.calibration import FirstStage, Ranking
from vidembed.errors import LayerError
from vidembed.index import Hit, Hits, rerank
from vidembed.index.hits import Method
from vidembed.index.reranking import encoder_beside, load_reranker, load_stages
from vidembed.scoring import ScoreFusion
from vidembed.video import VideoSegment

EXACT = Method("exact", 3)
HITS = Hits(
    [
        Hit("file:///v/a.mp4", 0.0, 5.0, 0.9),
        Hit("file:///v/b%20c.mp4", 5.0, 10.0, 0.8),
        Hit("file:///v/d.mp4", 0.0, 5.0, 0.7),
    ],
    EXACT,
)


class Reranker:
    """Gives fixed scores, and says what it was asked."""

    def __init__(self, scores: dict[int, float], *, fitted_with: str | None = None, can_fuse: bool = True) -> None:
        self.scores = scores
        self.fusion = object()
        self.first_stage = None if fitted_with is None else FirstStage(fitted_with)
        self.can_fuse = can_fuse
        self.asked: dict[str, Any] = {}

    def rank(self, query: Any, documents: list[Any], **how: Any) -> Ranking:
        self.asked = {"query": query, "documents": documents, **how}
        more = {} if how["first_stage"] is None else {"match": 0.5}
        found = [{"corpus_id": place, "score": score, **more} for place, score in self.scores.items()]
        found.sort(key=lambda entry: -entry["score"])
        return Ranking(found, asked=len(documents), candidates=len(documents))


def test_most_probable_first_and_those_without_a_score_last(caplog: pytest.LogCaptureFixture) -> None:
    reranker = Reranker({1: 0.25, 2: 0.75})
    with caplog.at_level(logging.WARNING):
        hits = rerank(HITS, reranker, "some/words.mp4")  # type: ignore[arg-type]
    assert [(hit.uri[-5:], hit.probability, hit.score) for hit in hits] == [
        ("d.mp4", 0.75, 0.7),
        ("c.mp4", 0.25, 0.8),
        ("a.mp4", None, 0.9),
    ]
    assert "1 of 3 hits" in caplog.text
    assert reranker.asked["query"] == {"text": "some/words.mp4"}  # words, whatever they look like
    assert [(str(d.path), d.start, d.end) for d in reranker.asked["documents"]] == [
        ("/v/a.mp4", 0.0, 5.0),
        ("/v/b c.mp4", 5.0, 10.0),
        ("/v/d.mp4", 0.0, 5.0),
    ]
    assert all(isinstance(document, VideoSegment) for document in reranker.asked["documents"])
    assert reranker.asked["first_stage"] == [0.9, 0.8, 0.7]


def test_json_has_a_probability_only_where_there_is_one() -> None:
    assert "probability" not in HITS[0].to_dict()
    hits = rerank(Hits(HITS[:1], EXACT), Reranker({0: 0.5}), "a")  # type: ignore[arg-type]
    assert hits[0].to_dict()["probability"] == 0.5
    assert rerank(Hits([], EXACT), Reranker({}), "a") == []  # type: ignore[arg-type]


def test_the_stretch_around_is_asked_about_only_if_asked() -> None:
    widened = (replace(hit, context_start_s=max(0.0, hit.start_s - 2), context_end_s=hit.end_s + 2) for hit in HITS)
    hits = Hits(widened, EXACT)
    reranker = Reranker({0: 0.1, 1: 0.2, 2: 0.3})
    rerank(hits, reranker, "a")  # type: ignore[arg-type]
    assert [(d.start, d.end) for d in reranker.asked["documents"]] == [(0, 5), (5, 10), (0, 5)]
    found = rerank(hits, reranker, "a", context=True)  # type: ignore[arg-type]
    assert [(d.start, d.end) for d in reranker.asked["documents"]] == [(0, 7), (3, 12), (0, 7)]
    assert [(hit.start_s, hit.context_end_s) for hit in found] == [(0, 7), (5, 12), (0, 7)]
    with pytest.raises(ValueError, match="search with around=SECONDS"):
        rerank(HITS, reranker, "a", context=True)  # type: ignore[arg-type]


def test_hits_elsewhere_cannot_be_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    mixed = [Hit("s3://bucket/e.mp4", 0.0, 5.0, 0.95), HITS[0], Hit("s3://bucket/f.mp4", 0.0, 5.0, 0.85), HITS[1]]
    away = Hits(mixed, EXACT)
    reranker = Reranker({0: 0.2, 1: 0.6})
    with caplog.at_level(logging.WARNING):
        hits = rerank(away, reranker, "a")  # type: ignore[arg-type]
    assert [(hit.uri[-5:], hit.probability) for hit in hits] == [
        ("c.mp4", 0.6),
        ("a.mp4", 0.2),
        ("e.mp4", None),
        ("f.mp4", None),
    ]
    assert reranker.asked["first_stage"] == [0.9, 0.8]
    assert "2 of 4 hits" in caplog.text
    reranker.asked = {}
    assert rerank(away, reranker, "a", count=1) == away  # type: ignore[arg-type]
    assert reranker.asked == {}


def test_similarities_of_another_encoder_are_not_fused(caplog: pytest.LogCaptureFixture) -> None:
    reranker = Reranker({0: 0.5}, fitted_with="this")
    rerank(HITS, reranker, "a", fingerprint="this")  # type: ignore[arg-type]
    assert reranker.asked["first_stage"] == [0.9, 0.8, 0.7]
    for fingerprint in ("that", None):
        again = rerank(HITS, reranker, "a", fingerprint=fingerprint)  # type: ignore[arg-type]
        assert reranker.asked["first_stage"] == "own"
        assert again.method.reranked == "video"
    reranker = Reranker({0: 0.5}, fitted_with="this", can_fuse=False)
    with caplog.at_level(logging.WARNING):
        again = rerank(HITS, reranker, "a", fingerprint="that")  # type: ignore[arg-type]
    assert reranker.asked["first_stage"] is None
    assert again.method.reranked == "head"
    assert "calibrated with another encoder" in caplog.text


def test_only_the_first_are_asked_about() -> None:
    reranker = Reranker({0: 0.1, 1: 0.2})
    hits = rerank(HITS, reranker, "a", count=2)  # type: ignore[arg-type]
    assert len(reranker.asked["documents"]) == 2
    assert [hit.probability for hit in hits] == [0.2, 0.1, None]
    assert hits[2] == HITS[2]


@pytest.mark.parametrize(("by", "score"), [("caption", 0.3), ("text", 7.0), ("hybrid", -2.0)])
def test_hits_by_captions_are_fused_with_what_orders_them(by: Any, score: float) -> None:
    hit = replace(HITS[0], caption_score=0.3, text_score=7.0, hybrid_score=-2.0)
    hits, reranker = Hits([hit], replace(EXACT, by=by)), Reranker({0: 0.5})
    fusion = ScoreFusion.constant(log_odds_weight=1.0, gap_weight=1.0)
    again = rerank(hits, reranker, "a", fusion=fusion)  # type: ignore[arg-type]
    assert (reranker.asked["first_stage"], reranker.asked["fusion"]) == ([score], fusion)
    assert again.method.reranked == by
    # The reranker's own fusion is of the cosine with the video.
    again = rerank(hits, reranker, "a", fingerprint="this")  # type: ignore[arg-type]
    assert (reranker.asked["first_stage"], reranker.asked["fusion"]) == (None, None)
    assert again.method.reranked == "head"


def test_rejects_a_fusion_for_hits_by_video() -> None:
    with pytest.raises(ValueError, match="fusion: it is for hits by caption, text or hybrid"):
        rerank(HITS, Reranker({}), "a", fusion=ScoreFusion.constant(log_odds_weight=1.0, gap_weight=1.0))  # type: ignore[arg-type]


class TestOneCopyOfTheWeights:
    """An encoder and its reranker, on one copy of the weights wherever both are of one MLLM."""

    @pytest.fixture
    def mllm(self, tiny_mllm: Callable[[str], Path]) -> Path:
        return tiny_mllm("qwen2_5_vl")

    @pytest.fixture
    def standalone(self, mllm: Path, tmp_path: Path) -> Path:
        return build(mllm, layer=3, out=tmp_path / "standalone", standalone=True, device="cpu")

    @pytest.mark.parametrize("kind", ["mllm", "recipe", "standalone"])
    def test_however_the_encoder_is_named(self, mllm: Path, standalone: Path, tmp_path: Path, kind: str) -> None:
        recipe = build(mllm, layer=3, out=tmp_path / "recipe", device="cpu")
        name, layer = {"mllm": (mllm, 3), "recipe": (recipe, None), "standalone": (standalone, None)}[kind]
        wanted = VideoEncoder(standalone, device="cpu").encode("a red square")
        loaded: list[str] = []

        def load() -> VideoEncoder:
            loaded.append(kind)
            return VideoEncoder(name, layer=layer, device="cpu")

        grid = {"fps": 1.0}
        encoder, reranker = load_stages(load, str(mllm), model=str(name), layer=layer, sampling=grid, device="cpu")
        assert encoder.backbone is not None
        assert encoder.is_on_weights_of(reranker)
        assert loaded == ([] if kind == "standalone" else [kind])  # a checkpoint of the same weights is not even read
        assert abs(encoder.encode("a red square") - wanted).max() <= 1e-6
        if kind == "standalone":
            assert encoder.sampling.fps == 1.0
            assert encoder.checkpoint_config is not None
            assert encoder.checkpoint_config.source == mllm.name

    def test_by_the_name_of_what_it_was_built_from(self, mllm: Path, tmp_path: Path) -> None:
        recipe = build(mllm, layer=3, out=tmp_path / "recipe", device="cpu")
        how = {"model": str(recipe), "device": "cpu"}
        encoder, reranker = load_stages(lambda: VideoEncoder(recipe, device="cpu"), None, **how)  # type: ignore[arg-type]
        assert encoder.is_on_weights_of(reranker)

    def test_an_encoder_that_is_loaded_goes_over(self, mllm: Path, standalone: Path) -> None:
        encoder = VideoEncoder(standalone, device="cpu")
        before, fingerprint = encoder.encode("a red square"), encoder.fingerprint
        reranker = load_reranker(str(mllm), encoder, model=str(standalone))
        assert encoder.is_on_weights_of(reranker)
        assert (encoder.fingerprint, encoder.layer) == (fingerprint, 3)
        assert abs(encoder.encode("a red square") - before).max() <= 1e-6

    def test_other_weights_stay_apart_and_the_log_says_so(
        self, mllm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        half = build(mllm, layer=3, out=tmp_path / "half", standalone=True, dtype="bfloat16", device="cpu")
        gc.collect()
        with caplog.at_level(logging.INFO, logger="vidembed"):
            head = VideoReranker(mllm, device="cpu")
            encoder = encoder_beside(head, lambda: VideoEncoder(half, device="cpu"), model=str(half))
        assert encoder.backbone is None
        assert "two models in memory: the reranker's MLLM does not give the vectors" in caplog.text
        assert load_reranker(str(mllm), encoder, model=str(half)).dtype != encoder.dtype

    def test_another_model_is_no_surprise(self, mllm: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="vidembed"):
            how = {"model": "vidembed/shapes", "device": "cpu"}
            encoder, _ = load_stages(lambda: VideoEncoder("vidembed/shapes", device="cpu"), str(mllm), **how)  # type: ignore[arg-type]
        assert encoder.backbone is None
        (record,) = [one for one in caplog.records if "two models in memory" in one.message]
        assert record.levelno == logging.INFO

    def test_a_layer_that_is_not_the_checkpoints_is_refused(self, mllm: Path, standalone: Path) -> None:
        def load() -> VideoEncoder:
            return VideoEncoder(standalone, layer=2, device="cpu")

        with pytest.raises(LayerError, match="layer=2"):
            load_stages(load, str(mllm), model=str(standalone), layer=2, device="cpu")
