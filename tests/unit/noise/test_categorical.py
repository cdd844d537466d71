"""The categorical mechanism's interface."""

import math
from fractions import Fraction

import pytest

from dpmesh.noise import categorical
from dpmesh.policy.codegen.source import draw_function


@pytest.mark.parametrize("k", [2, 5, 300])
def test_draws_stay_in_the_domain(k):
    draw = draw_function(categorical.make(k, Fraction(1, 10)).draws)
    for i in (0, k // 2, k - 1):
        assert {draw(i) for _ in range(5000 if k < 10 else 20_000)} <= set(range(k))


def test_all_symbols_occur_for_every_input():
    draw = draw_function(categorical.make(4, Fraction(1)).draws)
    assert all({draw(i) for _ in range(2000)} == {0, 1, 2, 3} for i in range(4))


@pytest.mark.parametrize("k", [2, 16])
@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(4)])
def test_truth_and_variance(k, epsilon):
    mechanism = categorical.make(k, epsilon)
    e = math.exp(epsilon)
    assert mechanism.truth == pytest.approx(e / (e + k - 1))
    assert mechanism.variance() == pytest.approx((e + k - 2) / (e - 1) ** 2)
    assert mechanism.lie == pytest.approx((1 - mechanism.truth) / (k - 1))
    assert mechanism.epsilon == epsilon
    assert mechanism.k == k


@pytest.mark.parametrize(
    ("k", "epsilon", "error"),
    [
        (1, Fraction(1), ValueError),
        (0, Fraction(1), ValueError),
        (2**31 + 1, Fraction(1), ValueError),
        (2.0, Fraction(1), TypeError),
        (True, Fraction(1), TypeError),
        (4, Fraction(0), ValueError),
        (4, Fraction(-1), ValueError),
        (4, Fraction(65), ValueError),
        (4, 0.5, TypeError),
        (4, math.nan, TypeError),
        (4, math.inf, TypeError),
    ],
)
def test_bad_arguments(k, epsilon, error):
    with pytest.raises(error):
        categorical.make(k, epsilon)


GRID = [Fraction(1, 100), Fraction(1, 2), Fraction(1), Fraction(2), Fraction(4), Fraction(8), Fraction(20)]


def rare_variance(p, q):
    return q * (1 - q) / (p - q) ** 2


@pytest.mark.parametrize("epsilon", GRID, ids=str)
@pytest.mark.parametrize("k", [2, 3, 4, 5, 16, 17, 100, 105, 300, 1000, 1024])
def test_no_length_of_subset_has_a_smaller_variance(k, epsilon):
    mechanism, ratio = categorical.make_subset(k, epsilon), math.exp(-epsilon)

    def variance(w):
        p, not_p = w / (w + (k - w) * ratio), (k - w) * ratio / (w + (k - w) * ratio)
        return rare_variance(p, (p * (w - 1) + not_p * w) / (k - 1))

    assert mechanism.variance() == pytest.approx(variance(mechanism.size), rel=1e-9)
    assert mechanism.variance() <= min(map(variance, range(1, k))) * (1 + 1e-9)
    assert mechanism.variance() <= categorical.make(k, epsilon).variance() * (1 + 1e-9)
    assert abs(mechanism.size - k / (math.exp(epsilon) + 1)) < 1 or mechanism.size == 1


@pytest.mark.parametrize("epsilon", GRID, ids=str)
def test_no_number_of_hashes_has_a_smaller_variance(epsilon):
    mechanism, e = categorical.make_hashing(epsilon), math.exp(epsilon)
    most = categorical.MOST_HASHES
    least = min(rare_variance(e / (e + g - 1), 1 / g) for g in range(2, min(int(3 * e) + 9, most) + 1))
    assert mechanism.variance() == pytest.approx(least, rel=1e-9)
    if mechanism.size < most:
        assert mechanism.variance() == pytest.approx(4 * e / (e - 1) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("k", "response", "subset"), [(4, 1.60, 1.60), (16, 5.66, 3.11), (100, 34, 3.59), (1000, 339, 3.67)]
)
def test_variances_at_epsilon_one(k, response, subset):
    assert categorical.make(k, Fraction(1)).variance() == pytest.approx(response, rel=5e-3)
    assert categorical.make_subset(k, Fraction(1)).variance() == pytest.approx(subset, rel=5e-3)
    assert categorical.make_hashing(Fraction(1)).variance() == pytest.approx(3.68, rel=5e-3)


@pytest.mark.parametrize(
    "mechanism", [categorical.make_subset(5, Fraction(1)), categorical.make_hashing(Fraction(1))]
)
def test_the_variance_of_a_share_is_that_of_its_reports(mechanism):
    p, q = mechanism.truth, mechanism.lie
    assert mechanism.variance(1.0) == pytest.approx(p * (1 - p) / (p - q) ** 2)
    assert mechanism.variance(0.25) == pytest.approx(
        mechanism.variance() * 0.75 + mechanism.variance(1.0) / 4
    )


def test_outputs_are_known_from_what_is_none():
    subset = categorical.make_subset(9, Fraction(1, 10))
    assert subset.size == 4
    assert subset.allows([0, 3, 7, 8])
    assert not any(
        map(subset.allows, ([0, 3, 7], [0, 3, 7, 9], [0, 3, 3, 7], [-1, 3, 7, 8], [1, 2, 3, 4, 5]))
    )
    hashing = categorical.make_hashing(Fraction(1))
    assert hashing.allows((2**64 - 1, 3))
    assert not any(map(hashing.allows, ((2**64, 3), (-1, 3), (0, 4), (0, -1))))
    response = categorical.make(3, Fraction(1))
    assert [response.allows(y) for y in (-1, 0, 2, 3)] == [False, True, True, False]


@pytest.mark.parametrize("epsilon", [Fraction(0), Fraction(65), 0.5])
def test_bad_epsilons_of_subsets_and_hashes(epsilon):
    with pytest.raises((ValueError, TypeError)):
        categorical.make_subset(4, epsilon)
    with pytest.raises((ValueError, TypeError)):
        categorical.make_hashing(epsilon)


@pytest.mark.parametrize("k", [1, 1025, 4.0])
def test_bad_numbers_of_symbols_of_subsets(k):
    with pytest.raises((ValueError, TypeError)):
        categorical.make_subset(k, Fraction(1))
