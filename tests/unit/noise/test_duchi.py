"""Duchi's mechanism: the exact table of all outputs, from the code that decodes draws."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise import numeric
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.pool import Pool
from dpmesh.noise.thresholds import ONE
from dpmesh.policy.codegen.source import draw_function
from tests.unit.noise import exact

EPSILONS = [Fraction(1, 10**9), Fraction(1, 10), Fraction(1), Fraction(5), Fraction(64)]
SIZES = [1, 2, 3, 10, 41]


def table(law, x):
    """P(output | x) over all codes 4u + 2 lie + up."""
    rows = zip(law._coins._high[:, 0].tolist(), law._coins._low, strict=True)
    lie, up = (Fraction(high << 112 | low, ONE) for high, low in rows)
    outputs, decode = {}, exact.decoding(law)
    for u in range(law.size):
        for bits in range(4):
            p = (lie if bits & 2 else 1 - lie) * (up if bits & 1 else 1 - up) / law.size
            y = decode(x, 4 * u + bits)
            outputs[y] = outputs.get(y, Fraction(0)) + p
    return {y: p for y, p in outputs.items() if p}


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_range", [False, True])
def test_exact_epsilon_mean_and_variance(size, epsilon, in_range):
    law = Duchi(size, epsilon, in_range=in_range)
    tables = [table(law, x) for x in range(size + 1)]
    assert all(sum(t.values()) == 1 for t in tables)
    ratio = exact.worst_ratio(tables)
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        assert mpmath.mpf(ratio.numerator) / ratio.denominator <= bound
    assert float(ratio) == pytest.approx(float(bound), rel=1e-9)  # nothing is wasted
    for x, t in enumerate(tables):
        estimate = {y: ((-law.margin if y == 0 else size + law.margin) if in_range else y) for y in t}
        mean = sum(p * estimate[y] for y, p in t.items())
        assert abs(mean - x) * 2**120 < size / epsilon  # exact but for the margin's rounding probability
        second = sum(p * (estimate[y] - mean) ** 2 for y, p in t.items())
        assert law.variance(x) == pytest.approx(float(second), rel=1e-9, abs=1e-12)
        assert min(t) >= law.low
        assert max(t) <= law.high
    worst = numeric.make(NumericKind.DUCHI, size, size, epsilon, in_range=in_range).worst_variance
    assert worst == pytest.approx(max(law.variance(x) for x in range(size + 1)), rel=1e-12)


def test_in_range_outputs_are_the_ends():
    law = Duchi(7, Fraction(1), in_range=True)
    assert all(set(table(law, x)) == {0, 7} for x in range(8))


def test_draw_decodes_the_pool():
    law = Duchi(9, Fraction(1, 2))
    codes = law.block(5000, KeyStream())
    draw, decode = draw_function(law.draws, Pool(lambda count, stream: codes)), exact.decoding(law)
    xs = [x % 10 for x in range(5000)]
    assert [draw(x) for x in xs] == [
        decode(x, code) for x, code in zip(xs, codes[::-1].tolist(), strict=True)
    ]


def test_codes_are_uniform_in_u():
    law = Duchi(3, Fraction(1))
    counts = np.bincount(law.block(300_000, KeyStream()) >> 2, minlength=3)
    assert np.abs(counts - 100_000).max() < 6 * 258  # six standard errors: false alarms below 1e-8
