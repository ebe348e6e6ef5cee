"""The sentence-transformers evaluator, on the bundled model, plain models and matrices written by hand."""

from __future__ import annotations

import csv
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

import vidembed.evaluation.evaluator as module
from tests.clips import moving_square
from vidembed import VideoEncoder, VideoError, VideoFrames, load_video, model_path
from vidembed.evaluation import ranks
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.evaluator import VideoTextRetrievalEvaluator
from vidembed.scoring import dual_softmax
from vidembed.shapes import write_clips


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str], list[str]]:
    written = write_clips(tmp_path_factory.mktemp("clips"), 8, "test", 5)
    return [path for path, _ in written], [one.caption for _, one in written], [one.summary for _, one in written]


def evaluator(videos: int, captions: list[Any], **kwargs: Any) -> VideoTextRetrievalEvaluator:
    return VideoTextRetrievalEvaluator([f"{place}.mp4" for place in range(videos)], captions, **kwargs)


class TestMeasure:
    def test_by_hand(self) -> None:
        scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.4, 0.2]])
        found = evaluator(3, ["a", "b", "c"], ks=(2, 1)).measure(scores)
        # rows: ranks 1, 2, 3; columns: 1, 1, and 2 of a tie that counts against
        assert found == pytest.approx(
            {
                "t2v_R@1": 100 / 3, "t2v_R@2": 200 / 3, "t2v_MdR": 2.0, "t2v_MnR": 2.0,
                "v2t_R@1": 200 / 3, "v2t_R@2": 100.0, "v2t_MdR": 1.0, "v2t_MnR": 4 / 3,
            }
        )  # fmt: skip

    def test_a_model_that_tells_nothing_apart_is_last(self) -> None:
        found = evaluator(4, list("abcd")).measure(np.full((4, 4), 0.5))
        assert (found["t2v_R@1"], found["t2v_MnR"], found["v2t_MdR"]) == (0.0, 4.0, 4.0)

    def test_several_captions_of_a_video(self) -> None:
        scores = np.array([[0.9, 0.5], [0.4, 0.6], [0.2, 0.8]])  # a, b of the first video, c of the second
        found = evaluator(2, [["a", "b"], ["c"]]).measure(scores)
        assert found["t2v_R@1"] == pytest.approx(200 / 3)
        assert found["v2t_R@1"] == 100.0  # by its better caption

    def test_a_caption_of_two_videos_is_right_for_both(self) -> None:
        scores = np.array([[0.2, 0.9, 0.1], [0.9, 0.2, 0.1], [0.3, 0.3, 0.4]])
        assert evaluator(3, ["same", "same", "c"]).measure(scores)["t2v_R@1"] == 100.0
        assert evaluator(3, ["a", "b", "c"]).measure(scores)["t2v_R@1"] == pytest.approx(100 / 3)

    def test_dual_softmax(self) -> None:
        rng = np.random.default_rng(0)
        scores = rng.uniform(0.1, 0.5, (20, 20)) + 0.2 * np.eye(20) + rng.uniform(0.0, 0.5, 20)  # some suit all queries
        found = evaluator(20, [str(place) for place in range(20)], temperature=0.05).measure(scores)
        for way, matrix in (("t2v", scores), ("v2t", scores.T)):
            places = ranks(dual_softmax(matrix, temperature=0.05), np.arange(20))
            assert found[f"{way}_dual_softmax_R@1"] == pytest.approx(100 * (places == 1).mean())
            assert found[f"{way}_dual_softmax_MnR"] == pytest.approx(places.mean())
            assert found[f"{way}_MnR"] == pytest.approx(ranks(matrix, np.arange(20)).mean())
        assert found["t2v_dual_softmax_MnR"] < found["t2v_MnR"]

    @settings(max_examples=25)
    @given(st.data())
    def test_order_of_the_videos_does_not_matter(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 7))
        scores = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5]), min_size=count**2, max_size=count**2)))
        scores = scores.reshape(count, count)
        order = data.draw(st.permutations(range(count)))
        captions = [str(place % 3) for place in range(count)]  # some stand at several
        wanted = evaluator(count, captions).measure(scores)
        got = evaluator(count, [captions[place] for place in order]).measure(scores[order][:, order])
        assert got == pytest.approx(wanted)

    def test_not_a_number_is_no_figure(self) -> None:
        with pytest.raises(ValueError, match="scores"):
            evaluator(2, ["a", "b"]).measure(np.array([[0.1, np.nan], [0.2, 0.3]]))


class TestCall:
    def test_a_video_encoder(self, encoder: VideoEncoder, clips: tuple[list[Path], list[str], list[str]]) -> None:
        videos, captions, summaries = clips
        measure = VideoTextRetrievalEvaluator(videos, captions, name="shapes")
        found = measure(encoder)
        assert found[measure.primary_metric] == found["shapes_t2v_R@1"] == 100.0  # the model can do this
        scores = measure.similarity(encoder)
        direct = encoder.encode_query(captions) @ encoder.encode_document(videos).T  # (T, V)
        assert np.abs(scores - direct).max() < 1e-5
        swapped = VideoTextRetrievalEvaluator(videos, captions[::-1])(encoder)
        assert swapped["t2v_R@1"] == 0.0
        both = VideoTextRetrievalEvaluator(videos, list(zip(captions, summaries, strict=True)), batch_size=3)
        assert len(both.texts) == 16
        assert both(encoder)["v2t_R@1"] == 100.0
        assert VideoTextRetrievalEvaluator(videos, captions, truncate_dim=2)(encoder)["t2v_MnR"] > 1.0

    def test_any_input_of_the_encoder(self, encoder: VideoEncoder, tmp_path: Path) -> None:
        (path, record) = write_clips(tmp_path / "one", 1, "test", 6)[0]
        bare = tmp_path / "a video without suffix"
        bare.write_bytes(path.read_bytes())
        frames = VideoFrames(moving_square(8), fps=2.0)
        videos = [str(bare), frames, path.read_bytes(), {"array": frames.array, "video_metadata": {"fps": 2.0}}]
        scores = VideoTextRetrievalEvaluator(videos, [record.caption, "b", "c.mp4", "d"]).similarity(encoder)
        assert scores[:, 0] == pytest.approx(scores[:, 2], abs=1e-5)
        assert scores[:, 1] == pytest.approx(scores[:, 3], abs=1e-5)

    def test_a_benchmark(self, encoder: VideoEncoder, clips: tuple[list[Path], list[str], list[str]]) -> None:
        videos, captions, _ = clips
        benchmark = Benchmark(
            "b", "B", "test", "p", "s", tuple("ab"), tuple(videos[:2]), (*captions[:2], captions[0]), ((0,), (1,), (0,))
        )
        measure = VideoTextRetrievalEvaluator(benchmark)
        assert measure.texts == [captions[0], captions[1], captions[0]]
        assert measure(encoder)["t2v_R@1"] == 100.0
        with pytest.raises(ValueError, match="a Benchmark has its own"):
            VideoTextRetrievalEvaluator(benchmark, captions)

    @pytest.mark.usefixtures("stock")
    def test_a_plain_sentence_transformer(
        self,
        encoder: VideoEncoder,
        clips: tuple[list[Path], list[str], list[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        videos, captions, _ = clips
        plain = SentenceTransformer(str(model_path("shapes")), device="cpu")
        plain[0].processing_kwargs = {"video": {"do_sample_frames": False}}
        loaded = [load_video(video, encoder.sampling) for video in videos]
        frames = [
            {"array": torch.from_numpy(clip.frames).permute(0, 3, 1, 2), "video_metadata": clip.metadata()}
            for clip in loaded
        ]
        wanted = VideoTextRetrievalEvaluator(videos, captions).similarity(encoder)
        assert np.abs(VideoTextRetrievalEvaluator(frames, captions).similarity(plain) - wanted).max() < 1e-5
        given: list[Any] = []
        monkeypatch.setattr(plain, "encode_document", lambda inputs, **_: given.extend(inputs) or torch.ones(1, 128))
        VideoTextRetrievalEvaluator(videos[:1], captions[:1]).similarity(plain)
        assert given == [{"video": str(videos[0])}]  # it takes no Path

    def test_csv_as_sentence_transformers_write_it(
        self, encoder: VideoEncoder, clips: tuple[list[Path], list[str], list[str]], tmp_path: Path
    ) -> None:
        videos, captions, _ = clips
        measure = VideoTextRetrievalEvaluator(videos[:3], captions[:3], name="few", ks=(1, 2))
        found = encoder.evaluate(measure, str(tmp_path / "new"))
        assert isinstance(found, dict)
        measure(encoder, str(tmp_path / "new"), epoch=0.5, steps=3)
        file = tmp_path / "new" / "Video-Text-Retrieval_evaluation_few_results.csv"
        rows = list(csv.DictReader(file.open()))
        assert [(row["epoch"], row["steps"]) for row in rows] == [("-1", "-1"), ("0.5", "3")]
        assert {f"few_{key}": float(value) for key, value in list(rows[0].items())[2:]} == found
        with pytest.raises(ValueError, match=r"t2v_R@3.*Give another folder"):
            VideoTextRetrievalEvaluator(videos[:3], captions[:3], name="few", ks=(3,))(encoder, str(tmp_path / "new"))
        VideoTextRetrievalEvaluator(videos[:1], captions[:1], write_csv=False)(encoder, str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()

    def test_while_training(self, clips: tuple[list[Path], list[str], list[str]], tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        datasets = pytest.importorskip("datasets")
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        videos, captions, summaries = clips
        model = VideoEncoder("vidembed/shapes", device="cpu")
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no",
                per_device_train_batch_size=4, report_to="none", use_cpu=True,
            ),
            train_dataset=datasets.Dataset.from_dict({"anchor": captions, "positive": summaries}),
            loss=MultipleNegativesRankingLoss(model),
            evaluator=VideoTextRetrievalEvaluator(videos[:3], captions[:3], name="held"),
        )  # fmt: skip
        trainer.train()
        logged = [entry["eval_held_t2v_R@1"] for entry in trainer.state.log_history if "eval_held_t2v_R@1" in entry]
        assert logged == [100.0, 100.0]
        (file,) = tmp_path.rglob("*.csv")
        assert [row["steps"] for row in csv.DictReader(file.open())] == ["1", "2"]
        model.save(str(tmp_path / "model"))
        assert "t2v_R@10" in (tmp_path / "model" / "README.md").read_text()


class TestRefuses:
    def test_a_model_without_video(self, tmp_path: Path) -> None:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        encoder = VideoEncoder("vidembed/shapes", device="cpu")
        texts_only = SentenceTransformer(modules=[StaticEmbedding(encoder.tokenizer, embedding_dim=8)], device="cpu")
        measure = evaluator(1, ["a"])
        with pytest.raises(ValueError, match=r"SentenceTransformer takes text; expected a VideoEncoder"):
            measure(texts_only, str(tmp_path))
        with pytest.raises(ValueError, match="this object has no modalities"):
            measure(object())
        assert not any(tmp_path.iterdir())

    def test_a_vector_that_is_not_finite(
        self, encoder: VideoEncoder, clips: tuple[list[Path], list[str], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vectors = torch.ones(3, 4)
        vectors[1, 2] = float("nan")
        monkeypatch.setattr(encoder, "encode_document", lambda inputs, **_: vectors)
        with pytest.raises(ValueError, match=r"videos\[1\]: the model gave"):
            VideoTextRetrievalEvaluator(clips[0][:3], clips[1][:3])(encoder)

    def test_a_video_that_is_not_there(self, encoder: VideoEncoder, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match="nowhere"):
            VideoTextRetrievalEvaluator([tmp_path / "nowhere"], ["a"])(encoder)

    @pytest.mark.parametrize(
        ("videos", "captions", "kwargs", "match"),
        [
            ([], [], {}, "videos: empty"),
            (["a.mp4", "b.mp4"], ["a"], {}, r"captions: got 1 for 2 videos"),
            (["a.mp4"], None, {}, "captions: missing"),
            (["a.mp4", "b.mp4"], ["a", " "], {}, r"captions\[1\]=' '"),
            (["a.mp4"], [[]], {}, r"captions\[0\]=\[\]"),
            (["a.mp4"], [[1]], {}, r"captions\[0\]=\[1\]"),
            (["a.mp4", Path("a.mp4")], ["a", "b"], {}, r"videos\[1\] is videos\[0\] again: a.mp4"),
            (["a.mp4"], ["a"], {"ks": ()}, r"ks=\(\)"),
            (["a.mp4"], ["a"], {"ks": (0, 1)}, r"ks=\(0, 1\)"),
            (["a.mp4"], ["a"], {"batch_size": 0}, "batch_size=0"),
            (["a.mp4"], ["a"], {"temperature": 0.0}, "temperature"),
            (["a.mp4"], ["a"], {"name": "../x"}, "name='../x'"),
        ],
    )
    def test_bad_arguments(self, videos: Any, captions: Any, kwargs: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            VideoTextRetrievalEvaluator(videos, captions, **kwargs)

    def test_one_in_place_of_a_list(self) -> None:
        with pytest.raises(TypeError, match="videos: got one str"):
            VideoTextRetrievalEvaluator("a.mp4", ["a"])
        with pytest.raises(TypeError, match="captions: got one string"):
            VideoTextRetrievalEvaluator(["a.mp4"], "a")


def test_docstring_example() -> None:
    assert doctest.testmod(module).attempted == 2
    assert doctest.testmod(module).failed == 0
