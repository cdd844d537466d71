"""The rejection step against reference code and rational arithmetic."""

import math
from fractions import Fraction
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

from dpmesh.noise import discrete_gaussian
from dpmesh.noise.discrete_gaussian import MAX_VARIANCE, DiscreteGaussian, variance
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.thresholds import exponential
from tests.unit.noise.streams import KEY, Script

VARIANCES = [Fraction(1, 3), Fraction(5), Fraction(10**6, 7), Fraction(3 * 10**12 + 1, 7)]


def exponent(sigma2, y):
    t = math.isqrt(int(sigma2)) + 1
    return (abs(y) - sigma2 / t) ** 2 / (2 * sigma2)


def reference(sigma2, count, stream):
    """Rational arithmetic alone decides: word < 2^32 exp(-g), with certified digits of the exponential."""
    proposals = DiscreteLaplace(Fraction(math.isqrt(int(sigma2)) + 1))
    draws = []
    while len(draws) < count:
        size = min(8192, (count - len(draws)) * 4 // 3 + 64)
        ys = proposals.block(size, stream).tolist()
        words = np.empty(size, np.uint32)
        stream.fill(words)
        for y, word in zip(ys, words.tolist(), strict=True):
            threshold = exponential(exponent(sigma2, y), 32)
            assert word != threshold  # not with this key
            if word < threshold:
                draws.append(y)
    return draws[:count]


@pytest.mark.parametrize("sigma2", VARIANCES, ids=str)
def test_known_answer_from_a_fixed_key(sigma2):
    draws = DiscreteGaussian(sigma2).block(9000, KeyStream(KEY))
    assert draws.tolist() == reference(sigma2, 9000, KeyStream(KEY))


@pytest.mark.parametrize("sigma2", [*VARIANCES, Fraction(1, 10**6), Fraction(MAX_VARIANCE)], ids=str)
def test_float64_stays_within_the_band(sigma2):
    """The float computation of all acceptance probabilities is off by less than a quarter of the band."""
    law = DiscreteGaussian(sigma2)
    t = math.isqrt(int(sigma2)) + 1
    ys = np.unique(np.linspace(0, 12 * t, 3000).astype(np.int64))
    distance = ys - law._centre
    floats = np.exp(distance * distance * (-0.5 / float(sigma2)))
    with mpmath.workprec(200):
        for y, p in zip(ys.tolist(), floats.tolist(), strict=True):
            g = exponent(sigma2, y)
            error = abs(mpmath.mpf(p) - mpmath.exp(-mpmath.mpf(g.numerator) / g.denominator))
            assert error < discrete_gaussian._BAND / 4


class Proposal:
    """Proposes one value."""

    def __init__(self, value):
        self.value = value

    def block(self, count, stream):
        return np.full(count, self.value, np.int64)


def decide(law, y, uniform, bits):
    """What the sampler does with one proposal and a uniform of so many bits; None when it wants more bits."""
    law._proposals = Proposal(y)
    # The first word is in the machine's order, as numpy reads it; further ones are big-endian.
    first = uniform >> (bits - 32)
    data = np.uint32(first).tobytes() + (uniform & ((1 << (bits - 32)) - 1)).to_bytes((bits - 32) // 8, "big")
    script = Script(data)
    accepted = len(law._accepted(1, script)) == 1
    assert not script.data
    return accepted


@pytest.mark.parametrize("y", [0, 3, -40, 700])
@pytest.mark.parametrize("bits", [64, 96, 128, 256])
def test_injected_ties_extend_the_same_uniform(y, bits):
    """A uniform that agrees with the exponential in all but the last word is decided there, exactly."""
    sigma2 = Fraction(10**6, 7)
    threshold = exponential(exponent(sigma2, y), bits)
    assert decide(DiscreteGaussian(sigma2), y, threshold - 1, bits)
    assert not decide(DiscreteGaussian(sigma2), y, threshold + 1, bits)


@pytest.mark.parametrize("y", [0, 250, -600])
def test_words_beside_the_threshold_need_no_extension(y):
    sigma2 = Fraction(10**6, 7)
    threshold = exponential(exponent(sigma2, y), 32)
    assert decide(DiscreteGaussian(sigma2), y, threshold - 1, 32)
    assert not decide(DiscreteGaussian(sigma2), y, threshold + 1, 32)


def test_a_certain_proposal_is_always_accepted():
    sigma2 = Fraction(6)  # t = 3, centre 2: the exponential is 1 at 2
    assert exponent(sigma2, 2) == 0
    assert decide(DiscreteGaussian(sigma2), 2, 2**32 - 1, 32)
    assert decide(DiscreteGaussian(sigma2), -2, 0, 32)


def test_variance_of_narrow_distributions():
    for sigma2 in (Fraction(1, 50), Fraction(1, 3), Fraction(4)):
        s = mpmath.mpf(sigma2.numerator) / sigma2.denominator
        weights = {z: mpmath.exp(-(z**2) / (2 * s)) for z in range(-200, 201)}
        expected = sum(z * z * w for z, w in weights.items()) / sum(weights.values())
        assert variance(sigma2) == pytest.approx(float(expected), rel=1e-12)
    assert variance(Fraction(10**6)) == 10**6


@pytest.mark.parametrize("sigma2", [Fraction(0), Fraction(-1), MAX_VARIANCE + Fraction(1)])
def test_scales_out_of_range(sigma2):
    with pytest.raises(ValueError, match="scale"):
        DiscreteGaussian(sigma2)


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_block_lengths(count):
    assert DiscreteGaussian(Fraction(9)).block(count).shape == (count,)


@pytest.mark.parametrize(("sigma2", "y"), [(Fraction(1_000_053, 7), 561), (Fraction(1_000_256, 7), -81)])
def test_where_float64_can_not_tell_the_same_uniform_is_extended(sigma2, y):
    """A threshold whose next digits are nearly all ones: only a uniform that goes on with more of them is above it."""
    threshold = exponential(exponent(sigma2, y), 64)
    assert 2**32 - 2**16 < threshold % 2**32 < 2**32 - 1
    law = DiscreteGaussian(sigma2)
    law._proposals = SimpleNamespace(block=lambda count, stream: np.array([y]))
    for rest, accepted in ((2**32 - 1, []), (0, [y])):
        script = Script(np.array([threshold >> 32], np.uint32).tobytes() + rest.to_bytes(4, "big"))
        assert law._accepted(1, script).tolist() == accepted
        assert not script.data, "the extension was not asked for"
