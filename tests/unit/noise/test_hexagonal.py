"""The hexagonal geometric sampler: its law from its own thresholds, known answers, and draws."""

import json
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy import stats

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.geometric import digits
from dpmesh.noise.hexagonal import _PADDING, MAX_SCALE, HexagonalGeometric, coordinates
from dpmesh.noise.thresholds import ONE
from tests import support
from tests.unit.noise import exact
from tests.unit.noise.streams import KEY, Tape

CASES = json.loads((Path(support.__file__).parents[1] / "vectors/hexagonal_geometric.json").read_text())[
    "cases"
]


def steps(q, r):
    return np.maximum(np.maximum(abs(q), abs(r)), abs(q + r))


@pytest.mark.parametrize("loss", [Fraction(1, 3), Fraction(1), Fraction(5)])
def test_every_cell_has_one_way_and_the_probability_of_the_formula(loss):
    reach = 12
    table = exact.hexagonal(HexagonalGeometric(loss), reach)
    assert len(table) == 1 + 3 * reach * (reach + 1)
    with mpmath.workprec(400):
        a = mpmath.exp(-mpmath.mpf(loss.numerator) / loss.denominator)
        z = 1 + 6 * a / (1 - a) ** 2
        for (q, r), p in table.items():
            h = int(steps(q, r))
            assert h <= reach
            assert (
                abs(mpmath.mpf(p.numerator) / p.denominator * z / a**h - 1) < 1e-16
            )  # The padding shows at 8e-19 h.


@pytest.mark.parametrize("loss", [Fraction(1, 20), Fraction(1, 3), Fraction(1), Fraction(5)])
def test_neighbouring_cells_are_told_apart_by_at_most_the_loss(loss):
    """The logarithm of each ratio, with all digits. Cells h steps apart follow by h of these."""
    table = exact.hexagonal(HexagonalGeometric(loss), 10)
    with mpmath.workprec(400):
        bound = mpmath.mpf(loss.numerator) / loss.denominator
        worst = max(
            mpmath.log(
                mpmath.mpf((table[cell] / table[other]).numerator) / (table[cell] / table[other]).denominator
            )
            for cell in table
            for dq, dr in exact.DIRECTIONS
            if (other := (cell[0] + dq, cell[1] + dr)) in table
        )
        assert bound * (1 - mpmath.mpf(10) ** -17) < worst <= bound


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["epsilon_times_spacing"])
def test_the_law_has_the_moments_of_the_reference_values(case):
    """The ring's moments, from the digits' law: (1 - 1/Z) E (1 + G1 + G2)."""
    loss = Fraction(math.isqrt(3 * 10**60), 2 * 10**30) * Fraction(case["epsilon_times_spacing"])
    mechanism = HexagonalGeometric(loss)
    zero = mechanism.zero / ONE
    assert zero == pytest.approx(float(case["p_zero"]), rel=1e-14)
    ones = [threshold / ONE for threshold in digits(_PADDING / loss)]
    weights = [2.0**k for k in reversed(range(len(ones) - 1))]
    carries = ones[0] / (1 - ones[0]) * 2 ** (len(ones) - 1)
    mean = carries + sum(p * w for p, w in zip(ones[1:], weights, strict=True))
    variance = carries * (2 ** (len(ones) - 1) + carries)
    variance += sum(p * (1 - p) * w * w for p, w in zip(ones[1:], weights, strict=True))
    assert (1 - zero) * (1 + 2 * mean) == pytest.approx(float(case["mean_ring"]), rel=1e-13)
    square = (1 - zero) * (2 * variance + (1 + 2 * mean) ** 2)
    assert square == pytest.approx(float(case["mean_square_ring"]), rel=1e-13)


def reference(loss, count, tape):
    """Plain Python over 128-bit integers: coins, one row each (no noise; carry and digits of A; of B), then six turns."""
    mechanism = HexagonalGeometric(loss)
    one = digits(_PADDING / loss)
    rows = [mechanism.zero, *one, *one]
    words = np.frombuffer(tape.take(2 * len(rows) * count), np.uint16).reshape(len(rows), count).tolist()
    heads = []
    for row, threshold in zip(words, rows, strict=True):
        heads.append([])
        for word in row:
            tie = word == threshold >> 112
            uniform = word << 112 | (int.from_bytes(tape.take(14), "big") if tie else 0)
            heads[-1].append(uniform < threshold)
    numbers = []
    for part in (heads[1 : 1 + len(one)], heads[1 + len(one) :]):
        found = [int(carried) for carried in part[0]]
        for i in range(count):
            while part[0][i] and int.from_bytes(tape.take(16), "big") < one[0]:
                found[i] += 1
        for digit in part[1:]:
            found = [2 * value + bit for value, bit in zip(found, digit, strict=True)]
        numbers.append(found)
    turns = np.frombuffer(tape.take(8 * count), np.uint64).tolist()
    cells = []
    for none, a, b, turn in zip(heads[0], *numbers, turns, strict=True):
        (q, r), (q2, r2) = exact.DIRECTIONS[turn % 6], exact.DIRECTIONS[(turn + 1) % 6]
        cells.append((0, 0) if none else (q * (a + 1) + q2 * b, r * (a + 1) + r2 * b))
    return cells


@pytest.mark.parametrize("loss", [Fraction(3), Fraction(1, 3), Fraction(1, 100_000)])
def test_known_answers_of_plain_python(loss):
    count = 500
    found = coordinates(HexagonalGeometric(loss).block(count, KeyStream(KEY)))
    assert list(zip(*(each.tolist() for each in found), strict=True)) == reference(loss, count, Tape())


@pytest.mark.parametrize("loss", [Fraction(1), Fraction(1, 10)])
def test_draws_have_the_law_of_every_cell(loss):
    """Chi-square over all cells that 400,000 draws reach 25 times or more. False alarm 1e-7 each."""
    count = 400_000
    q, r = coordinates(HexagonalGeometric(loss).block(count))
    a = math.exp(-loss)
    z = 1 + 6 * a / (1 - a) ** 2
    reach = int(math.log(count / z / 25) / loss)
    near = steps(q, r) <= reach
    index = (q[near] + reach) * (2 * reach + 1) + r[near] + reach
    seen = np.bincount(index, minlength=(2 * reach + 1) ** 2).reshape(2 * reach + 1, -1)
    grid = np.arange(-reach, reach + 1)
    ring = steps(grid[:, np.newaxis], grid[np.newaxis, :])
    expected = np.where(ring <= reach, count * a**ring / z, 0)
    shown = expected > 0
    rest = count - expected.sum()
    chi = (
        float((((seen - expected)[shown] ** 2) / expected[shown]).sum())
        + (count - near.sum() - rest) ** 2 / rest
    )
    assert 1e-7 / 2 < stats.chi2.sf(chi, int(shown.sum())) < 1 - 1e-7 / 2


def test_codes_hold_both_coordinates():
    pairs = np.array([[0, 0], [1, -1], [-1, 1], [2**31 - 1, -(2**31)], [-(2**31), 2**31 - 1]])
    q, r = coordinates((pairs[:, 0] << 32) + pairs[:, 1])
    assert np.array_equal(np.stack([q, r], axis=1), pairs)


@pytest.mark.parametrize("loss", [Fraction(0), Fraction(65), Fraction(1, MAX_SCALE + 1)])
def test_losses_that_make_no_sense_are_refused(loss):
    with pytest.raises(ValueError, match=r"loss|little"):
        HexagonalGeometric(loss)


def test_a_float_is_refused():
    with pytest.raises(TypeError, match="Fraction"):
        HexagonalGeometric(0.5)
