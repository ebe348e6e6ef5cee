from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import langchain_vidembed

ROOT = Path(__file__).parents[2]


def test_all_names_are_there() -> None:
    assert sorted(langchain_vidembed.__all__) == sorted(
        [
            "CAPTION_PROMPT",
            "VIDEO_PROMPT",
            "IndexingReport",
            "NotAVideoError",
            "VideoCrossEncoder",
            "VideoEmbeddings",
            "VideoLoader",
            "VideoRerank",
            "VideoRetriever",
            "document_key",
            "index_videos",
        ]
    )
    assert all(hasattr(langchain_vidembed, name) for name in langchain_vidembed.__all__)


def test_importing_it_takes_no_torch_and_no_store() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "lancedb", "chromadb", "qdrant_client", "faiss"}
    code = f"import sys, langchain_vidembed; sys.exit(', '.join({heavy!r} & set(sys.modules)) or None)"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_packages_that_break_others_are_no_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    # the first holds huggingface-hub under 2, which makes pip put langchain-core back to 0.3
    assert not any(one.startswith(("langchain-huggingface", "langchain-classic")) for one in named)
