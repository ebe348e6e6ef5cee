"""Names under ``vidembed/``, the hook that host libraries find them by, and an import that takes no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from vidembed import build, hook, models


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path))
    return tmp_path / "models"


def test_unknown_name(store: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model named 'nope'.*vidembed build"):
        models.model_path("nope")
    assert models.resolve_model("vidembed/nope") == "vidembed/nope"  # left to the Hub


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".hidden", "", "a" * 97, "x\n", "vidembed/../y"])
def test_names_cannot_leave_the_store(store: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not valid"):
        models.model_path(name)
    assert models.resolve_model(f"vidembed/{name}") == f"vidembed/{name}"


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
    assert SentenceTransformer.__init__.__name__ in ("__init__", "init")
    assert CrossEncoder in hook._originals


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
    import vidembed

    for name in vidembed.__all__:
        assert getattr(vidembed, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = vidembed.nothing_like_it
