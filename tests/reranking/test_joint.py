"""One prefill a video for scores and embedding: the same numbers as each alone, at half the passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidembed import Sampling, VideoEncoder, VideoReranker
from vidembed.backbone import find_parts

TEXTS = ["a red square", "a blue circle moves to the left"]


@pytest.mark.parametrize("layer", [3, -1])
def test_equals_scoring_and_embedding_apart(each_reranker: VideoReranker, clips: list[Path], layer: int) -> None:
    encoder = each_reranker.encoder(layer=layer, prefix=None)
    apart = each_reranker.answers([(text, clip) for clip in clips for text in TEXTS], priors=True)
    vectors = encoder.encode(clips)
    parts = find_parts(each_reranker._transformer.model)  # type: ignore[arg-type]
    calls: list[int] = []
    hook = getattr(parts.base, parts.architecture.vision[0]).register_forward_hook(lambda *_: calls.append(1))
    answers, embedded = each_reranker.answers_and_embeddings(TEXTS, clips, encoder, priors=True)
    hook.remove()
    assert len(calls) == len(clips)
    assert embedded.shape == vectors.shape
    assert np.abs(embedded - vectors).max() <= 1e-5
    for name in ("yes", "yes_no", "video_prior", "text_prior"):
        assert np.abs(getattr(answers, name) - getattr(apart, name)).max() <= 1e-4


def test_a_video_that_fails_and_one_given_twice(reranker: VideoReranker, clips: list[Path]) -> None:
    encoder = reranker.encoder(layer=3, prefix=None, truncate_dim=16)
    answers, vectors = reranker.answers_and_embeddings(
        TEXTS, [clips[0], "gone.mp4", clips[0]], encoder, on_error="skip"
    )
    assert vectors.shape == (3, 16)
    assert np.isnan(vectors[1]).all()
    assert np.array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - encoder.encode(clips[0])).max() <= 1e-5
    assert answers.missing.tolist() == [False, False, True, True, False, False]


def test_prompts_that_begin_otherwise_share_no_prefill(
    reranker: VideoReranker, clips: list[Path], tiny_mllm: object
) -> None:
    with pytest.raises(ValueError, match=r"its prompt begins with.*prefix=None"):
        reranker.answers_and_embeddings(TEXTS, clips, reranker.encoder(layer=3))
    with pytest.raises(ValueError, match="frame grid"):
        reranker.answers_and_embeddings(TEXTS, clips, reranker.encoder(layer=3, sampling=Sampling(fps=1)))
    other = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=3, prefix=None, device="cpu")  # type: ignore[operator]
    with pytest.raises(ValueError, match="other weights"):
        reranker.answers_and_embeddings(TEXTS, clips, other)
    reranker.shared_prefix = False
    with pytest.raises(ValueError, match="shared_prefix=True"):
        reranker.answers_and_embeddings(TEXTS, clips, reranker.encoder(layer=3, prefix=None))
