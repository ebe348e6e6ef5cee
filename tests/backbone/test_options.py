"""Options of how a model is loaded: their checks, their names in the host library, quantization, and what is logged."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from vidembed import ModelOptions, VideoEncoder, VideoReranker, build
from vidembed.backbone.architectures import capture_block, find_parts
from vidembed.backbone.load import load_backbone
from vidembed.backbone.options import log_loaded, quantization_name
from vidembed.building import hidden_states, probe_inputs
from vidembed.encoder import load_encoder
from vidembed.errors import BackboneError, MissingExtraError
from vidembed.index.reranking import load_reranker

LOGGER = "vidembed.backbone.options"
needs_torchao = pytest.mark.usefixtures("_torchao")
QUANTIZED = ("int8", "int4")


@pytest.fixture(scope="module")
def _torchao() -> None:
    pytest.importorskip("torchao")


def options(quantize: str, **more: Any) -> ModelOptions:
    return ModelOptions(quantize=quantize, device="cpu", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "int3"}, ("dtype='int3'", "bfloat16")),
        ({"quantize": "int2"}, ("quantize='int2'", "int8, int4")),
        ({"device": "cpu", "device_map": "auto"}, ("device='cpu'", "device_map='auto'", "give one")),
        ({"quantize": "int4", "dtype": "float32"}, ("dtype='float32'", "int4", "bfloat16")),
        ({"model_kwargs": {"dtype": "float32"}}, ("model_kwargs", "'dtype'", "give dtype instead")),
        ({"model_kwargs": {"torch_dtype": "float32"}}, ("'torch_dtype'", "give dtype instead")),
        ({"model_kwargs": {"device_map": "auto"}}, ("'device_map'",)),
        (
            {"model_kwargs": {"quantization_config": {}}, "quantize": "int8"},
            ("'quantization_config'", "give quantize instead"),
        ),
        ({"model_kwargs": {"trust_remote_code": True}}, ("trust_remote_code is refused",)),
        ({"model_kwargs": ["a"]}, ("model_kwargs=['a']", "mapping of argument names")),
    ],
)
def test_rejects_what_cannot_be(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"dtype|quantize|device|model_kwargs") as caught:
        ModelOptions(**fields)
    assert all(word in str(caught.value) for word in words)


def test_names_of_the_host() -> None:
    assert ModelOptions().kwargs() == {}
    more = MappingProxyType({"max_memory": {"cpu": "4GB"}})
    given = ModelOptions("bfloat16", device_map="auto", attn_implementation="eager", revision="main", model_kwargs=more)
    assert given.kwargs() == {
        "revision": "main",
        "model_kwargs": {
            "dtype": "bfloat16", "device_map": "auto", "attn_implementation": "eager", "max_memory": {"cpu": "4GB"},
        },
    }  # fmt: skip
    assert ModelOptions(device="cpu").kwargs() == {"device": "cpu"}
    asked = options("int8")
    assert pickle.loads(pickle.dumps(asked)) == asked  # it goes to workers


def test_they_reach_encoder_reranker_and_host(tiny_mllm: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_mllm("qwen2_vl")
    asked = ModelOptions(dtype="bfloat16", device="cpu", attn_implementation="eager")
    encoder = VideoEncoder(folder, layer=2, **asked.kwargs())
    assert encoder.dtype == torch.bfloat16
    assert encoder[0].config.get_text_config()._attn_implementation == "eager"  # noqa: SLF001 - it has no public name
    reranker = VideoReranker(folder, **asked.kwargs())
    assert reranker.dtype == torch.bfloat16
    VideoEncoder(folder, layer=2, device="cpu").save_pretrained(str(tmp_path / "cut"))
    assert SentenceTransformer(str(tmp_path / "cut"), **asked.kwargs()).dtype == torch.bfloat16
    mapped = VideoEncoder(folder, layer=2, **ModelOptions(device_map={"": "cpu"}).kwargs())
    assert np.array_equal(mapped.encode("a"), VideoEncoder(folder, layer=2, device="cpu").encode("a"))


def test_a_reranker_of_its_own_weights_is_loaded_alike(tmp_path: Path) -> None:
    encoder = load_encoder("vidembed/shapes", options=ModelOptions(dtype="bfloat16", device="cpu"))
    asked = ModelOptions(dtype="bfloat16", revision="of the encoder alone")
    reranker = load_reranker("vidembed/shapes-mllm", encoder, model="vidembed/shapes", options=asked)
    assert reranker.dtype == torch.bfloat16
    assert reranker.device.type == "cpu"


@needs_torchao
@pytest.mark.parametrize("quantize", QUANTIZED)
class TestQuantized:
    def test_the_cut_equals_the_output_of_the_block(self, each_mllm: Path, quantize: str) -> None:
        encoder = VideoEncoder(each_mllm, layer=3, **options(quantize, **WIDE[quantize]).kwargs())
        assert encoder.backbone is not None
        parts = find_parts(encoder.backbone.model)
        assert type(parts.blocks[0].mlp.up_proj.weight) is not torch.nn.Parameter
        assert type(parts.decoder.embed_tokens.weight) is torch.nn.Parameter
        vectors = torch.from_numpy(encoder.encode(probe_inputs(), batch_size=1))
        wanted = hidden_states(encoder, probe_inputs())
        cosines = torch.nn.functional.cosine_similarity(vectors.double(), wanted.double())
        assert cosines.min() > 1 - TOLERANCE[quantize]
        plain = VideoEncoder(each_mllm, layer=3, device="cpu", model_kwargs=WIDE[quantize])
        closeness = (vectors * torch.from_numpy(plain.encode(probe_inputs(), batch_size=1))).sum(1)
        assert closeness.min() > {"int8": 0.99, "int4": 0.8}[quantize]
        assert abs(closeness.max() - 1) > 1e-6

    def test_reranking_with_a_shared_prefix(self, each_mllm: Path, quantize: str) -> None:
        kwargs = options(quantize, **WIDE[quantize]).kwargs()
        backbone = load_backbone(each_mllm, model_kwargs=kwargs["model_kwargs"])
        pairs = [(text, probe_inputs()[0]) for text in ("a red square", "two dogs run far away in the snow")]
        shared, alone = (VideoReranker(backbone=backbone, shared_prefix=each).predict(pairs) for each in (True, False))
        assert np.abs(shared - alone).max() < {"int8": 1e-4, "int4": 0.02}[quantize]
        assert shared[0] != shared[1]

    def test_fingerprints(self, tiny_mllm: Callable[[str], Path], tmp_path: Path, quantize: str) -> None:
        """The same weights have the same fingerprint, cut as they are loaded or from a checkpoint; and no others."""
        folder, asked = tiny_mllm("qwen2_vl"), options(quantize)
        encoder = load_encoder(str(folder), layer=2, options=asked)
        plain = VideoEncoder(folder, layer=2, device="cpu")
        plain.save_pretrained(str(tmp_path / "cut"))
        assert load_encoder(str(tmp_path / "cut"), options=asked).fingerprint == encoder.fingerprint
        assert "quantization" not in plain.fingerprint_fields()
        assert encoder.fingerprint_fields()["quantization"] == quantization_name(encoder[0].config.quantization_config)
        weights = encoder[0].model.language_model.layers[0].mlp.up_proj.weight
        before = encoder.fingerprint
        next(getattr(weights, part) for part in weights.__tensor_flatten__()[0] if "scale" in part).mul_(2)
        assert encoder.fingerprint != before

    def test_they_are_not_saved(self, tiny_mllm: Callable[[str], Path], tmp_path: Path, quantize: str) -> None:
        encoder = load_encoder(str(tiny_mllm("qwen2_vl")), layer=2, options=options(quantize))
        with pytest.raises(BackboneError, match=r"up_proj|qkv.*quantize"):
            encoder.save_pretrained(str(tmp_path / "out"))
        with pytest.raises(ValueError, match="quantize it where it is loaded"):
            build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path / "out", **options(quantize).kwargs())
        assert not (tmp_path / "out").exists()


WIDE: dict[str, dict[str, Any]] = {"int8": {"dtype": "float32"}, "int4": {"dtype": "bfloat16"}}
TOLERANCE = {"int8": 1e-6, "int4": 5e-3}  # bfloat16 rounds


@needs_torchao
def test_block_output_of_a_quantized_model_is_that_of_the_full_one(tiny_mllm: Callable[[str], Path]) -> None:
    """The blocks that a cut model runs are the full model's, quantized once."""
    encoder = load_encoder(str(tiny_mllm("qwen3_vl")), layer=2, options=options("int8"))
    assert encoder.backbone is not None
    full, own = find_parts(encoder.backbone.model), encoder.parts
    assert own.blocks[1].mlp.up_proj.weight is full.blocks[1].mlp.up_proj.weight
    features = encoder.preprocess(["a red square"])
    with torch.inference_mode(), capture_block(full, 2) as captured:
        full.base(input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False)
    assert captured.hidden is not None
    vector = torch.nn.functional.normalize(captured.hidden[0, -1], dim=0).numpy()
    assert np.abs(vector - encoder.encode("a red square")).max() < 1e-5


@needs_torchao
def test_layers_too_narrow_for_int4_are_named(
    tiny_mllm: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Groups are of 32 weights; the vision tower of the small qwen2_5_vl has a layer of 48."""
    with caplog.at_level(logging.WARNING, LOGGER):
        load_encoder(str(tiny_mllm("qwen2_5_vl")), layer=2, options=options("int4"))
    line = next(record.getMessage() for record in caplog.records if "linear layers" in record.getMessage())
    assert "down_proj" in line
    assert "PrototypeInt4WeightOnlyConfig" in line


@needs_torchao
def test_a_checkpoint_published_quantized(
    tiny_mllm: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It loads as it is, and is not quantized again."""
    quantized = load_backbone(tiny_mllm("qwen2_vl"), model_kwargs=options("int8").kwargs()["model_kwargs"])
    quantized.model.save_pretrained(tmp_path / "published")
    quantized.processor.save_pretrained(tmp_path / "published")
    encoder = load_encoder(str(tmp_path / "published"), layer=2, options=ModelOptions(device="cpu"))
    here = load_encoder(str(tiny_mllm("qwen2_vl")), layer=2, options=options("int8"))
    assert encoder.fingerprint == here.fingerprint
    assert np.array_equal(encoder.encode("a red square"), here.encode("a red square"))
    for quantize in QUANTIZED:
        with pytest.raises(BackboneError, match="already quantized, by torchao"):
            load_encoder(str(tmp_path / "published"), layer=2, options=options(quantize))


class TestWhatAMachineCannotDo:
    def test_without_torchao(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vidembed.text.importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r'torchao.*pip install "vidembed\[quantize\]"'):
            options("int8").kwargs()

    @needs_torchao
    def test_another_device(self) -> None:
        with pytest.raises(ValueError, match="on mps it is not tested"):
            ModelOptions(quantize="int8", device="mps").kwargs()

    @needs_torchao
    def test_int4_on_an_old_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        with pytest.raises(ValueError, match=r"8\.0.*\(7, 5\).*'int8'"):
            ModelOptions(quantize="int4", device="cuda").kwargs()

    @needs_torchao
    def test_int4_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="there is no GPU"):
            ModelOptions(quantize="int4", device="cuda").kwargs()

    @needs_torchao
    def test_int4_on_a_cpu_with_a_torchao_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "torchao.prototype.quantization", None)
        with pytest.raises(ValueError, match="no 4-bit kernel for CPUs"):
            options("int4").kwargs()

    @needs_torchao
    def test_weights_are_quantized_on_the_gpu_that_they_go_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
        given = ModelOptions(quantize="int4", device="cuda:1").kwargs()
        assert given["model_kwargs"]["device_map"] == {"": "cuda:1"}
        assert "device" not in given
        assert quantization_name(given["model_kwargs"]["quantization_config"]) == "torchao Int4WeightOnlyConfig"


class TestDtypeOfTheCPU:
    def logged(self, caplog: pytest.LogCaptureFixture, dtype: torch.dtype, *has: str) -> list[str]:
        model = SimpleNamespace(config=None, device=torch.device("cpu"), dtype=dtype)
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, LOGGER):
            patch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True), raising=False)
            log_loaded(model, name="m")  # type: ignore[arg-type]
        found = [f"{each.levelname} {each.getMessage()}" for each in caplog.records]
        caplog.clear()
        return found

    def test_slow_dtypes_are_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            (line,) = self.logged(caplog, dtype, "avx2", "avx512_f", "avx512_vnni")
            assert line.startswith("WARNING m: its weights are " + str(dtype).removeprefix("torch."))
            assert "dtype='float32' is several times faster" in line

    def test_fast_ones_are_not(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.logged(caplog, torch.bfloat16, "avx512_bf16", "amx_bf16") == []
        assert self.logged(caplog, torch.float16, "avx512_fp16") == []
        assert self.logged(caplog, torch.float32, "avx2") == []

    def test_bfloat16_is_named_where_amx_is(self, caplog: pytest.LogCaptureFixture) -> None:
        (line,) = self.logged(caplog, torch.float32, "amx_bf16")
        assert line.startswith("INFO")
        assert "dtype='bfloat16' is faster" in line
