"""Checkpoints at mteb: real tasks of its classes, on drawn clips, through its own evaluation."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="mteb is not installed: pip install vidembed[mteb]")

import datasets
import mteb
import mteb.mocks.mock_tasks as mocks
from mteb.models.modality_collators import frame_indices
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tests.clips import moving_square, write_video
from tests.evaluation.mteb_tasks import (
    ClipRetrieval,
    ClipsT2V,
    ClipsV2T,
    HubRetrieval,
    Pairs,
    StandInDecoder,
    decode_by_pyav,
    has_torchcodec,
)
from vidembed import VideoEncoder, VideoError, VideoFrames, load_video, model_path
from vidembed.errors import MissingExtraError
from vidembed.evaluation.evaluator import VideoTextRetrievalEvaluator
from vidembed.evaluation.mteb import (
    VideoFileEncoder,
    load_encoder,
    model_meta,
    run_tasks,
)
from vidembed.shapes import write_clips

MODEL = "vidembed/shapes"
DIRECTIONS = [ClipsT2V, ClipsV2T]


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder(MODEL, device="cpu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Ten clips with their short sentences, which do not tell all of them apart."""
    return [(path, one.summary) for path, one in write_clips(tmp_path_factory.mktemp("clips"), 10, "test", 1)]


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames for mteb's own wrapper, by torchcodec where it works and by PyAV elsewhere."""
    if not has_torchcodec():
        monkeypatch.setattr(datasets.Video, "decode_example", decode_by_pyav)


def evaluated(model: Any, task: ClipRetrieval, folder: Path) -> tuple[dict[str, float], np.ndarray]:
    """mteb's scores, and the similarities that it ranked, (Q, N)."""
    how: dict[str, Any] = {"batch_size": 4, "show_progress_bar": False}
    result = mteb.evaluate(
        model, task, cache=None, co2_tracker=False, encode_kwargs=how, prediction_folder=folder, show_progress_bar=False
    )
    ids = [f"id{place}" for place in range(len(task.pairs))]
    found = json.loads(next(folder.rglob(f"*{task.metadata.name}*")).read_text())["default"]["test"]
    return result.task_results[0].scores["test"][0], np.array([[found[row][column] for column in ids] for row in ids])


class TestFiles:
    @pytest.mark.parametrize("as_bytes", [False, True])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_scores_are_those_of_the_encoder(
        self, encoder: VideoEncoder, pairs: Pairs, tmp_path: Path, direction: type[ClipRetrieval], as_bytes: bool
    ) -> None:
        way = direction.metadata.category
        ours = VideoTextRetrievalEvaluator([path for path, _ in pairs], [text for _, text in pairs], batch_size=3)
        similarity = ours.similarity(encoder)  # (T, V)
        measured = ours.measure(similarity)
        assert 0 < measured[f"{way}_R@1"] < 100  # else there is nothing to compare
        wrapper = load_encoder(MODEL, device="cpu")
        assert type(wrapper) is VideoFileEncoder
        scores, ranked = evaluated(wrapper, direction.of(pairs, as_bytes=as_bytes), tmp_path)
        assert np.abs(ranked - (similarity if way == "t2v" else similarity.T)).max() < 1e-5
        for k in (1, 5, 10):
            assert 100 * scores[f"hit_rate_at_{k}"] == pytest.approx(measured[f"{way}_R@{k}"], abs=1e-3)

    @pytest.mark.parametrize(
        "name", [name for name in dir(mocks) if name.startswith("MockVideo") and "Audio" not in name]
    )
    def test_every_kind_of_task_that_has_video(self, name: str) -> None:
        found = mteb.evaluate(
            load_encoder(MODEL, device="cpu"), getattr(mocks, name)(), cache=None, co2_tracker=False,
            encode_kwargs={"batch_size": 4}, show_progress_bar=False,
        )  # fmt: skip
        assert 0 <= found.task_results[0].get_score() <= 1

    def test_words_that_look_like_a_file_are_words(self, encoder: VideoEncoder, pairs: Pairs, tmp_path: Path) -> None:
        task = ClipsT2V.of([(pairs[0][0], "clip.mp4"), pairs[1]])
        _, ranked = evaluated(load_encoder(MODEL, device="cpu"), task, tmp_path)
        vector = encoder.encode_query({"text": "clip.mp4"})
        assert ranked[0, 0] == pytest.approx(float(vector @ encoder.encode_document(pairs[0][0])), abs=1e-5)

    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_a_broken_video_is_named(self, pairs: Pairs, tmp_path: Path, as_bytes: bool) -> None:
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no video" * 100)
        task = ClipsT2V.of([*pairs[:5], (broken, "x")], as_bytes=as_bytes)
        with pytest.raises(VideoError, match=r"broken\.mp4 of row 'id5'" if as_bytes else r"broken\.mp4"):
            evaluated(load_encoder(MODEL, device="cpu"), task, tmp_path)
        if not as_bytes:
            broken.unlink()
            with pytest.raises(VideoError, match=r"broken\.mp4 of row 'id5': not a file"):
                evaluated(load_encoder(MODEL, device="cpu"), ClipsT2V.of([*pairs[:5], (broken, "x")]), tmp_path)

    def test_a_row_without_anything_is_named(self) -> None:
        wrapper = load_encoder(MODEL, device="cpu")
        rows = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["x", None]})

        class Loader:
            dataset = rows

        with pytest.raises(ValueError, match=r"row 'b' has none of text, image, video; its columns are id, text"):
            wrapper.encode(Loader(), task_metadata=ClipsT2V.metadata, hf_split="test", hf_subset="default")  # type: ignore[arg-type]


@pytest.mark.usefixtures("decoders")
class TestOwnWrapper:
    """mteb's own wrapper, as it is."""

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_scores_are_those_of_the_encoder_on_the_same_frames(
        self, encoder: VideoEncoder, pairs: Pairs, tmp_path: Path, direction: type[ClipRetrieval]
    ) -> None:
        wrapper = load_encoder(MODEL, device="cpu", frames="mteb")
        assert type(wrapper) is SentenceTransformerEncoderWrapper
        _, ranked = evaluated(wrapper, direction.of(pairs), tmp_path)
        frames = []
        for path, _ in pairs:
            decoder = StandInDecoder(str(path))
            chosen = frame_indices(decoder.metadata.num_frames, int(decoder.metadata.end_stream_seconds * 2.0))
            frames.append(VideoFrames(decoder.frames[chosen], fps=2.0))
        similarity = encoder.encode_query([text for _, text in pairs]) @ encoder.encode_document(frames).T  # (T, V)
        wanted = similarity if direction.metadata.category == "t2v" else similarity.T
        assert np.abs(ranked - wanted).max() < 1e-4

    def test_which_frames_differ(self, pairs: Pairs) -> None:
        clip = load_video(pairs[0][0])  # 4 s at 8 frames per second
        assert clip.frames_indices.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
        assert frame_indices(32, 8) == [0, 4, 9, 13, 18, 22, 27, 31]

    def test_vectors_are_the_same_where_the_frames_are(self, encoder: VideoEncoder, tmp_path: Path) -> None:
        """A video at the rate of the grid: both take every frame."""
        videos = [write_video(tmp_path / f"{seed}.mp4", moving_square(8, seed=seed), fps=2) for seed in range(3)]
        task = ClipsT2V.of([(path, f"text {place}") for place, path in enumerate(videos)])
        _, ranked = evaluated(load_encoder(MODEL, device="cpu", frames="mteb"), task, tmp_path)
        wanted = encoder.encode_query([text for _, text in task.pairs]) @ encoder.encode_document(videos).T
        assert np.abs(ranked - wanted).max() < 1e-4

    def test_warns_of_a_video_past_the_limit(
        self, tmp_path: Path, pairs: Pairs, caplog: pytest.LogCaptureFixture
    ) -> None:
        wrapper = load_encoder(MODEL, device="cpu", frames="mteb")
        wrapper.max_frames = 4
        wrapper.model.sampling = type(wrapper.model.sampling)(fps=2.0, max_frames=4)
        with caplog.at_level(logging.WARNING, logger="vidembed"):
            evaluated(wrapper, ClipsT2V.of(pairs[:2]), tmp_path)
        assert "mteb sampled 4 frames, the most allowed" in caplog.text

    def test_a_bare_sentence_transformer_is_not_admitted(self, pairs: Pairs) -> None:
        """Why there is `load_encoder`: mteb takes a SentenceTransformer for a model of text."""
        with pytest.raises(ValueError, match=r"\['text'\], but none overlap"):
            mteb.evaluate(SentenceTransformer(MODEL, device="cpu"), ClipsT2V.of(pairs), cache=None)


class TestModelMeta:
    def test_what_the_checkpoint_tells(self, encoder: VideoEncoder) -> None:
        meta = model_meta(encoder, MODEL, license="apache-2.0", languages=["eng-Latn"])
        assert meta.loader is load_encoder
        assert (meta.name, meta.revision, meta.license) == (MODEL, encoder.fingerprint, "apache-2.0")
        stored = load_file(model_path(MODEL) / "model.safetensors")
        count = sum(value.numel() for value in stored.values())
        assert (meta.n_parameters, meta.embed_dim, meta.max_tokens) == (count, 128, 4096)
        assert meta.n_embedding_parameters == 681 * 128
        assert meta.memory_usage_mb == round(count * 4 / 2**20)
        assert meta.similarity_fn_name == "cosine"
        assert meta.modalities == ["text", "image", "video"]
        assert (meta.use_instructions, meta.adapted_from) == (False, None)
        unknown = ("release_date", "open_weights", "public_training_code", "training_datasets", "reference", "citation")
        assert [getattr(meta, field) for field in unknown] == [None] * len(unknown)
        assert "name='vidembed/shapes'" in meta.to_python()
        assert model_meta(encoder, MODEL, frames="mteb").experiment_name == "frames_mteb"

    def test_facts_are_not_made_up(self, encoder: VideoEncoder) -> None:
        with pytest.raises(ValueError, match="embed_dim=7: the checkpoint sets this itself"):
            model_meta(encoder, MODEL, embed_dim=7)
        with pytest.raises(ValueError, match=r"licence='x': mteb\.ModelMeta has no such field"):
            model_meta(encoder, MODEL, licence="x")
        with pytest.raises(ValueError, match="organization/model_name"):
            model_meta(encoder, "shapes")

    def test_a_local_checkpoint_is_known_by_its_fingerprint(self, encoder: VideoEncoder) -> None:
        folder = str(model_path(MODEL))
        meta = load_encoder("local/mine", encoder.fingerprint, "cpu", checkpoint=folder).mteb_model_meta
        assert (meta.name, meta.revision) == ("local/mine", encoder.fingerprint)
        assert meta.loader.keywords == {"checkpoint": folder}  # type: ignore[union-attr]
        assert folder not in json.dumps(meta.to_dict())
        with pytest.raises(ValueError, match=r"revision='abc': .* has the fingerprint"):
            load_encoder(MODEL, "abc", "cpu")
        with pytest.raises(ValueError, match="frames='all': expected one of 'file', 'mteb'"):
            load_encoder(MODEL, frames="all")  # type: ignore[arg-type]
        for size in (0, 129):
            with pytest.raises(ValueError, match=f"embed_dim={size}: expected 1 to 128"):
                load_encoder(MODEL, embed_dim=size, device="cpu")
        with pytest.raises(OSError, match="no model named 'vidembed/nope'"):
            load_encoder("vidembed/nope")

    def test_truncated_vectors_are_kept_apart(self, encoder: VideoEncoder, pairs: Pairs, tmp_path: Path) -> None:
        wrapper = load_encoder(MODEL, encoder.fingerprint, "cpu", embed_dim=16)
        meta = wrapper.mteb_model_meta
        assert (meta.embed_dim, meta.revision, meta.experiment_name) == (16, encoder.fingerprint, "embed_dim_16")
        _, ranked = evaluated(wrapper, ClipsT2V.of(pairs[:3]), tmp_path)
        ours = VideoTextRetrievalEvaluator(
            [path for path, _ in pairs[:3]], [text for _, text in pairs[:3]], truncate_dim=16
        )
        assert np.abs(ranked - ours.similarity(encoder)).max() < 1e-5

    def test_mteb_loads_by_it(self, encoder: VideoEncoder) -> None:
        try:
            importlib.metadata.version("torchcodec")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("torchcodec is not installed, without which mteb loads no model that has video")
        loaded = model_meta(encoder, MODEL).load_model(device="cpu")
        assert type(loaded) is VideoFileEncoder
        assert loaded.mteb_model_meta.modalities == ["text", "image", "video"]


class TestRunTasks:
    def test_results_are_files_of_mteb_and_are_kept(self, pairs: Pairs, tmp_path: Path) -> None:
        tasks = [ClipsT2V.of(pairs[:4]), ClipsV2T.of(pairs[:4])]
        runs = run_tasks(MODEL, tasks, out=tmp_path, device="cpu", show_progress_bar=False)
        assert [(run.name, run.metric, run.kept) for run in runs] == [
            ("ClipsT2V", "ndcg_at_10", False),
            ("ClipsV2T", "ndcg_at_10", False),
        ]
        for run in runs:
            assert run.file.parent.parent == tmp_path / "results" / "vidembed__shapes"
            assert mteb.results.TaskResult.from_disk(run.file).get_score() == run.score > 0
        before = runs[0].file.read_bytes()
        (again,) = run_tasks(MODEL, tasks[:1], out=tmp_path, device="cpu", show_progress_bar=False)
        assert again.kept
        assert again.score == runs[0].score
        assert again.file.read_bytes() == before

    def test_a_folder(self, pairs: Pairs, tmp_path: Path) -> None:
        task = ClipsT2V.of(pairs[:2])
        (run,) = run_tasks(model_path(MODEL), [task], out=tmp_path, device="cpu", show_progress_bar=False)
        assert run.file.parts[-3] == "local__embedder"
        for file in tmp_path.rglob("*.json"):
            assert str(model_path(MODEL)) not in file.read_text()

    def test_data_that_cannot_be_had(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"NowhereT2V: its data, vidembed/no-such-dataset, could not be loaded"):
            run_tasks(MODEL, [HubRetrieval()], out=tmp_path, device="cpu")
        assert not list(tmp_path.rglob("*.json"))

    def test_what_cannot_be_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"tasks: 'MSRVTTT2W' not found\. Did you mean: 'MSRVTTT2V'"):
            run_tasks(MODEL, ["MSRVTTT2W"], out=tmp_path)
        with pytest.raises(ValueError, match=r"benchmark: .*available-benchmarks"):
            run_tasks(MODEL, benchmark="nope", out=tmp_path)
        with pytest.raises(ValueError, match="got none"):
            run_tasks(MODEL, out=tmp_path)
        with pytest.raises(TypeError, match="expected a list of tasks"):
            run_tasks(MODEL, "MSRVTTT2V", out=tmp_path)
        with pytest.raises(
            ValueError, match="MSRVTTVA2T needs audio, video, text, and the model does not accept audio"
        ):
            run_tasks(MODEL, [HubRetrieval(), mteb.get_task("MSRVTTVA2T")], out=tmp_path, device="cpu")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match="torchcodec"):
            run_tasks(MODEL, ["MSRVTTT2V"], out=tmp_path, frames="mteb")

    def test_the_benchmark_of_text_and_video_takes_the_model(self, encoder: VideoEncoder) -> None:
        tasks = mteb.get_benchmark("MVEB(text, video, v1)").tasks
        assert len(tasks) > 10
        for task in tasks:
            assert set(task.metadata.modalities) <= set(model_meta(encoder, MODEL).modalities)


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "vidembed.evaluation.mteb")
    with pytest.raises(MissingExtraError, match=r'mteb is not installed; pip install "vidembed\[mteb\]"'):
        importlib.import_module("vidembed.evaluation.mteb")
