"""The laws against what the mechanisms draw.

The largest distance of a cumulative law from that of n draws exceeds sqrt(ln(2/p)/(2n)) with probability at most p
(Massart 1990). Each check has p = 1e-9, and n = 10,000: noise whose scale is off by a tenth is further away.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.estimate.output_laws import cumulative
from dpmesh.noise import numeric
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.source import draw_function
from tests.unit.estimate.test_spread import EVERY

DRAWS = 10_000
FARTHEST = math.sqrt(math.log(2 / 1e-9) / (2 * DRAWS))


@pytest.mark.parametrize(("kind", "in_range"), EVERY)
@pytest.mark.parametrize("size", [7, 10_000])
def test_laws_are_those_of_draws(kind, in_range, size):
    gaussian = kind is NumericKind.DISCRETE_GAUSSIAN
    mechanism = numeric.make(
        kind,
        size,
        max(1, size // 5) if gaussian else size,
        None if gaussian else Fraction(2),
        rho=Fraction(1, 8) if gaussian else None,
        in_range=in_range,
    )
    draw, law = draw_function(mechanism.draws), cumulative(mechanism, size)
    x = size // 3
    drawn = np.sort([draw(x) for _ in range(DRAWS)])
    y = np.unique(drawn)
    expected = law(np.array([float(x)]), y.astype(np.float64))[:, 0]
    assert np.abs(np.searchsorted(drawn, y, side="right") / DRAWS - expected).max() < FARTHEST
    ends = law(np.array([0.0, x, size]), np.array([mechanism.low - 1.0, mechanism.high]))
    assert np.allclose(ends, [[0.0] * 3, [1.0] * 3], atol=1e-12)


@pytest.mark.parametrize(("kind", "in_range"), EVERY)
def test_laws_have_the_means_and_variances_of_their_mechanisms(kind, in_range):
    """Exactly, summed up over all outputs of a small grid."""
    size, gaussian = 9, kind is NumericKind.DISCRETE_GAUSSIAN
    mechanism = numeric.make(
        kind,
        size,
        size,
        None if gaussian else Fraction(3),
        rho=Fraction(1, 2) if gaussian else None,
        in_range=in_range,
    )
    outputs = np.arange(mechanism.low, mechanism.high + 1, dtype=np.float64)
    held = np.arange(size + 1, dtype=np.float64)
    law = np.diff(cumulative(mechanism, size)(held, outputs), axis=0, prepend=0.0)
    assert law.min() > -1e-12
    at = size / 2 + (outputs - size / 2) * mechanism.stretch
    if mechanism.unbiased_low is not None:
        at = np.where(
            outputs == 0, mechanism.unbiased_low, np.where(outputs == size, mechanism.unbiased_high, at)
        )
    assert np.allclose(at @ law, held, atol=1e-6)
    variances = [mechanism.variance(x) for x in range(size + 1)]
    assert np.allclose((at**2) @ law - held**2, variances, rtol=1e-5)
