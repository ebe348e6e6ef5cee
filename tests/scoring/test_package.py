"""What importing the package costs."""

from __future__ import annotations

import subprocess
import sys

import vidembed.scoring


def test_exported_names_are_there_and_documented() -> None:
    assert vidembed.scoring.__all__ == sorted(vidembed.scoring.__all__)
    for name in vidembed.scoring.__all__:
        assert getattr(vidembed.scoring, name).__doc__


def test_the_package_needs_no_model_library() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "av", "scipy", "sklearn", "matplotlib"}
    code = f"import sys, vidembed.scoring; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
