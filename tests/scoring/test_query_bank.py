"""Query bank normalization against its definition, and when it must change nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from vidembed.scoring import QueryBank, dual_softmax

scores_in = st.floats(-1, 1, width=32)


@st.composite
def banks_and_queries(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    bank, queries, videos = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return (
        draw(hnp.arrays(np.float64, (bank, videos), elements=scores_in)),
        draw(hnp.arrays(np.float64, (queries, videos), elements=scores_in)),
    )


def by_loops(bank: np.ndarray, query: np.ndarray, beta: float, dynamic: bool) -> np.ndarray:
    active = {j for row in bank for j, value in enumerate(row) if value == max(row)}
    out = query.copy()
    for i, row in enumerate(query):
        tops = {j for j, value in enumerate(row) if value == max(row)}
        if dynamic and not tops & active:
            continue
        for j, value in enumerate(row):
            own = math.exp(beta * value)
            out[i, j] = math.log(own / (own + sum(math.exp(beta * other[j]) for other in bank)))
    return out


@given(banks_and_queries(), st.sampled_from([1.0, 20.0, 100.0]), st.booleans())
def test_definition(drawn: tuple[np.ndarray, np.ndarray], beta: float, dynamic: bool) -> None:
    bank, query = drawn
    normalized = QueryBank(bank, beta=beta).normalize(query, dynamic=dynamic)
    assert np.allclose(normalized, by_loops(bank, query, beta, dynamic), rtol=1e-9, atol=1e-9)


@given(banks_and_queries())
def test_the_query_in_the_sum_changes_no_ranking(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    bank, query = np.round(drawn[0], 3), np.round(drawn[1], 3)
    normalized = QueryBank(bank).normalize(query, dynamic=False)
    bank_only = 20.0 * query - np.log(np.exp(20.0 * bank).sum(axis=0))
    for row, expected in zip(normalized, bank_only, strict=True):
        apart = expected[:, None] > expected[None, :] + 1e-9
        assert (row[:, None] > row[None, :])[apart].all()


@given(banks_and_queries(), st.randoms(use_true_random=False))
def test_order_does_not_matter(drawn: tuple[np.ndarray, np.ndarray], random) -> None:
    bank, query = drawn
    rows, videos = (random.sample(range(n), n) for n in bank.shape)
    one = QueryBank(bank)
    other = QueryBank(bank[np.ix_(rows, videos)])
    assert np.array_equal(other.activation, one.activation[videos])
    assert np.allclose(other.normalize(query[:, videos]), one.normalize(query)[:, videos], atol=1e-9)


@given(banks_and_queries())
def test_queries_stand_for_themselves(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    bank = QueryBank(drawn[0])
    alone = np.concatenate([bank.normalize(row[None]) for row in drawn[1]])
    assert np.array_equal(bank.normalize(drawn[1]), alone)


def test_rows_outside_the_activation_set_are_unchanged() -> None:
    rng = np.random.default_rng(0)
    bank = rng.random((50, 20))
    bank[:, 10:] -= 2.0  # no bank query ranks these first
    query = rng.random((9, 20))
    query[:4, 10:] += 2.0
    made = QueryBank(bank)
    assert not made.activation[10:].any()
    assert made.activated(query).tolist() == [False] * 4 + made.activation[query[4:].argmax(axis=1)].tolist()
    assert np.array_equal(made.normalize(query)[:4], query[:4])
    assert not np.array_equal(made.normalize(query, dynamic=False)[:4], query[:4])


def test_no_active_video_among_the_columns_leaves_every_row() -> None:
    rng = np.random.default_rng(1)
    bank = rng.random((30, 20))
    bank[:, 10:] -= 2.0
    query = rng.random((7, 10))
    assert np.array_equal(QueryBank(bank).normalize(query, columns=np.arange(10, 20)), query)


def test_a_hub_counts_less() -> None:
    rng = np.random.default_rng(2)
    hub = np.zeros(30)
    hub[:5] = 0.5

    def scores() -> np.ndarray:
        return 0.3 * np.eye(30) + hub + 0.05 * rng.standard_normal((30, 30))

    query, right = scores(), np.arange(30)
    normalized = QueryBank(np.concatenate([scores() for _ in range(5)])).normalize(query)
    assert (query.argmax(axis=1) == right).mean() < 0.3
    assert (normalized.argmax(axis=1) == right).mean() > 0.8


def test_columns_are_the_same_videos() -> None:
    rng = np.random.default_rng(3)
    bank, query = QueryBank(rng.random((40, 12))), rng.random((5, 12))
    whole = bank.normalize(query)
    top = np.argsort(-query, axis=1)[:, :4]  # (Q, K), as a search returns them
    assert np.array_equal(
        bank.normalize(np.take_along_axis(query, top, axis=1), columns=top), np.take_along_axis(whole, top, axis=1)
    )
    some = np.array([2, 0, 7])
    shared = bank.normalize(query[:, some], columns=some, dynamic=False)
    assert np.array_equal(shared, bank.normalize(query, dynamic=False)[:, some])


def test_bank_of_embeddings_is_the_bank_of_their_cosines() -> None:
    rng = np.random.default_rng(4)
    queries, videos = rng.standard_normal((50, 8)), 3 * rng.standard_normal((20, 8))
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        videos / np.linalg.norm(videos, axis=1)[:, None]
    ).T
    expected = QueryBank(cosines, beta=10)
    for block_bytes in (1, 7 * 8 * 20, 1 << 20):
        made = QueryBank.from_embeddings(queries, videos, beta=10, block_bytes=block_bytes)
        assert np.allclose(made.log_normalizer, expected.log_normalizer)
        assert np.array_equal(made.activation, expected.activation)
        assert (made.size, made.videos) == (50, 20)


def test_large_beta_neither_overflows_nor_ties() -> None:
    bank = QueryBank([[0.9, 0.2, 0.1], [0.8, 0.1, 0.3]], beta=1e5)
    normalized = bank.normalize([[0.5, 0.1, 0.15]], dynamic=False)
    assert np.isfinite(normalized).all()
    assert np.argsort(-normalized[0]).tolist() == [1, 2, 0]  # margins -0.1, -0.15 and -0.4


def test_dual_softmax_of_a_batch_ranks_alike_where_scores_are_alike() -> None:
    scores = np.random.default_rng(5).random((8, 8))
    bank = QueryBank(scores, beta=20.0)
    inverted = np.exp(20.0 * scores - bank.log_normalizer)  # the softmax over the queries
    assert np.allclose(dual_softmax(scores, temperature=1 / 20), 8 * scores * inverted)


def test_saved_and_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    bank, query = QueryBank(rng.random((9, 5)), beta=1 / 3), rng.random((4, 5))
    bank.save(tmp_path / "bank.safetensors")
    again = QueryBank.load(tmp_path / "bank.safetensors")
    assert (again.beta, again.size, again.videos) == (bank.beta, 9, 5)
    assert np.array_equal(again.normalize(query), bank.normalize(query))


GOOD = {"log_normalizer": np.zeros(3), "activation": np.ones(3, dtype=bool)}
HEADER = {"kind": "query_bank", "format_version": "1", "beta": (20.0).hex(), "size": "4"}


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        (GOOD, {**HEADER, "kind": "model"}, "expected kind 'query_bank'"),
        (GOOD, {**HEADER, "format_version": "9"}, "format_version '9'"),
        (GOOD, {**HEADER, "beta": (-1.0).hex()}, "damaged"),
        (GOOD, {**HEADER, "size": "0"}, "damaged"),
        (GOOD, {**HEADER, "size": "many"}, "damaged"),
        (GOOD, {k: v for k, v in HEADER.items() if k != "beta"}, "damaged"),
        ({"activation": GOOD["activation"]}, HEADER, "damaged"),
        ({**GOOD, "log_normalizer": np.full(3, np.nan)}, HEADER, "damaged"),
        ({**GOOD, "log_normalizer": np.zeros(3, dtype=np.float32)}, HEADER, "damaged"),
        ({**GOOD, "activation": np.ones(4, dtype=bool)}, HEADER, "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, tensors, header, message: str) -> None:
    save_file(GOOD, tmp_path / "good.safetensors", metadata=HEADER)
    QueryBank.load(tmp_path / "good.safetensors")
    save_file(tensors, tmp_path / "bad.safetensors", metadata=header)
    with pytest.raises(ValueError, match=message):
        QueryBank.load(tmp_path / "bad.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bank.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="not a safetensors file"):
        QueryBank.load(tmp_path / "bank.safetensors")
    with pytest.raises(FileNotFoundError):
        QueryBank.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("scores", "columns", "message"),
    [
        ([[0.1, 0.2]], None, r"scores: expected shape \(Q, N\) with N = 3, got \(1, 2\)"),
        ([[0.1, 0.2]], [0, 3], "columns: expected positions in the gallery, from 0 to 2"),
        ([[0.1, 0.2]], [-1, 0], "columns: expected positions"),
        ([[0.1, 0.2]], [0, 1, 2], "columns: expected integers of shape"),
        ([[0.1, 0.2]], [0.0, 1.0], "columns: expected integers"),
        ([[0.1, np.inf]], [0, 1], "not finite"),
        ([[1e308, 0.0, 0.0]], None, "overflows at beta=20.0"),
    ],
)
def test_queries_are_checked(scores, columns, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryBank(np.zeros((2, 3))).normalize(scores, columns=columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueryBank(np.zeros((0, 3))), r"scores: expected shape \(B, N\)"),
        (lambda: QueryBank([[0.1, np.nan]]), "not finite"),
        (lambda: QueryBank([[0.1]], beta=0), "beta=0: expected a finite number above 0"),
        (lambda: QueryBank([[1e308]]), "overflows"),
        (lambda: QueryBank.from_embeddings([[1.0, 0.0]], [[0.0, 0.0]]), r"videos\[0\]: a zero vector"),
        (lambda: QueryBank.from_embeddings([[0.0, 0.0]], [[1.0, 0.0]]), r"queries\[0\]: a zero vector"),
        (lambda: QueryBank.from_embeddings([[1.0]], [[1.0, 0.0]]), r"queries: expected shape \(B, D\) with D = 2"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_banks_are_checked(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
