"""The optimized Piecewise mechanism: exact probabilities of cells and of outputs, from the code that decodes draws."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise import numeric
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.optimized_piecewise import OptimizedPiecewise
from dpmesh.noise.optimized_shapes import _SHAPES, shape_for
from dpmesh.policy.codegen.source import function
from tests.unit.noise import exact

EPSILONS = [Fraction(text) for text in ("1e-6", "0.5", "1.19", "2", "5", "64")]
SIZES = [1, 2, 3, 10, 23]


def places_among_rows(law):
    """For each index, its place among the rows in parts 2^-row_bits, as the generated statements compute it."""
    finding, place = law._finding()
    return function("place", "x", f"{finding}y = {place}", "y", {})


def cells(law, x):
    """P(cell | x): the window of one of two rows, boosted, and the rest."""
    place = places_among_rows(law)(x)
    row, part = divmod(place, 1 << law._row_bits)
    assert 0 <= row < law.rows or (row, part) == (law.rows, 0)
    part = Fraction(part, 1 << law._row_bits)
    table = dict.fromkeys(range(law.cells), Fraction(0))
    for begin, share in ((row, 1 - part), (row + 1, part)):
        for cell in table if share else ():
            inside = begin <= cell < begin + law.width
            table[cell] += share * (law.inside / law.width if inside else (1 - law.inside) / law.rows)
    return table


def table(law, x):
    """P(output | x): the points are rounded up with the probability of their fractional parts."""
    whole, outputs = 1 << law.fraction_bits, {}
    for cell, p in cells(law, x).items():
        down, up = divmod(law.points[cell], whole)
        for y, share in ((down, Fraction(whole - up, whole)), (down + 1, Fraction(up, whole))):
            if share:
                outputs[y] = outputs.get(y, Fraction(0)) + p * share
    return outputs


@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_exact_epsilon_mean_and_variance(size, epsilon, in_range):
    law = OptimizedPiecewise(size, epsilon, in_range=in_range)
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        for tables in ([cells(law, x) for x in range(size + 1)], [table(law, x) for x in range(size + 1)]):
            assert all(sum(t.values()) == 1 for t in tables)
            ratio = exact.worst_ratio(tables)
            assert mpmath.mpf(ratio.numerator) / ratio.denominator <= bound
    assert 0 < law.inside < 1
    middle, stretch = Fraction(size, 2), Fraction(law.stretch)
    spread = max(map(abs, law.outputs)) + size
    for x, t in enumerate(tables):
        estimates = {middle + (y - middle) * stretch: p for y, p in t.items()}
        mean = sum(y * p for y, p in estimates.items())
        if not in_range and epsilon <= Fraction(119, 100):
            assert abs(mean - x) * 2**100 < spread  # exact but for the rounding of `inside` to 2^-128
        assert abs(mean - x) <= (law.means[-1] - law.means[0]) / 2**36 + Fraction(spread) / 2**50
        variance = sum((y - mean) ** 2 * p for y, p in estimates.items())
        assert law.variance(x) == pytest.approx(float(variance), rel=1e-6, abs=1e-9)
        assert set(t) <= set(law.outputs)
    assert (law.low, law.high) == (law.outputs[0], law.outputs[-1])
    worst = max(law.variance(x) for x in range(size + 1))
    assert max(map(law.variance, law.worst_at())) == pytest.approx(worst, rel=1e-12)
    assert in_range or stretch == 1
    assert not in_range or (law.low, law.high) == (0, size)


LARGE = [256, 300, 4095, 4096, 2**15, 2**15 + 1, 2**40]


@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize("epsilon", [Fraction(1, 10**6), Fraction(1), Fraction(2), Fraction(8)], ids=str)
def test_a_place_among_the_rows_lies_where_the_mean_says(epsilon, in_range):
    """The last index of each pair of rows, the first one of the next, and the ends: nothing leaves the rows."""
    for size in LARGE:
        law = OptimizedPiecewise(size, epsilon, in_range=in_range)
        place, parts = places_among_rows(law), 1 << law._row_bits
        assert law.means[0] <= 0
        assert law.means[-1] >= size
        assert law.means == sorted(law.means)
        edges = [math.ceil(mean) for mean in law.means]
        found = {min(max(x + near, 0), size) for x in (*edges, size // 3) for near in (-1, 0, 1)}
        for x in found:
            row, part = divmod(place(x), parts)
            row, part = (row - 1, parts) if row == law.rows else (row, part)
            low, high = law.means[row], law.means[row + 1]
            below = x - (low + (high - low) * Fraction(part, parts))
            assert 0 <= below < (high - low) / 2**36


def test_the_windows_mean_is_the_rows_mean():
    for epsilon in (Fraction(1, 2), Fraction(3), Fraction(9)):
        law = OptimizedPiecewise(10_000, epsilon)
        for row, mean in enumerate(law.means):
            window = law.points[row : row + law.width]
            rest = law.points[:row] + law.points[row + law.width :]
            inside = law.inside / law.width * sum(window)
            assert abs(inside + (1 - law.inside) / law.rows * sum(rest) - mean) * 2**100 < 1


def test_codes_decode_to_the_cells_of_the_row():
    """Every place i of a code, for every row: width of them in the window, the others out of it, each once."""
    for size in (41, 10_000):
        law = OptimizedPiecewise(size, Fraction(2))
        decode, place = exact.decoding(law), places_among_rows(law)
        for x in range(0, size + 1, max(1, size // 40)):
            row, part = divmod(place(x), 1 << law._row_bits)
            for v in {0, (1 << law._row_bits) - 1 - part, (1 << law._row_bits) - 1}:
                begin = row + (v + part >> law._row_bits)
                ring = [(begin + i) % law.cells for i in range(law.cells)]
                for i, cell in enumerate(ring):
                    for u in {0, (1 << law.fraction_bits) - 1}:
                        code = ((u << 8 | i) << law._row_bits) + v
                        assert 0 <= code < 1 << 60
                        assert decode(x, code) == law.points[cell] + u >> law.fraction_bits


@pytest.mark.parametrize("size", [9, 10_000])
def test_codes_have_their_law(size):
    """Each place's count, v and u: each of some 40 figures lies within 6 standard errors, which one misses once in 2e7."""
    law = OptimizedPiecewise(size, Fraction(3))
    count = 40_000
    codes = law.block(count, KeyStream())
    v, i = codes & ((1 << law._row_bits) - 1), codes >> law._row_bits & 255
    u = codes >> (law._row_bits + 8)
    for place in range(law.cells):
        p = float(law.inside / law.width if place < law.width else (1 - law.inside) / law.rows)
        assert abs(np.mean(i == place) - p) < 6 * math.sqrt(p * (1 - p) / count)
    uniforms = [(v, 1 << law._row_bits)] + ([(u, 1 << law.fraction_bits)] if law.fraction_bits else [])
    for drawn, bound in uniforms:
        assert drawn.min() >= 0
        assert drawn.max() < bound
        assert abs(np.mean(drawn / bound) - 0.5) < 6 * math.sqrt(1 / 12 / count)
        assert abs(np.corrcoef(drawn, i)[0, 1]) < 6 / math.sqrt(count)


def test_every_shape_fits_its_class():
    for start, width, half in _SHAPES:
        assert 2 * len(half) + 2 * len(half) - width <= 256
        assert width <= len(half)
        assert list(half) == sorted(set(half))
        assert half[0] > 0
        assert shape_for(Fraction(start, 10_000)) == (width, half)
    starts = [start for start, _, _ in _SHAPES]
    assert starts == sorted(set(starts))
    assert shape_for(Fraction(1, 10**9)) == _SHAPES[0][1:]
    assert shape_for(Fraction(64)) == _SHAPES[-1][1:]


def pm_sub_mean_variance(epsilon):
    """Zhao et al. 2020: Piecewise with t = exp(epsilon/3); its variance averaged over uniform values in [-1, 1]."""
    grown, t = math.exp(epsilon), math.exp(epsilon / 3)
    end, half = (grown + t) * (t + 1) / (t * (grown - 1)), (grown + t) / (t * (grown - 1))
    density = 1 / (2 * end + 2 * half * (grown - 1))
    slope = (grown + t) / (grown - 1)  # of the window's middle
    square = density * 2 * end**3 / 3
    square += density * (grown - 1) * (2 * half**3 + 6 * half * slope**2 / 3) / 3
    return square - 1 / 3


@pytest.mark.parametrize("in_range", [False, True])
def test_variances_are_near_the_least_possible_ones(vectors, in_range):
    """Worst-case variance beside the linear program's, mean variance on uniform data beside PM-SUB's."""
    size = 10_000
    for case in vectors("numeric_optimum.json")["cases"]:
        epsilon = Fraction(str(case["epsilon"]))
        mechanism = numeric.make(NumericKind.OPTIMIZED_PIECEWISE, size, size, epsilon, in_range=in_range)
        assert mechanism.worst_variance / (size / 2) ** 2 <= 1.13 * case["variance"]
        mean = np.mean([mechanism.variance(x) for x in range(0, size + 1, 10)]) / (size / 2) ** 2
        assert mean <= 1.1 * pm_sub_mean_variance(float(epsilon))


def test_variances_fall_with_epsilon():
    """Shapes change at their starts, and the worst-case variance does not jump up there."""
    size = 10_000
    worst = [
        numeric.make(NumericKind.OPTIMIZED_PIECEWISE, size, size, Fraction(step, 16)).worst_variance
        for step in range(1, 16 * 14)
    ]
    assert all(after < before for before, after in itertools.pairwise(worst))
