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
    assert mechanism.worst_variance == pytest.approx((e + k - 2) / (e - 1) ** 2)
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
