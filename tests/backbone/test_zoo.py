"""Further architectures, through what the four of `tiny` pass: cut, batches, reload, shared prefixes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.backbone import tiny, zoo
from tests.backbone.test_generate import check_generation
from vidembed import VideoEncoder, VideoReranker
from vidembed.backbone.architectures import TESTED_TYPES, capture_block, find_parts
from vidembed.backbone.prefix import model_inputs
from vidembed.errors import LayerChosen, LayerError
from vidembed.proof import SENTENCES, probe_video

LAYERS = (2, 4, -1)  # gemma4 can end at every second block
GetModel = Callable[[str], Path]


def test_tested_types_are_those_with_a_small_model() -> None:
    assert {*tiny.ARCHITECTURES, *zoo.MAKERS} == TESTED_TYPES


@pytest.fixture(scope="module")
def zoo_mllm(tmp_path_factory: pytest.TempPathFactory) -> GetModel:
    made: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = zoo.save(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return get


@pytest.fixture(params=zoo.MAKERS)
def mllm(request: pytest.FixtureRequest, zoo_mllm: GetModel) -> Path:
    return zoo_mllm(request.param)


def inputs() -> list[Any]:
    return [probe_video(0, 8), {"text": "a red square moves"}, probe_video(1, 5), {"text": "b"}, probe_video(2, 1)]


@torch.inference_mode()
def block_outputs(encoder: VideoEncoder, item: Any) -> dict[int, np.ndarray]:
    """Output of each of `LAYERS` of the full model at the last token; -1 is that of its last norm; unit length (D,)."""
    assert encoder.backbone is not None
    parts = find_parts(encoder.backbone.model)
    with ExitStack() as stack:
        blocks = {layer: stack.enter_context(capture_block(parts, layer)) for layer in LAYERS if layer != -1}
        output = parts.base(**model_inputs(encoder.preprocess([item])), use_cache=False)
    hidden = {layer: block.hidden for layer, block in blocks.items()} | {-1: output.last_hidden_state}
    return {
        layer: torch.nn.functional.normalize(each[0, -1].double(), dim=0).numpy()
        for layer, each in hidden.items()
        if each is not None
    }


def test_a_cut_gives_the_output_of_its_block(mllm: Path) -> None:
    full = VideoEncoder(mllm, layer=-1, device="cpu")
    encoders = {layer: VideoEncoder(backbone=full.backbone, layer=layer) for layer in LAYERS}
    for item in inputs():
        wanted = block_outputs(full, item)
        for layer, encoder in encoders.items():
            assert 1 - encoder.encode(item).astype(np.float64) @ wanted[layer] <= 1e-6


def test_a_batch_equals_one_by_one(mllm: Path) -> None:
    encoder = VideoEncoder(mllm, layer=4, device="cpu")
    together = encoder.encode(inputs())
    alone = np.stack([encoder.encode(item) for item in inputs()])
    # padding moves gemma4 by more, in transformers' own forward pass too; the cause was not found
    assert (1 - (together * alone).sum(1)).max() <= (1e-4 if "gemma4" in str(mllm) else 1e-6)
    assert abs(together @ together.T - np.eye(len(together))).max() > 1e-4  # the inputs differ in it


@pytest.mark.usefixtures("stock")
def test_plain_sentence_transformers_reloads_it(mllm: Path, tmp_path: Path) -> None:
    encoder = VideoEncoder(mllm, layer=4, device="cpu")
    encoder.save_pretrained(str(tmp_path))
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert type(plain) is SentenceTransformer
    texts = ["a red square moves", "b"]
    assert (1 - (plain.encode(texts) * encoder.encode([{"text": text} for text in texts])).sum(1)).max() <= 1e-6
    with torch.inference_mode():  # stock users' own sampling is not ours: the same frames
        video = plain(encoder.preprocess([probe_video()]))["sentence_embedding"][0].numpy()
    assert 1 - video @ encoder.encode(probe_video()) <= 1e-6


def test_a_shared_prefix_answers_as_whole_prompts_do(mllm: Path) -> None:
    shared = VideoReranker(mllm, device="cpu")
    assert shared.sharing is not None
    alone = VideoReranker(backbone=shared.backbone, shared_prefix=False)
    pairs = [(text, video) for video in (probe_video(0, 8), probe_video(1, 3)) for text in SENTENCES]
    found, wanted = (model.answers(pairs, priors=True) for model in (shared, alone))
    for name in ("yes", "yes_no", "video_prior", "text_prior"):
        assert abs(getattr(found, name) - getattr(wanted, name)).max() <= 1e-4
    with torch.inference_mode():  # and as the model's own forward pass of the processor's whole prompts
        logits = [shared[0].model(**model_inputs(shared.preprocess([pair]))).logits[0, -1].float() for pair in pairs]
    tokens = shared[0].tokenizer.convert_tokens_to_ids(["Yes", "No"])
    odds = np.array([float(one[tokens[0]] - one[tokens[1]]) for one in logits])
    assert abs(found.yes_no - odds).max() <= 1e-4
    assert np.ptp(odds) > 1e-2


def test_texts_are_continued_after_prefixes_as_whole_prompts_are(mllm: Path) -> None:
    check_generation(VideoReranker(mllm, device="cpu"))


def test_a_cut_that_transformers_cannot_express_names_those_that_it_can(zoo_mllm: GetModel) -> None:
    with pytest.raises(LayerError, match=r"layer=3.*full_attention.*Allowed: 2, 4, 6, or -1"):
        VideoEncoder(zoo_mllm("gemma4"), layer=3, device="cpu")


def test_default_layer_is_one_at_which_the_model_can_be_cut(zoo_mllm: GetModel) -> None:
    with pytest.warns(LayerChosen, match="block 4 of 6"):
        assert VideoEncoder(zoo_mllm("gemma4"), device="cpu").layer == 4


def test_videos_that_cannot_be_joined_are_refused_as_one_batch(zoo_mllm: GetModel) -> None:
    encoder = VideoEncoder(zoo_mllm("molmo2"), layer=4, device="cpu")
    with pytest.raises(ValueError, match=r"inputs: got 2 .* one at a time"):
        encoder.preprocess([probe_video(0, 8), probe_video(1, 8)])


BATCHED = {"exaone4_5", "gemma4", "glm46v", "glm4v", "hyperclovax_vision_v2", "lfm3_vl", "qwen3_5", "qwen3_5_moe"}
BATCHED |= {"qwen3_vl_moe"}  # the processors of the others take one video at a time, or count into a batch


@pytest.mark.parametrize("model_type", zoo.MAKERS)
def test_several_videos_answer_in_one_pass_as_in_one_each(model_type: str, zoo_mllm: GetModel) -> None:
    reranker = VideoReranker(zoo_mllm(model_type), device="cpu")
    pairs = [(text, probe_video(seed, 3 + 2 * seed)) for seed, text in enumerate((*SENTENCES, "b"))]
    alone = reranker.answers(pairs)
    reranker.max_batch_tokens = 100_000
    together = reranker.answers(pairs)
    assert reranker.can_batch() == (model_type in BATCHED)
    assert abs(together.yes - alone.yes).max() <= 1e-4
    assert abs(together.yes_no - alone.yes_no).max() <= 1e-4
    assert np.ptp(alone.yes_no) > 1e-2


def test_in_bfloat16_too_molmo2_answers_about_one_video_at_a_time(zoo_mllm: GetModel) -> None:
    reranker = VideoReranker(zoo_mllm("molmo2"), device="cpu", model_kwargs={"dtype": "bfloat16"})
    assert not reranker.can_batch()  # whose wrong batches are nearer to the right ones than bfloat16 rounds
