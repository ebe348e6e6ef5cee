from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.made_up import changed, made_up
from tests.evaluation.stand_ins import plain_benchmark
from vidembed.evaluation import result
from vidembed.evaluation.result import BenchmarkFacts, EvaluationResult


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made_up(videos=4).save(tmp_path)
    return tmp_path


def test_back_and_forth(saved: Path) -> None:
    loaded = EvaluationResult.load(saved)
    assert loaded.to_dict() == made_up(videos=4).to_dict()
    with pytest.raises(ValueError, match="column='all'"):
        loaded.column("all")


def test_no_nan_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        changed(made_up(videos=4), seconds=float("nan")).save(tmp_path / "new")
    assert not (tmp_path / "new" / "result.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a result of"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected kind"),
        (json.dumps({"kind": "vidembed_evaluation", "schema_version": 2}), "of 2"),
        (json.dumps({"kind": "vidembed_evaluation", "schema_version": 1}), "not a complete evaluation"),
    ],
)
def test_files_that_are_no_result(saved: Path, text: str, said: str) -> None:
    (saved / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        EvaluationResult.load(saved)


def test_ranks_that_are_missing_or_pickled(saved: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(saved / "ran"),))  # type: ignore[return-value]

    (saved / "ranks.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="not a complete result"):
        EvaluationResult.load(saved)
    np.savez(saved / "ranks.npz", a=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="not a complete result"):
        EvaluationResult.load(saved)
    assert not (saved / "ran").exists()
    (saved / "ranks.npz").unlink()
    with pytest.raises(ValueError, match="not a complete result"):
        EvaluationResult.load(saved)


def test_ranks_that_unpack_to_too_much(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(saved / "ranks.npz", a=np.zeros(100_000, np.int64))
    monkeypatch.setattr(result, "MAX_RANKS_BYTES", 100_000)
    assert (saved / "ranks.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"not a complete result.* bytes, more than 100000"):
        EvaluationResult.load(saved)


def test_ranks_that_claim_to_be_larger_than_any_memory(saved: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(saved / "ranks.npz", "w") as packed:
        packed.writestr("a.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"not a complete result.* allocate"):
        EvaluationResult.load(saved)


def test_the_digest_follows_queries_and_answers() -> None:
    videos = [Path("a.mp4"), Path("b.mp4")]
    base = plain_benchmark(videos, ["x", "y"], [(0,), (1,)])
    digest = BenchmarkFacts.of(base).digest
    assert BenchmarkFacts.of(dataclasses.replace(base, title="another", videos=tuple(videos[::-1]))).digest == digest
    for other in (
        dataclasses.replace(base, texts=("x", "z")),
        dataclasses.replace(base, owners=((1,), (0,))),
        dataclasses.replace(base, video_ids=("a", "c")),
    ):
        assert BenchmarkFacts.of(other).digest != digest
