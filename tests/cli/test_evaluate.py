"""`vidembed evaluate` on the bundled models, drawn clips and files of the user's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from vidembed.evaluation.result import EvaluationResult

SHAPES = ("--model", "vidembed/shapes", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("evaluate") / "run"
    drawn = ("--benchmark", "shapes-short", "--clips", 4, "--seed", 3, "--rerank", 2, "--out", out, "--json")
    return out, vidembed("evaluate", *SHAPES, *drawn)


@pytest.fixture
def custom(run: tuple[Path, Any], tmp_path: Path) -> Path:
    """A file of captioned videos: three of the drawn clips, and one more for validation on its own."""
    files = sorted((run[0] / "clips").glob("*.mp4"))
    folder = tmp_path / "videos"
    folder.mkdir()
    for at, file in enumerate(files):
        shutil.copy(file, folder / f"{at}.mp4")
    for name, places in (("test", (0, 1, 2)), ("validation", (3, 4, 5))):
        rows = [json.dumps({"video": f"{at}.mp4", "caption": f"a shape number {at}"}) for at in places]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_one_command_gives_result_reports_and_cache(run: tuple[Path, Any]) -> None:
    out, done = run
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content == json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert [column["name"] for column in content["columns"]] == [
        "raw",
        "dual_softmax",
        "rerank",
        "rerank_dual_softmax",
    ]
    assert all(column[way] for column in content["columns"] for way in ("t2v", "v2t"))
    assert {one["origin"] for one in content["temperatures"].values()} == {"fitted"}
    assert content["benchmark"]["videos"] == 4
    assert content["validation"]["videos"] == 2
    assert {path.name for path in out.iterdir()} == {
        "result.json",
        "ranks.npz",
        "report.md",
        "report.html",
        "cache",
        "clips",
    }
    assert f"Wrote {out / 'result.json'}" in done.stderr
    assert EvaluationResult.load(out).model["name"] == "vidembed/shapes"


def test_run_again_it_embeds_nothing_and_shows_tables(run: tuple[Path, Any]) -> None:
    drawn = ("--benchmark", "shapes-short", "--clips", 4, "--seed", 3, "--out", run[0])
    done = vidembed("evaluate", *SHAPES, *drawn)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("+ rerank") == done.stdout.count("+ both") == 2
    assert done.stdout.count("not run") == 4
    assert "Text to video" in done.stdout
    assert "fitted" in done.stderr
    assert "a second" not in done.stderr
    assert json.loads((run[0] / "result.json").read_text())["work"]["videos"]["computed"] == 0


def test_videos_of_the_user(custom: Path) -> None:
    arguments = ("--benchmark", "custom", "--annotations", custom / "test.jsonl", "--videos", custom)
    done = vidembed("evaluate", *SHAPES, *arguments, "--json")
    content = json.loads(done.stdout)
    assert {one["origin"] for one in content["temperatures"].values()} == {"default, not fitted"}
    done = vidembed("evaluate", *SHAPES, *arguments, "--validation", custom / "validation.jsonl", "--json")
    content = json.loads(done.stdout)
    assert {one["origin"] for one in content["temperatures"].values()} == {"fitted"}
    assert content["validation"]["videos"] == 3
    done = vidembed("evaluate", *SHAPES, *arguments, "--temperature", "0.02,0.03", "--json")
    assert [one["value"] for one in json.loads(done.stdout)["temperatures"].values()] == [0.02, 0.03]


def test_a_broken_video_stops_or_counts(custom: Path) -> None:
    (custom / "1.mp4").write_bytes(b"no video")
    arguments = ("--benchmark", "custom", "--annotations", custom / "test.jsonl")
    done = vidembed("evaluate", *SHAPES, *arguments)
    assert done.exit_code == 2
    assert "video '1.mp4'" in done.stderr
    assert "--on-error count" in done.stderr
    done = vidembed("evaluate", *SHAPES, *arguments, "--on-error", "count")
    assert done.exit_code == 0
    assert "1 videos could not be read and count as not found" in done.stderr
    assert "1.mp4" in done.stderr


SAID = ("a red square moves down", "a blue circle stops", "a green star turns")


def published(name: str, folder: Path) -> tuple[list[str], int]:
    """Write three videos' annotations as a benchmark publishes them; return the videos' ids and the number of texts."""
    two = [[text, f"{text} slowly"] for text in SAID]
    if name == "msrvtt":
        ids = ["video7010", "video7011", "video7012"]
        rows = [f"ret{at},msr{at},{one},{text}" for at, (one, text) in enumerate(zip(ids, SAID, strict=True))]
        written = {"MSRVTT_JSFUSION_test.csv": "\n".join(["key,vid_key,video_id,sentence", *rows])}
        return _write(folder, written, ids), 3
    if name == "msvd":
        ids = ["mv89psg6zh4_33_46", "r2UDTaF6RTU_4_9", "vid3_0_4"]
        lines = [f"{one} {text}" for one, texts in zip(ids, two, strict=True) for text in texts]
        return _write(folder, {"AllVideoDescriptions.txt": lines, "test_list.txt": ids}, ids), 6
    if name == "vatex":
        ids = ["Ptf_2VRj-V0_000122_000132", "AAAAAAAAAAA_000001_000011", "BBBBBBBBBBB_000001_000011"]
        entries = [{"videoID": one, "enCap": texts, "chCap": ["x"] * 2} for one, texts in zip(ids, two, strict=True)]
        files = {"vatex_validation_v1.0.json": json.dumps(entries), "test_list.txt": ids}
        return _write(folder, files, ids), 6
    if name == "didemo":
        ids = ["54322086@N00_2408598493_274c77d26a.avi", "1@N00_1_a.mov", "2@N00_2_b.mp4"]
        entries = [{"video": one, "description": text} for one, texts in zip(ids, two, strict=True) for text in texts]
        return _write(folder, {"test_data.json": json.dumps(entries), "test_list.txt": ids}, ids), 3
    ids = ["v_uqiMw7tQ1Cc", "v_bXdq2zI1Ms0", "v_FsS_NCZEfaI"]
    value = {
        one: {"duration": 4.0, "timestamps": [[0, 2], [2, 4]], "sentences": texts}
        for one, texts in zip(ids, two, strict=True)
    }
    return _write(folder, {"val_1.json": json.dumps(value)}, ids), 3


def _write(folder: Path, files: dict[str, str | list[str]], ids: list[str]) -> list[str]:
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else "\n".join(content) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return ids


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "vatex", "didemo", "activitynet"])
def test_every_published_benchmark_from_annotations_to_report(name: str, run: tuple[Path, Any], tmp_path: Path) -> None:
    ids, texts = published(name, tmp_path / "published")
    videos = tmp_path / "videos"
    videos.mkdir()
    for file, one in zip(sorted((run[0] / "clips").glob("*.mp4")), ids, strict=False):
        shutil.copy(file, videos / (one if Path(one).suffix else f"{one}.mp4"))
    out = tmp_path / "out"
    arguments = ("--benchmark", name, "--annotations", tmp_path / "published", "--videos", videos, "--out", out)
    refused = vidembed("evaluate", *SHAPES, *arguments)
    assert refused.exit_code == 2
    assert "expected" in refused.stderr  # the published counts
    done = vidembed("evaluate", *SHAPES, *arguments, "--no-check-counts", "--rerank", 2, "--json")
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["benchmark"]["videos"], content["benchmark"]["texts"]) == (3, texts)
    assert all(column[way] for column in content["columns"] for way in ("t2v", "v2t"))
    report = (out / "report.md").read_text(encoding="utf-8")
    assert content["benchmark"]["title"] in report
    assert "2602.08099" in report


def test_published_files_are_read_by_name(run: tuple[Path, Any], tmp_path: Path) -> None:
    for file, name in zip(sorted((run[0] / "clips").glob("*.mp4")), ("video1", "video2"), strict=False):
        shutil.copy(file, tmp_path / f"{name}.mp4")
    rows = ["key,vid_key,video_id,sentence", "ret0,msr1,video1,a square", "ret1,msr2,video2,a circle"]
    rows.append("ret2,msr3,video3,a gone one")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    arguments = ("--benchmark", "msrvtt", "--annotations", tmp_path, "--videos", tmp_path, "--no-check-counts")
    done = vidembed("evaluate", *SHAPES, *arguments)
    assert done.exit_code == 2
    assert "video3" in done.stderr
    done = vidembed("evaluate", *SHAPES, *arguments, "--allow-missing", "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["benchmark"]["missing"] == ["video3"]
    assert "1 videos without a file" in (tmp_path / "out" / "report.md").read_text()
    assert "2602.08099" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmark", "squares"), "benchmark: got 'squares'; expected one of msrvtt"),
        (("--benchmark", "msrvtt"), "annotations: msrvtt needs --annotations"),
        (("--benchmark", "shapes", "--annotations", "a.csv"), "annotations: shapes generates its own videos"),
        (("--benchmark", "shapes", "--clips", "2"), "clips=2: expected from 4"),
        (("--benchmark", "custom", "--clips", "9"), "clips: custom has its own videos"),
        (("--benchmark", "custom", "--validation-videos", "x"), "need --validation FILE"),
        (("--benchmark", "shapes", "--score", "yes"), "score: it needs --rerank K"),
        (("--benchmark", "shapes", "--rerank-temperature", "1"), "rerank-temperature: it needs --rerank K"),
        (("--benchmark", "shapes", "--rerank", "2", "--score", "maybe"), "mode='maybe' is not known"),
        (("--benchmark", "shapes", "--rerank", "0"), "rerank"),
        (("--benchmark", "shapes", "--temperature", "warm"), "temperature: got 'warm'"),
        (("--benchmark", "shapes", "--temperature", "1,2,3"), "temperature: got '1,2,3'"),
        (("--benchmark", "shapes", "--temperature", "-1"), "temperature t2v=-1.0"),
        (("--benchmark", "shapes", "--out", __file__), "is a file; give a folder"),
        ((), "--benchmark"),
    ],
)
def test_misuse_is_found_before_anything_is_done(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    before = tree(tmp_path)
    done = vidembed("evaluate", "--model", "vidembed/shapes", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before


def test_another_model_does_not_overwrite_a_result(run: tuple[Path, Any], tiny_mllm: Any) -> None:
    before = (run[0] / "result.json").read_bytes()
    arguments = ("--benchmark", "shapes-short", "--clips", 4, "--seed", 3, "--out", run[0], "--device", "cpu")
    done = vidembed("evaluate", "--model", tiny_mllm("qwen2_5_vl"), "--layer", 1, *arguments)
    assert done.exit_code == 2
    assert "another benchmark or model" in done.stderr
    assert (run[0] / "result.json").read_bytes() == before


def test_plumbing_of_a_full_mllm(each_mllm: Path, tmp_path: Path) -> None:
    arguments = ("--benchmark", "shapes-short", "--clips", 4, "--seed", 3, "--rerank", 1, "--score", "yes")
    given = ("--temperature", 0.1, "--rerank-temperature", 1, "--device", "cpu", "--out", tmp_path / "out", "--json")
    done = vidembed("evaluate", "--model", each_mllm, "--layer", 1, *arguments, *given)
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["rerank"]["mode"] == "yes"
    assert content["model"]["layer"] == 1
    assert {one["origin"] for one in content["temperatures"].values()} == {"given"}


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom vidembed.cli import app\n"
        "for name in ('evaluate', 'compare'):\n    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
