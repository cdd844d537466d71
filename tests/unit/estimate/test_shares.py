"""The inversion of randomized response and Wilson's interval."""

from __future__ import annotations

import pytest
from scipy import stats

from dpmesh.estimate import EstimateError
from dpmesh.estimate.shares import shares


def test_expected_counts_give_back_the_shares_exactly():
    truth, k = 0.5, 5
    lie = 0.125
    actual = [0.0, 0.1, 0.2, 0.3, 0.4]
    counts = [round(8000 * (lie + share * (truth - lie))) for share in actual]
    values = [category for category in range(k) for _ in range(counts[category])]
    found = shares("x", values, range(k), truth, 0.95)
    assert [entry.value for entry in found] == pytest.approx(actual, abs=1e-12)
    assert all(entry.n == 8000 for entry in found)


@pytest.mark.parametrize("seen", [0, 1, 30, 99, 100])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_intervals_are_wilsons_turned_around(seen, confidence):
    """scipy's Wilson interval as the reference."""
    reference = stats.binomtest(seen, 100).proportion_ci(confidence, method="wilson")
    found = shares("x", [1] * seen + [0] * (100 - seen), [0, 1], 0.75, confidence)[1]
    assert found.low == pytest.approx((reference.low - 0.25) / 0.5, abs=1e-12)
    assert found.high == pytest.approx((reference.high - 0.25) / 0.5, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_foreign_categories_and_nothing():
    with pytest.raises(EstimateError, match="there are no values"):
        shares("x", [], ["a", "b"], 0.75, 0.95)
    with pytest.raises(EstimateError, match="not one of its categories"):
        shares("x", ["a", "zzz"], ["a", "b"], 0.75, 0.95)
