"""The thresholds of a geometric variable's digits give its law."""

from fractions import Fraction

import mpmath
import pytest

from dpmesh.noise.geometric import digits
from tests.unit.noise import exact


@pytest.mark.parametrize("scale", [Fraction(1, 64), Fraction(3, 7), Fraction(1), Fraction(25, 2)])
def test_the_digits_and_the_carry_give_the_geometric_law(scale):
    with mpmath.workprec(400):
        a = mpmath.exp(-1 / (mpmath.mpf(scale.numerator) / scale.denominator))
        for value, p in enumerate(exact.geometric_of(digits(scale), 40)):
            expected = (1 - a) * a**value
            found = mpmath.mpf(p.numerator) / p.denominator
            assert abs(found - expected) < expected * mpmath.mpf(10) ** -24 + mpmath.mpf(2) ** -126


def test_a_carry_is_never_too_rare():
    carry, *_ = digits(Fraction(1))
    assert Fraction(carry, 2**128) > Fraction(str(mpmath.nstr(mpmath.exp(-16), 15)))
