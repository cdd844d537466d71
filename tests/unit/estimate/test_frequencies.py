"""The inversion of randomized response and its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpmesh.estimate import Estimate, EstimateError
from dpmesh.estimate.binomial import interval
from dpmesh.estimate.frequencies import estimate_frequencies, projected


def test_expected_counts_give_back_the_shares_exactly():
    truth, lie = 0.5, 0.125
    actual = [0.0, 0.1, 0.2, 0.3, 0.4]
    counts = [round(8000 * (lie + share * (truth - lie))) for share in actual]
    found = estimate_frequencies("x", counts, 8000, truth, lie, 0.95)
    assert [entry.value for entry in found] == pytest.approx(actual, abs=1e-12)
    assert all(entry.n == 8000 for entry in found)


@pytest.mark.parametrize("seen", [0, 1, 30, 99, 100])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_intervals_are_those_of_received_shares_turned_around(seen, confidence):
    low, high = interval(seen, 100, confidence)
    found = estimate_frequencies("x", [100 - seen, seen], 100, 0.999, 0.001, confidence)[1]
    assert found.low == pytest.approx((low - 0.001) / 0.998, abs=1e-12)
    assert found.high == pytest.approx((high - 0.001) / 0.998, abs=1e-12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("seen", [[0, 2000], [1000, 1000], [1900, 100]])
def test_shares_that_the_policy_can_not_give_are_refused(seen):
    with pytest.raises(EstimateError, match="another policy has released them"):
        estimate_frequencies("x", seen, 2000, 0.9, 0.6, 0.95)


def test_many_categories_are_refused_no_oftener_than_one():
    """2,000 reports, of which 0.01 of 40,000 categories are 6.2 deviations off: 5 in 10^10 of each."""
    off = round(2000 * (0.25 + 6.2 * math.sqrt(0.25 * 0.75 / 2000)) / 2) * 2
    low = 1000 - off
    assert estimate_frequencies("x", [low] * 40_000, 2000, 0.5, 0.25, 0.95)
    with pytest.raises(EstimateError):
        estimate_frequencies("x", [low - 30], 2000, 0.5, 0.25, 0.95)


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


def unbiased(values: list[float], margin: float = 0.1) -> list[Estimate]:
    return [Estimate(value, value - margin, value + margin, 10, 0.95) for value in values]


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([-0.2, 0.5, 0.7], [0, 0.4, 0.6]),
        ([-0.3, -0.2, 1.5], [0, 0, 1]),
        ([-0.1, 0.0, 0.1, 1.0], [0, 0, 0.05, 0.95]),
        ([0.5, 0.5], [0.5, 0.5]),
        ([1.0, 0.0], [1, 0]),
    ],
)
def test_projected_shares_are_the_nearest_ones(values, nearest):
    found = projected(unbiased(values))
    assert [entry.value for entry in found] == pytest.approx(nearest, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 20, 300])
def test_projection_against_the_conditions_of_its_optimum(k):
    """Karush, Kuhn and Tucker: one shift for all that stay above 0, and no more than it for those that become 0."""
    random = np.random.default_rng(k)
    values = random.normal(1 / k, 1, k)
    values += (1 - values.sum()) / k
    found = np.array([entry.value for entry in projected(unbiased(values.tolist()))])
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    shift = (values - found)[found > 0]
    assert np.ptp(shift) < 1e-12
    assert np.all(values[found == 0] <= shift[0] + 1e-12)


def test_a_projected_interval_holds_whatever_share_it_held():
    before = unbiased([-0.3, -0.05, 0.6, 0.75], margin=0.1)
    for old, new in zip(before, projected(before), strict=True):
        assert 0 <= new.low <= new.value <= new.high <= 1
        for share in np.linspace(0, 1, 101):
            assert new.covers(share) or not old.covers(share)
