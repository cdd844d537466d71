"""The sampler against reference code and against the distribution's own formula."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise.discrete_laplace import MAX_SCALE, DiscreteLaplace, variance
from dpmesh.noise.entropy import KeyStream
from tests.unit.noise import exact
from tests.unit.noise.streams import KEY, Script, Tape

SCALES = [
    Fraction(1, 64),
    Fraction(1, 20),
    Fraction(3, 7),
    Fraction(1),
    Fraction(1000, 3),
    Fraction(2**20 + 1, 3),
]


def certain(x, bits=128):
    with mpmath.workprec(1000):
        return int(mpmath.floor(mpmath.ldexp(x(), bits)))


def reference(scale, count, tape):
    """Plain Python over 128-bit integers, thresholds from mpmath, no numpy arithmetic.

    Coins, one row each: carry and digits K-1..0 of the first geometric variable, then of the second.
    """
    digits = 0
    while 2**digits < 10 * scale:
        digits += 1
    with mpmath.workprec(1000):
        b = mpmath.mpf(scale.numerator) / scale.denominator
    carry = certain(lambda: mpmath.exp(-(2**digits) / b)) + 1
    one = [carry] + [certain(lambda k=k: 1 / (1 + mpmath.exp(2**k / b))) for k in range(digits - 1, -1, -1)]
    raw = tape.take(2 * 2 * len(one) * count)
    words = np.frombuffer(raw, np.uint16).reshape(2, len(one), count).tolist()
    heads = []
    for rows in words:
        for row, threshold in zip(rows, one, strict=True):
            heads.append([])
            for word in row:
                tie = word == threshold >> 112
                uniform = word << 112 | (int.from_bytes(tape.take(14), "big") if tie else 0)
                heads[-1].append(uniform < threshold)
    draws = [0] * count
    for first, sign in ((0, 1), (len(one), -1)):
        high = [int(carried) for carried in heads[first]]
        for i in range(count):
            while heads[first][i] and int.from_bytes(tape.take(16), "big") < carry:
                high[i] += 1
        for i in range(count):
            g = high[i]
            for row in heads[first + 1 : first + len(one)]:
                g = 2 * g + row[i]
            draws[i] += sign * g
    return draws


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_known_answer_from_a_fixed_key(scale):
    tape = Tape()
    expected = reference(scale, 8192, tape) + reference(scale, 1000, tape)
    assert DiscreteLaplace(scale).block(9192, KeyStream(KEY)).tolist() == expected


def test_carries_continue_until_a_coin_fails():
    # Scale 1/64 has no digits: two carries, which are all but impossible (e^-64) and so are injected.
    law = DiscreteLaplace(Fraction(1, 64))
    words = np.array([[0, 1], [1, 0]], np.uint16).tobytes()  # ties: first of draw 0, second of draw 1
    zero, ones = bytes(14), b"\xff" * 16
    more = bytes(16)
    script = Script(words + zero + zero + more + more + ones + more + ones)
    assert law.block(2, script).tolist() == [3, -2]
    assert not script.data


@pytest.mark.parametrize("scale", [Fraction(1, 64), Fraction(3, 7), Fraction(2), Fraction(29, 3)], ids=str)
def test_the_thresholds_give_the_geometric_distribution(scale):
    """P(g) = (1-a) a^g to a relative 1e-28 (1 + g/scale), over digits and carries."""
    with mpmath.workprec(600):
        a = mpmath.exp(-mpmath.mpf(scale.denominator) / scale.numerator)
        for g, p in enumerate(exact.geometric(DiscreteLaplace(scale), 400)):
            if scale < 1 and g > 20:
                break
            ratio = mpmath.mpf(p.numerator) / p.denominator / ((1 - a) * a**g)
            # The carry is rounded up by less than 2^-128, which is not little where it is itself below 1e-27.
            tolerance = 1e-28 * (1 + g / scale) if scale > Fraction(1, 20) else g * 2.0**-128 / float(a)
            assert abs(ratio - 1) < tolerance + 1e-28
            if scale < Fraction(1, 20) and g:
                assert ratio > 1


def test_variance():
    for scale in (Fraction(1, 8), Fraction(1), Fraction(40)):
        a = mpmath.exp(-1 / mpmath.mpf(float(scale)))
        assert variance(scale) == pytest.approx(float(2 * a / (1 - a) ** 2), rel=1e-12)


def test_huge_scales_stay_in_64_bits():
    law = DiscreteLaplace(Fraction(MAX_SCALE))
    assert law._rows - 1 <= 56
    draws = law.block(20_000)
    assert 0.5 * MAX_SCALE < np.abs(draws).mean() < 1.5 * MAX_SCALE  # 70 standard errors


@pytest.mark.parametrize("scale", [Fraction(0), Fraction(-1), Fraction(1, 65), MAX_SCALE + Fraction(1, 2)])
def test_scales_out_of_range(scale):
    with pytest.raises(ValueError, match="scale"):
        DiscreteLaplace(scale)


@pytest.mark.parametrize("count", [0, 1, 8191, 8193])
def test_block_lengths(count):
    assert DiscreteLaplace(Fraction(5)).block(count).shape == (count,)
