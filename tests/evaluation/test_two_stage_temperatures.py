from __future__ import annotations

import numpy as np
import pytest

from vidembed.evaluation.two_stage import GivenTemperatures, Temperature
from vidembed.scoring import fit_temperature


def known() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return 0.3 + 0.2 * np.eye(30) + 0.3 * rng.random(30) + 0.1 * rng.random((30, 30)), np.eye(30, dtype=bool)


def test_given_goes_before_fitted_and_fitted_before_the_default() -> None:
    assert Temperature.choose(0.5, 0.01, known(), what="x").origin == "given"
    assert Temperature.choose(0.5, 0.01, known(), what="x").value == 0.5
    fitted = Temperature.choose(None, 0.01, known(), what="x")
    assert (fitted.origin, fitted.value) == ("fitted", fit_temperature(*known()).temperature)
    assert fitted.queries == 30
    assert fitted.recall_before is not None
    assert fitted.recall_after is not None
    assert fitted.recall_before < fitted.recall_after <= 100
    default = Temperature.choose(None, 0.01, None, what="x")
    assert (default.value, default.origin, default.queries) == (0.01, "default, not fitted", None)


def test_a_validation_set_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="validation: no temperature of the first stage can be fitted"):
        Temperature.choose(None, 0.01, (np.ones((1, 2)), np.array([[True, False]])), what="the first stage")
    with pytest.raises(ValueError, match="validation: "):
        Temperature.choose(None, 0.01, (np.ones((3, 3)), np.eye(3, dtype=bool)), what="the first stage")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_ones(value: float) -> None:
    with pytest.raises(ValueError, match="temperature second_v2t"):
        GivenTemperatures(second_v2t=value)


def test_by_direction() -> None:
    given = GivenTemperatures(1.0, 2.0, 3.0, 4.0)
    assert [given.first("t2v"), given.first("v2t"), given.second("t2v"), given.second("v2t")] == [1, 2, 3, 4]
