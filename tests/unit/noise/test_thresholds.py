"""Every threshold, against two libraries that know nothing of each other."""

from fractions import Fraction

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmesh.noise.thresholds import exponential, logistic


def independent(value, bits=128):
    """floor(2^bits * value()) by mpmath at 2,000 binary digits; the test fails if that leaves the floor open."""
    with mpmath.workprec(2000):
        exact = mpmath.ldexp(value(), bits)
        floor = int(mpmath.floor(exact))
        assert floor + mpmath.mpf(2) ** -1000 < exact < floor + 1 - mpmath.mpf(2) ** -1000
        return floor


def mp(x):
    return mpmath.mpf(x.numerator) / x.denominator


def test_all_reference_vectors(vectors):
    cases = vectors("discrete_laplace_thresholds.json")["cases"]
    for case in cases:
        scale = Fraction(*case["scale"])
        got = [logistic(2**k / scale) for k in range(case["digits"])]
        assert got == [int(threshold) for threshold in case["threshold_128"]]
    assert sum(case["digits"] for case in cases) == 84


rationals = st.fractions(min_value=Fraction(-64), max_value=Fraction(80), max_denominator=10**12)


@settings(max_examples=150)
@given(rationals.filter(bool), st.integers(1, 10**9))
def test_logistic_against_mpmath(exponent, odds):
    assert logistic(exponent, odds) == independent(lambda: 1 / (1 + odds * mpmath.exp(mp(exponent))))


@settings(max_examples=150)
@given(rationals.filter(lambda x: x > 0), st.integers(1, 512))
def test_exponential_against_mpmath(exponent, bits):
    assert exponential(exponent, bits) == independent(lambda: mpmath.exp(-mp(exponent)), bits)


@pytest.mark.parametrize("bits", [128, 1000])
def test_precision_grows_until_both_ends_agree(bits):
    # 64 decimal digits can't decide 1,000 bits; and 1 - 10^-100 is as near to a multiple as one will ever get.
    tiny = Fraction(1, 10**100)
    assert exponential(Fraction(1, 3), bits) == independent(lambda: mpmath.exp(-mpmath.mpf(1) / 3), bits)
    assert exponential(tiny, bits) == independent(lambda: mpmath.exp(-mp(tiny)), bits)
    assert exponential(tiny) == 2**128 - 1


def test_exact_cases():
    assert exponential(Fraction(0), 32) == 2**32
    assert logistic(Fraction(0)) == 2**127
    assert logistic(Fraction(0), 2) == 2**128 // 3
    assert logistic(Fraction(7), 0) == 2**128
    assert logistic(Fraction(10**6)) == 0
