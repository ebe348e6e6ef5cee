from __future__ import annotations

import dataclasses

import pytest

from tests.evaluation.made_up import changed, made_up
from vidembed.evaluation.metrics import paired_bootstrap
from vidembed.evaluation.report import compare
from vidembed.evaluation.result import Failure


def test_rows_and_differences() -> None:
    weak, strong = made_up(0, skill=0.5, name="weak"), made_up(1, skill=3.0, name="strong")
    found = compare([weak, strong], seed=4)
    assert found.models == ("weak", "strong")
    assert [(row.column, row.direction, row.model) for row in found.rows] == [
        (column, way, model)
        for column in ("raw", "dual_softmax")
        for way in ("t2v", "v2t")
        for model in ("weak", "strong")
    ]
    for row in found.rows[::2]:
        assert row.difference is None
    for row in found.rows[1::2]:
        key = f"{row.column}.{row.direction}"
        expected = paired_bootstrap(
            strong.ranks[key] == 1, weak.ranks[key] == 1, seed=4, groups=weak.ranks[f"groups.{row.direction}"]
        )
        assert row.difference is not None
        assert row.difference.estimate == pytest.approx(100 * expected.estimate)
        assert row.difference.low == pytest.approx(100 * expected.low)
        assert row.difference.low > 0
        figures = strong.column(row.column).of(row.direction)
        assert figures is not None
        assert row.recall_1 == figures.recall_1
        assert row.recall_10 == figures.recall_10.estimate


def test_against_itself_there_is_no_difference() -> None:
    row = compare([made_up(), made_up()]).rows[1]
    assert row.difference is not None
    assert (row.difference.low, row.difference.estimate, row.difference.high) == (0, 0, 0)


def test_counts_failures() -> None:
    failed = changed(made_up(1, name="two"), failures=(Failure("a", "a.mp4", "broken"),))
    found = compare([made_up(name="one"), failed])
    assert found.failures == found.to_dict()["failures"] == {"one": 0, "two": 1}


def test_numbers_equal_names() -> None:
    assert compare([made_up(), made_up(1), made_up(2)]).models == ("a model", "a model (2)", "a model (3)")


def test_keeps_apart_a_name_that_looks_numbered() -> None:
    found = compare(
        [made_up(name="a (2)"), changed(made_up(1, name="a"), failures=(Failure("v", "v", "x"),)), made_up(2, name="a")]
    )
    assert found.models == ("a (2)", "a", "a (3)")
    assert found.failures == {"a (2)": 0, "a": 1, "a (3)": 0}


def test_rejects_ranks_without_the_groups_of_their_queries() -> None:
    first = made_up(name="one")
    lacking = {name: ranks for name, ranks in first.ranks.items() if name != "groups.t2v"}
    with pytest.raises(ValueError, match="evaluate again"):
        compare([changed(first, ranks=lacking), made_up(1, name="two")])


def test_table_and_json() -> None:
    found = compare([made_up(0, name="one"), made_up(1, name="two")])
    heads, cells = found.table()
    assert all(len(row) == len(heads) for row in cells)
    assert cells[1][-1].startswith(("+", "-"))
    assert cells[4][0] == "dual-softmax (default, not fitted)"
    content = found.to_dict()
    assert content["schema_version"] == 1
    assert len(content["rows"]) == 8


def test_like_with_like_only() -> None:
    with pytest.raises(ValueError, match="got 1, expected at least 2"):
        compare([made_up()])
    with pytest.raises(ValueError, match=r"two was measured on a test \(20 videos"):
        compare([made_up(name="one"), made_up(name="two", videos=20)])
    other = made_up(name="two")
    other = changed(other, benchmark=dataclasses.replace(other.benchmark, digest="x"))
    with pytest.raises(ValueError, match="other data of the same size"):
        compare([made_up(), other])


def test_ranks_that_are_not_there() -> None:
    without = changed(made_up(), ranks={})
    with pytest.raises(ValueError, match="has no ranks of raw, t2v"):
        compare([made_up(), without])
