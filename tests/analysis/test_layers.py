"""`analyze_layers` from pairs to the result, and ``build(layer="auto")``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidembed
from tests.backbone import tiny
from vidembed import Sampling, VideoEncoder, VideoError, analyze_layers, build
from vidembed.analysis import LayerAnalysis
from vidembed.analysis.measure import join, relation_of, split_halves
from vidembed.backbone.load import Backbone, load_backbone
from vidembed.captions import CaptionedVideo
from vidembed.errors import AnnotationError, BackboneError, LongQueries
from vidembed.evaluation import median_rank, ranks, recall_at

GetModel = Callable[[str], Path]
Pairs = list[CaptionedVideo]
QUICK: dict[str, Any] = {"resamples": 50, "device": "cpu", "sampling": Sampling(max_frames=4)}
OTHER = "In a word:"  # a prefix with which no two scores of the random model are as near as rounding


@pytest.fixture(scope="module")
def backbone(tiny_mllm: GetModel) -> Backbone:
    return load_backbone(tiny_mllm("qwen2_vl"))


@pytest.fixture(scope="module")
def analysis(backbone: Backbone, pairs: Pairs) -> LayerAnalysis:
    return analyze_layers(backbone, pairs, prefixes=("none", OTHER), **QUICK)


class TestResult:
    def test_what_is_in_it(self, analysis: LayerAnalysis) -> None:
        assert (analysis.model_type, analysis.depth) == ("qwen2_vl", tiny.DEPTH)
        assert [prompt.prefix for prompt in analysis.prompts] == ["none", OTHER]
        assert [row.layer for row in analysis.rows] == [*range(1, tiny.DEPTH + 1), -1]
        sample = analysis.sample
        assert (sample.choosing_videos, sample.reporting_videos + sample.videos_left_out) == (4, 4)
        assert sample.choosing_texts + sample.reporting_texts == 8  # nine pairs, one text twice
        assert 0 < sample.chance < 1
        assert len(analysis.prefix_margins) == 1
        assert analysis.prefix_margins[0].over_prefix != analysis.chosen_prefix

    def test_figures_are_those_of_the_encoder_of_the_layer(
        self, analysis: LayerAnalysis, backbone: Backbone, pairs: Pairs
    ) -> None:
        """The whole way by other means: encode with a cut model, rank the reporting half, count."""
        relation = relation_of(pairs)
        half = split_halves(relation.positives, seed=0)[1]
        for prompt, prefix in zip(analysis.prompts, (None, OTHER), strict=True):
            for layer in (2, 4, -1):
                encoder = VideoEncoder(backbone=backbone, layer=layer, prefix=prefix, sampling=QUICK["sampling"])
                videos = encoder.encode([relation.videos[index] for index in half.videos]).astype(np.float64)
                texts = encoder.encode([{"text": relation.texts[index]} for index in half.texts])
                found = ranks(texts @ videos.T, half.positives)
                got = prompt.row(layer).t2v
                assert (got.recall_1.estimate, got.median_rank) == (recall_at(found, 1), median_rank(found))
        assert analysis.prompts[0].rows != analysis.prompts[1].rows  # the prefixes do make a difference

    def test_same_arguments_same_result(self, analysis: LayerAnalysis, backbone: Backbone, pairs: Pairs) -> None:
        again = analyze_layers(backbone, pairs, prefixes=("none", OTHER), **QUICK)
        assert again == analysis
        assert json.dumps(again.to_dict()) == json.dumps(analysis.to_dict())

    def test_from_a_file_and_a_name(self, tiny_mllm: GetModel, analysis: LayerAnalysis, pairs: Pairs) -> None:
        folder = pairs[0].video.parent
        rows = [json.dumps({"video": pair.video.name, "caption": pair.text}) for pair in pairs]
        (folder / "pairs.jsonl").write_text("\n".join(rows))
        got = analyze_layers(
            tiny_mllm("qwen2_vl"), folder / "pairs.jsonl", videos=folder, prefixes="none", dual_softmax=False, **QUICK
        )
        assert got.model == tiny_mllm("qwen2_vl").name  # no path of this machine
        assert got.prompts[0].rows == tuple(
            replace(row, t2v_dual=None, v2t_dual=None) for row in analysis.prompts[0].rows
        )

    def test_false_pairs_are_left_out(self, backbone: Backbone, pairs: Pairs) -> None:
        true = [replace(pair, label=True) for pair in pairs]
        false = [replace(pair, label=False) for pair in reversed(pairs)]
        kwargs = {"prefixes": "none", "dual_softmax": False, **QUICK}
        assert analyze_layers(backbone, [*true, *false], **kwargs) == analyze_layers(backbone, pairs, **kwargs)


class TestKinds:
    @pytest.fixture(scope="class")
    def short(self, pairs: Pairs) -> Pairs:
        """One text for two clips each."""
        return [replace(pair, text=f"square {number // 2}") for number, pair in enumerate(pairs[:8])]

    @pytest.fixture(scope="class")
    def both(self, backbone: Backbone, pairs: Pairs, short: Pairs) -> LayerAnalysis:
        return analyze_layers(backbone, {"dense": pairs, "short": short}, prefixes=("none", OTHER), **QUICK)

    def test_one_kind_is_what_pairs_alone_are(self, backbone: Backbone, pairs: Pairs, analysis: LayerAnalysis) -> None:
        got = analyze_layers(backbone, {"dense": pairs}, prefixes=("none", OTHER), **QUICK)
        assert got.kinds == {"dense": replace(analysis.sample, videos_left_out=0)}
        unnamed = tuple(
            replace(prompt, kind="", margins=tuple(replace(margin, kind="") for margin in prompt.margins))
            for prompt in got.prompts
        )
        margins = tuple(replace(margin, kind="") for margin in got.prefix_margins)
        assert replace(got, kinds={}, prompts=unnamed, prefix_margins=margins) == analysis

    def test_figures_are_of_each_kind_and_the_choice_is_one(self, both: LayerAnalysis) -> None:
        names = [(prompt.prefix, prompt.kind) for prompt in both.prompts]
        assert names == [("none", "dense"), ("none", "short"), (OTHER, "dense"), (OTHER, "short")]
        for prefix in ("none", OTHER):
            of_prefix = [prompt for prompt in both.prompts if prompt.prefix == prefix]
            assert len({prompt.chosen_layer for prompt in of_prefix}) == 1
            places = zip(*([row.choosing_t2v + row.choosing_v2t for row in one.rows] for one in of_prefix), strict=True)
            merits = [sum(kinds) for kinds in places]
            chosen = [row.layer for row in of_prefix[0].rows].index(of_prefix[0].chosen_layer)
            assert merits[chosen] == pytest.approx(max(merits))
        assert [(margin.kind, margin.over_prefix) for margin in both.prefix_margins] == [
            (kind, next(name for name in ("none", OTHER) if name != both.chosen_prefix)) for kind in ("dense", "short")
        ]
        assert list(both.curves) == ["dense", "short"]
        assert both.chosen is both.curves["dense"]

    def test_each_video_of_a_shared_text_counts(
        self, both: LayerAnalysis, backbone: Backbone, pairs: Pairs, short: Pairs
    ) -> None:
        """By other means: the short texts of the reporting half, of each of which several clips are right."""
        dense, few = relation_of(pairs), relation_of(short)
        half = split_halves(join([dense, few]).positives, seed=0)[1].of_texts(len(dense.texts), 99)
        assert half.positives.sum() > len(half.texts)
        encoder = VideoEncoder(backbone=backbone, layer=3, prefix=None, sampling=QUICK["sampling"])
        videos = encoder.encode([dense.videos[index] for index in half.videos]).astype(np.float64)
        texts = encoder.encode([{"text": few.texts[index - len(dense.texts)]} for index in half.texts])
        found = ranks(texts @ videos.T, half.positives)
        got = both.prompts[1].row(3).t2v
        assert (got.recall_1.estimate, got.median_rank) == (recall_at(found, 1), median_rank(found))
        assert both.kinds["short"].chance == half.positives.mean()
        assert both.sample.choosing_texts == sum(sample.choosing_texts for sample in both.kinds.values())

    def test_json_table_and_summary(self, both: LayerAnalysis, tmp_path: Path) -> None:
        both.save(tmp_path / "a.json")
        assert LayerAnalysis.load(tmp_path / "a.json") == both
        assert both.table().count("| layer |") == 4
        assert "prefix none, short queries" in both.table()
        assert "by the mean with short queries. On 4 others" in both.summary()

    def test_too_few_of_a_kind_is_found_before_the_model_is_loaded(self, pairs: Pairs) -> None:
        with pytest.raises(ValueError, match=r"pairs\['short'\]: a half has \d different texts"):
            analyze_layers("no/such-model", {"dense": pairs, "short": [replace(one, text="x") for one in pairs]})
        with pytest.raises(ValueError, match="expected kinds of queries by name"):
            analyze_layers("no/such-model", {})
        with pytest.raises(ValueError, match=r"pairs\['short'\]\[0\]: expected a vidembed"):
            analyze_layers("no/such-model", {"dense": pairs, "short": ["x"]})  # type: ignore[dict-item]


class TestLongQueries:
    LONG = " and on" * 6

    @pytest.fixture(scope="class")
    def long(self, pairs: Pairs) -> Pairs:
        return [replace(pair, text=pair.text + self.LONG) for pair in pairs]

    @pytest.mark.parametrize("named", [False, True])
    def test_warns_where_all_are_long(self, backbone: Backbone, long: Pairs, named: bool) -> None:
        given = {"dense": long, "other": long} if named else long
        words = r"dense \d+\.?\d*, other \d+" if named else r"\d+"
        with pytest.warns(LongQueries, match=rf"all queries are long \(median words: {words}.*short texts"):
            analyze_layers(backbone, given, prefixes="none", dual_softmax=False, **QUICK)

    def test_not_where_some_are_short(
        self, backbone: Backbone, long: Pairs, pairs: Pairs, recwarn: pytest.WarningsRecorder
    ) -> None:
        for given in ({"dense": long, "short": pairs}, pairs):
            analyze_layers(backbone, given, prefixes="none", dual_softmax=False, **QUICK)
        assert not [one for one in recwarn.list if one.category is LongQueries]


class TestFailures:
    @pytest.fixture
    def bad(self, pairs: Pairs, tmp_path: Path) -> Pairs:
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        broken = CaptionedVideo(tmp_path / "broken.mp4", "nobody sees this")
        return [*pairs[:3], broken, replace(broken, text=pairs[0].text), *pairs[3:]]

    def test_raise(self, backbone: Backbone, bad: Pairs) -> None:
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            analyze_layers(backbone, bad, **QUICK)

    def test_skip_equals_leaving_out(
        self, backbone: Backbone, bad: Pairs, pairs: Pairs, caplog: pytest.LogCaptureFixture
    ) -> None:
        kwargs = {"prefixes": "none", **QUICK}
        with caplog.at_level(logging.WARNING, logger="vidembed"):
            got = analyze_layers(backbone, bad, on_error="skip", **kwargs)
        assert "8 of 9 videos and 8 of 9 texts remain" in caplog.text
        assert len(got.sample.skipped) == 1
        assert "broken.mp4: " in got.sample.skipped[0]
        assert got.sample.texts_lost == 1
        wanted = analyze_layers(backbone, pairs, **kwargs)
        assert got.sample == replace(wanted.sample, skipped=got.sample.skipped, texts_lost=1)
        for a, b in zip(got.rows, wanted.rows, strict=True):  # other batches: equal up to rounding
            assert a.t2v.recall_1.estimate == pytest.approx(b.t2v.recall_1.estimate)

    def test_all_fail(self, backbone: Backbone, tmp_path: Path) -> None:
        rows = [CaptionedVideo(tmp_path / f"gone{index}.mp4", f"text {index}") for index in range(5)]
        with pytest.raises(ValueError, match=r"all failed; the first error: .*gone0\.mp4"):
            analyze_layers(backbone, rows, on_error="skip", **QUICK)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prefixes": ()}, r"prefixes=\(\)"),
        ({"prefixes": ("none", "none")}, "different values"),
        ({"prefixes": (None,)}, r"prefixes=\(None,\)"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"seed": -1}, "seed=-1"),
        ({"resamples": 0}, "resamples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"device": "nonsense"}, "device='nonsense'"),
        ({"videos": "x"}, "videos='x': it is only for pairs in a file"),
        ({"pairs": [("a.mp4", "b")]}, r"pairs\[0\]: expected a vidembed.captions.CaptionedVideo, got tuple"),
        ({"pairs": []}, "no text matches"),
        ({"pairs": "gone.csv"}, r"gone\.csv: no such file"),
    ],
)
def test_misuse_is_found_before_the_model_is_loaded(pairs: Pairs, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze_layers("no/such-model", **{"pairs": pairs, **kwargs})


def test_too_few(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="3 videos with 3 texts are too few"):
        analyze_layers("no/such-model", pairs[:3])


def test_a_cut_checkpoint(pairs: Pairs) -> None:
    with pytest.raises(BackboneError, match="Give the full MLLM"):
        analyze_layers("vidembed/shapes", pairs, device="cpu")


def test_name_in_the_package() -> None:
    assert "analyze_layers" in vidembed.__all__
    assert vidembed.analyze_layers is analyze_layers


class TestBuildAuto:
    def test_reads_the_layer_that_the_analysis_chooses(self, tiny_mllm: GetModel, pairs: Pairs, tmp_path: Path) -> None:
        mllm = tiny_mllm("qwen2_vl")
        out = build(mllm, layer="auto", pairs=pairs, prefix=None, out=tmp_path / "m", device="cpu")
        wanted = analyze_layers(mllm, pairs, prefixes="none", device="cpu", dual_softmax=False)
        assert VideoEncoder(out, device="cpu").layer == wanted.chosen_layer
        card = (out / "README.md").read_text()
        assert "## How the layer was chosen" in card
        assert wanted.summary() in card
        by_hand = build(mllm, layer=wanted.chosen_layer, prefix=None, out=tmp_path / "n", device="cpu")
        assert (out / "vidembed_config.json").read_text() == (by_hand / "vidembed_config.json").read_text()
        assert "How the layer was chosen" not in (by_hand / "README.md").read_text()

    def test_several_kinds(self, tiny_mllm: GetModel, pairs: Pairs, tmp_path: Path) -> None:
        mllm = tiny_mllm("qwen2_vl")
        kinds = {"dense": pairs, "other": [replace(pair, text=f"{pair.text} again") for pair in pairs]}
        out = build(mllm, layer="auto", pairs=kinds, prefix=None, out=tmp_path / "m", device="cpu")
        wanted = analyze_layers(mllm, kinds, prefixes="none", device="cpu", dual_softmax=False)
        assert wanted.summary() in (out / "README.md").read_text()
        assert VideoEncoder(out, device="cpu").layer == wanted.chosen_layer

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"layer": "auto"}, ValueError, r'layer="auto" needs pairs=FILE'),
            ({"layer": "auto", "pairs": "gone.jsonl"}, AnnotationError, "no such file"),
            (
                {"layer": 2, "pairs": "gone.jsonl"},
                ValueError,
                r'layer=2: pairs, videos and captions need layer="auto"',
            ),
            ({"layer": 2, "videos": "clips"}, ValueError, "layer=2: pairs, videos"),
            ({"layer": 2, "captions": "c.jsonl"}, ValueError, "layer=2: pairs, videos and captions"),
            ({"layer": "auto", "captions": "gone.jsonl"}, AnnotationError, r"gone\.jsonl: cannot be read"),
            (
                {"layer": "auto", "captions": "c", "pairs": "p"},
                ValueError,
                "captions='c': give either pairs or captions",
            ),
            (
                {"layer": "auto", "videos": ["a"], "pairs": "p.csv"},
                ValueError,
                r"videos=\['a'\]: with pairs, expected one",
            ),
            ({"layer": "auto", "videos": ["a"], "clips": 0}, ValueError, "clips=0"),
            ({"layer": "middle"}, BackboneError, r"layer='middle' is not a decoder block"),
        ],
    )
    def test_misuse_writes_nothing(
        self, tiny_mllm: GetModel, tmp_path: Path, kwargs: dict[str, Any], error: Any, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            build(tiny_mllm("qwen2_vl"), out=tmp_path / "m", **kwargs)
        assert not list(tmp_path.iterdir())

    def test_a_cut_checkpoint(self, pairs: Pairs, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match="Give the full MLLM"):
            build("vidembed/shapes", layer="auto", pairs=pairs, out=tmp_path / "m")
        assert not list(tmp_path.iterdir())
