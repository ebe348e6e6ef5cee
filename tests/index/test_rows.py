from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Condition, Filter, VideoIndex
from vidembed.index.rows import rank_all, unit
from vidembed.index.schema import segment_id
from vidembed.index.search import nearest
from vidembed.index.table import uri_of

COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}

NAMES = [
    "a.mp4",
    "b'; DROP TABLE segments; --.mp4",
    "100%_[x].mp4",
    "ä ö.mp4",
    "sub/a.mp4",
    "sub/deep/c.MP4",
    'q"q.mp4',
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    index = made_index(tmp_path_factory.mktemp("filters") / "ix", made_vectors(20), per_file=10)
    index.put(
        [
            file_rows(uri_of(Path("/v") / name), made_vectors(2 + number, seed=number), content=f"c{number}")
            for number, name in enumerate(NAMES)
        ],
        replace=False,
    )
    return index


def found(index: VideoIndex, keep: Filter) -> list[tuple[str, float]]:
    hits = nearest(index, queries(1)[0], k=1000, keep=keep)
    assert hits.method.name == "exact"
    return [(hit.uri, hit.start_s) for hit in hits]


def names(index: VideoIndex, pattern: str) -> set[str]:
    return {uri for uri, _ in found(index, Filter(path=pattern))}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_itself_whatever_it_holds(index: VideoIndex, name: str) -> None:
    pattern = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in f"/v/{name}")
    assert names(index, pattern) == {uri_of(Path("/v") / name)}
    assert len(index) == 20 + sum(2 + number for number in range(len(NAMES)))  # nothing was dropped


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.mp4", {"a.mp4", "sub/a.mp4"}),
        ("/v/a.mp4", {"a.mp4"}),
        ("sub/*", {"sub/a.mp4", "sub/deep/c.MP4"}),
        ("sub/a.mp4", {"sub/a.mp4"}),
        ("ub/a.mp4", set()),
        ("*.MP4", {"sub/deep/c.MP4"}),
        ("/v/sub/*", {"sub/a.mp4", "sub/deep/c.MP4"}),
        ("ä*", {"ä ö.mp4"}),
        ("%25*", set()),
        ("' OR 1=1 --", set()),
    ],
)
def test_globs(index: VideoIndex, pattern: str, expected: set[str]) -> None:
    assert names(index, pattern) == {uri_of(Path("/v") / name) for name in expected}


def test_times(index: VideoIndex) -> None:
    # segments of /v/000.mp4 are [0, 1], [1, 2] to [9, 10]
    def starts(**times: float) -> list[float]:
        return sorted(start for _, start in found(index, Filter(path="000.mp4", **times)))

    assert starts(after=8) == [8, 9]
    assert starts(after=7.5) == [7, 8, 9]
    assert starts(before=2) == [0, 1]
    assert starts(after=3.5, before=4.5) == [3, 4]
    assert starts(after=10) == []


def test_conditions(index: VideoIndex) -> None:
    def lengths(*where: str) -> set[str]:
        return {uri.rsplit("/", 1)[1] for uri, _ in found(index, Filter(where=tuple(map(Condition.parse, where))))}

    assert lengths("duration >= 10") == {"000.mp4", "001.mp4"}
    assert lengths("duration<3") == {"a.mp4"}
    assert lengths("size = 2", "content_fingerprint = c0") == {"a.mp4"}
    assert lengths("content_fingerprint = ' OR '1'='1") == set()
    assert lengths("content_fingerprint != c", "duration != 2", "duration <= 3") == {
        uri_of(Path("/v") / NAMES[1]).rsplit("/", 1)[1]
    }


@given(
    st.sampled_from(["*", "*.mp4", "0*", "a*", "sub/*", "nothing"]),
    st.floats(0, 12),
    st.floats(0.1, 12),
    st.integers(1, 40),
)
@settings(max_examples=12)
def test_a_filtered_search_is_the_ranking_of_what_fits(
    index: VideoIndex, pattern: str, after: float, length: float, k: int
) -> None:
    keep = Filter(path=pattern, after=after, before=after + length)
    query = queries(1, seed=3)[0]
    every = nearest(index, query, k=1000)
    expected = [
        hit
        for hit in every
        if hit.end_s > after
        and hit.start_s < after + length
        and hit.uri in {uri for uri, _ in found(index, Filter(path=pattern))}
    ]
    assert list(nearest(index, query, k=k, keep=keep)) == expected[:k]


@given(
    seed=st.integers(0, 2**32 - 1),
    distinct=st.integers(1, 40),
    k=st.integers(1, 60),
    before=st.none() | st.integers(1, 10),
)
@settings(max_examples=25)
def test_lancedb_ranks_one_query_as_a_pass_over_the_vectors_ranks_many(
    tmp_path_factory: pytest.TempPathFactory, seed: int, distinct: int, k: int, before: int | None
) -> None:
    rng = np.random.default_rng(seed)
    vectors = made_vectors(distinct, seed=seed)[rng.integers(0, distinct, 200)]  # many rows have the same score
    index = made_index(tmp_path_factory.mktemp("rank") / "ix", vectors, per_file=20)
    where = None if before is None else f"start_s < {before}"
    asked = unit(queries(3, seed=seed))
    together = rank_all(index, asked, k=k, where=where)
    assert [rank_all(index, query[None], k=k, where=where)[0] for query in asked] == together
    fitting = 200 if before is None else 10 * min(20, before)
    assert [len(rows) for rows in together] == [min(k, fitting)] * 3


def test_a_deep_ranking_has_every_row(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(5000, 8), per_file=500)
    hits = nearest(index, queries(1, 8)[0], k=4990)
    assert len({(hit.uri, hit.start_s) for hit in hits}) == 4990
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": ""}, "path: got a glob of 0"),
        ({"path": "a" * 5000}, "5000"),
        ({"after": -1}, "after: got -1"),
        ({"after": np.nan}, "after: got nan"),
        ({"before": np.inf}, "before: got inf"),
        ({"after": 5, "before": 5}, "before: got 5"),
    ],
)
def test_values_out_of_range(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Filter(**options)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("genre = drama", "no column 'genre'"),
        ("vector = 1", "no column 'vector'"),
        ("duration < long", "got 'long'"),
        ("duration < nan", "got 'nan'"),
        ("duration = 1 OR 1=1", "got '1 OR 1=1'"),
        ("duration < " + "9" * 400, "a finite number is needed"),
        ("size < inf", "got 'inf'"),
    ],
)
def test_conditions_that_cannot_be(index: VideoIndex, condition: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        found(index, Filter(where=(Condition.parse(condition),)))


@pytest.mark.parametrize("text", ["", "duration", "duration LIKE 5", "duration ~ 5", "= 5"])
def test_texts_that_are_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="where: got"):
        Condition.parse(text)


CELLS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "big": (pa.int64(), [2**53, 2**53 + 1, -(2**63), 2**63 - 1, None]),
    "small": (pa.int8(), [-128, 0, 3, 127, None]),
    "bits": (pa.uint64(), [0, 1, 2**63, 2**64 - 1, None]),
    "ratio": (pa.float64(), [-1.5, 0.0, math.nan, math.inf, None]),
    "flag": (pa.bool_(), [True, False, True, False, None]),
    "name": (pa.string(), ["a", 'it\'s \\ "b"', "ä", "", None]),
    "Shot": (pa.int64(), [1, 2, 3, 4, None]),
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    """Five rows with columns of the user."""
    index = made_index(tmp_path_factory.mktemp("cells") / "ix", made_vectors(5), per_file=5)
    table = lancedb.connect(index.folder).open_table("segments")
    table.add_columns([pa.field(name, kind) for name, (kind, _) in CELLS.items()])
    ids = [segment_id("file:///v/000.mp4", float(row), row + 1.0) for row in range(5)]
    columns = {"id": pa.array(ids), **{name: pa.array(values, kind) for name, (kind, values) in CELLS.items()}}
    table.merge_insert("id").when_matched_update_all().execute(pa.table(columns))
    return VideoIndex.open(index.folder)


NUMBERS = ["0", "3", "-128", "128", "2.5", "-1.5", "-0.0", "1e300", "-1e300", "1e3"]
NUMBERS += [str(2**53 + 1), str(2**63), str(2**64)]


@pytest.mark.parametrize("compare", ["<", "<=", "=", "!=", ">=", ">"])
@pytest.mark.parametrize(
    ("column", "values"),
    [
        *((name, NUMBERS) for name in ("big", "small", "bits", "ratio", "Shot")),
        ("name", ["a", 'it\'s \\ "b"', "' OR '1'='1", ""]),
        ("flag", ["true", "false"]),
    ],
)
def test_conditions_compare_as_python_does(cells: VideoIndex, column: str, values: list[str], compare: str) -> None:
    if column == "flag" and compare not in {"=", "!="}:
        with pytest.raises(ValueError, match="it cannot be compared with 'true'"):
            found(cells, Filter(where=(Condition(column, compare, "true"),)))
        return
    for value in values:
        other: Any = value if column == "name" else value == "true" if column == "flag" else exact_number(value)
        expected = {
            float(row)
            for row, cell in enumerate(CELLS[column][1])
            if cell is not None and COMPARE[compare](cell, other)
        }
        condition = Condition(column, compare, value)
        assert {start for _, start in found(cells, Filter(where=(condition,)))} == expected, condition


def exact_number(text: str) -> int | float:
    """A whole number as one, so that large ones are compared exactly."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


@pytest.mark.parametrize(
    "condition",
    [Condition("name", "LIKE", "a"), Condition("name` = 'a' OR `name", "=", "a"), Condition("vector", "=", "1")],
)
def test_no_sql_comes_in_by_a_condition(cells: VideoIndex, condition: Condition) -> None:
    with pytest.raises(ValueError, match="where: "):
        found(cells, Filter(where=(condition,)))


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("a b.mp4", True),
        ("a%20b.mp4", False),
        ("deep dir/*", True),
        ("s3://bucket/*", True),
        ("*/bucket/*.mp4", True),
        ("/bucket/*", False),
        ("s3://other/*", False),
    ],
)
def test_a_file_that_is_elsewhere_has_the_path_of_its_uri(tmp_path: Path, pattern: str, fits: bool) -> None:
    index = made_index(tmp_path / "ix", made_vectors(2))
    elsewhere = "s3://bucket/deep%20dir/a%20b.mp4"
    index.put([file_rows(elsewhere, made_vectors(1))], replace=False)
    assert (elsewhere in names(index, pattern)) is fits
