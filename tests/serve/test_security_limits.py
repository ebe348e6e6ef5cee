from __future__ import annotations

import math

import pytest

from vidembed.serve import Limits


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_items", "timeout_s", "max_upload_bytes"])
def test_rejects_non_positive_limit(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got {value}"):
        Limits(**{name: value})


def test_rejects_queue_shorter_than_longest_request() -> None:
    with pytest.raises(ValueError, match="max_queue: got 3; at least max_items=4"):
        Limits(max_items=4, max_queue=3)
    Limits(max_items=4, max_queue=4)


def test_rejects_memory_in_which_no_decoder_starts() -> None:
    with pytest.raises(ValueError, match="decode_memory_bytes: got 1000; at least 536870912"):
        Limits(decode_memory_bytes=1000)
