"""The Ray benchmark at a size at which its clock means nothing: its files, its arithmetic and its checks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from benchmarks import ray as bench

from tests.clips import moving_square, write_video
from vidembed.video import load_video
from vidembed.video.clip import content_fingerprint


def test_copies_are_different_files_of_the_same_pictures(tmp_path: Path) -> None:
    clips = [write_video(tmp_path / f"{seed}.mp4", moving_square(10, seed=seed)) for seed in (1, 2)]
    copies = bench.distinct_copies(clips, tmp_path / "copies", 5)
    assert len({content_fingerprint(path) for path in copies}) == len(copies) == 5
    for number, path in enumerate(copies):
        assert np.array_equal(load_video(path).frames, load_video(clips[number % 2]).frames)


def test_only_the_second_half_of_the_rows_is_timed() -> None:
    came = [(0.0, 2), (1.0, 2), (5.0, 2), (7.0, 2), (9.0, 2)]
    assert bench.second_half(came) == {"seconds": 4.0, "segments_per_s": 1.0}
    with pytest.raises(ValueError, match="6 rows came in too few batches"):
        bench.second_half([(0.0, 6)])


@pytest.mark.parametrize(("one", "two", "expected"), [(1.0, 2.0, 1.0), (2.0, 3.0, 0.75), (1.0, 1.0, 0.5)])
def test_scaling_efficiency_is_t1_over_twice_t2(one: float, two: float, expected: float) -> None:
    work = 60.0
    assert bench.efficiency(one, two) == pytest.approx(expected) == pytest.approx((work / one) / (2 * (work / two)))


def test_the_writer_takes_in_all_rows(tmp_path: Path) -> None:
    found = bench.writer(tmp_path / "index", 16, 30, segments=4)
    assert (found["rows"], found["dimension"]) == (120, 16)
    assert found["rows_per_s"] == pytest.approx(120 / found["seconds"])


def test_storage_counts_what_is_not_vector(tmp_path: Path) -> None:
    small, wide = (bench.storage(tmp_path / str(d), 200, segments=2, dimension=d) for d in (8, 264))
    assert small["rows"] == 400
    assert 30 < small["bytes_per_row_besides_vector"] < 300
    assert wide["bytes_of_data"] - small["bytes_of_data"] == pytest.approx(400 * 256 * 4, rel=0.05)


def test_memory_is_the_slope_between_sizes(tmp_path: Path) -> None:
    folders = [tmp_path / str(files) for files in (10, 2000)]
    for folder in folders:
        bench.storage(folder, int(folder.name), segments=1)
    found = bench.memory(folders)
    assert [size["files"] for size in found["sizes"]] == [10, 2000]
    assert found["bytes_per_file"] == pytest.approx(
        (found["sizes"][1]["resident"] - found["sizes"][0]["resident"]) / 1990
    )


ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
KEPT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "ray.json").read_text())


@pytest.fixture(scope="module")
def planned() -> Any:
    """The class of the page that does the arithmetic."""
    names: dict[str, Any] = {"__name__": "planning"}
    code = PAGE.partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "<planning>", "exec", dont_inherit=True), names)
    return names["Run"]


def test_the_page_has_the_hours_that_its_code_gives(planned: Any) -> None:
    for rate in (1, 5, 20):
        run = planned(segments_per_gpu_s=rate)
        row = (
            f"| {rate} | {run.gpu_hours:,.0f} | {run.gpu_hours / 64 / 24:.1f} | {run.cores_per_gpu:.1f} "
            f"| {run.mb_per_gpu_s:.0f} MB/s |"
        )
        assert row in PAGE


def test_the_page_has_the_sizes_that_its_code_gives_and_the_code_those_that_were_measured(planned: Any) -> None:
    searched = json.loads((ROOT / "benchmarks" / "search.json").read_text())["sizes"][-1]
    made = planned(videos=searched["rows"], segment_s=None, dimension=searched["dimension"]).gigabytes("ann")
    assert made == pytest.approx(searched["approximate"]["ann"]["bytes"] / 1e9, rel=0.001)
    stored = KEPT["storage"][-1]
    rows = planned(videos=stored["rows"], segment_s=None, dimension=8).gigabytes()
    assert rows == pytest.approx(stored["bytes_of_data"] / 1e9, rel=0.01)
    for what, name in (("rows", "4 D + 48"), ("ann", "D / 8 + 20"), ("int8", "D + 4")):
        few, many = planned(segment_s=None).gigabytes(what), planned().gigabytes(what)
        assert re.search(rf"\| {re.escape(name)} \| {few:.{0 if few > 10 else 1}f} GB \| {many:.0f} GB \|", PAGE), what


def test_the_page_has_the_figures_of_the_kept_run() -> None:
    found = KEPT["throughput"]
    rates = found["median_segments_per_s"]
    said = [
        f"| 1 | {rates['local_1_core']:.2f} | baseline |",
        f"| 1 | {rates['ray_1_worker']:.2f} | {found['ray_over_local'][0]:.2f} of the local engine |",
        f"| 2 | {rates['local_2_cores']:.2f} | {found['local_scaling_efficiency']:.2f} of twice one core |",
        f"| 2 | {rates['ray_2_workers']:.2f} | **scaling efficiency {found['scaling_efficiency']:.2f}** ",
        ", ".join(f"{each:.2f}" for each in found["scaling_efficiency_of_each_turn"]),
        f"By whole runs it is {found['scaling_efficiency_of_the_whole']:.2f}.",
        f"{found['files']} clips",
        f"{round(KEPT['writer']['rows_per_s'], -2):,.0f} rows a second",
        f"{KEPT['memory']['bytes_per_file'] / 1000:.1f} kB for each file",
        f"{KEPT['memory']['bytes_per_file'] * 1e7 / 1e9:.0f} GB for ten million",
    ]
    assert [words for words in said if words not in PAGE] == []
