"""Names under ``vidembed/``, the hook that host libraries find them by, and an import that takes no torch."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoTokenizer

from tests.cli.conftest import vidembed
from vidembed import VideoEncoder, VideoReranker, build
from vidembed import registry as hook
from vidembed import registry as models
from vidembed.analysis.layers import check_mllm as analyze_layers_of
from vidembed.errors import BackboneError, LayerChosen
from vidembed.shapes import ClipRecord, write_clips


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path))
    return tmp_path / "models"


def test_unknown_name(store: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model named 'nope'.*vidembed build"):
        models.model_path("nope")


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".hidden", "", "a" * 97, "x\n", "vidembed/../y"])
def test_names_cannot_leave_the_store(store: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not valid"):
        models.model_path(name)
    with pytest.raises(ValueError, match="not valid"):
        models.resolve_model(f"vidembed/{name}")


def test_other_names_are_untouched(store: Path) -> None:
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "/some/dir", "vidembed", "avidembed/x"):
        assert models.resolve_model(name) == name


def test_a_real_folder_of_that_name_wins(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vidembed" / "shapes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert models.resolve_model("vidembed/shapes") == "vidembed/shapes"


def test_hook_is_reversible(store: Path, tiny_mllm: Callable[[str], Path]) -> None:
    build(tiny_mllm("qwen2_vl"), layer=2, name="mine")
    assert SentenceTransformer("vidembed/mine", device="cpu").get_embedding_dimension()
    hook.remove()
    try:
        with pytest.raises(Exception, match=r"vidembed/mine|offline|Hub"):
            SentenceTransformer("vidembed/mine", device="cpu")
    finally:
        hook.install()
    hook.install()  # twice is once
    assert SentenceTransformer("vidembed/mine", device="cpu").get_embedding_dimension()


def test_what_is_of_another_maker_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models.model_path("shapes"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(str(tmp_path))
    assert type(SentenceTransformer(str(tmp_path), device="cpu")) is SentenceTransformer


class TestNamesThatAreNotThere:
    """They are an error that lists the names there are, in every class and tool; no hub is asked for them."""

    OPENERS: tuple[Callable[[str], Any], ...] = (
        SentenceTransformer,
        CrossEncoder,
        VideoEncoder,
        VideoReranker,
        analyze_layers_of,
        type("Derived", (SentenceTransformer,), {}),
    )

    @pytest.fixture(autouse=True)
    def no_hub(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        asked: list[str] = []

        def ask(name: str, *args: Any, **kwargs: Any) -> None:
            asked.append(name)
            raise OSError(f"hub: {name}")

        monkeypatch.setattr("sentence_transformers.base.model.load_file_path", ask)
        monkeypatch.setattr("sentence_transformers.base.model._resolve_model_revision", ask)
        return asked

    @pytest.mark.parametrize("opener", OPENERS)
    def test_is_an_error(self, store: Path, no_hub: list[str], opener: Callable[[str], Any]) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"no model named 'vidembed/shape'.*Did you mean 'vidembed/shapes'\?.*hf://vidembed"
        ):
            opener("vidembed/shape")
        assert no_hub == []

    @pytest.mark.parametrize("opener", [SentenceTransformer, CrossEncoder, VideoEncoder, VideoReranker])
    def test_the_hub_is_asked_when_told(self, no_hub: list[str], opener: Callable[[str], Any]) -> None:
        with pytest.raises(OSError, match="hub: vidembed/shape"):
            opener("hf://vidembed/shape")
        assert no_hub == ["vidembed/shape"]

    def test_on_the_command_line(self, store: Path, no_hub: list[str], tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"x")
        done = vidembed("index", tmp_path, "--to", tmp_path / "i", "--model", "vidembed/shape")
        assert done.exit_code == 2
        assert "Did you mean 'vidembed/shapes'?" in " ".join(done.stderr.split())
        assert no_hub == []


class TestKinds:
    """A checkpoint of one kind is not opened as another."""

    @pytest.fixture(scope="class")
    def folders(self, tiny_mllm: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("kinds")
        encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=2, device="cpu")
        encoder.save_pretrained(str(folder / "encoder"))
        encoder.reranker().save_pretrained(str(folder / "reranker"))
        return {"encoder": folder / "encoder", "reranker": folder / "reranker"}

    @pytest.mark.parametrize("opener", [SentenceTransformer, VideoEncoder])
    @pytest.mark.parametrize("where", ["vidembed/shapes-rerank", "folder", "store"])
    def test_a_reranker_is_no_encoder(
        self,
        opener: Callable[[str], Any],
        where: str,
        folders: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = placed(where, folders["reranker"], tmp_path, monkeypatch)
        with pytest.raises(BackboneError, match=r"is a CrossEncoder checkpoint.*Load it as VideoReranker"):
            opener(name)

    @pytest.mark.parametrize("opener", [CrossEncoder, VideoReranker])
    @pytest.mark.parametrize("where", ["vidembed/shapes", "folder", "store"])
    def test_an_encoder_is_no_reranker(
        self,
        opener: Callable[[str], Any],
        where: str,
        folders: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = placed(where, folders["encoder"], tmp_path, monkeypatch)
        with pytest.raises(BackboneError, match=r"is a SentenceTransformer checkpoint.*Load it as VideoEncoder"):
            opener(name)

    @pytest.mark.parametrize("opener", [SentenceTransformer, VideoEncoder])
    def test_layer_of_an_mllm_is_the_default(self, opener: Callable[[str], Any]) -> None:
        with pytest.warns(LayerChosen, match="block 9 of 10"):
            assert opener("vidembed/shapes-mllm").layer == 9


def placed(where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if where == "store":
        monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path))
        shutil.copytree(folder, tmp_path / "models" / "mine")
        return "vidembed/mine"
    return str(folder) if where == "folder" else where


class TestVideosInTheHostsClasses:
    """`SentenceTransformer` and `CrossEncoder` decode videos as `VideoEncoder` and `VideoReranker` do."""

    @pytest.fixture(scope="class")
    def clips(self, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, ClipRecord]]:
        return write_clips(tmp_path_factory.mktemp("clips"), 3, "test", 5)

    @pytest.mark.parametrize(
        "name", ["vidembed/shapes", str(models.model_path("shapes")), models.model_path("shapes")], ids=str
    )
    def test_vectors(self, clips: list[tuple[Path, ClipRecord]], name: str | Path) -> None:
        inputs = [str(clips[0][0]), clips[0][1].right, {"video": str(clips[1][0])}, str(clips[2][0])]
        wanted = VideoEncoder(name, device="cpu").encode(inputs)
        opened = SentenceTransformer(name, device="cpu")  # type: ignore[arg-type]
        assert np.array_equal(opened.encode(inputs), wanted)

    @pytest.mark.parametrize("name", ["vidembed/shapes-rerank", str(models.model_path("shapes-rerank"))])
    def test_scores(self, clips: list[tuple[Path, ClipRecord]], name: str) -> None:
        pairs = [(clips[0][1].right, str(path)) for path, _ in clips]
        wanted = VideoReranker(name, device="cpu").predict(pairs)
        assert np.array_equal(CrossEncoder(name, device="cpu").predict(pairs), wanted)

    def test_saved_pickled_and_in_processes(self, clips: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
        model = SentenceTransformer("vidembed/shapes", device="cpu", truncate_dim=32)
        paths = [str(path) for path, _ in clips]
        wanted = model.encode(paths)
        assert wanted.shape == (3, 32)
        assert np.array_equal(pickle.loads(pickle.dumps(model)).encode(paths), wanted)
        assert np.abs(model.encode(paths, device=["cpu"], chunk_size=2) - wanted).max() <= 1e-6
        model.to("cpu").save_pretrained(str(tmp_path))
        assert "vidembed" not in (tmp_path / "modules.json").read_text()
        again = SentenceTransformer(str(tmp_path), device="cpu", truncate_dim=32)
        assert np.abs(again.encode(paths) - wanted).max() <= 1e-6

    def test_it_is_trained(self, clips: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
        model = SentenceTransformer("vidembed/shapes", device="cpu")
        paths = [str(path) for path, _ in clips]
        before = model.encode(paths)
        rows = {"text": [record.right for _, record in clips], "video": paths}
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                str(tmp_path), max_steps=1, per_device_train_batch_size=3, report_to="none", use_cpu=True
            ),
            train_dataset=Dataset.from_dict(rows),
            loss=MultipleNegativesRankingLoss(model),
        ).train()
        after = model.encode(paths)
        assert np.isfinite(after).all()
        assert np.abs(after - before).max() > 1e-6

    @pytest.mark.usefixtures("stock")
    def test_not_without_the_hook(self) -> None:
        assert type(SentenceTransformer(str(models.model_path("shapes")), device="cpu")) is SentenceTransformer
        assert type(CrossEncoder(str(models.model_path("shapes-rerank")), device="cpu")) is CrossEncoder


@pytest.mark.parametrize("order", ["vidembed, sentence_transformers", "sentence_transformers, vidembed"])
def test_import_order_does_not_matter(store: Path, tiny_mllm: Callable[[str], Path], order: str) -> None:
    build(tiny_mllm("qwen2_vl"), layer=2, name="mine")
    script = (
        f"import {order}\nfrom sentence_transformers import SentenceTransformer\n"
        "print(SentenceTransformer('vidembed/mine', device='cpu').get_embedding_dimension())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "64"


def test_import_takes_no_torch() -> None:
    script = "import sys, vidembed; assert not {'torch', 'transformers', 'av'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_public_names_resolve() -> None:
    import vidembed as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = package.nothing_like_it
