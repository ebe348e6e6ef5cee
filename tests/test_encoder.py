"""VideoEncoder: what a SentenceTransformer does, on every kind of input, whatever the batching."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers.video_utils import VideoMetadata

from tests.backbone import tiny
from tests.clips import moving_square, write_folder
from vidembed import Sampling, VideoEncoder, VideoError, VideoFrames, VideoSegment, build
from vidembed.building import hidden_states
from vidembed.errors import BackboneError, InputError, LayerChosen, LayerError
from vidembed.inputs import load_input

GetModel = Callable[[str], Path]
LAYER = 4


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_folder(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture(scope="session")
def get_encoder(tiny_mllm: GetModel) -> Callable[[str], VideoEncoder]:
    made: dict[str, VideoEncoder] = {}

    def get(model_type: str) -> VideoEncoder:
        if model_type not in made:
            made[model_type] = VideoEncoder(tiny_mllm(model_type), layer=LAYER, device="cpu")
        return made[model_type]

    return get


@pytest.fixture(params=tiny.ARCHITECTURES)
def each_encoder(request: pytest.FixtureRequest, get_encoder: Callable[[str], VideoEncoder]) -> VideoEncoder:
    return get_encoder(request.param)


@pytest.fixture
def encoder(get_encoder: Callable[[str], VideoEncoder]) -> VideoEncoder:
    return get_encoder("qwen2_5_vl")


def mixed_inputs(clips: list[Path]) -> list[Any]:
    frames = moving_square(9, seed=40)
    return [
        "a red square moves down and then stops for a while",
        clips[0],
        str(clips[1]),
        "short",
        VideoSegment(str(clips[4]), 0.5, 1.6),
        clips[2].read_bytes(),
        Image.fromarray(moving_square(1, seed=50)[0]),
        VideoFrames(frames, fps=4.0),
        {"text": "not/a/file.mp4"},
        {"video": str(clips[3]), "text": "at night"},
        [{"role": "user", "content": [{"type": "video", "video": str(clips[5])}, {"type": "text", "text": "now"}]}],
    ]


def cosine_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float((1 - (a.astype(np.float64) * b).sum(-1)).max())


class TestInvariance:
    def test_batch_equals_one_by_one(self, each_encoder: VideoEncoder, clips: list[Path]) -> None:
        inputs = mixed_inputs(clips)
        together = each_encoder.encode(inputs)
        alone = np.stack([each_encoder.encode(item) for item in inputs])
        assert together.shape == (len(inputs), tiny.HIDDEN)
        assert np.abs(together - alone).max() <= 1e-5
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        distances = 1 - together @ together.T + 2 * np.eye(len(inputs))
        assert distances.min() > 1e-6  # no two inputs share a vector: the comparison above bites

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_order_batch_size_and_token_budget_do_not_matter(
        self, encoder: VideoEncoder, clips: list[Path], data: st.DataObject
    ) -> None:
        inputs = mixed_inputs(clips)
        order = data.draw(st.permutations(range(len(inputs))))
        batch_size = data.draw(st.integers(1, 12))
        budget = data.draw(st.sampled_from([1, 150, 400, 100_000]))
        workers = data.draw(st.integers(1, 3))
        wanted = encoder.encode(inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, "max_batch_tokens", budget)
            patch.setattr(encoder, "decode_workers", workers)
            got = encoder.encode([inputs[index] for index in order], batch_size=batch_size)
        assert np.abs(got - wanted[list(order)]).max() <= 1e-5

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.usefixtures("stock")
    def test_padding_side_does_not_matter(self, each_encoder: VideoEncoder, tmp_path: Path, side: str) -> None:
        """Stock sentence-transformers pads on the tokenizer's side; the last real token must be read on either."""
        each_encoder.save_pretrained(str(tmp_path))
        stock = SentenceTransformer(str(tmp_path), device="cpu")
        stock.tokenizer.padding_side = side
        texts = ["a", "a red square moves down", "a red square moves down and then " * 5]
        assert np.abs(stock.encode(texts) - each_encoder.encode(texts)).max() <= 1e-5
        videos = [VideoFrames(moving_square(count, seed=count), fps=2.0) for count in (3, 9, 6)]
        loaded = [load_input(video, each_encoder.sampling)[0] for video in videos]
        together = stock.encode(loaded, processing_kwargs={"video": {"do_sample_frames": False}})
        alone = np.stack([each_encoder.encode(video) for video in videos])
        assert np.abs(together - alone).max() <= 1e-5

    def test_collated_features_equal_the_processors_batch(self, each_encoder: VideoEncoder) -> None:
        videos = [VideoFrames(moving_square(count, seed=count), fps=2.0) for count in (4, 9, 6)]
        ours = each_encoder.preprocess(videos)
        loaded = [load_input(video, each_encoder.sampling)[0] for video in videos]
        theirs = each_encoder[0].preprocess(loaded, processing_kwargs={"video": {"do_sample_frames": False}})
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(ours[key], value), key
            else:
                assert ours[key] == value, key


class TestPlainCheckpoint:
    def test_stock_sentence_transformers_without_vidembed(
        self, tiny_mllm: GetModel, clips: list[Path], tmp_path: Path
    ) -> None:
        """The saved checkpoints in a process where vidembed cannot be imported, against `hidden_states[layer]`."""
        encoders = {}
        for model_type in tiny.ARCHITECTURES:
            mllm = tiny_mllm(model_type)
            encoders[model_type] = VideoEncoder(mllm, layer=LAYER, device="cpu")
            build(mllm, layer=LAYER, out=tmp_path / model_type, standalone=True, device="cpu")
        video = load_input(clips[4], encoders["qwen2_vl"].sampling)[0]["video"]
        np.save(tmp_path / "frames.npy", video["array"].numpy())
        script = """
import sys, json
sys.modules["vidembed"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
from transformers.video_utils import VideoMetadata
folder, metadata = sys.argv[1], json.loads(sys.argv[2])
for model_type in sys.argv[3:]:
    model = SentenceTransformer(folder + "/" + model_type, device="cpu")
    assert {"video", "text", "image"} <= set(model.modalities)
    video = {"array": np.load(folder + "/frames.npy"), "video_metadata": metadata}
    vectors = [
        model.encode([{"video": video}], processing_kwargs={"video": {"do_sample_frames": False}})[0],
        model.encode(["a red square"])[0],
    ]
    np.save(folder + "/" + model_type + ".npy", np.stack(vectors))
"""
        arguments = [str(tmp_path), json.dumps(video["video_metadata"]), *encoders]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, timeout=240)
        for model_type, encoder in encoders.items():
            stock = np.load(tmp_path / f"{model_type}.npy")
            cut = np.stack([encoder.encode(clips[4]), encoder.encode("a red square")])
            hidden = hidden_states(encoder, [clips[4], "a red square"]).numpy()
            hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
            assert cosine_gap(stock, cut) <= 1e-6
            assert cosine_gap(cut, hidden) <= 1e-6
            assert cosine_gap(stock, hidden) <= 1e-6

    @pytest.mark.usefixtures("stock")
    def test_stock_users_pass_whole_videos(self, each_encoder: VideoEncoder, tmp_path: Path) -> None:
        """A checkpoint samples by itself, at its own rate, and refuses frames whose rate it cannot know."""
        each_encoder.sampling = Sampling(fps=2.0, max_frames=16)
        each_encoder.save_pretrained(str(tmp_path))
        stock = SentenceTransformer(str(tmp_path), device="cpu")
        noise = np.random.default_rng(0)
        frames = noise.integers(0, 256, (32, 112, 112, 3), dtype=np.uint8)  # (T, H, W, C), 8 a second
        times = {"fps": 8.0, "duration": 4.0, "total_num_frames": 32, "frames_indices": list(range(32))}
        video = {"video": {"array": frames, "video_metadata": VideoMetadata(**times)}}
        if each_encoder[0].config.model_type == "qwen3_vl":  # other frames, as many, and a rate taken for granted
            assert stock.preprocess([video])["video_grid_thw"][0, 0] == 4
            return
        vector = stock.encode(video)
        ours, others = (each_encoder.encode(VideoFrames(frames[first::4], fps=2.0)) for first in (0, 1))
        assert np.abs(vector - ours).max() <= 1e-5
        assert np.abs(vector - others).max() > 1e-4
        with pytest.raises(ValueError, match="metadata"):
            stock.encode({"video": frames})

    def test_round_trip_keeps_vectors_sampling_and_fingerprint(
        self, encoder: VideoEncoder, clips: list[Path], tmp_path: Path
    ) -> None:
        wanted = encoder.encode(clips[:2])
        encoder.save_pretrained(str(tmp_path))
        again = VideoEncoder(str(tmp_path), device="cpu")
        assert again.layer == LAYER
        assert again.sampling == encoder.sampling
        assert again.fingerprint == encoder.fingerprint
        assert np.array_equal(again.encode(clips[:2]), wanted)
        assert not list(tmp_path.rglob("*.bin"))


class TestHostBehaviour:
    def test_is_a_sentence_transformer(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        assert isinstance(encoder, SentenceTransformer)
        assert encoder.get_embedding_dimension() == tiny.HIDDEN
        query, documents = encoder.encode_query("a red square"), encoder.encode_document(clips[:3])
        assert encoder.similarity(query, documents).shape == (1, 3)

    def test_outputs(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        inputs = [clips[0], "a", clips[1]]
        wanted = encoder.encode(inputs)
        assert torch.is_tensor(tensor := encoder.encode(inputs, convert_to_tensor=True))
        assert np.array_equal(tensor.numpy(), wanted)
        rows = encoder.encode(inputs, convert_to_numpy=False)
        assert isinstance(rows, list)
        assert torch.equal(torch.stack(rows), tensor)
        assert encoder.encode(inputs, truncate_dim=16).shape == (3, 16)
        assert encoder.encode(inputs, precision="int8").dtype == np.int8
        assert len(tokens := encoder.encode(inputs, output_value="token_embeddings")) == 3
        assert tokens[0].shape[1] == tiny.HIDDEN
        assert set(encoder.encode(inputs, output_value=None)[1]) >= {"sentence_embedding", "token_embeddings"}

    def test_empty(self, encoder: VideoEncoder) -> None:
        assert len(encoder.encode([])) == 0
        assert encoder.preprocess([]) == {}
        assert list(encoder.encode_stream([])) == []

    def test_prompt_reaches_the_model(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        for item in ("a", clips[0]):
            assert np.abs(encoder.encode(item, prompt="Find cats.") - encoder.encode(item)).max() > 1e-3

    def test_multi_process_pool(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        inputs = [clips[0], "a", VideoSegment(str(clips[1]), 0.0, 1.0), "b"]
        got = encoder.encode(inputs, device=["cpu"], chunk_size=2)
        assert np.abs(got - encoder.encode(inputs)).max() <= 1e-5

    def test_dtype_and_device_as_the_host_does(self, tiny_mllm: GetModel, clips: list[Path]) -> None:
        low = VideoEncoder(tiny_mllm("qwen2_vl"), layer=LAYER, device="cpu", model_kwargs={"dtype": "bfloat16"})
        assert low.dtype == torch.bfloat16
        assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
        full = VideoEncoder(tiny_mllm("qwen2_vl"), layer=LAYER, device="cpu")
        assert cosine_gap(low.encode(clips[:2]).astype(np.float32), full.encode(clips[:2])) < 0.02
        assert low.fingerprint != full.fingerprint

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda(self, tiny_mllm: GetModel, clips: list[Path]) -> None:
        gpu = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=LAYER, device="cuda")
        cpu = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=LAYER, device="cpu")
        assert cosine_gap(gpu.encode(mixed_inputs(clips)), cpu.encode(mixed_inputs(clips))) < 1e-4


class TestBadInput:
    def test_raise_names_the_item(self, encoder: VideoEncoder, clips: list[Path], tmp_path: Path) -> None:
        bad = tmp_path / "broken.mp4"
        bad.write_bytes(b"not a video at all")
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            encoder.encode([clips[0], bad, clips[1]])

    @pytest.mark.parametrize("name", ["missing.mp4", "some/where/missing.MKV", "/abs/with space/missing.webm"])
    def test_missing_file_is_never_embedded_as_words(self, encoder: VideoEncoder, name: str) -> None:
        with pytest.raises(VideoError, match="missing"):
            encoder.encode(name)

    def test_missing_image_is_never_embedded_as_words(self, encoder: VideoEncoder) -> None:
        with pytest.raises(InputError, match=r"missing\.jpg.*no such file"):
            encoder.encode("missing.jpg")

    def test_words_that_end_in_a_suffix_are_words(self, encoder: VideoEncoder) -> None:
        assert encoder.encode("how do I open a .mp4").shape == (tiny.HIDDEN,)
        assert encoder.encode({"text": "clip.mp4"}).shape == (tiny.HIDDEN,)

    def test_frames_without_a_rate(self, encoder: VideoEncoder) -> None:
        with pytest.raises(VideoError, match="frame rate"):
            encoder.encode([moving_square(4)])

    def test_urls_are_not_fetched_unasked(self, encoder: VideoEncoder) -> None:
        with pytest.raises(VideoError, match="allow_url"):
            encoder.encode("https://example.invalid/a.mp4")
        with pytest.raises(InputError, match="allow_url"):
            encoder.encode("https://example.invalid/a.png")

    def test_skip_marks_rows_and_logs(
        self, encoder: VideoEncoder, clips: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = tmp_path / "broken.mp4"
        bad.write_bytes(b"not a video at all")
        with caplog.at_level(logging.WARNING):
            got = encoder.encode([clips[0], bad, "words", "gone.mp4", clips[1]], on_error="skip")
        assert np.isnan(got[[1, 3]]).all()
        assert np.abs(got[[0, 2, 4]] - encoder.encode([clips[0], "words", clips[1]])).max() <= 1e-5
        assert "broken.mp4" in caplog.text
        assert "inputs[3]" in caplog.text

    def test_skip_when_all_fail(self, encoder: VideoEncoder) -> None:
        assert np.isnan(encoder.encode(["gone.mp4", "gone.avi"], on_error="skip")).all()

    @pytest.mark.parametrize(
        "kwargs", [{"on_error": "ignore"}, {"on_error": "skip", "precision": "int8"}, {"batch_size": 0}, {"frames": 3}]
    )
    def test_bad_arguments(self, encoder: VideoEncoder, kwargs: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"on_error|batch_size|frames"):
            encoder.encode(["a"], **kwargs)

    @pytest.mark.parametrize("size", [0, -1, 1.5])
    def test_truncate_dim_is_a_positive_integer(self, encoder: VideoEncoder, size: Any) -> None:
        with pytest.raises(ValueError, match=rf"truncate_dim must be a positive integer, got {size}"):
            encoder.encode(["a"], truncate_dim=size)
        with pytest.raises(ValueError, match="truncate_dim"):
            next(encoder.encode_stream(["a"], truncate_dim=size))
        assert encoder.encode(["a"], truncate_dim=np.int64(3)).shape == (1, 3)

    def test_unsupported_input(self, encoder: VideoEncoder) -> None:
        with pytest.raises(InputError, match=r"inputs\[1\]"):
            encoder.encode(["a", 3.5])

    def test_vector_that_is_not_finite(
        self, tiny_mllm: GetModel, clips: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=1, device="cpu")
        block = encoder[0].model.language_model.layers[0]

        def overflow(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[-1] = float("inf")
            return output

        handle = block.register_forward_hook(overflow)
        with pytest.raises(InputError, match=r"clip01.*not finite.*bfloat16"):
            encoder.encode([clips[0], clips[1]])
        got = encoder.encode([clips[0], clips[1]], on_error="skip")
        handle.remove()
        assert np.isnan(got[1]).all()
        assert np.isfinite(got[0]).all()


class TestLoading:
    def test_default_layer_of_an_mllm_is_at_the_share_of_the_paper(self, tiny_mllm: GetModel) -> None:
        with pytest.warns(LayerChosen, match=r"block 5 of 6 .*24 of 28.*--layer auto"):
            assert VideoEncoder(tiny_mllm("video_llama_3")).layer == 5

    @pytest.mark.parametrize("layer", [0, 7, -3])
    def test_unknown_layer(self, tiny_mllm: GetModel, layer: int) -> None:
        with pytest.raises(LayerError, match=rf"layer={layer}.*Allowed: 1\.\.6"):
            VideoEncoder(tiny_mllm("qwen2_vl"), layer=layer)

    def test_layer_of_a_checkpoint_is_its_own(self, encoder: VideoEncoder, tmp_path: Path) -> None:
        encoder.save_pretrained(str(tmp_path))
        assert VideoEncoder(str(tmp_path), layer=LAYER, device="cpu").layer == LAYER
        with pytest.raises(LayerError, match=r"layer=5.*reads layer 4"):
            VideoEncoder(str(tmp_path), layer=5)
        with pytest.raises(BackboneError, match=r"prefix='x'.*carries its prompts"):
            VideoEncoder(str(tmp_path), prefix="x")

    def test_remote_code_is_refused(self, tiny_mllm: GetModel) -> None:
        with pytest.raises(BackboneError, match="trust_remote_code"):
            VideoEncoder(tiny_mllm("qwen2_vl"), layer=2, trust_remote_code=True)

    def test_wrong_dtype(self, tiny_mllm: GetModel) -> None:
        with pytest.raises(BackboneError, match="dtype='int3'"):
            VideoEncoder(tiny_mllm("qwen2_vl"), layer=2, model_kwargs={"dtype": "int3"})

    def test_weights_are_shared_with_the_full_model(self, encoder: VideoEncoder) -> None:
        assert encoder.backbone is not None
        own = {parameter.data_ptr() for parameter in encoder.backbone.model.parameters()}
        new = [name for name, parameter in encoder.named_parameters() if parameter.data_ptr() not in own]
        assert new == ["0.model.language_model.norm.weight"]


class TestFingerprint:
    def test_what_changes_vectors_changes_it(self, tiny_mllm: GetModel) -> None:
        folder = tiny_mllm("qwen2_vl")
        base = VideoEncoder(folder, layer=4, device="cpu")
        others = [
            VideoEncoder(folder, layer=3, device="cpu"),
            VideoEncoder(folder, layer=4, device="cpu", prefix=None),
            VideoEncoder(folder, layer=4, device="cpu", sampling=Sampling(fps=1.0)),
            VideoEncoder(folder, layer=4, device="cpu", truncate_dim=8),
        ]
        prints = {base.fingerprint, *(other.fingerprint for other in others)}
        assert len(prints) == 5
        assert VideoEncoder(folder, layer=4, device="cpu").fingerprint == base.fingerprint

    def test_weights_change_it(self, tiny_mllm: GetModel) -> None:
        a, b = (VideoEncoder(tiny_mllm("qwen2_vl"), layer=4, device="cpu") for _ in range(2))
        b.train()  # on memory of its own from here on
        with torch.no_grad():
            b[0].model.language_model.layers[0].mlp.up_proj.weight.mul_(1.01)
        assert a.fingerprint != b.fingerprint


class TestStream:
    def test_lazy_and_in_order(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        read: list[int] = []

        def source() -> Any:
            for index in range(200):
                read.append(index)
                yield clips[index % len(clips)]

        stream = encoder.encode_stream(source(), batch_size=2)
        first = [next(stream) for _ in range(4)]
        stream.close()
        assert [item.index for item in first] == [0, 1, 2, 3]
        assert len(read) < 40
        wanted = encoder.encode(clips[:4])
        assert np.abs(np.stack([item.embedding for item in first]) - wanted).max() <= 1e-5

    def test_errors_come_in_place(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        got = list(encoder.encode_stream([clips[0], "gone.mp4", "x", "gone.avi"], on_error="skip", batch_size=1))
        assert [item.index for item in got] == [0, 1, 2, 3]
        assert [item.embedding is None for item in got] == [False, True, False, True]
        assert isinstance(got[1].error, VideoError)

    def test_texts_beyond_the_context_beside_videos(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        """Truncation is state of the tokenizer: threads must not see each other's."""
        long = "a red square " * 1000
        inputs = [item for index in range(12) for item in (clips[index % 6], "a" * index, {"text": long}, clips[0])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoder, "decode_workers", 6)
            got = encoder.encode(inputs)
        assert np.abs(got[2::4] - encoder.encode({"text": long})).max() <= 1e-5
        assert np.abs(got[3::4] - encoder.encode(clips[0])).max() <= 1e-5

    def test_file_objects(self, encoder: VideoEncoder, clips: list[Path]) -> None:
        with clips[0].open("rb") as handle:
            got = encoder.encode([handle, io.BytesIO(clips[1].read_bytes())])
        assert np.abs(got - encoder.encode(clips[:2])).max() <= 1e-5


def test_out_of_memory_halves_the_batch(
    encoder: VideoEncoder, clips: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = encoder.encode(clips)
    sizes: list[int] = []
    forward = VideoEncoder.forward

    def limited(self: VideoEncoder, features: dict[str, Any], **kwargs: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, features, **kwargs)

    monkeypatch.setattr(VideoEncoder, "forward", limited)
    with caplog.at_level(logging.WARNING):
        got = encoder.encode(clips)
    assert np.abs(got - wanted).max() <= 1e-5
    assert max(sizes) > 2 >= min(sizes)
    assert "halving" in caplog.text

    monkeypatch.setattr(VideoEncoder, "forward", lambda *_a, **_k: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError, match=r"clip00\.mp4.*max_frames"):
        encoder.encode(clips[:2])
