"""AUTO's choice has the smallest worst-case variance of all mechanisms."""

import math
from fractions import Fraction

import pytest

from dpmesh.noise import numeric, numeric_choice
from dpmesh.noise.numeric import NumericKind
from tests.unit.noise.test_numeric import IN_RANGE, LOCAL


@pytest.mark.parametrize("epsilon", ["0.25", "0.5", "1", "2", "4", "8"])
def test_worst_variances_of_large_grids(epsilon, vectors):
    case = next(case for case in vectors("local_mechanisms.json")["cases"] if case["epsilon"] == epsilon)
    names = {
        NumericKind.DISCRETE_LAPLACE: "laplace_continuous",
        NumericKind.DUCHI: "duchi_worst",
        NumericKind.PIECEWISE: "piecewise_worst",
        NumericKind.HYBRID: "hybrid_worst",
    }
    size = 1 << 20
    for kind, name in names.items():
        mechanism = numeric.make(kind, size, size, Fraction(epsilon))
        assert mechanism.worst_variance / (size / 2) ** 2 == pytest.approx(float(case[name]), rel=1e-3)
    chosen = numeric_choice.best(size, size, Fraction(epsilon), in_range=False, local=True)
    assert chosen is NumericKind.OPTIMIZED_PIECEWISE
    least = min(float(case[name]) for name in names.values())
    assert numeric.make(chosen, size, size, Fraction(epsilon)).worst_variance < least * (size / 2) ** 2


@pytest.mark.parametrize("size", [1, 2, 5, 100, 10_000, 2**40])
@pytest.mark.parametrize(
    "epsilon", [Fraction(1, 100), Fraction(1, 2), Fraction(1), Fraction(3), Fraction(20), Fraction(64)]
)
def test_best_has_the_smallest_worst_variance(size, epsilon):
    for in_range in (False, True):
        chosen = numeric_choice.best(size, size, epsilon, in_range=in_range, local=True)
        least = numeric.make(chosen, size, size, epsilon, in_range=in_range).worst_variance
        for kind in LOCAL:
            try:
                other = numeric.make(kind, size, size, epsilon, in_range=in_range)
            except ValueError:
                continue
            assert least <= other.worst_variance * (1 + 1e-12)
        assert (
            numeric_choice.best(size, 1, epsilon, in_range=in_range, local=False)
            is NumericKind.DISCRETE_LAPLACE
        )


GRID_SIZES = [1, 2, 3, 7, 50, 1000, 10_000, 65_000, 66_000, 2**20, 2**31 - 1, 2**40]
GRID_EPSILONS = ["1e-9", "0.001", "0.3", "0.6", "0.61", "0.62", "0.9", "1.5", "2", "3", "5", "9", "20", "64"]


@pytest.mark.parametrize("epsilon", [Fraction(text) for text in GRID_EPSILONS], ids=str)
def test_best_chooses_as_if_it_had_made_them_all(epsilon):
    """It decides from estimated variances, and makes only those that come close."""

    def worst(kind, size, sensitivity, in_range):
        try:
            return numeric.make(kind, size, sensitivity, epsilon, in_range=in_range).worst_variance
        except ValueError:
            return math.inf

    for size in GRID_SIZES:
        for in_range in (False, True):
            kinds = LOCAL if not in_range and epsilon > numeric.HYBRID_FROM else IN_RANGE
            if epsilon < numeric_choice._OPTIMIZED_FROM:
                kinds = [kind for kind in kinds if kind is not NumericKind.OPTIMIZED_PIECEWISE]
            for sensitivity in {1, max(1, size // 3), size}:
                least = min(worst(kind, size, sensitivity, in_range) for kind in kinds)
                chosen = numeric_choice.best(size, sensitivity, epsilon, in_range=in_range, local=True)
                assert worst(chosen, size, sensitivity, in_range) == least


@pytest.mark.parametrize("size", [7, 1000, 2**30])
@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(1), Fraction(4), Fraction(30)])
def test_estimated_variances_bound_those_of_the_mechanisms(size, epsilon):
    for in_range in (False, True):
        for kind, (low, high) in numeric_choice._worst_variances(size, size, epsilon, in_range).items():
            assert low <= numeric.make(kind, size, size, epsilon, in_range=in_range).worst_variance <= high
