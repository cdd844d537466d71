"""PrivUnitG on finitely many directions: the whole law, computed from the threshold in use, and its error's formula."""

import math
from fractions import Fraction
from statistics import NormalDist

import mpmath
import numpy as np
import pytest

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.priv_unit import PrivUnit, make
from dpmesh.noise.thresholds import ONE
from tests.unit.noise.streams import KEY

EPSILONS = ["0.001", "0.5", "1", "2", "4", "8", "16", "64"]


def places(law):
    """The probability of a place in the upper part, and of one out of it."""
    p = Fraction(law.threshold, ONE)
    return p / law.top, (1 - p) / (law.directions - law.top)


def selected(law, x, rotations):
    """All directions that one draw can release, in the order of their places, in a form that can be compared."""
    return [
        np.rint(law.release(x, ([code], rotations))[:8] * 1e6).astype(int).tobytes()
        for code in range(law.directions)
    ]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_no_two_places_differ_by_more_than_epsilon(epsilon):
    law = PrivUnit(3, Fraction(epsilon))
    high, low = places(law)
    part = Fraction(epsilon) / law.copies
    with mpmath.workdps(60):
        ratio = mpmath.mpf(high.numerator) / high.denominator * low.denominator / low.numerator
        loss = mpmath.log(ratio)
        claim = mpmath.mpf(part.numerator) / part.denominator
        assert 0 < loss <= claim
        assert loss >= claim - mpmath.mpf(10) ** -30


@pytest.mark.parametrize("dimension", [8, 400])
def test_the_whole_law_of_opposite_vectors_differs_by_epsilon_and_no_more(dimension):
    """Given a rotation, all directions are enumerated under both vectors, and under one between them."""
    law = PrivUnit(dimension, Fraction(2))
    _, rotations = law.block(1, KeyStream(KEY))[0]
    x = np.zeros(dimension)
    x[:2] = 0.6, 0.8
    laws = []
    for held in (x, -x, np.roll(x, 7) / 2):
        high, low = places(law)
        orders = selected(law, held, rotations)
        assert len(set(orders)) == law.directions
        laws.append({row: high if place < law.top else low for place, row in enumerate(orders)})
        assert sum(laws[-1].values()) == 1
    assert all(set(law) == set(laws[0]) for law in laws)
    pairs = {(one[row], other[row]) for one in laws for other in laws for row in one}
    ratios = [one / other for one, other in pairs]
    assert float(max(ratios)) <= math.exp(2)
    assert float(max(ratios)) == pytest.approx(math.exp(2))


@pytest.mark.parametrize("dimension", [8, 400])
def test_the_upper_part_is_what_lies_nearest(dimension):
    law = PrivUnit(dimension, Fraction(4))
    _, rotations = law.block(1, KeyStream(KEY))[0]
    x = np.full(dimension, dimension**-0.5)
    cosines = [float(law.release(x, ([code], rotations)) @ x) for code in range(law.directions)]
    assert min(cosines[: law.top]) >= max(cosines[law.top :])
    # Opposite directions cancel.
    assert sum(cosines) == pytest.approx(0, abs=1e-6)


def test_a_vector_and_its_length_make_no_difference_to_what_is_drawn():
    law = PrivUnit(400, Fraction(1))
    (codes, phases), *_ = law.block(3, KeyStream(KEY))
    assert len(codes) == law.copies == 1
    assert phases.shape == (1, 3, law.directions // 4)
    assert phases.dtype == np.uint8
    law = PrivUnit(5, Fraction(1))
    (codes, frames), *_ = law.block(3, KeyStream(KEY))
    assert len(codes) == law.copies == 1
    assert frames.shape == (1, law.directions // 2, 6)


@pytest.mark.parametrize("dimension", [8, 400])
@pytest.mark.parametrize("bad", [float("nan"), 1e200])
def test_even_arithmetic_that_fails_selects_each_direction_at_one_place(bad, dimension):
    """The proof needs a permutation and nothing else."""
    law = PrivUnit(dimension, Fraction(1))
    _, rotations = law.block(1, KeyStream(KEY))[0]
    x = np.zeros(dimension)
    x[3] = bad
    with np.errstate(all="ignore"):
        assert len(set(selected(law, x, rotations))) == law.directions


@pytest.mark.parametrize("epsilon", ["0.5", "1.0", "2.0", "4.0", "8.0"])
def test_the_error_is_at_most_one_percent_above_the_optimum(epsilon, vectors):
    """The optimum for many dimensions. In few, and with few directions, the error may be a little smaller."""
    case = next(case for case in vectors("privunitg.json")["cases"] if case["epsilon"] == epsilon)
    for dimension in (16, 256, 3000):
        law = make(dimension, Fraction(epsilon))
        optimum = dimension * float(case["mse_per_dimension"])
        assert 0.985 < law.squared_error(1.0) / optimum < 1.01
        assert 0.985 < law.worst_error / optimum < 1.01


@pytest.mark.parametrize("epsilon", [10, 12, 16, 20])
def test_beyond_an_epsilon_of_8_the_error_is_at_most_1_4_times_the_optimum(epsilon):
    """The optimum: the largest mean cosine over all shares of the sphere, sqrt(dimension) times, gives 1/m^2."""
    normal, largest = NormalDist(), 0.0
    for gamma in np.arange(0.001, 8, 0.001):
        share = math.erfc(gamma / math.sqrt(2)) / 2
        upper = math.exp(epsilon) * share / (math.exp(epsilon) * share + 1 - share)
        largest = max(largest, normal.pdf(gamma) * (upper / share - (1 - upper) / (1 - share)))
    for dimension in (16, 256):
        assert 1 < make(dimension, Fraction(epsilon)).worst_error * largest**2 / dimension < 1.4


@pytest.mark.parametrize("epsilon", ["0.5", "4", "16"])
def test_variances_of_the_coordinates_sum_to_the_squared_error(epsilon):
    law = make(16, Fraction(epsilon))
    x = np.linspace(-0.4, 0.3, 16)
    assert law.variance(x).sum() == pytest.approx(law.squared_error(math.sqrt(float(x @ x))))


def test_beyond_eight_the_mean_of_several_draws_leaves():
    assert [make(8, Fraction(epsilon)).copies for epsilon in (1, 4, 8, 16)] == [1, 1, 1, 2]
    assert all(
        make(8, Fraction(e)).worst_error > make(8, Fraction(e + 1)).worst_error for e in range(2, 20, 3)
    )


@pytest.mark.parametrize(("dimension", "epsilon"), [(0, 1), (100_001, 1), (3, 0), (3, 65)])
def test_bad_parameters_are_refused(dimension, epsilon):
    with pytest.raises(ValueError, match="must be"):
        PrivUnit(dimension, Fraction(epsilon))


def test_the_largest_dimension():
    law = make(100_000, Fraction(1))
    (drawn,) = law.block(1, KeyStream())
    assert law.release(np.zeros(100_000), drawn).shape == (100_000,)
