"""Codes: mechanisms share a pool only where they share a law, and draw the law that their parameters ask for."""

from fractions import Fraction

import pytest

from dpmesh.noise import categorical, numeric
from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.piecewise import Piecewise
from dpmesh.policy.codegen.source import draw_function
from tests.unit.noise.streams import KEY

SIZES, EPSILONS = (4, 10, 1000), (Fraction(1, 2), Fraction(1), Fraction(2))


def test_no_two_laws_have_one_key():
    """A pool that two laws shared would hand one's draws to the other."""
    keys = [categorical.make(k, epsilon).draws.key for k in (2, 3, 10) for epsilon in EPSILONS]
    for size in SIZES:
        for epsilon in EPSILONS:
            for kind in (NumericKind.DUCHI, NumericKind.PIECEWISE, NumericKind.HYBRID):
                # Up to epsilon .61, Hybrid is Duchi.
                if kind is not NumericKind.HYBRID or epsilon > numeric.HYBRID_FROM:
                    keys.append(numeric.make(kind, size, size, epsilon).draws.key)
            keys.append(numeric.make(NumericKind.DUCHI, size, size, epsilon, in_range=True).draws.key)
    for steps in (1, 3):
        for loss in (Fraction(1, 7), Fraction(5)):
            keys.append(numeric.make(NumericKind.DISCRETE_LAPLACE, 10, steps, loss).draws.key)
            keys.append(numeric.make(NumericKind.DISCRETE_GAUSSIAN, 10, steps, None, rho=loss).draws.key)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize(("steps", "epsilon"), [(1, Fraction(1)), (4, Fraction(1, 3)), (3, Fraction(20))])
def test_laplace_draws_its_own_scale(size, in_range, steps, epsilon):
    """The padding of 2^-60 included, which pays for the thresholds' rounding."""
    scale = Fraction(steps) / epsilon * (1 + Fraction(1, 2**60))
    draws = numeric.make(NumericKind.DISCRETE_LAPLACE, size, steps, epsilon, in_range=in_range).draws
    assert draws.key == (DiscreteLaplace, scale)
    drawn, expected = draws.block(3000, KeyStream(KEY)), DiscreteLaplace(scale).block(3000, KeyStream(KEY))
    assert (drawn == expected).all()


@pytest.mark.parametrize(("steps", "rho"), [(1, Fraction(1, 2)), (4, Fraction(1, 3)), (3, Fraction(20))])
def test_the_gaussian_draws_its_own_sigma(steps, rho):
    sigma2 = steps**2 / (2 * rho) * (1 + Fraction(1, 2**60))
    draws = numeric.make(NumericKind.DISCRETE_GAUSSIAN, 10, steps, None, rho=rho).draws
    assert draws.key == (DiscreteGaussian, sigma2)
    drawn, expected = draws.block(3000, KeyStream(KEY)), DiscreteGaussian(sigma2).block(3000, KeyStream(KEY))
    assert (drawn == expected).all()


def test_draws_come_from_the_pool_of_the_laws_key():
    first, second = (numeric.make(NumericKind.DUCHI, 10, 10, Fraction(5, 7)) for _ in range(2))
    stock = first.draws.pool()
    draw_function(first.draws)(3)
    left = len(stock._items)
    draw_function(second.draws)(3)
    assert len(stock._items) == left - 1


def test_hybrid_begins_where_it_is_better_than_duchi():
    for epsilon, kind in ((Fraction(61, 100), "Duchi"), (Fraction(62, 100), "hybrid")):
        key = numeric.make(NumericKind.HYBRID, 10, 10, epsilon).draws.key
        assert getattr(key[0], "__name__", key[0]) == kind


def test_every_piecewise_code_rounds_by_a_draw_of_its_own():
    """Of 2^40 and more rounding draws no two are equal: false alarm below 1e-6."""
    law = Piecewise(1000, Fraction(1))
    assert law.shift > 40
    codes = law.block(1000, KeyStream()).tolist()
    rounding = [code % law.slope if code >= 0 else ~code & ((1 << law.shift) - 1) for code in codes]
    assert len(set(rounding)) == 1000
    assert 200 < sum(code >= 0 for code in codes) < 900
