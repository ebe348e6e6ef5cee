"""The reranking benchmark at a size at which its clock means nothing: its arithmetic and its equality checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from benchmarks import rerank
from sentence_transformers import CrossEncoder

from tests.backbone import tiny
from vidembed import VideoReranker


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads wait for each other on a busy machine, for longer than such small work takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=rerank.SMALL_VISION)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VideoReranker, CrossEncoder]:
    backbone = rerank.random_backbone(request.param, rerank.TINY, {})
    return rerank.contestants(backbone, tmp_path_factory.mktemp(request.param))


def test_memory_of_published_shapes() -> None:
    rows = {(row["model"], row["visual_tokens"]): row for row in rerank.memory()}
    assert rows["Qwen2.5-VL-7B", 1024]["kv_bytes"] == 1024 * 57_344
    assert rows["Qwen2.5-VL-7B", 1024]["visual_token_bytes"] == 1024 * 7_168
    assert rows["Qwen3-VL-8B", 4096]["kv_bytes"] == 4096 * 147_456
    assert rows["Qwen3-VL-8B", 4096]["visual_token_bytes"] == 4096 * 32_768
    assert rows["VideoLLaMA3-7B", 4096]["kv_bytes"] == 4096 * 57_344


@torch.inference_mode()
def test_memory_is_what_a_model_holds(both: tuple[VideoReranker, CrossEncoder]) -> None:
    reranker, _ = both
    model = reranker[0].model
    video = rerank.video_of(model.config.model_type, 128)
    held = rerank.check_memory(reranker, video)  # compares with VideoPrefix.nbytes
    shape = rerank.Shape.of(model.config)
    assert held["kv_bytes_held"] == 2 * 3 * 2 * 16 * 4 * held["prefix_tokens"]  # K and V, blocks, heads, head size
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_compression_mask")
    features = reranker.preprocess([("a", video)])
    output = model.model.get_video_features(**{name: features[name] for name in names if name in features})
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    assert sum(tensor.nbytes for level in levels for tensor in level) == shape.visual_bytes(128, itemsize=4)


def test_both_sides_score_alike(both: tuple[VideoReranker, CrossEncoder]) -> None:
    [few, many] = rerank.one_video(*both, 64, [2, 4], 2, repeats=2)  # asserts equality itself
    assert many["visual_tokens"] == 64
    assert many["pairs_compared"] == 4
    assert (few["naive_extrapolated"], many["naive_extrapolated"]) == (False, True)
    assert many["max_log_odds_difference"] <= 1e-4 < 0.1 < many["log_odds_std"]


def test_a_wrong_score_is_noticed(both: tuple[VideoReranker, CrossEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    reranker, stock = both
    monkeypatch.setattr(stock[1], "true_token_id", stock[1].true_token_id - 2)
    with pytest.raises(AssertionError, match="disagree"):
        rerank.one_video(reranker, stock, 64, [4], 2, repeats=1)


def test_text_to_video() -> None:
    reranker, stock = rerank.contestants(rerank.random_backbone("qwen2_5_vl", rerank.TINY, {}), None)
    row = rerank.text_to_video(reranker, stock, 64, repeats=1)
    assert (row["pairs"], row["videos"], row["pairs_per_video"]) == (18, 3, 6)


def test_live_query() -> None:
    plain, cached = rerank.live_on_cpu(quick=True)  # asserts equality itself
    assert (plain["videos"], plain["visual_tokens_cached"], cached["visual_tokens_cached"]) == (4, False, True)
    assert max(plain["max_log_odds_difference"], cached["max_log_odds_difference"]) <= 1e-4 < plain["log_odds_std"]


def test_what_runs_on_a_gpu() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = rerank.QWEN2_5_VL_7B | sizes | {"num_key_value_heads": 2, "vocab_size": 1024}
    small["rope_parameters"] = {**small["rope_parameters"], "mrope_section": [2, 3, 3]}
    vision = rerank.QWEN2_5_VL_7B_VISION | {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
    vision |= {"out_hidden_size": 64, "fullatt_block_indexes": [1]}
    row, *live = rerank.seven_b("cpu", small, vision, [64], 2, counts=[4], measured=2, repeats=1)
    assert row["dtype"] == "bfloat16"
    assert [one["visual_tokens_cached"] for one in live] == [False, True]
    assert row["weights_bytes"] > 0


def test_the_gpu_shape_is_the_published_one() -> None:
    config = tiny.config("qwen2_5_vl", **rerank.QWEN2_5_VL_7B)
    assert rerank.Shape.of(config) == rerank.PUBLISHED["Qwen2.5-VL-7B"]
