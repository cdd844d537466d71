"""Noise on hexagons at full size: rings, directions and the independence of draws that follow each other.

False alarms, of a right sampler: chi-square is allowed p >= 1e-7 on both sides, means are allowed 5 standard errors.
Together below 3e-6 for each loss. A loss that is wrong by 0.5 % fails, in either direction, and so does a direction that
comes too often by 0.3 %.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dpmesh.noise.hexagonal import HexagonalGeometric, coordinates

SIZES = [300_000, pytest.param(10_000_000, marks=pytest.mark.full)]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("loss", [Fraction(1, 1000), Fraction(1, 20), Fraction(2)])
def test_rings_directions_and_independence(loss, count):
    q, r = coordinates(HexagonalGeometric(loss).block(count))
    ring = np.maximum(np.maximum(abs(q), abs(r)), abs(q + r))
    a = math.exp(-loss)
    z = 1 + 6 * a / (1 - a) ** 2
    mean = 6 * a * (1 + a) / (1 - a) ** 3 / z
    square = 6 * a * (1 + 4 * a + a * a) / (1 - a) ** 4 / z
    assert abs(ring.mean() - mean) <= 5 * math.sqrt((square - mean**2) / count)
    last = next(k for k in range(int(mean) + 1, 10**6) if 6 * k * a**k / z * count < 200)
    expected = np.append(6 * np.arange(last) * a ** np.arange(last) / z, 0) * count
    expected[0] = count / z
    expected[-1] = count - expected.sum()
    seen = np.bincount(np.minimum(ring, last), minlength=last + 1)
    few = expected < 20
    seen, expected = np.append(seen[~few], seen[few].sum()), np.append(expected[~few], expected[few].sum())
    seen, expected = seen[expected > 0], expected[expected > 0]
    chi = float(((seen - expected) ** 2 / expected).sum())
    assert 1e-7 < stats.chi2.sf(chi, len(seen) - 1) < 1 - 1e-7
    away = ring > 0
    # The six sides of a ring, each with the corner that it begins at.
    side = np.select(
        [
            (q > 0) & (r >= 0),
            (r > 0) & (q + r > 0),
            (r > 0) & (q < 0),
            (q < 0) & (r <= 0),
            (r < 0) & (q + r < 0),
        ],
        range(5),
        5,
    )
    sides = np.bincount(side[away], minlength=6)
    chi = float(((sides - away.sum() / 6) ** 2 / (away.sum() / 6)).sum())
    assert 1e-7 < stats.chi2.sf(chi, 5) < 1 - 1e-9
    for first, second in ((q[:-1], q[1:]), (r[:-1], r[1:]), (ring[:-1], ring[1:])):
        assert abs(np.corrcoef(first, second)[0, 1]) <= 5 / math.sqrt(count)
