"""Whole evaluations on the bundled models and a few real clips."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.evaluation.stand_ins import Counting, CountingHead, plain_benchmark
from vidembed import VideoEncoder, VideoReranker
from vidembed.evaluation import run as run_module
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.metrics import bootstrap_interval, ranks
from vidembed.evaluation.result import EvaluationResult
from vidembed.evaluation.run import FirstStage, choose_temperatures, evaluate
from vidembed.evaluation.two_stage import (
    COLUMNS,
    DEFAULT_TEMPERATURE,
    DIRECTIONS,
    DualStages,
    GivenTemperatures,
    needed,
    reranked,
)
from vidembed.scoring import dual_softmax, fit_temperature

World = tuple[Benchmark, Benchmark]
K = 2


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated") / "run"


@pytest.fixture(scope="module")
def whole(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, shapes_world: World, out: Path
) -> tuple[EvaluationResult, Counting, CountingHead]:
    """An evaluation with everything, and what its models were called with."""
    encoder, head = Counting(shapes_encoder), CountingHead(shapes_reranker)
    result = evaluate(
        shapes_world[0],
        encoder,
        reranker=head,  # type: ignore[arg-type]
        k=K,
        validation=shapes_world[1],
        out=out,
        model_name="vidembed/shapes",
        reranker_name="vidembed/shapes-rerank",
    )
    return result, encoder, head


def oracle(encoder: VideoEncoder, reranker: VideoReranker, benchmark: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and log-odds of all pairs, made in the plainest way, ``(T, V)`` each."""
    videos = encoder.encode_document(list(benchmark.videos))
    texts = encoder.encode_query([{"text": text} for text in benchmark.texts])
    first = texts.astype(np.float64) @ videos.astype(np.float64).T
    pairs = [{"text": text, "video": video} for text in benchmark.texts for video in benchmark.videos]
    return first, reranker.answers(pairs).log_odds(reranker.mode).reshape(first.shape)


def test_four_columns_both_directions(whole: tuple[EvaluationResult, Any, Any], shapes_world: World) -> None:
    result = whole[0]
    assert [column.name for column in result.columns] == list(COLUMNS)
    for column in result.columns:
        for way, count in zip(DIRECTIONS, (len(shapes_world[0].texts), 6), strict=True):
            figures = column.of(way)
            assert figures is not None
            assert figures.queries == count == len(result.ranks[f"{column.name}.{way}"])
            assert 0 <= figures.recall_1.low <= figures.recall_1.estimate <= figures.recall_1.high <= 100


def test_ranks_are_those_of_the_plain_computation(
    whole: tuple[EvaluationResult, Any, Any],
    shapes_encoder: VideoEncoder,
    shapes_reranker: VideoReranker,
    shapes_world: World,
) -> None:
    (first, odds), (known, known_odds) = (oracle(shapes_encoder, shapes_reranker, one) for one in shapes_world)
    fusion = shapes_reranker.fusion
    assert fusion is not None
    for way in DIRECTIONS:
        turn = (lambda x: x) if way == "t2v" else np.transpose
        one, two, right = turn(first), turn(odds), turn(shapes_world[0].positives)
        val, val_two, val_right = turn(known), turn(known_odds), turn(shapes_world[1].positives)
        temperature = fit_temperature(val, val_right).temperature
        fused, val_fused = (
            np.nan_to_num(fusion.fused_log_odds(np.where(needed(a, K, temperature), b, np.nan), a))
            for a, b in ((one, two), (val, val_two))
        )
        stages = DualStages(val, val_fused, val_right, k=K)
        expected = {
            "raw": one,
            "dual_softmax": dual_softmax(one, temperature=temperature),
            "rerank": reranked(one, fused, K),
            "rerank_dual_softmax": stages(one, fused),
        }
        chosen = whole[0].temperatures
        assert chosen[f"first.{way}"].value == pytest.approx(temperature, rel=1e-3)
        assert chosen[f"second.{way}"].value == pytest.approx(stages.second, rel=1e-3)
        for name, scores in expected.items():
            assert whole[0].ranks[f"{name}.{way}"].tolist() == ranks(scores, right).tolist(), (name, way)


def test_each_pair_is_scored_once_and_the_pairs_of_a_video_together(
    whole: tuple[EvaluationResult, Counting, CountingHead], shapes_world: World
) -> None:
    result, encoder, head = whole
    assert len(head.pairs) == len(set(head.pairs)) == result.work["pairs"]["computed"]
    for call in head.calls:
        videos = [video for _, video in call]
        assert videos == sorted(videos, key=videos.index)
        assert not any(set(videos) & {video for _, video in other} for other in head.calls if other is not call)
    by_text: dict[str, int] = {}
    for text, _ in head.pairs:
        by_text[text] = by_text.get(text, 0) + 1
    assert min(by_text[text] for text in shapes_world[0].texts) >= K
    assert sorted(encoder.videos) == sorted(path.name for one in shapes_world for path in one.videos)
    assert len(encoder.texts) == len(set(encoder.texts))


def test_a_second_run_computes_nothing_and_finds_the_same(
    whole: tuple[EvaluationResult, Any, Any],
    shapes_encoder: VideoEncoder,
    shapes_reranker: VideoReranker,
    shapes_world: World,
    out: Path,
) -> None:
    encoder, head = Counting(shapes_encoder), CountingHead(shapes_reranker)
    again = evaluate(
        shapes_world[0],
        encoder,
        reranker=head,
        k=K,
        validation=shapes_world[1],
        out=out,  # type: ignore[arg-type]
    )
    assert (encoder.videos, encoder.texts, head.calls) == ([], [], [])
    assert again.columns == whole[0].columns
    assert again.temperatures == whole[0].temperatures
    assert again.work["pairs"]["share_cached"] == again.work["videos"]["share_cached"] == 1
    assert again.work["pairs"]["per_second"] is None


def test_other_score_modes_are_made_of_the_same_answers(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, shapes_world: World, out: Path, whole: Any
) -> None:
    class Mode(CountingHead):
        mode = "yes"
        fusion = None

    head = Mode(shapes_reranker)
    result = evaluate(shapes_world[0], shapes_encoder, reranker=head, k=1, out=out)  # type: ignore[arg-type]
    assert head.calls == []
    assert result.rerank is not None
    assert (result.rerank.mode, result.rerank.fused) == ("yes", False)


def test_prior_corrected_needs_the_priors_too(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, shapes_world: World, tmp_path: Path
) -> None:
    class Mode(CountingHead):
        mode = "prior_corrected"
        fusion = None

    evaluate(shapes_world[0], shapes_encoder, reranker=shapes_reranker, k=6, out=tmp_path)  # without priors
    head = Mode(shapes_reranker)
    result = evaluate(shapes_world[0], shapes_encoder, reranker=head, k=6, out=tmp_path)  # type: ignore[arg-type]
    assert head.calls
    assert result.rerank is not None
    assert result.rerank.prior_weights == (1.0, 1.0)
    benchmark = shapes_world[0]
    pairs = [{"text": text, "video": video} for text in benchmark.texts for video in benchmark.videos]
    odds = shapes_reranker.answers(pairs, priors=True).log_odds("prior_corrected").reshape(benchmark.positives.shape)
    for way, scores, right in (("t2v", odds, benchmark.positives), ("v2t", odds.T, benchmark.positives.T)):
        assert result.ranks[f"rerank.{way}"].tolist() == ranks(scores, right).tolist()
    again = Mode(shapes_reranker)
    evaluate(benchmark, shapes_encoder, reranker=again, k=6, out=tmp_path)  # type: ignore[arg-type]
    assert again.calls == []


# -- interruption ----------------------------------------------------------------------------------------------------


def test_an_interrupted_first_stage_goes_on(
    shapes_encoder: VideoEncoder, shapes_world: World, tmp_path: Path, whole: tuple[EvaluationResult, Any, Any]
) -> None:
    stopped = Counting(shapes_encoder, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(shapes_world[0], stopped, out=tmp_path)
    assert not (tmp_path / "result.json").exists()
    rest = Counting(shapes_encoder)
    result = evaluate(shapes_world[0], rest, out=tmp_path)
    assert len(stopped.videos) == 4
    assert sorted(stopped.videos + rest.videos) == sorted(path.name for path in shapes_world[0].videos)
    assert result.work["videos"] == {**result.work["videos"], "computed": 2, "cached": 4, "share_cached": 4 / 6}
    assert result.column("raw") == whole[0].column("raw")


def test_an_interrupted_second_stage_goes_on(
    shapes_encoder: VideoEncoder,
    shapes_reranker: VideoReranker,
    shapes_world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    whole: Any,
) -> None:
    monkeypatch.setattr(run_module, "VIDEOS_AT_ONCE", 2)
    shutil.copytree(out / "cache", tmp_path / "cache")
    import sqlite3

    with sqlite3.connect(tmp_path / "cache" / "scores.sqlite") as database:
        assert database.execute("DELETE FROM entries WHERE length(value) = 16").rowcount  # answers: two float64
    stopped, rest = CountingHead(shapes_reranker, stop_after=2), CountingHead(shapes_reranker)
    with pytest.raises(KeyboardInterrupt):
        evaluate(shapes_world[0], shapes_encoder, reranker=stopped, k=K, out=tmp_path)  # type: ignore[arg-type]
    result = evaluate(shapes_world[0], shapes_encoder, reranker=rest, k=K, out=tmp_path)  # type: ignore[arg-type]
    assert len({video for _, video in stopped.pairs}) == 4
    assert not set(stopped.pairs) & set(rest.pairs)
    assert len({video for _, video in rest.pairs}) == 2
    assert result.work["pairs"]["cached"] == len(stopped.pairs)
    assert result.column("rerank") == whole[0].column("rerank")


def test_a_changed_file_and_another_model_are_not_served(
    shapes_encoder: VideoEncoder, shapes_world: World, tmp_path: Path
) -> None:
    files = [Path(shutil.copy(path, tmp_path)) for path in shapes_world[0].videos[:3]]
    benchmark = plain_benchmark(files, ["a red square", "a blue circle"], [(0, 1), (2,)])
    evaluate(benchmark, shapes_encoder, out=tmp_path / "out")
    shutil.copy(shapes_world[0].videos[4], files[1])
    changed = Counting(shapes_encoder)
    evaluate(benchmark, changed, out=tmp_path / "out")
    assert changed.videos == [files[1].name]
    assert changed.texts == []
    other = VideoEncoder("vidembed/shapes", device="cpu", truncate_dim=16)
    with pytest.raises(ValueError, match=r"out: .*another benchmark or model"):
        evaluate(benchmark, other, out=tmp_path / "out")
    shutil.copytree(tmp_path / "out" / "cache", tmp_path / "new" / "cache")
    counted = Counting(other)
    evaluate(benchmark, counted, out=tmp_path / "new")
    assert len(counted.videos) == 3
    assert len(counted.texts) == 2


def test_a_file_that_is_written_to_meanwhile(shapes_encoder: VideoEncoder, shapes_world: World, tmp_path: Path) -> None:
    file = Path(shutil.copy(shapes_world[0].videos[0], tmp_path))

    class Touching(Counting):
        def encode_stream(self, inputs: Any, **how: Any) -> Any:
            for item in super().encode_stream(inputs, **how):
                os.utime(file, ns=(1, 1))
                yield item

    with pytest.raises(ValueError, match="written to while it was being read"):
        evaluate(plain_benchmark([file], ["a red square"], [(0,)]), Touching(shapes_encoder))


# -- videos that fail ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_broken(shapes_world: World, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The benchmark with its second video damaged."""
    folder = tmp_path_factory.mktemp("broken")
    broken = folder / "broken.mp4"
    broken.write_bytes(shapes_world[0].videos[1].read_bytes()[:600])
    videos = (shapes_world[0].videos[0], broken, *shapes_world[0].videos[2:])
    return dataclasses.replace(shapes_world[0], videos=videos)


def test_a_broken_video_stops_the_run_and_is_named(shapes_encoder: VideoEncoder, with_broken: Benchmark) -> None:
    with pytest.raises(ValueError, match=rf"video '{with_broken.video_ids[1]}' \(.*broken\.mp4\): .*count"):
        evaluate(with_broken, shapes_encoder)


def test_a_broken_video_counts_against(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, with_broken: Benchmark, tmp_path: Path
) -> None:
    result = evaluate(
        with_broken, shapes_encoder, reranker=shapes_reranker, k=K, on_error="count", out=tmp_path / "out"
    )
    assert [(one.video_id, Path(one.file).name) for one in result.failures] == [
        (with_broken.video_ids[1], "broken.mp4")
    ]
    assert result.failures[0].reason
    hopeless = [row for row, places in enumerate(with_broken.owners) if places == (1,)]
    assert hopeless
    for name in COLUMNS:
        t2v, v2t = result.ranks[f"{name}.t2v"], result.ranks[f"{name}.v2t"]
        assert (t2v[hopeless] == len(with_broken.videos) + 1).all()
        assert v2t[1] == len(with_broken.texts) + 1
        assert (np.delete(v2t, 1) <= len(with_broken.texts)).all()
        figures = result.column(name).t2v
        assert figures is not None
        assert figures.queries == len(with_broken.texts)
        assert figures.recall_1.estimate <= 100 * (1 - len(hopeless) / len(with_broken.texts))
    assert "broken.mp4" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert result.work["videos"]["computed"] == 5


def test_no_video_can_be_read(shapes_encoder: VideoEncoder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of the 1 videos can be read"):
        evaluate(plain_benchmark([tmp_path / "a.mp4"], ["a"], [(0,)]), shapes_encoder, on_error="count")


def test_a_video_that_is_lost_between_the_stages(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, shapes_world: World
) -> None:
    lost = shapes_world[0].videos[2]

    class Losing(CountingHead):
        def answers(self, inputs: Any, *, on_error: str, **how: Any) -> Any:
            broken = [{**one, "video": lost.with_name("gone.mp4")} if one["video"] == lost else one for one in inputs]
            return self.model.answers(broken, on_error=on_error, **how)

    head: Any = Losing(shapes_reranker)
    with pytest.raises(ValueError, match=rf"reranking, .*'{shapes_world[0].video_ids[2]}'.*gone\.mp4"):
        evaluate(shapes_world[0], shapes_encoder, reranker=head, k=6)
    result = evaluate(shapes_world[0], shapes_encoder, reranker=head, k=6, on_error="count")
    assert [one.video_id for one in result.unanswered] == [shapes_world[0].video_ids[2]]
    assert result.failures == ()
    assert result.ranks["rerank.t2v"][[places == (2,) for places in shapes_world[0].owners]].tolist() == [6]


# -- temperatures and arguments --------------------------------------------------------------------------------------


def test_defaults_say_that_they_are_not_fitted(shapes_encoder: VideoEncoder, shapes_world: World) -> None:
    result = evaluate(shapes_world[0], shapes_encoder)
    assert {one.origin for one in result.temperatures.values()} == {"default, not fitted"}
    assert result.temperatures["first.t2v"].value == DEFAULT_TEMPERATURE
    assert list(result.temperatures) == ["first.t2v", "first.v2t"]
    assert result.validation is None
    assert result.column("rerank").t2v is None
    assert result.rerank is None


def test_given_temperatures_need_no_validation_set(shapes_encoder: VideoEncoder, shapes_world: World) -> None:
    counted = Counting(shapes_encoder)
    result = evaluate(shapes_world[0], counted, validation=shapes_world[1], temperatures=GivenTemperatures(0.1, 0.2))
    assert len(counted.videos) == 6
    assert [(one.value, one.origin) for one in result.temperatures.values()] == [(0.1, "given"), (0.2, "given")]


def test_a_validation_set_that_shares_a_video_is_refused(
    shapes_encoder: VideoEncoder, shapes_world: World, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(shapes_world[0].videos[3], tmp_path / "other-name.mp4"))
    counted = Counting(shapes_encoder)
    known = plain_benchmark([shapes_world[1].videos[0], copy], ["a", "b"], [(0,), (1,)])
    with pytest.raises(ValueError, match=r"validation: .*other-name\.mp4 is a video of the test set"):
        evaluate(shapes_world[0], counted, validation=known)
    assert counted.videos == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"k": 5}, "k=5: it needs reranker"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"on_error": "skip"}, "on_error='skip' is not known"),
    ],
)
def test_bad_arguments(shapes_encoder: VideoEncoder, shapes_world: World, how: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate(shapes_world[0], shapes_encoder, **how)


def test_a_reranker_needs_a_whole_k(
    shapes_encoder: VideoEncoder, shapes_reranker: VideoReranker, shapes_world: World
) -> None:
    for k in (None, 0, 2.5):
        with pytest.raises(ValueError, match="k="):
            evaluate(shapes_world[0], shapes_encoder, reranker=shapes_reranker, k=k)  # type: ignore[arg-type]


def test_a_model_without_video(shapes_world: World) -> None:
    with pytest.raises(ValueError, match="takes unknown inputs but not video"):
        evaluate(shapes_world[0], object())


# -- the result ------------------------------------------------------------------------------------------------------


def test_the_result_says_what_it_depends_on(whole: tuple[EvaluationResult, Any, Any], shapes_encoder: Any) -> None:
    content = whole[0].to_dict()
    assert content["schema_version"] == 1
    assert content["model"]["name"] == "vidembed/shapes"
    assert content["model"]["fingerprint"] == shapes_encoder.fingerprint
    assert content["model"]["layer"] == shapes_encoder.layer
    assert content["model"]["sampling"]["fps"] == 2.0
    assert content["benchmark"]["videos"] == 6
    assert content["rerank"]["k"] == K
    assert {"python", "vidembed", "torch", "transformers", "sentence-transformers", "av"} <= set(content["versions"])
    assert content["hardware"]["device"] == "cpu"
    assert content["work"]["videos"]["computed"] == 9
    assert content["work"]["videos"]["per_second"] > 0
    assert content["validation"]["videos"] == 3


def test_saved_and_loaded(whole: tuple[EvaluationResult, Any, Any], tmp_path: Path) -> None:
    whole[0].save(tmp_path)
    loaded = EvaluationResult.load(tmp_path)
    assert loaded.to_dict() == whole[0].to_dict()
    assert loaded.columns == whole[0].columns
    assert loaded.benchmark == whole[0].benchmark
    assert loaded.rerank == whole[0].rerank
    assert {name: array.tolist() for name, array in loaded.ranks.items()} == {
        name: array.tolist() for name, array in whole[0].ranks.items()
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_intervals_take_the_texts_of_a_video_for_one_draw(shapes_encoder: VideoEncoder, shapes_world: World) -> None:
    owners = [(place,) for place in range(6) for _ in range(3)]
    texts = [shapes_world[0].texts[0]] * 18  # one video comes first for all of them: three hits in a group
    result = evaluate(plain_benchmark(list(shapes_world[0].videos), texts, owners), shapes_encoder, seed=2)
    figures = result.column("raw").t2v
    assert figures is not None
    hits = result.ranks["raw.t2v"] == 1
    assert hits.sum() == 3
    grouped, single = (bootstrap_interval(hits, seed=2, groups=groups) for groups in (np.arange(18) // 3, None))
    assert (figures.recall_1.low, figures.recall_1.high) == (100 * grouped.low, 100 * grouped.high)
    assert (grouped.low, grouped.high) != (single.low, single.high)


def test_second_temperatures_are_those_of_fitted_stages() -> None:
    rng = np.random.default_rng(1)
    right = np.eye(40, dtype=bool)
    popular = rng.random(40)  # videos that suit every text
    first = 0.3 + 0.2 * right + 0.3 * popular + 0.1 * rng.random((40, 40))
    odds = 2 * right + 3 * popular + rng.normal(size=(40, 40))
    videos = [Path(f"{at}.mp4") for at in range(40)]
    benchmark = plain_benchmark(videos, [str(at) for at in range(40)], [(at,) for at in range(40)])
    known = FirstStage(benchmark, np.ones(40, dtype=bool), first, ())
    search: Any = SimpleNamespace(reranker=object(), k=3, second=lambda *_: ({"t2v": odds, "v2t": odds.T}, []))
    chosen = choose_temperatures(search, known, GivenTemperatures())
    for way, stages in (("t2v", DualStages(first, odds, right, 3)), ("v2t", DualStages(first.T, odds.T, right, 3))):
        assert chosen[f"first.{way}"].value == stages.first
        assert chosen[f"second.{way}"].value == stages.second
    raw = choose_temperatures(search, known, GivenTemperatures(t2v=99.0, v2t=99.0))  # as good as no dual-softmax
    assert raw["second.t2v"].value != chosen["second.t2v"].value
