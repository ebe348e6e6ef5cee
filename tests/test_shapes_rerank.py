"""The bundled reranker: by name, by path without vidembed, and better than chance at what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

import vidembed
from tests.fixtures import without_vidembed
from vidembed import VideoEncoder, VideoReranker
from vidembed.errors import BackboneError
from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.shapes import CHECKPOINT, ClipRecord, write_clips


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, ClipRecord]]:
    return write_clips(tmp_path_factory.mktemp("clips"), 24, "test", 11)


@pytest.fixture(scope="module")
def reranker() -> VideoReranker:
    return VideoReranker("vidembed/shapes-rerank", device="cpu")


def test_by_its_name_in_the_host() -> None:
    found = CrossEncoder("vidembed/shapes-rerank", device="cpu")
    assert [type(module).__name__ for module in found] == ["Transformer", "LogitScore"]
    assert "vidembed/shapes-rerank" in vidembed.model_names()


def test_an_embedder_is_no_reranker() -> None:
    with pytest.raises(BackboneError, match=r"SentenceTransformer checkpoint.*Load it as VideoEncoder"):
        VideoReranker("vidembed/shapes", device="cpu")


def test_the_same_head_as_the_mllm(reranker: VideoReranker, written: list[tuple[Path, ClipRecord]]) -> None:
    pairs = [(record.right, path) for path, record in written[:3]]
    assert reranker.calibration is not None
    assert reranker.fusion is not None
    assert reranker.source == "vidembed/shapes-mllm"
    own, mllm = reranker.answers(pairs), VideoReranker(CHECKPOINT, device="cpu").answers(pairs)
    assert np.abs(own.yes - mllm.yes).max() <= 1e-5


def test_stock_sentence_transformers_needs_no_vidembed(
    reranker: VideoReranker, written: list[tuple[Path, ClipRecord]]
) -> None:
    path, record = written[0]
    clip = vidembed.load_video(path)
    frames = torch.from_numpy(clip.frames.transpose(0, 3, 1, 2).copy())  # (T, C, H, W)
    video = {"array": frames, "video_metadata": dict(clip.metadata())}
    folder = str(vidembed.model_path("shapes-rerank"))
    with without_vidembed():
        model = CrossEncoder(folder, device="cpu")
        features = model.preprocess(
            [{"text": record.right, "video": video}], processing_kwargs={"video": {"do_sample_frames": False}}
        )
        stock = model(features)["scores"].detach().numpy().ravel()
    assert type(model) is CrossEncoder
    wanted = reranker.answers([(record.right, path)]).yes_no
    assert np.abs(stock - wanted).max() <= 1e-4


def test_fusion_raises_recall_of_short_queries(reranker: VideoReranker, written: list[tuple[Path, ClipRecord]]) -> None:
    paths, records = [path for path, _ in written], [record for _, record in written]
    texts = list(dict.fromkeys(record.summary for record in records))
    told = [[text == record.summary for record in records] for text in texts]
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    first = encoder.encode([{"text": text} for text in texts]).astype(float) @ encoder.encode(paths).astype(float).T
    second = np.zeros_like(first)
    for row, text in enumerate(texts):
        for entry in reranker.rank({"text": text}, paths, first_stage=first[row]):
            second[row, entry["corpus_id"]] = entry["score"]
    positives = np.array(told)
    before, after = (recall_at(ranks(scores, positives), 1) for scores in (first, second))
    assert after >= before + 0.1
