"""Adaptive depth in `rank`: who is asked, what comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidembed import VideoReranker
from vidembed.scoring import MarginPolicy


def test_only_those_within_the_margin_are_asked(
    reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    real = VideoReranker.predict

    def predict(self: VideoReranker, pairs: list[tuple[str, Path]], **kwargs: object) -> object:
        asked.extend(document for _, document in pairs)
        return real(self, pairs, **kwargs)

    monkeypatch.setattr(VideoReranker, "predict", predict)
    everything = reranker.rank("a", clips, top_k=1)
    asked.clear()
    ranking = reranker.rank(
        "a", clips, top_k=1, first_stage=[0.5, 0.9, 0.8], policy=MarginPolicy(0.15), return_documents=True
    )
    assert asked == [clips[1], clips[2]]
    assert (ranking.asked, ranking.candidates, ranking.passes_saved) == (2, 3, 1)
    assert len(ranking) == 1
    assert ranking[0]["corpus_id"] in (1, 2)
    assert ranking[0]["document"] == clips[ranking[0]["corpus_id"]]
    whole = reranker.rank("a", clips, top_k=1, first_stage=[0.5, 0.9, 0.8], policy=MarginPolicy(1.0))
    assert whole == everything
    assert whole.passes_saved == 0


def test_what_a_policy_needs(reranker: VideoReranker, clips: list[Path]) -> None:
    for how in ({"top_k": 1}, {"first_stage": [0.1, 0.2, 0.3]}):
        with pytest.raises(ValueError, match="policy: it needs first_stage"):
            reranker.rank("a", clips, policy=MarginPolicy(0.1), **how)
    with pytest.raises(ValueError, match=r"first_stage: expected shape \(N,\) with N = 3"):
        reranker.rank("a", clips, first_stage=[0.1])
    with pytest.raises(ValueError, match="not finite"):
        reranker.rank("a", clips, first_stage=[0.1, np.nan, 0.2])


def test_failed_documents_are_left_out_of_a_fused_ranking(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [(text, clip) for text in ("a", "bc", "def", "ghij") for clip in clips]
    reranker.calibrate(pairs, [1, 0, 0] * 4, first_stage=np.linspace(0.1, 0.9, 12), folds=2)
    ranking = reranker.rank("a", [clips[0], "gone.mp4", clips[1]], first_stage=[0.1, 0.9, 0.2], on_error="skip")
    assert sorted(entry["corpus_id"] for entry in ranking) == [0, 2]
    assert all(0 <= entry["score"] <= 1 for entry in ranking)
