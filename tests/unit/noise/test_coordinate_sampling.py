"""Coordinate sampling: which coordinates, what each is charged, and how far off they are."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.noise import coordinate_sampling
from dpmesh.noise.coordinate_sampling import CoordinateSampling
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from tests.unit.noise import exact
from tests.unit.noise.streams import KEY
from tests.unit.noise.test_duchi import table


@pytest.mark.parametrize(("dimension", "count"), [(1, 1), (4, 1), (4, 2), (5, 3), (4, 4)])
def test_every_set_of_coordinates_is_equally_likely(dimension, count):
    law = CoordinateSampling(dimension, Fraction(3), 8, count)
    bounds = [dimension - count + i + 1 for i in range(count)]
    seen = Counter(frozenset(law.chosen(codes)) for codes in itertools.product(*map(range, bounds)))
    assert set(seen) == set(map(frozenset, itertools.combinations(range(dimension), count)))
    assert len(set(seen.values())) == 1


def test_a_row_of_draws_is_positions_and_then_values():
    law = CoordinateSampling(6, Fraction(3), 8, 2)
    positions, values = law.columns()[:2], law.columns()[2:]
    drawn = [draws.block(200, KeyStream(KEY)) for draws in positions]
    assert [(block.min(), block.max()) for block in drawn] == [(0, 4), (0, 5)]
    assert [draws.key for draws in values] == [law.mechanism.draws.key] * 2


def whole_law(law, x):
    """P(what leaves), 0 for the coordinates that are not sampled, from the thresholds and the statements in use."""
    duchi = Duchi(2 * law.half, law.mechanism.epsilon)
    outputs = {}
    sets = list(itertools.combinations(range(law.dimension), law.count))
    for chosen in sets:
        for values in itertools.product(*(table(duchi, x[coordinate]).items() for coordinate in chosen)):
            left = [0] * law.dimension
            for coordinate, (y, _) in zip(chosen, values, strict=True):
                left[coordinate] = y - law.half
            p = Fraction(1, len(sets))
            for _, probability in values:
                p *= probability
            outputs[tuple(left)] = outputs.get(tuple(left), 0) + p
    return outputs


@pytest.mark.parametrize("count", [1, 2])
def test_the_whole_law_loses_epsilon_and_is_unbiased(count):
    """All vectors of two coordinates on a grid of three points, and all that can leave of them."""
    law = CoordinateSampling(2, Fraction(1, 8), 1, count)  # So little that AUTO is Duchi's mechanism.
    assert law.mechanism.kind is NumericKind.DUCHI
    grid = list(itertools.product(range(3), repeat=2))
    laws = [whole_law(law, x) for x in grid]
    assert all(sum(outputs.values()) == 1 for outputs in laws)
    ratio = float(exact.worst_ratio(laws))
    assert ratio <= math.exp(0.125)
    assert ratio == pytest.approx(math.exp(0.125), rel=1e-12)
    grown = Fraction(2, count)
    for x, outputs in zip(grid, laws, strict=True):
        mean = sum(p * left[0] for left, p in outputs.items()) * grown
        assert float(mean) == pytest.approx(x[0] - 1, abs=1e-30)
        square = sum(p * left[0] ** 2 for left, p in outputs.items()) * grown**2
        assert float(square - mean**2) == pytest.approx(float(law.variance(x[0] - 1)), rel=1e-9)


@pytest.mark.parametrize("epsilon", ["0.1", "1", "5", "12"])
def test_the_sampled_coordinates_share_epsilon(epsilon):
    count = coordinate_sampling.best_count(20, Fraction(epsilon))
    law = CoordinateSampling(20, Fraction(epsilon), 1 << 10, count)
    assert law.mechanism.epsilon * law.count == Fraction(epsilon)


@pytest.mark.parametrize("epsilon", ["0.5", "1", "4", "8"])
def test_no_other_number_of_coordinates_is_better(epsilon):
    epsilon = Fraction(epsilon)
    best = coordinate_sampling.best_count(6, epsilon)
    worst = {
        count: CoordinateSampling(6, epsilon, 1 << 10, count).worst_variance
        for count in range(1, 7)
        if count <= 2 * epsilon
    }
    assert worst[best] == min(worst.values())


def test_the_variance_counts_how_rarely_a_coordinate_is_sampled():
    law = CoordinateSampling(10, Fraction(4), 100, 2)
    scalar = law.mechanism.variance(200)
    assert float(law.variance(100.0)) == pytest.approx(5 * (scalar + 100**2) - 100**2)
    assert law.variance(np.array([-100.0, 100.0])) == pytest.approx([float(law.variance(100.0))] * 2)
    assert law.worst_variance >= float(law.variance(100.0))


@pytest.mark.parametrize("count", [0, 11])
def test_a_number_of_coordinates_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match="count must be"):
        CoordinateSampling(10, Fraction(1), 100, count)
