"""`vidembed search --rerank` and `vidembed calibrate` on the bundled models and real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import tree, vidembed
from vidembed.captions import CaptionRecord
from vidembed.shapes import ClipRecord, write_clips
from vidembed.uri import content_fingerprint


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, ClipRecord]]:
    return write_clips(tmp_path_factory.mktemp("shapes") / "clips", 8, "test", 4)


@pytest.fixture(scope="module")
def index(written: list[tuple[Path, ClipRecord]]) -> Path:
    folder = written[0][0].parent.parent / "index"
    assert vidembed("index", written[0][0].parent, "--to", folder, "--device", "cpu").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def captions(written: list[tuple[Path, ClipRecord]]) -> Path:
    file = written[0][0].parent / "captions.csv"
    rows = "".join(f"{path.name},{record.caption}\n".replace(", ", " ") for path, record in written)
    file.write_text("video,caption\n" + rows)
    return file


def search(index: Path, *arguments: object) -> list[dict[str, object]]:
    result = vidembed("search", *arguments, "--in", index, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_probabilities_order_the_hits(index: Path, written: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
    query = written[3][1].caption
    plain = search(index, query, "-k", 5)
    hits = search(index, query, "-k", 5, "--rerank", 3, "--visual-cache", tmp_path / "cache")
    assert all("probability" not in hit for hit in plain)
    probabilities = [hit["probability"] for hit in hits[:3]]
    assert probabilities == sorted(probabilities, reverse=True)  # type: ignore[type-var]
    assert all(0 <= p <= 1 for p in probabilities)  # type: ignore[operator]
    assert hits[3:] == plain[3:]
    assert {hit["uri"] for hit in hits[:3]} == {hit["uri"] for hit in plain[:3]}
    assert hits[0]["uri"] == written[3][0].resolve().as_uri()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
    again = search(index, query, "-k", 2, "--rerank", 3, "--visual-cache", tmp_path / "cache")
    assert again == hits[:2]


def test_a_hit_that_is_gone_is_named_and_comes_last(written: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for path, _ in written[:3]:
        shutil.copy(path, folder)
    assert vidembed("index", folder, "--to", tmp_path / "ix", "--device", "cpu").exit_code == 0
    gone = folder / written[1][0].name
    gone.unlink()
    result = vidembed(
        "search", written[1][1].caption, "--in", tmp_path / "ix", "--rerank", 3, "--device", "cpu", "--json"
    )
    hits = json.loads(result.stdout)
    assert [("probability" in hit) for hit in hits] == [True, True, False]
    assert hits[2]["uri"] == gone.resolve().as_uri()
    assert f"Not reranked, because the video is missing or cannot be read: {gone.resolve()}." in result.stderr


def test_table_shows_probabilities(index: Path) -> None:
    result = vidembed("search", "a red square", "--in", index, "-k", 2, "--rerank", 2, "--device", "cpu")
    assert "P(match)" in result.stdout
    assert "cosine" in result.stdout
    assert result.stdout.count("%") == 2


def test_calibrate_and_use_it(index: Path, captions: Path, tmp_path: Path) -> None:
    numbers, plot = tmp_path / "numbers.json", tmp_path / "plot.svg"
    result = vidembed(
        *("calibrate", "vidembed/shapes-rerank", "--pairs", captions, "--encoder", "vidembed/shapes", "-k", 4),
        *("--out", numbers, "--plot", plot, "--device", "cpu", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["mode"], report["pairs"]) == ("yes_no", 32)
    assert 0 <= report["calibration_error_after"] <= 1
    assert report["fit"]["fusion"] is not None
    assert plot.read_text().startswith("<?xml")
    bundled = search(index, "a red square", "-k", 1, "--rerank", 2)
    own = search(index, "a red square", "-k", 1, "--rerank", 2, "--calibration", numbers)
    assert own[0]["probability"] != bundled[0]["probability"]


def test_calibrate_with_labels_to_a_folder(written: list[tuple[Path, ClipRecord]], tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"video": str(path), "text": text, "label": label}
        for path, record in written[:5]
        for text, label in ((record.right, 1), (record.wrong, 0))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = vidembed(
        *("calibrate", "vidembed/shapes-rerank", "--pairs", file, "--score", "yes"),
        *("--out", tmp_path / "model", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.stderr
    assert "calibration_error_after" in result.stdout
    assert json.loads((tmp_path / "model" / "vidembed_reranker.json").read_text())["mode"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rerank", "0"], "greater than or equal to 1"),
        (["--score", "yes"], "score: it needs --rerank K"),
        (["--reranker", "m"], "reranker: it needs --rerank K"),
        (["--rerank", "2", "--score", "maybe"], "mode='maybe' is not known"),
        (["--rerank", "2", "--reranker", "nowhere/at-all"], "reranker: 'nowhere/at-all' cannot be loaded"),
        (["--rerank", "2", "--calibration", "gone.json"], "gone.json"),
    ],
)
def test_misuse_of_search(index: Path, arguments: list[str], message: str) -> None:
    result = vidembed("search", "red", "--in", index, "--device", "cpu", *arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no column label; give --encoder"),
        (["--encoder", "vidembed/shapes", "--score", "maybe"], "mode='maybe'"),
        (["--encoder", "vidembed/shapes", "--plot", "p.jpg"], "ends in .png"),
        (["--encoder", "vidembed/shapes", "--plot", "nowhere/p.png"], "does not exist"),
        (["--encoder", "vidembed/shapes", "-k", "1"], "greater than or equal to 2"),
    ],
)
def test_misuse_of_calibrate(captions: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    before = tree(tmp_path)
    result = vidembed(
        "calibrate", "vidembed/shapes-rerank", "--pairs", captions, "--out", tmp_path / "n.json", *arguments
    )
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before


def test_hybrid_hits_are_reranked_by_a_fusion_of_their_own(
    index: Path, written: list[tuple[Path, ClipRecord]], captions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(index, folder)
    said = tmp_path / "captions.jsonl"
    records = (
        CaptionRecord(path.name, content_fingerprint(path), {"dense": record.summary}, fingerprint="p" * 64)
        for path, record in written
    )
    said.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    added = vidembed("index", written[0][0].parent, "--to", folder, "--device", "cpu", "--captions", said)
    assert added.exit_code == 0, added.stderr
    queries = tmp_path / "queries.txt"
    queries.write_text(written[3][1].caption + "\n", encoding="utf-8")

    def found(by: str, *more: str) -> dict[str, object]:
        how = ("--by", by, "--rerank", "4", "--in", folder, "--device", "cpu", "--json", *more)
        result = vidembed("search", "--queries", queries, *how)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["search"]  # type: ignore[no-any-return]

    fit = ("calibrate", folder, "--hybrid", "--pairs", captions, "--device", "cpu", "--json")
    assert found("video")["reranked"] == "video"
    assert found("hybrid")["reranked"] == "head"
    said_so = vidembed("search", written[3][1].caption, "--in", folder, "--by", "hybrid", "--rerank", "4")
    assert "Reranked by the head alone: no fusion with the hybrid score was fitted" in said_so.stderr
    result = vidembed(*fit, "--rerank", "4")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["rerank"]
    assert (report["k"], report["skipped"], sorted(report["fusions"])) == (4, 0, ["caption", "hybrid", "text"])
    for by in ("caption", "text", "hybrid"):
        assert found(by)["reranked"] == by
    another = ("--reranker", "vidembed/shapes-mllm", "--score", "yes")
    other = vidembed("search", "x", "--in", folder, "--by", "hybrid", "--rerank", "4", "--device", "cpu", *another)
    assert other.exit_code == 2
    assert "the fusion for hits by hybrid was fitted with another reranker" in other.stderr
    info = json.loads(vidembed("info", folder, "--json").stdout)["search"]["captions"]
    assert info["rerank"]["by"] == ["caption", "text", "hybrid"]
    assert vidembed(*fit).exit_code == 0  # without a reranker: the weights could be others now
    assert found("hybrid")["reranked"] == "head"


@pytest.mark.parametrize("option", ["--rerank", "--reranker", "--calibration"])
def test_rejects_options_of_hybrid_calibration_without_it(captions: Path, tmp_path: Path, option: str) -> None:
    how = ("--pairs", captions, "--out", tmp_path / "out.json", option, "4")
    result = vidembed("calibrate", "vidembed/shapes-rerank", *how)
    assert (result.exit_code, f"{option[2:]}: it is for --hybrid" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--reranker", "--score", "--calibration"])
def test_rejects_options_of_a_reranker_without_rerank(index: Path, captions: Path, option: str) -> None:
    result = vidembed("calibrate", index, "--hybrid", "--pairs", captions, option, "yes")
    assert (result.exit_code, f"{option[2:]}: it is an option for rerankers" in result.stderr) == (2, True)
