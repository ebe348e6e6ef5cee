"""One prefill a video for scores and embedding: the same numbers as each alone, at half the passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import vision_tower
from vidembed import Sampling, VideoEncoder, VideoReranker, VisualTokenCache
from vidembed.backbone.architectures import find_parts

TEXTS = ["a red square", "a blue circle moves to the left"]


@pytest.mark.parametrize("layer", [3, -1])
def test_equals_scoring_and_embedding_apart(each_reranker: VideoReranker, clips: list[Path], layer: int) -> None:
    encoder = each_reranker.encoder(layer=layer, prefix=None)
    apart = each_reranker.answers([(text, clip) for clip in clips for text in TEXTS], priors=True)
    vectors = encoder.encode(clips)
    parts = find_parts(each_reranker[0].model)  # type: ignore[arg-type]
    calls: list[int] = []
    hook = vision_tower(parts).register_forward_hook(lambda *_: calls.append(1))
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


# -- similarities found in the same prefill ----------------------------------------------------------------------------


def calibrated(reranker: VideoReranker, clips: list[Path], *, prefix: str | None = None) -> VideoEncoder:
    encoder = reranker.encoder(layer=3, prefix=prefix)
    texts = ["a", "bc", "def", "ghij"]
    similarity = encoder.encode([{"text": text} for text in texts]) @ encoder.encode(clips).T  # (4, V)
    pairs = [(text, clip) for text in texts for clip in clips]
    reranker.calibrate(pairs, [1, 0, 0] * 4, first_stage=similarity.reshape(-1), encoder=encoder, folds=2)
    return encoder


def same(one: list[dict[str, object]], other: list[dict[str, object]]) -> None:
    assert [entry["corpus_id"] for entry in one] == [entry["corpus_id"] for entry in other]
    # Similarities differ by 1e-7, the rounding of float32. A fusion fitted on the few pairs of `calibrated` weighs them
    # by hundreds, which makes up to 1.4e-5 of it in a score.
    for name, tolerance in {"match": 1e-6, "similarity": 1e-6, "score": 5e-5}.items():
        assert [entry[name] for entry in one] == pytest.approx([entry[name] for entry in other], abs=tolerance)


def test_own_similarities_are_those_of_the_encoder(each_reranker: VideoReranker, clips: list[Path]) -> None:
    encoder = calibrated(each_reranker, clips)
    text = {"text": TEXTS[0]}
    given = (encoder.encode([text]) @ encoder.encode(clips).T)[0]
    expected = each_reranker.rank(text, clips, first_stage=given)
    parts = find_parts(each_reranker[0].model)  # type: ignore[arg-type]
    calls: list[int] = []
    hook = vision_tower(parts).register_forward_hook(lambda *_: calls.append(1))
    found = each_reranker.rank(text, clips, first_stage="own")
    hook.remove()
    assert len(calls) == len(clips)  # one prefill a video
    same(found, expected)
    backwards = (encoder.encode(clips[:1]) @ encoder.encode([{"text": one} for one in TEXTS]).T)[0]
    expected = each_reranker.rank(clips[0], TEXTS, first_stage=backwards)
    same(each_reranker.rank(clips[0], TEXTS, first_stage="own"), expected)


def test_a_prompt_that_begins_otherwise_is_read_by_itself(reranker: VideoReranker, clips: list[Path]) -> None:
    encoder = calibrated(reranker, clips, prefix="zero-shot")
    text = {"text": TEXTS[1]}
    given = (encoder.encode([text]) @ encoder.encode(clips).T)[0]
    same(reranker.rank(text, clips, first_stage="own"), reranker.rank(text, clips, first_stage=given))


def test_own_similarities_with_a_cache_and_a_failure(reranker: VideoReranker, clips: list[Path]) -> None:
    calibrated(reranker, clips)
    plain = reranker.rank("a", clips, first_stage="own")
    reranker.visual_cache = VisualTokenCache()
    for _ in range(2):
        same(reranker.rank("a", clips, first_stage="own"), plain)
    found = reranker.rank("a", [*clips, "gone.mp4"], first_stage="own", on_error="skip")
    same(found, plain)
    assert reranker.rank("a", [], first_stage="own") == []
    for options, message in (
        ({"first_stage": "cosine"}, "first_stage='cosine'"),
        ({"activation_fn": abs}, "activation"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            reranker.rank("a", clips, **{"first_stage": "own", **options})


def test_a_saved_reranker_makes_the_encoder_that_it_was_fitted_with(
    each_reranker: VideoReranker, clips: list[Path], tmp_path: Path
) -> None:
    encoder = calibrated(each_reranker, clips)
    before = each_reranker.rank("a", clips, first_stage="own")
    each_reranker.save_pretrained(str(tmp_path / "saved"))
    again = VideoReranker(tmp_path / "saved", device="cpu")
    assert again.encoder().fingerprint == encoder.fingerprint
    same(again.rank("a", clips, first_stage="own"), before)
    again.save_pretrained(str(tmp_path / "twice"))
    assert VideoReranker(tmp_path / "twice", device="cpu").encoder().fingerprint == encoder.fingerprint


def test_the_encoder_of_a_fusion_has_to_be_known(reranker: VideoReranker, clips: list[Path]) -> None:
    with pytest.raises(ValueError, match="first_stage='own': the reranker has no fusion"):
        reranker.rank("a", clips, first_stage="own")
    pairs = [(text, clip) for text in ("a", "bc", "def") for clip in clips]
    reranker.calibrate(pairs, [1, 0, 0] * 3, first_stage=np.linspace(0.1, 0.9, 9), folds=2)
    assert not reranker.can_fuse
    with pytest.raises(ValueError, match="fitted with another encoder"):
        reranker.use_first_stage(reranker.encoder(layer=3))
