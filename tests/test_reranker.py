"""VideoReranker: the shared prefix gives the scores of one pass per pair, at the cost of one pass per video."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from tests.backbone import tiny
from tests.clips import moving_square, write_folder
from tests.fixtures import vision_tower
from vidembed import VideoEncoder, VideoError, VideoFrames, VideoReranker, VideoSegment
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.prefix import logits_of, packs, prefill, read_suffixes
from vidembed.errors import BackboneError, InputError, UnsupportedBackboneError
from vidembed.inputs import load_input
from vidembed.yes_no import AnswerTokens, HeadReader, answer_tokens, yes_log_odds

GetModel = Callable[[str], Path]
SENTENCES = ["a red square", "b", "a blue circle moves to the left and then stops for a while", "nothing at all"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_folder(tmp_path_factory.mktemp("clips"), 3)


@pytest.fixture(scope="module")
def get_reranker(tiny_mllm: GetModel) -> Callable[[str], VideoReranker]:
    made: dict[str, VideoReranker] = {}

    def get(model_type: str) -> VideoReranker:
        if model_type not in made:
            reranker = VideoReranker(tiny_mllm(model_type), device="cpu")
            with torch.no_grad():  # logits of a size at which a wrong prompt shows
                find_parts(reranker[0].model).head.weight.mul_(20)  # type: ignore[union-attr]
            made[model_type] = reranker
        return made[model_type]

    return get


@pytest.fixture(params=tiny.ARCHITECTURES)
def each_reranker(request: pytest.FixtureRequest, get_reranker: Callable[[str], VideoReranker]) -> VideoReranker:
    return get_reranker(request.param)


@pytest.fixture
def reranker(get_reranker: Callable[[str], VideoReranker]) -> VideoReranker:
    return get_reranker("qwen2_5_vl")


def whole_prompt(reranker: VideoReranker, video: Any, text: str) -> dict[str, Any]:
    """One pair through the processor in one piece."""
    features = reranker.preprocess([{"video": video, "text": text}])
    return {key: value for key, value in features.items() if isinstance(value, torch.Tensor) and "num_" not in key}


def log_odds(reranker: VideoReranker, pair: Any, **kwargs: Any) -> float:
    return float(reranker.predict(pair, activation_fn=torch.nn.Identity(), **kwargs))


@torch.inference_mode()
def oracle_logits(reranker: VideoReranker, video: Any, text: str) -> torch.Tensor:
    """The model's own forward pass on one unpadded pair (V,)."""
    return reranker[0].model(**whole_prompt(reranker, video, text)).logits[0, -1].float()


def videos(clips: list[Path]) -> list[Any]:
    slow = VideoFrames(moving_square(5, seed=31), fps=0.25)  # time positions beyond those of the text
    return [clips[0], VideoSegment(str(clips[1]), 0.2, 1.5), slow]


class TestSharedPrefix:
    @torch.inference_mode()
    def test_logits_equal_one_pass_per_pair(self, each_reranker: VideoReranker, clips: list[Path]) -> None:
        parts = find_parts(each_reranker[0].model)
        prefixes, suffixes = [], []
        for video in videos(clips):  # all prefilled before any is read: none may lean on the last one
            prompts = [whole_prompt(each_reranker, video, text) for text in SENTENCES]
            prefix = prefill(parts, prompts[0])
            prefixes.append(prefix)
            suffixes.append([prompt["input_ids"][0, prefix.tokens :].tolist() for prompt in prompts])
        for index, video in enumerate(videos(clips)):
            wanted = torch.stack([oracle_logits(each_reranker, video, text) for text in SENTENCES])  # (N, V)
            for max_tokens in (1, 120, 10_000):
                hidden = read_suffixes(parts, prefixes[index], suffixes[index], "packed", max_tokens=max_tokens)
                assert (logits_of(parts, hidden) - wanted).abs().max() <= 1e-4
            other = logits_of(parts, read_suffixes(parts, prefixes[index - 1], suffixes[index], "packed"))
            assert (other - wanted).abs().max() > 1  # the control: another video shows
            shuffled = logits_of(
                parts, read_suffixes(parts, prefixes[index], [s[::-1] for s in suffixes[index]], "packed")
            )
            assert (shuffled - wanted).abs().max() > 1

    @pytest.mark.parametrize("shared_prefix", [True, False])
    def test_a_prompt_that_is_not_the_processors_is_refused(
        self, tiny_mllm: GetModel, clips: list[Path], monkeypatch: pytest.MonkeyPatch, shared_prefix: bool
    ) -> None:
        reranker = VideoReranker(tiny_mllm("qwen2_vl"), device="cpu", shared_prefix=shared_prefix)
        after = HeadReader.after
        monkeypatch.setattr(HeadReader, "after", lambda self, video, text: after(self, video, text)[1:])
        with pytest.raises(UnsupportedBackboneError, match="does not write a sentence after a video"):
            reranker.predict([("a", clips[0])])

    def test_scores_equal_both_ways(self, each_reranker: VideoReranker, clips: list[Path]) -> None:
        pairs = [(text, video) for text in SENTENCES for video in videos(clips)]  # videos interleaved
        identity = torch.nn.Identity()
        shared = each_reranker.predict(pairs, activation_fn=identity)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(each_reranker, "shared_prefix", False)
            alone = each_reranker.predict(pairs, activation_fn=identity)
        answers = answer_tokens(each_reranker.tokenizer, name="m")
        odds = [
            yes_log_odds(oracle_logits(each_reranker, video, text)[None], answers, against="no")
            for text, video in pairs
        ]
        oracle = torch.cat(odds).numpy()
        assert np.abs(shared - oracle).max() <= 1e-4
        assert np.abs(alone - oracle).max() <= 1e-4
        assert shared.std() > 0.3
        probabilities = each_reranker.predict(pairs)
        assert np.abs(probabilities - 1 / (1 + np.exp(-oracle))).max() <= 1e-5

    def test_one_vision_pass_per_video_and_no_token_twice(
        self, each_reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = find_parts(each_reranker[0].model)
        tower = vision_tower(parts)
        seen = {"vision": 0, "tokens": 0}
        hooks = [
            tower.register_forward_hook(lambda *_: seen.__setitem__("vision", seen["vision"] + 1)),
            parts.blocks[0].register_forward_hook(
                lambda _m, args, _o: seen.__setitem__("tokens", seen["tokens"] + args[0].shape[1])
            ),
        ]
        pairs = [(text, clip) for text in SENTENCES for clip in clips]
        each_reranker.predict(pairs)
        for hook in hooks:
            hook.remove()
        lengths = [
            [whole_prompt(each_reranker, clip, text)["input_ids"].shape[1] for text in SENTENCES] for clip in clips
        ]
        prefixes = [prefill(parts, whole_prompt(each_reranker, clip, "x")).tokens for clip in clips]
        expected = sum(
            prefix + sum(length - prefix for length in row) for prefix, row in zip(prefixes, lengths, strict=True)
        )
        assert seen == {"vision": len(clips), "tokens": expected}

    def test_packs(self) -> None:
        assert [list(pack) for pack in packs([3, 3, 3, 9, 1], 6)] == [[0, 1], [2], [3], [4]]
        assert list(packs([], 6)) == []


class TestCheckpoint:
    @pytest.mark.usefixtures("stock")
    def test_saved_as_a_plain_cross_encoder(
        self, each_reranker: VideoReranker, clips: list[Path], tmp_path: Path
    ) -> None:
        each_reranker.save_pretrained(str(tmp_path))
        assert not list(tmp_path.rglob("*.bin"))
        assert "asked whether the video matches" in (tmp_path / "README.md").read_text()
        stock = CrossEncoder(str(tmp_path), device="cpu")
        loaded, _ = load_input({"video": clips[0], "text": SENTENCES[0]}, each_reranker.sampling)
        features = stock.preprocess([loaded], processing_kwargs={"video": {"do_sample_frames": False}})
        with torch.inference_mode():
            score = torch.sigmoid(stock(features)["scores"]).item()
        assert abs(score - each_reranker.predict((SENTENCES[0], clips[0]))) <= 1e-5
        again = VideoReranker(str(tmp_path), device="cpu")
        pairs = [(text, clip) for text in SENTENCES for clip in clips]
        assert np.abs(again.predict(pairs) - each_reranker.predict(pairs)).max() <= 1e-6

    def test_shares_weights_with_an_encoder(self, tiny_mllm: GetModel) -> None:
        encoder = VideoEncoder(tiny_mllm("qwen3_vl"), layer=3, device="cpu")
        reranker = encoder.reranker()
        own = {parameter.data_ptr() for parameter in reranker.parameters()}
        new = [name for name, parameter in encoder.named_parameters() if parameter.data_ptr() not in own]
        assert new == ["0.model.language_model.norm.weight"]
        other = reranker.encoder(layer=3)
        assert other.fingerprint == encoder.fingerprint
        assert reranker.sampling == encoder.sampling

    def test_a_cut_checkpoint_has_no_head(self, tiny_mllm: GetModel, tmp_path: Path) -> None:
        encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=3, device="cpu")
        encoder.save_pretrained(str(tmp_path))
        with pytest.raises(BackboneError, match="VideoReranker"):
            VideoEncoder(str(tmp_path), device="cpu").reranker()

    def test_goes_to_a_process_pool(self, tiny_mllm: GetModel, clips: list[Path]) -> None:
        reranker = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
        reranker.encoder(layer=3)  # cutting hooks the blocks, which no process can be sent
        pairs = [(SENTENCES[0], clips[0]), (SENTENCES[1], clips[1])]
        copy = pickle.loads(pickle.dumps(reranker))
        assert np.abs(copy.predict(pairs) - reranker.predict(pairs)).max() <= 1e-6


class TestPairs:
    def test_every_form_scores_alike(self, reranker: VideoReranker, clips: list[Path]) -> None:
        text, clip = SENTENCES[0], clips[0]
        forms: list[Any] = [
            (text, clip),
            (clip, text),
            [text, str(clip)],
            {"text": text, "video": clip},
            ({"text": text}, {"video": str(clip)}),
            (text, clip.read_bytes()),
        ]
        scores = reranker.predict(forms)
        assert scores.shape == (len(forms),)
        assert np.abs(scores - scores[0]).max() <= 1e-6
        assert abs(float(reranker.predict(forms[0])) - scores[0]) <= 1e-6
        assert abs(float(reranker.predict(forms[3])) - scores[0]) <= 1e-6

    def test_modes(self, tiny_mllm: GetModel, clips: list[Path]) -> None:
        scores = {
            mode: VideoReranker(tiny_mllm("qwen2_vl"), mode=mode, device="cpu").predict((SENTENCES[0], clips[0]))
            for mode in ("yes", "yes_no")
        }
        assert 0 < scores["yes"] < scores["yes_no"] < 1
        with pytest.raises(ValueError, match=r"mode='maybe'.*yes, yes_no"):
            VideoReranker(tiny_mllm("qwen2_vl"), mode="maybe")  # type: ignore[arg-type]

    def test_rank_both_directions(self, reranker: VideoReranker, clips: list[Path]) -> None:
        ranked = reranker.rank(SENTENCES[0], clips)
        scores = reranker.predict([(SENTENCES[0], clip) for clip in clips])
        assert [entry["corpus_id"] for entry in ranked] == list(np.argsort(-scores))
        top = reranker.rank(clips[0], SENTENCES, top_k=2, return_documents=True)
        assert len(top) == 2
        assert top[0]["text"] == SENTENCES[top[0]["corpus_id"]]
        assert top[0]["score"] >= top[1]["score"]
        assert reranker.rank("a", []) == []

    def test_prompt_changes_scores(self, reranker: VideoReranker, clips: list[Path]) -> None:
        pair = (SENTENCES[0], clips[0])
        assert abs(log_odds(reranker, pair, prompt="Be strict.") - log_odds(reranker, pair)) > 0.01


class TestBadInput:
    @pytest.mark.parametrize(
        ("pair", "message"),
        [
            (("a", "b"), r"pairs\[1\] holds text and text"),
            (("a.mp4", "b.mp4"), r"pairs\[1\] holds video and video"),
            (("", "a.mp4"), r"pairs\[1\]: the text is empty"),
            (("  \n", "a.mp4"), r"pairs\[1\]: the text is empty"),
            (("a", "b", "c"), r"pairs\[1\] is a "),
            ({"text": "a"}, r"pairs\[1\] has keys \['text'\]"),
            (("a", 3), r"pairs\[1\]"),
        ],
    )
    def test_no_pair(self, reranker: VideoReranker, clips: list[Path], pair: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            reranker.predict([("a", clips[0]), pair])

    def test_bad_video(self, reranker: VideoReranker, clips: list[Path]) -> None:
        with pytest.raises(VideoError, match=r"gone\.mp4"):
            reranker.predict([("a", clips[0]), ("a", "gone.mp4")])

    def test_skip_says_which_pair_has_no_score(self, reranker: VideoReranker, clips: list[Path]) -> None:
        pairs = [("a", clips[0]), ("a", "gone.mp4"), ("", clips[0]), ("x" * 5000, clips[1]), ("a", clips[1])]
        scores = reranker.predict(pairs, on_error="skip")
        assert isinstance(scores, np.ma.MaskedArray)
        assert scores.mask.tolist() == [False, True, True, True, False]
        assert not np.isnan(scores.data).any()
        assert abs(scores[4] - reranker.predict(pairs[4])) <= 1e-6
        ranked = reranker.rank("a", [clips[0], "gone.mp4", clips[1]], on_error="skip")
        assert sorted(entry["corpus_id"] for entry in ranked) == [0, 2]

    def test_sentence_longer_than_the_context(self, reranker: VideoReranker, clips: list[Path]) -> None:
        with pytest.raises(InputError, match=r"pairs\[0\]: the video takes \d+ tokens.*the limit of the model is 4096"):
            reranker.predict([("x" * 5000, clips[0])])

    def test_sentence_with_the_video_placeholder(self, reranker: VideoReranker, clips: list[Path]) -> None:
        with pytest.raises(InputError, match="placeholder"):
            reranker.predict([("a <|video_pad|> b", clips[0])])

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_top_k(self, reranker: VideoReranker, clips: list[Path], top_k: int) -> None:
        with pytest.raises(ValueError, match=rf"top_k={top_k}"):
            reranker.rank("a", clips, top_k=top_k)

    def test_tokenizer_without_a_one_token_yes(self) -> None:
        class Letters:
            def encode(self, word: str, **_: Any) -> list[int]:
                return [ord(letter) for letter in word]

        with pytest.raises(BackboneError, match=r"'Yes' is 3 tokens"):
            answer_tokens(Letters(), name="m")


def test_log_odds_against_the_definition() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 6
    answers = AnswerTokens(yes=(3, 9), no=(4,))
    p = torch.softmax(logits.double(), dim=1)
    yes = p[:, 3] + p[:, 9]
    assert torch.allclose(torch.sigmoid(yes_log_odds(logits, answers, against="vocabulary")).double(), yes, atol=1e-6)
    against_no = p[:, 3] / (p[:, 3] + p[:, 4])
    assert torch.allclose(torch.sigmoid(yes_log_odds(logits, answers, against="no")).double(), against_no, atol=1e-6)
