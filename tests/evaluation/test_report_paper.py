from __future__ import annotations

import pytest

from vidembed.evaluation.benchmark import BENCHMARKS
from vidembed.evaluation.report import PAPER, ROWS, STATEMENT, paper_rows


def test_the_five_benchmarks_and_no_other() -> None:
    assert set(ROWS) == set(BENCHMARKS) - {"custom"}
    assert paper_rows("custom", "t2v") == paper_rows("shapes", "t2v") == ()
    assert "2602.08099" in PAPER
    assert "dual-softmax" in STATEMENT


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_possible(name: str) -> None:
    assert len(ROWS[name]) == len({(row.model, row.direction) for row in ROWS[name]})
    for row in ROWS[name]:
        assert row.direction in ("t2v", "v2t")
        known = [value for value in (row.recall_1, row.recall_5, row.recall_10) if value is not None]
        assert len(known) in (1, 3)
        assert known == sorted(known)
        assert 0 < known[0] < known[-1] < 100 or len(known) == 1


def test_some_by_hand() -> None:
    by_name = {(row.model[:10], row.direction): row.recall_1 for row in ROWS["didemo"]}
    assert by_name["VidVec-ZS ", "t2v"] == 55.7
    assert by_name["VidVec-O (", "v2t"] == 56.5
    assert by_name["VidVec (O ", "t2v"] == 61.8
    assert [row.recall_1 for row in paper_rows("activitynet", "v2t")] == [71.9, 56.5]
    assert [row.dual_softmax for row in paper_rows("msrvtt", "t2v")] == [True, True, True, False, None]
