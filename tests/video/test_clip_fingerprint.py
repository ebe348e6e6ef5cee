from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from vidembed.video.clip import FileState

YEAR_2300 = 10_413_792_000_000_000_000  # nanoseconds since the epoch: more than a signed 64-bit number holds


@given(st.integers(), st.integers())
@example(0, YEAR_2300)
def test_any_state_fits_the_columns_of_the_index(size: int, mtime_ns: int) -> None:
    state = FileState(size, mtime_ns)
    for value, stored in ((size, state.size), (mtime_ns, state.mtime_ns)):
        assert -(2**63) <= stored < 2**63
        assert stored == value or not -(2**63) <= value < 2**63
        assert (stored - value) % 2**64 == 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_times_that_differ_still_do(one: int, other: int) -> None:
    assert (FileState(1, one) == FileState(1, other)) == (one == other)
