from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Condition, Filter, VideoIndex
from vidembed.index.files import uri_of
from vidembed.index.search import nearest

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
@settings(max_examples=12, deadline=None)
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


def test_few_rows_and_many_are_read_alike(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Filter(path="*.mp4", before=2)
    answers = []
    for share in (0.0, 1.0):  # scan, take
        monkeypatch.setattr("vidembed.index.exact._TAKE_UP_TO", share)
        answers.append(list(nearest(index, queries(1)[0], k=50, keep=keep)))
    assert answers[0] == answers[1]
    assert len(answers[0]) > 10


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
    ],
)
def test_conditions_that_cannot_be(index: VideoIndex, condition: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        found(index, Filter(where=(Condition.parse(condition),)))


@pytest.mark.parametrize("text", ["", "duration", "duration LIKE 5", "duration ~ 5", "= 5"])
def test_texts_that_are_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="where: got"):
        Condition.parse(text)


def test_large_integers_are_compared_exactly() -> None:
    import pyarrow as pa

    cells = pa.array([2**53, 2**53 + 1, None])
    assert Condition("size", "=", str(2**53 + 1)).fits(cells).tolist() == [False, True, False]


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
