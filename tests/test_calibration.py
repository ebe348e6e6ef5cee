"""Calibration of a reranker: fitted numbers, the honest report, and what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from vidembed import VideoReranker
from vidembed.backbone.architectures import find_parts
from vidembed.calibration import RerankerConfig, calibrate
from vidembed.errors import BackboneError
from vidembed.scoring import PlattScaling, PriorCorrection, ScoreFusion, expected_calibration_error
from vidembed.yes_no import Answers

GetModel = Callable[[str], Path]


def simulated(pairs: int = 3000, *, seed: int = 0) -> tuple[Answers, np.ndarray, list[str], np.ndarray]:
    """Log-odds that are too sure and lean to yes by video and by sentence; labels; sentences; similarities."""
    rng = np.random.default_rng(seed)
    queries = [f"q{index % (pairs // 10)}" for index in range(pairs)]
    true = rng.normal(-1.0, 1.5, pairs)
    labels = rng.random(pairs) < 1 / (1 + np.exp(-true))
    video, text = rng.normal(size=pairs), rng.normal(size=pairs)
    odds = 2.5 * true + 2.0 + 1.5 * video + 0.5 * text
    similarity = 0.5 + 0.1 * true + 0.05 * rng.normal(size=pairs)
    return Answers(odds, odds, video, text), labels, queries, similarity


def test_lowers_the_error_on_pairs_it_was_not_fitted_on() -> None:
    answers, labels, queries, similarity = simulated()
    report = calibrate(
        answers, labels, mode="yes_no", correction=PriorCorrection(), groups=queries, first_stage=similarity
    )
    assert report.ece_before > 0.15
    assert report.ece_after < 0.03
    assert report.ece_fused is not None
    assert report.ece_fused < 0.03
    fresh, fresh_labels, _, _ = simulated(seed=1)
    p = report.fit.calibration(fresh.yes_no, kind="log_odds")
    assert expected_calibration_error(p, fresh_labels) < 0.03
    assert (report.pairs, report.matches, report.skipped) == (3000, int(labels.sum()), 0)
    assert json.loads(json.dumps(report.to_dict()))["mode"] == "yes_no"


def test_prior_weights_are_found() -> None:
    answers, labels, queries, _ = simulated(20_000)
    report = calibrate(answers, labels, mode="prior_corrected", correction=PriorCorrection(), groups=queries)
    assert report.fit.prior_correction.video_weight == pytest.approx(1.5, abs=0.15)
    assert report.fit.prior_correction.text_weight == pytest.approx(0.5, abs=0.15)


def test_a_group_is_never_fitted_on_and_reported_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, labels, queries, _ = simulated(200)
    seen: list[set[float]] = []
    real = PlattScaling.fit

    def fit(values: np.ndarray, *args: object, **kwargs: object) -> PlattScaling:
        seen.append(set(np.asarray(values).tolist()))
        return real(values, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PlattScaling, "fit", fit)
    calibrate(answers, labels, mode="yes_no", correction=PriorCorrection(), groups=queries, folds=4)
    *folds, everything = seen
    assert len(folds) == 4
    assert len(everything) == 200
    for name in set(queries):  # all of a query's pairs are in a fold's fit, or none
        own = {float(answers.yes_no[index]) for index, query in enumerate(queries) if query == name}
        assert [fold & own in (own, set()) for fold in folds] == [True] * 4
        assert sum(not fold & own for fold in folds) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(200, bool)}, "expected both classes, got 0 matches among 200 pairs"),
        ({"labels": np.zeros(3)}, r"expected shape \(200,\)"),
        ({"folds": 1}, "folds=1"),
        ({"groups": ["one"] * 200}, "at least 2 different texts"),
        ({"first_stage": np.zeros(3)}, "first_stage"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    answers, labels, queries, _ = simulated(200)
    how: dict[str, object] = {"labels": labels, "groups": queries, **change}
    with pytest.raises(ValueError, match=message):
        calibrate(answers, mode="yes_no", correction=PriorCorrection(), **how)  # type: ignore[arg-type]


class TestOfAReranker:
    @pytest.fixture
    def calibrated(self, reranker: VideoReranker, clips: list[Path]) -> VideoReranker:
        pairs = [(text, clip) for text in ("a", "bc", "def", "ghij") for clip in clips]
        reranker.calibrate(pairs, [1, 0, 0] * 4, first_stage=np.linspace(0.1, 0.9, 12), folds=2)
        return reranker

    def test_scores_are_calibrated_from_then_on(self, calibrated: VideoReranker, clips: list[Path]) -> None:
        pairs = [("something", clip) for clip in clips]
        odds = calibrated.answers(pairs).yes_no
        assert calibrated.calibration is not None
        assert np.abs(calibrated.predict(pairs) - calibrated.calibration(odds, kind="log_odds")).max() <= 1e-6

    def test_rank_fuses_both_stages(self, calibrated: VideoReranker, clips: list[Path]) -> None:
        similarity = np.array([0.2, 0.9, 0.5])
        ranking = calibrated.rank("something", clips, first_stage=similarity)
        odds = calibrated.answers([("something", clip) for clip in clips]).yes_no
        assert calibrated.fusion is not None
        fused = calibrated.fusion(odds, similarity - 0.9)
        assert [entry["corpus_id"] for entry in ranking] == np.argsort(-fused).tolist()
        assert [entry["score"] for entry in ranking] == pytest.approx(sorted(fused, reverse=True))
        plain = calibrated.rank("something", clips)
        assert plain[0]["score"] != ranking[0]["score"]
        with pytest.raises(ValueError, match="activation_fn"):
            calibrated.rank("something", clips, first_stage=similarity, activation_fn=None)

    @pytest.mark.usefixtures("stock")
    def test_is_saved_with_the_model_and_alone(
        self, calibrated: VideoReranker, clips: list[Path], tmp_path: Path
    ) -> None:
        pairs = [("something", clip) for clip in clips]
        calibrated.save_pretrained(str(tmp_path / "model"))
        calibrated.save_calibration(tmp_path / "numbers.json")
        again = VideoReranker(str(tmp_path / "model"), device="cpu")
        assert (again.calibration, again.fusion) == (calibrated.calibration, calibrated.fusion)
        assert np.abs(again.predict(pairs) - calibrated.predict(pairs)).max() <= 1e-6
        other = VideoReranker(backbone=calibrated.backbone, calibration=tmp_path / "numbers.json")
        assert np.abs(other.predict(pairs) - calibrated.predict(pairs)).max() <= 1e-6
        stock = CrossEncoder(str(tmp_path / "model"), device="cpu")  # it loads, and knows of no calibration
        assert [type(module).__name__ for module in stock] == ["Transformer", "LogitScore"]

    def test_of_another_model_is_refused(self, calibrated: VideoReranker, tiny_mllm: GetModel, tmp_path: Path) -> None:
        calibrated.save_calibration(tmp_path / "numbers.json")
        with pytest.raises(BackboneError, match=r"fitted on another model \(.*model_type.*weights"):
            VideoReranker(tiny_mllm("qwen2_vl"), device="cpu", calibration=tmp_path / "numbers.json")

    @pytest.mark.parametrize("through_data", [False, True])
    def test_does_not_outlive_an_edit_of_the_weights(
        self, calibrated: VideoReranker, clips: list[Path], tmp_path: Path, through_data: bool
    ) -> None:
        pairs = [("something", clip) for clip in clips]
        weight = find_parts(calibrated[0].model).blocks[0].mlp.up_proj.weight  # type: ignore[union-attr]
        with torch.no_grad():
            (weight.data if through_data else weight).add_(0.01)
        for score in (
            lambda: calibrated.predict(pairs),
            lambda: calibrated.rank("something", clips),
            lambda: calibrated.rank("something", clips, first_stage=[0.1, 0.2, 0.3]),
        ):
            with pytest.raises(BackboneError, match=r"before it changed \(weights differ\)"):
                score()
        calibrated.save_pretrained(str(tmp_path / "model"))
        again = VideoReranker(str(tmp_path / "model"), device="cpu")
        assert again.calibration is again.fusion is None
        calibrated.calibration = calibrated.fusion = None
        assert np.abs(calibrated.predict(pairs) - again.predict(pairs)).max() <= 1e-6

    def test_set_by_hand_is_saved_for_the_model_at_hand(
        self, reranker: VideoReranker, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        reranker.calibration = PlattScaling(2.0, -1.0)
        reranker.save_pretrained(str(tmp_path / "model"))
        assert "left out" not in caplog.text
        again = VideoReranker(str(tmp_path / "model"), device="cpu")
        assert again.calibration == reranker.calibration
        assert json.loads(json.dumps(reranker.fingerprint_fields())) == again.scoring_config.made_for
        again.calibration = None
        again.save_pretrained(str(tmp_path / "without"))
        assert "left out" not in caplog.text

    def test_comes_back_with_the_adapter_that_it_was_fitted_with(
        self, reranker: VideoReranker, clips: list[Path]
    ) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, reranker[0].model)
        layers = [module for module in reranker[0].model.modules() if hasattr(module, "base_layer")]
        pairs = [(text, clip) for text in ("a", "bc", "def", "ghij") for clip in clips]
        reranker.calibrate(pairs, [1, 0, 0] * 4, folds=2)
        scores = reranker.predict(pairs)
        for layer in layers:
            layer.enable_adapters(enabled=False)
        with pytest.raises(BackboneError, match=r"\(adapters, weights differ\)"):
            reranker.predict(pairs)
        for layer in layers:
            layer.enable_adapters(enabled=True)
        assert np.array_equal(reranker.predict(pairs), scores)

    def test_another_dtype_is_let_pass_and_another_grid_told(
        self, calibrated: VideoReranker, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = calibrated.scoring_config
        fields = calibrated.fingerprint_fields()
        config.check_made_for({**fields, "dtype": "bfloat16", "weights": "rounded"}, name="m")
        assert not caplog.text
        config.check_made_for({**fields, "sampling": {"fps": 1.0}}, name="m")
        assert "other frame sampling" in caplog.text

    def test_the_mode_is_that_of_the_calibration(self, calibrated: VideoReranker) -> None:
        with pytest.raises(ValueError, match=r"mode='yes': this reranker was calibrated in mode 'yes_no'"):
            calibrated.mode = "yes"
        calibrated.calibration = calibrated.fusion = None
        calibrated.mode = "yes"


def test_config_file(tmp_path: Path) -> None:
    config = RerankerConfig(
        mode="prior_corrected",
        prior_correction=PriorCorrection(0.5, 0.1),
        calibration=PlattScaling(2.0, -1.0),
        fusion=ScoreFusion(1.0, 2.0, 3.0, 4.0, 5.0),
        source="m",
    )
    config.write(tmp_path / "a.json")
    assert RerankerConfig.read(tmp_path / "a.json") == config
    RerankerConfig().write(tmp_path)
    assert RerankerConfig.read(tmp_path / "vidembed_reranker.json") == RerankerConfig()
    content = json.loads((tmp_path / "a.json").read_text())
    for change, message in (
        ({"format_version": 9}, "format_version 9"),
        ({"mode": "maybe"}, "mode='maybe'"),
        ({"calibration": {"slope": "steep", "intercept": 0}}, "slope"),
        ({"surprise": 1}, "surprise"),
    ):
        (tmp_path / "b.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(BackboneError, match=message):
            RerankerConfig.read(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(BackboneError, match="not a JSON object"):
        RerankerConfig.read(tmp_path / "b.json")
