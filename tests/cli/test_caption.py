"""`vidembed caption`: options, the report, exit codes, and what is printed of names and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.cli.conftest import vidembed
from vidembed import Sampling, VideoReranker
from vidembed.captions import PROMPTS, read_captions
from vidembed.shapes import write_clips


@pytest.fixture(scope="module")
def model() -> VideoReranker:
    return VideoReranker("vidembed/shapes-rerank", device="cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two clips in one of its folders."""
    folder = tmp_path_factory.mktemp("scenes")
    write_clips(folder / "inner", 2, "test", 0)
    return folder


@pytest.fixture
def opened(model: VideoReranker, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Hands out one model instead of loading it anew; holds how it was asked for."""
    calls: list[dict[str, Any]] = []

    def load(name: str, **how: Any) -> VideoReranker:
        calls.append({"name": name, **how})
        model.sampling = Sampling()
        return model

    monkeypatch.setattr("vidembed.reranker.VideoReranker", load)
    return calls


def test_a_folder_is_described_and_the_next_run_has_nothing_to_do(
    scenes: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    out = tmp_path / "captions.jsonl"
    first = vidembed("caption", scenes, "--out", out, "--kinds", "dense", "--no-agree")
    assert (first.exit_code, first.stdout) == (
        0,
        f"2 described (0 marked), 0 unchanged, 0 failed. {out} holds 2 records.\n",
    )
    assert "knows only videos of moving coloured shapes" in first.stderr
    found = list(read_captions(out))
    assert [Path(record.video).name for record in found] == ["test-0000.mp4", "test-0001.mp4"]
    assert {record.model for record in found} == {"vidembed/shapes-rerank"}
    again = vidembed("caption", scenes, "--out", out, "--kinds", "dense", "--no-agree", "--json")
    assert json.loads(again.stdout) == {
        "out": str(out),
        "model": "vidembed/shapes-rerank",
        "fingerprint": found[0].fingerprint,
        "described": 0,
        "marked": 0,
        "unchanged": 2,
        "failed": {},
        "records": 2,
    }


def test_options_reach_the_model(scenes: Path, tmp_path: Path, opened: list[dict[str, Any]]) -> None:
    out = tmp_path / "captions.jsonl"
    own = ["--prompt", "tags=Summarize above video in a few words:", "--kinds", "tags", "--max-new-tokens", 4]
    cut = ["--segment", 2, "--overlap", 1, "--max-frames", 6, "--batch-size", 3]
    file = scenes / "inner" / "test-0000.mp4"
    result = vidembed("caption", file, "--out", out, *own, *cut, "--no-agree", "--dtype", "float32", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert opened == [
        {
            "name": "vidembed/shapes-rerank",
            "calibration": None,
            "device": "cpu",
            "model_kwargs": {"dtype": "float32"},
        }
    ]
    found = list(read_captions(out))
    assert [(record.start_s, record.end_s) for record in found] == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    assert all(set(record.texts) == {"tags"} and record.problems for record in found)
    refused = vidembed("caption", file, "--out", out, *own, "--no-agree")  # at another frame grid
    assert refused.exit_code == 2
    replaced = vidembed("caption", file, "--out", out, *own, *cut, "--no-agree", "--temperature", 1, "--overwrite")
    assert "3 described" in replaced.stdout
    assert "3 records of another model or of other settings are removed" in " ".join(replaced.stderr.split())


def test_a_bad_file_is_reported_and_its_name_is_plain_text(
    scenes: Path, tmp_path: Path, opened: list[dict[str, Any]]
) -> None:
    bad = tmp_path / "bad \x1b[31m.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "captions.jsonl"
    how = ["--out", out, "--kinds", "dense", "--no-agree"]
    beside = vidembed("caption", scenes, bad, *how)
    assert (beside.exit_code, "\x1b" in beside.output) == (0, False)
    assert "NotAVideo" in beside.stdout
    assert r"bad \x1b[31m.mp4" in beside.stdout
    assert "1 failed" in beside.stdout
    alone = vidembed("caption", bad, *how)
    assert (alone.exit_code, "No video could be described." in alone.stderr) == (1, True)
    stopped = vidembed("caption", bad, *how, "--on-error", "raise")
    assert (stopped.exit_code, "\x1b" in stopped.output) == (1, False)
    assert "Error: " in stopped.stderr
    assert "not a video" in " ".join(stopped.stderr.split())


def test_what_a_model_says_is_plain_text(
    scenes: Path,
    tmp_path: Path,
    opened: list[dict[str, Any]],
    model: VideoReranker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model.tokenizer, "decode", lambda *_, **__: "A \x1b]0;title\x07 square moves.")
    result = vidembed("caption", scenes, "--out", tmp_path / "captions.jsonl", "--json")
    assert result.exit_code == 0
    assert not {"\x1b", "\x07"} & set(result.output)
    assert (tmp_path / "captions.jsonl").read_bytes().isascii()


def test_a_line_that_a_kill_cut_short_is_said(scenes: Path, tmp_path: Path, opened: list[dict[str, Any]]) -> None:
    out = tmp_path / "captions.jsonl"
    out.write_text('{"video": "inner/test-00')
    result = vidembed("caption", scenes, "--out", out, "--kinds", "dense", "--no-agree")
    assert result.exit_code == 0
    assert "removed the last line, which was incomplete: 24 bytes" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--kinds", "long"], "no prompt was given for long"),
        (["--kinds", "dense,"], "no prompt was given for"),
        (["--prompt", "dense"], "expected KIND=TEXT"),
        (["--prompt", "tags= "], "expected KIND=TEXT"),
        (["--prompt", "tags=Name it:", "--kinds", "dense"], "tags is not among --kinds dense"),
        (["--prompt", "video=Name it:"], "video is reserved"),
        (["--temperature", "11"], "temperature=11.0"),
        (["--overlap", "1"], "without --segment"),
        (["--segment", "2", "--scenes"], "give one of them"),
        (["--fps", "0"], "fps=0.0"),
        (["--model", "vidembed/no-such-model"], "no-such-model"),
        (["--model", "vidembed/shapes"], "which VideoReranker cannot open"),
    ],
)
def test_misuse_writes_nothing(scenes: Path, tmp_path: Path, given: list[str], words: str) -> None:
    result = vidembed("caption", scenes, "--out", tmp_path / "captions.jsonl", *given)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "captions.jsonl").exists()


def test_paths_and_files_that_cannot_be_used(scenes: Path, tmp_path: Path, opened: list[dict[str, Any]]) -> None:
    out = tmp_path / "captions.jsonl"
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([tmp_path / "empty", "--out", out], "no video in"),
        ([tmp_path / "gone.mp4", "--out", out], "does not exist"),
        ([scenes, "--out", tmp_path / "captions.csv"], "does not end in .jsonl"),
        ([scenes, "--out", tmp_path / "no" / "captions.jsonl"], "does not exist"),
    ):
        result = vidembed("caption", *arguments)
        assert (result.exit_code, words in result.stderr) == (2, True)
    with FileLock(f"{out}.lock"):
        busy = vidembed("caption", scenes, "--out", out)
    assert (busy.exit_code, "another run is writing" in " ".join(busy.stderr.split())) == (2, True)
    assert not opened or not out.exists()


def test_prompts_add_kinds_of_text() -> None:
    from vidembed.cli.caption import asked_of

    assert asked_of(None, []) == ([*PROMPTS], PROMPTS)
    kinds, prompts = asked_of(None, ["tags=Name = what is seen:", "short=Say it:"])
    assert kinds == ["dense", "short", "tags"]
    assert prompts == {**PROMPTS, "short": "Say it:", "tags": "Name = what is seen:"}
    assert asked_of("short , tags", ["tags=Name it:"])[0] == ["short", "tags"]
