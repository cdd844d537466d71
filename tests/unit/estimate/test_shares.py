"""The inversion of randomized response and its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpmesh.estimate import EstimateError
from dpmesh.estimate.binomial import interval
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
def test_intervals_are_those_of_received_shares_turned_around(seen, confidence):
    low, high = interval(seen, 100, confidence)
    found = shares("x", [1] * seen + [0] * (100 - seen), [0, 1], 0.75, confidence)[1]
    assert found.low == pytest.approx((low - 0.25) / 0.5, abs=1e-12)
    assert found.high == pytest.approx((high - 0.25) / 0.5, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_foreign_categories_and_nothing():
    with pytest.raises(EstimateError, match="there are no values"):
        shares("x", [], ["a", "b"], 0.75, 0.95)
    with pytest.raises(EstimateError, match="not one of its categories"):
        shares("x", ["a", "zzz"], ["a", "b"], 0.75, 0.95)


@pytest.mark.parametrize("epsilon", [0.5, 2, 4, 8, 12])
@pytest.mark.parametrize("k", [2, 4, 30])
@pytest.mark.parametrize("n", [10, 100, 520, 1000])
def test_intervals_cover_shares_that_are_rarely_received_exactly_computed(epsilon, k, n):
    """Of a category that nobody holds, or that few do, at an epsilon where lies are rare: Wilson's alone cover 84 %."""
    truth = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    lie = (1 - truth) / (k - 1)
    ends = np.array([interval(seen, n, 0.95) for seen in range(n + 1)])
    for share in (0, 1e-4, 1e-3, 0.01, 0.3, 0.999, 1):
        received = lie + share * (truth - lie)
        mass = stats.binom.pmf(np.arange(n + 1), n, received)
        holds = (ends[:, 0] - 1e-12 <= received) & (received <= ends[:, 1] + 1e-12)
        assert float(mass[holds].sum()) >= 0.93
