"""The shipped weights, on clips whose (shape, colour, direction) they never met, written as real files."""

from __future__ import annotations

import json
import socket

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tools.shapes.evaluate import TEXT_PROMPT, VALIDATION_SEED, VIDEO_PROMPT, Reader, by_layer, evaluate
from tools.shapes.model import build_tokenizer
from tools.shapes.prompts import TAG_INSTRUCTIONS
from torch.nn import functional

from vidembed.shapes import CHECKPOINT, write_clips

CLIPS = 60
FIGURES = json.loads((CHECKPOINT / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reader():
    def refuse(*_args, **_kwargs):
        raise AssertionError("loading the shipped checkpoint opened a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return Reader(CHECKPOINT)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"), CLIPS, "test", seed=7)


@pytest.fixture(scope="module")
def layers(reader, written):
    video, text = [], []
    for start in range(0, CLIPS, 20):
        part = written[start : start + 20]
        video.append(reader.states([path for path, _ in part], [VIDEO_PROMPT] * len(part)))
        text.append(reader.states(None, [record.caption + TEXT_PROMPT for _, record in part]))
    return torch.cat(video, 1), torch.cat(text, 1)


def test_it_is_small_and_plain():
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))}
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 7_000_000
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        assert all(torch.isfinite(weights.get_tensor(key)).all() for key in weights.keys())  # noqa: SIM118


def test_it_loads_as_float32_with_its_own_tokenizer(reader):
    assert {p.dtype for p in reader.model.parameters()} == {torch.float32}
    assert reader.processor.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_retrieval_on_files_is_far_above_chance_at_the_recommended_layer(layers):
    recommended = by_layer(*layers)[FIGURES["best_layer"] - 1]
    assert recommended["t2v"]["R@1"] >= 80  # chance 1.7; 200 clips are in figures.json
    assert recommended["t2v"]["R@5"] >= 95
    assert recommended["v2t"]["R@1"] >= 75


def test_the_recommended_layer_is_not_the_last_and_beats_it(layers):
    assert FIGURES["best_layer"] < FIGURES["final_layer"] == 10
    found = by_layer(*layers)
    assert found[FIGURES["best_layer"] - 1]["t2v"]["R@1"] >= found[-1]["t2v"]["R@1"]


def test_states_of_other_clips_do_not_match(layers):
    video, text = (functional.normalize(states[FIGURES["best_layer"] - 1], dim=-1) for states in layers)
    similarity = text @ video.T
    right = similarity.diagonal().mean()
    wrong = (similarity.sum() - similarity.diagonal().sum()) / (CLIPS * (CLIPS - 1))
    assert right - wrong > 0.1


def test_files_and_arrays_give_the_same_states(reader, written, layers):
    prompt = reader.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": VIDEO_PROMPT}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    _, record = written[0]
    metadata = {"fps": 2.0, "total_num_frames": 8, "frames_indices": list(range(8)), "duration": 4.0}
    video = torch.from_numpy(record.frames()).permute(0, 3, 1, 2)
    inputs = reader.processor(text=[prompt], videos=[video], video_metadata=[metadata], return_tensors="pt")
    with torch.inference_mode():
        states = reader.model(**inputs, output_hidden_states=True).hidden_states
    layer = FIGURES["best_layer"]
    assert functional.cosine_similarity(states[layer][0, -1], layers[0][layer - 1, 0], dim=0) > 0.95


def test_wide_video_runs_with_few_tokens(reader, tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for level in range(0, 200, 4):  # 5 seconds
            image = np.full((360, 640, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    inputs = reader.inputs([path], [VIDEO_PROMPT])
    visual = (inputs["input_ids"] == reader.model.config.video_token_id).sum().item()
    assert 0 < visual <= 5 * 9  # 10 frames make 5 time steps
    assert torch.isfinite(reader.states([path], [VIDEO_PROMPT])).all()


def test_greedy_tags_are_mostly_right(reader, written):
    part = written[:20]
    instruction = "\n" + TAG_INSTRUCTIONS[0].format(kind="video")
    answers = reader.answer([path for path, _ in part], [instruction] * len(part))
    right = sum(
        a == b
        for answer, (_, r) in zip(answers, part, strict=True)
        for a, b in zip(answer.split(), r.tags.split(), strict=False)
    )
    total = sum(len(record.tags.split()) for _, record in part)
    assert right / total > 0.9
    colours = [answer.split()[0] == record.scene.colour for answer, (_, record) in zip(answers, part, strict=True)]
    assert sum(colours) >= 18


def test_right_sentences_score_above_wrong_ones(reader, written):
    paths = [path for path, _ in written]
    right = reader.p_yes(paths, [record.right for _, record in written])
    wrong = reader.p_yes(paths, [record.wrong for _, record in written])
    assert (right > wrong).float().mean() > 0.7  # wrong ones differ in one attribute; chance 0.5
    assert ((right >= 0) & (right <= 1)).all()


def test_a_checkpoint_is_measured_on_validation_clips_from_files():
    figures = evaluate(CHECKPOINT, clips=8, layer_clips=8, split="train", seed=VALIDATION_SEED)
    assert (figures["split"], figures["seed"], figures["clips"]) == ("train", VALIDATION_SEED, 8)
    assert 1 < figures["best_layer"] <= figures["final_layer"] == 10
    assert figures["layers"][figures["best_layer"] - 1]["t2v"]["R@5"] >= 80
    answers = figures["abilities"]["answers"]
    assert answers["Summarize above video in a few words:"]["attributes"] >= 0.9
    assert answers["Describe above video in detail:"]["attributes"] >= 0.7
    assert figures["abilities"]["match"]["claim"]["true"] >= 0.75
