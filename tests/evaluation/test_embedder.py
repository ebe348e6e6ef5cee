"""Models by name, and SentenceTransformers that are no `VideoEncoder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.evaluation.stand_ins import plain_benchmark
from vidembed import VideoEncoder, model_path
from vidembed.backbone.options import ModelOptions
from vidembed.encoder import load_encoder
from vidembed.errors import LayerChosen, MissingExtraError
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.embedder import ModelName, embedder_of, load_any
from vidembed.evaluation.run import evaluate

CPU = ModelOptions(device="cpu")


def test_names_with_and_without_a_layer(tmp_path: Path) -> None:
    assert ModelName.parse("vidembed/shapes") == ModelName("vidembed/shapes")
    assert ModelName.parse("a/b@24") == ModelName("a/b", 24)
    assert ModelName.parse("a/b@-1") == ModelName("a/b", -1)
    assert str(ModelName.parse("a/b@24")) == "a/b@24"
    (tmp_path / "x@y").mkdir()
    assert ModelName.parse(str(tmp_path / "x@y")).layer is None
    with pytest.raises(ValueError, match="NAME@LAYER"):
        ModelName.parse("a/b@last")


def test_layer_of_an_mllm(tiny_mllm: Callable[[str], Path]) -> None:
    folder = str(tiny_mllm("qwen2_5_vl"))
    assert load_any(ModelName(folder, 1), CPU).layer == 1
    with pytest.warns(LayerChosen, match="block 5 of 6"):
        assert load_any(ModelName(folder), CPU).layer == 5


def test_dtype(tiny_mllm: Callable[[str], Path]) -> None:
    import torch

    encoder = load_encoder("vidembed/shapes", options=ModelOptions(device="cpu", dtype="bfloat16"))
    assert encoder.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='int3'"):
        load_encoder("vidembed/shapes", options=ModelOptions(dtype="int3"))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        load_any(ModelName(str(tmp_path / "nowhere")), CPU)


def test_a_model_of_text_alone_is_refused(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path("shapes"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(
        str(tmp_path / "text")
    )
    with pytest.raises(ValueError, match="not video"):
        load_any(ModelName(str(tmp_path / "text")), CPU)


# -- a SentenceTransformer that is no VideoEncoder ------------------------------------------------------------------


@pytest.fixture
def plain(stock: None, shapes_encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> SentenceTransformer:
    """The bundled checkpoint as a stock SentenceTransformer, whose videos another decoder reads (torchcodec is no
    dependency)."""
    model = SentenceTransformer(str(model_path("shapes")), device="cpu")
    calls: list[list[str]] = []

    def encode_document(inputs: list[dict[str, str]], **how: Any) -> np.ndarray:
        calls.append([Path(one["video"]).name for one in inputs])
        return np.asarray(shapes_encoder.encode_document([Path(one["video"]) for one in inputs]))

    monkeypatch.setattr(model, "encode_document", encode_document, raising=False)
    model.calls = calls  # type: ignore[assignment]
    return model


def test_it_is_measured_like_any_other(
    plain: SentenceTransformer, shapes_encoder: VideoEncoder, shapes_world: tuple[Benchmark, Benchmark]
) -> None:
    ours, theirs = (evaluate(shapes_world[0], model, batch_size=4) for model in (shapes_encoder, plain))
    assert theirs.columns == ours.columns
    assert theirs.model["kind"] == "SentenceTransformer"
    assert [len(call) for call in plain.calls] == [4, 2]  # type: ignore[arg-type, union-attr]


def test_its_fingerprint_follows_weights_and_prompts(plain: SentenceTransformer) -> None:
    import torch

    first = embedder_of(plain).fingerprint
    assert embedder_of(plain).fingerprint == first
    plain.prompts = {"query": "find: "}
    assert embedder_of(plain).fingerprint != first
    plain.prompts = {}
    with torch.no_grad():
        next(iter(plain.parameters())).add_(1.0)
    assert embedder_of(plain).fingerprint != first


def test_the_video_that_fails_is_found_out(
    plain: SentenceTransformer, shapes_world: tuple[Benchmark, Benchmark], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    videos = [shapes_world[0].videos[0], tmp_path / "bad.mp4", shapes_world[0].videos[1]]
    benchmark = plain_benchmark(videos, ["a", "b", "c"], [(0,), (1,), (2,)])
    with pytest.raises(ValueError, match=r"'bad'"):
        evaluate(benchmark, plain)
    result = evaluate(benchmark, plain, on_error="count")
    assert [one.video_id for one in result.failures] == ["bad"]


def test_a_decoder_that_is_not_installed_is_no_fault_of_the_videos(
    plain: SentenceTransformer, shapes_world: tuple[Benchmark, Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_document(inputs: Any, **how: Any) -> Any:
        raise ImportError("no torchcodec")

    monkeypatch.setattr(plain, "encode_document", encode_document)
    with pytest.raises(MissingExtraError, match="no torchcodec"):
        evaluate(shapes_world[0], plain, on_error="count")


def test_a_vector_that_is_not_finite_is_a_failure(
    plain: SentenceTransformer, shapes_world: tuple[Benchmark, Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plain.encode_document

    def encode_document(inputs: Any, **how: Any) -> Any:
        vectors = whole(inputs, **how)
        vectors[0, 3] = np.nan
        return vectors

    monkeypatch.setattr(plain, "encode_document", encode_document)
    with pytest.raises(ValueError, match="not finite"):
        evaluate(shapes_world[0], plain)
