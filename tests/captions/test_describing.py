"""What a model says of videos, each decoded and prefilled once for all that is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.captions.conftest import CLIPS, counted
from vidembed import Sampling, VideoEncoder, VideoReranker
from vidembed.backbone.generate import generate
from vidembed.captions import Described, DescribeOptions, describe
from vidembed.captions.describing import problem_of
from vidembed.errors import BackboneError, InputError, VideoError
from vidembed.scoring import PlattScaling
from vidembed.yes_no import HeadReader

GENERATE = "vidembed.captions.describing.generate"


@pytest.fixture(scope="module")
def described(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> list[Described]:
    return list(describe(model, [clip for clip, _ in scenes]))


def test_captions_say_what_is_seen(described: list[Described], scenes: list[tuple[Path, Any]]) -> None:
    said = [one.texts["dense"] for one in described]
    right = [
        record.attributes[name] in text
        for text, (_, record) in zip(said, scenes, strict=True)
        for name in ("shape", "colour", "background")
    ]
    assert np.mean(right) >= 0.9
    assert len(set(said)) == CLIPS
    assert [one.index for one in described] == list(range(CLIPS))
    assert all(clip.name in one.name for one, (clip, _) in zip(described, scenes, strict=True))


def test_a_batch_says_what_each_video_alone_does(
    model: VideoReranker, scenes: list[tuple[Path, Any]], described: list[Described]
) -> None:
    for one, (clip, _) in zip(described, scenes, strict=True):
        [alone] = describe(model, [clip], batch_size=1)
        assert alone.texts == one.texts
        assert alone.match == pytest.approx(one.match, abs=1e-5)


def test_without_a_shared_prefix_the_same_is_said(scenes: list[tuple[Path, Any]], described: list[Described]) -> None:
    plain = VideoReranker("vidembed/shapes-rerank", device="cpu", shared_prefix=False)
    [found] = describe(plain, [scenes[0][0]])
    assert found.texts == described[0].texts


def test_one_pass_of_the_vision_tower_serves_texts_scores_and_vectors(
    model: VideoReranker, scenes: list[tuple[Path, Any]]
) -> None:
    encoder = model.encoder(layer=4, prefix=None)
    clips = [clip for clip, _ in scenes]
    list(describe(model, clips[:1], encoder=encoder))  # what is tried once on a model, is now
    with counted(model) as passes:
        found = list(describe(model, clips, encoder=encoder))
    assert len(passes) == CLIPS
    vectors = encoder.encode_document(clips)
    for one, vector in zip(found, vectors, strict=True):
        assert one.vector is not None
        assert abs(one.vector - vector).max() <= 1e-6
        assert set(one.match) == {"dense", "short"}


def test_the_head_is_asked_about_each_text(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    clip = scenes[0][0]
    [found] = describe(model, [clip])
    assert model.calibration is not None
    calibrated = model.predict([(text, clip) for text in found.texts.values()])
    assert list(found.match.values()) == pytest.approx(calibrated.tolist(), abs=1e-5)
    assert {kind for kind, value in found.match.items() if value < 0.5} <= set(found.problems)
    [unasked] = describe(model, [clip], agree=False)
    assert unasked.match == {}
    assert set(unasked.problems) <= set(found.problems)


@pytest.mark.parametrize("mode", ["yes", "yes_no", "prior_corrected"])
def test_a_calibration_decides_what_match_means(scenes: list[tuple[Path, Any]], mode: Any) -> None:
    own = VideoReranker("vidembed/shapes-mllm", device="cpu", mode=mode)
    clip = scenes[0][0]
    [plain] = describe(own, [clip], kinds=["dense"])
    text = plain.texts["dense"]
    assert plain.match["dense"] == pytest.approx(1 / (1 + np.exp(-own.answers([(text, clip)]).yes_no[0])), abs=1e-5)
    own.calibration = PlattScaling(0.5, -0.3)
    [found] = describe(own, [clip], kinds=["dense"])
    assert found.match["dense"] == pytest.approx(own.predict([(text, clip)])[0], abs=1e-5)
    assert found.match != plain.match


def test_an_answer_that_is_not_finite_is_marked(
    model: VideoReranker, scenes: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def about_video(_reader: HeadReader, _video: Any, suffixes: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        odds = torch.full((len(suffixes),), torch.nan, dtype=torch.float64)
        return odds, odds

    monkeypatch.setattr(HeadReader, "about_video", about_video)
    [found] = describe(model, [scenes[0][0]], kinds=["dense"])
    assert found.match == {}
    assert found.problems == {"dense": "the head's answer is not finite"}


def test_a_text_that_no_prompt_can_hold_is_marked(
    model: VideoReranker, scenes: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.tokenizer, "decode", lambda *_, **__: f"A ring {model.processor.video_token} moves.")
    [found] = describe(model, [scenes[0][0]], kinds=["dense"])
    assert "video placeholder" in found.problems["dense"]
    assert found.match == {}


@pytest.mark.parametrize("fits", [1, 3])
def test_a_batch_without_room_is_halved(
    model: VideoReranker,
    scenes: list[tuple[Path, Any]],
    described: list[Described],
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
) -> None:
    sizes: list[int] = []

    def generate_few(parts: Any, prompts: Any, **how: Any) -> Any:
        if len(prompts) > fits:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(prompts))
        return generate(parts, prompts, **how)

    monkeypatch.setattr(GENERATE, generate_few)
    found = list(describe(model, [clip for clip, _ in scenes]))
    assert [one.texts for one in found] == [one.texts for one in described]
    assert sizes == ([1] * CLIPS if fits == 1 else [2, 2])


def test_videos_are_described_before_more_are_prefilled_than_there_is_room_for(
    model: VideoReranker, scenes: list[tuple[Path, Any]], described: list[Described], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = VideoReranker.video_prompt, []

    def prefill(self: VideoReranker, reader: Any, item: Any) -> Any:
        tried.append(item.index)
        if len(tried) == 3:
            raise torch.OutOfMemoryError("no room")
        return real(self, reader, item)

    monkeypatch.setattr(VideoReranker, "video_prompt", prefill)
    found = list(describe(model, [clip for clip, _ in scenes]))
    assert tried == [0, 1, 2, 2, 3]
    assert [one.texts for one in found] == [one.texts for one in described]


@pytest.mark.parametrize("what", ["generate", "prefill"])
def test_a_video_without_room_is_named(
    model: VideoReranker, scenes: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    if what == "generate":
        monkeypatch.setattr(GENERATE, full)
    else:
        monkeypatch.setattr(VideoReranker, "video_prompt", full)
    clips = [clip for clip, _ in scenes[:2]]
    with pytest.raises(torch.OutOfMemoryError, match=rf"{clips[0].name}.*max_frames.*no room"):
        list(describe(model, clips))
    found = list(describe(model, clips, on_error="skip"))
    assert [clip.name in str(one.error) for clip, one in zip(clips, found, strict=True)] == [True, True]


def test_an_encoder_of_an_mllm_describes_too(scenes: list[tuple[Path, Any]], described: list[Described]) -> None:
    encoder = VideoEncoder("vidembed/shapes-mllm", layer=4, device="cpu")
    [found] = describe(encoder, [scenes[0][0]], kinds=["dense"])
    assert found.texts == {"dense": described[0].texts["dense"]}


def test_a_cut_checkpoint_says_that_it_has_no_head() -> None:
    with pytest.raises(BackboneError, match="no language model head"):
        list(describe(VideoEncoder("vidembed/shapes", device="cpu"), []))


def test_other_prompts_give_other_kinds_of_text(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    prompts = {"tags": "Summarize above video in a few words:"}
    [found] = describe(model, [scenes[0][0]], kinds=["tags"], prompts=prompts)
    assert scenes[0][1].attributes["colour"] in found.texts["tags"]
    assert found.texts["tags"] != found.texts["tags"].capitalize()


def test_draws_are_those_of_the_seed_whatever_is_in_the_batch(
    model: VideoReranker, scenes: list[tuple[Path, Any]]
) -> None:
    def said(seed: int, *clips: Path) -> str:
        how: dict[str, Any] = {"temperature": 2.0, "seed": seed, "max_new_tokens": 40, "agree": False}
        return list(describe(model, clips, kinds=["dense"], **how))[-1].texts["dense"]

    first, second = scenes[0][0], scenes[1][0]
    alone = [said(seed, second) for seed in range(3)]
    assert alone[1] == said(1, second) == said(1, first, second)
    assert len(set(alone)) > 1


def test_videos_that_come_one_by_one_are_described_in_order(
    model: VideoReranker, scenes: list[tuple[Path, Any]], described: list[Described]
) -> None:
    found = list(describe(model, (clip for clip, _ in scenes), batch_size=3))
    assert [(one.index, one.texts) for one in found] == [(one.index, one.texts) for one in described]


def test_a_text_that_the_limit_ends_is_marked(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    [found] = describe(model, [scenes[0][0]], kinds=["dense"], max_new_tokens=3)
    assert len(found.texts["dense"].split()) <= 3
    assert found.problems["dense"] == "not ended within the limit of tokens"
    assert not found.usable


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("dense", "", "empty"),
        ("short", "A dog runs along the beach.", None),
        ("short", "Ein Hund läuft über den Strand!", None),
        ("short", "一只狗在海滩上奔跑。", None),
        ("short", "2 dogs run on sand.", None),
        ("short", "狗。", "not one sentence"),
        ("short", "dog beach running sand water", "not one sentence"),
        ("short", "A dog runs. It is brown.", "not one sentence"),
        ("short", "Dog.", "not one sentence"),
        (
            "short",
            "A dog runs along the beach, and a man throws a red ball into it.",
            "no shorter than the dense text",
        ),
        ("dense", "no end and no dot", None),
    ],
)
def test_texts_that_are_not_to_be_used_are_marked(kind: str, text: str, problem: str | None) -> None:
    others = {"dense": "A brown dog runs along the beach at dusk. A man follows it.", kind: text}
    assert problem_of(kind, text, finished=True, others=others) == problem


def test_a_video_that_fails_is_named_or_skipped(
    model: VideoReranker, scenes: list[tuple[Path, Any]], tmp_path: Path, described: list[Described]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    videos = [scenes[0][0], broken, scenes[1][0]]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        list(describe(model, videos))
    found = list(describe(model, videos, on_error="skip"))
    assert [one.texts.get("dense") for one in found] == [described[0].texts["dense"], None, described[1].texts["dense"]]
    assert isinstance(found[1].error, VideoError)
    assert not found[1].usable


def test_a_text_that_may_not_fit_the_context_is_refused(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    with pytest.raises(InputError, match=r"videos\[0\].*up to 100000"):
        list(describe(model, [scenes[0][0]], max_new_tokens=100_000))
    [found] = describe(model, [scenes[0][0]], max_new_tokens=100_000, on_error="skip")
    assert isinstance(found.error, InputError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": []}, "one or more different kinds"),
        ({"kinds": "dense"}, "a list"),
        ({"kinds": ["dense", "dense"]}, "one or more different kinds"),
        ({"kinds": ["match"], "prompts": {"match": "Say:"}}, "match is reserved"),
        ({"kinds": ["label"], "prompts": {"label": "Say:"}}, "label is reserved"),
        ({"kinds": ["tags"], "prompts": {"tags": " "}}, "no prompt was given for tags"),
        ({"kinds": ["long"]}, "no prompt was given for long"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ],
)
def test_bad_options_are_refused(model: VideoReranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(describe(model, [], **options))


def test_an_encoder_of_other_weights_cannot_share_the_prefill(
    model: VideoReranker, scenes: list[tuple[Path, Any]]
) -> None:
    other = VideoEncoder("vidembed/shapes", device="cpu")
    with pytest.raises(ValueError, match="other weights"):
        list(describe(model, [scenes[0][0]], encoder=other))


def test_stopping_early_leaves_no_thread(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    before = set(threading.enumerate())  # those of other tests in this process
    found: Iterator[Described] = describe(model, [clip for clip, _ in scenes], batch_size=1)
    next(found)
    assert [one for one in threading.enumerate() if one not in before]
    found.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one not in before]


def test_the_model_is_as_it_was(model: VideoReranker, scenes: list[tuple[Path, Any]]) -> None:
    before = model.fingerprint
    with torch.no_grad():
        list(describe(model, [scenes[0][0]], kinds=["dense"]))
    assert model.fingerprint == before


def test_a_fingerprint_is_of_all_that_decides_the_texts(model: VideoReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(**options: Any) -> str:
        return DescribeOptions(**options).fingerprint(model)

    plain = fingerprint()
    assert plain == fingerprint(kinds=["short", "dense"], seed=3, temperature=0)  # no token is drawn
    others = [
        fingerprint(kinds=["dense"]),
        fingerprint(prompts={"dense": "Say what is seen:", "short": "Say it in one sentence:"}),
        fingerprint(max_new_tokens=7),
        fingerprint(temperature=1.0),
        fingerprint(temperature=1.0, seed=3),
        fingerprint(agree=False),
    ]
    unasked = others[-1]
    monkeypatch.setattr(model, "calibration", None)
    others.append(fingerprint())
    assert fingerprint(agree=False) == unasked
    monkeypatch.setattr(model, "sampling", Sampling(fps=1.0))
    others.append(fingerprint())
    assert len({plain, *others}) == len(others) + 1
