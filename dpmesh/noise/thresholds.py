"""Probabilities as certified integers: floor(2^bits * p) for p made of one exponential.

`decimal`'s exp is correctly rounded, so its neighbours enclose the true value. Every further step rounds
outwards. Where both ends of the enclosure have the same floor, that floor is proven; where they differ, the
precision grows. It ends, because the exponential of a rational other than 0 is irrational.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

BITS = 128
ONE = 1 << BITS


def logistic(exponent: Fraction, odds: Fraction | int = 1) -> int:
    """Certifies floor(2^128 / (1 + odds * exp(exponent))).

    Args:
        exponent: Any rational.
        odds: A rational of at least 0.
    """
    if odds == 0:
        return ONE
    if exponent == 0:
        return int(ONE / (1 + Fraction(odds)))
    n, d = Fraction(odds).as_integer_ratio()

    def enclose(low: Decimal, high: Decimal, down: Context, up: Context) -> tuple[Decimal, Decimal]:
        top = Decimal(ONE * d)  # exact; arithmetic outside a context would round to 28 digits
        return (
            down.divide(top, up.fma(Decimal(n), high, Decimal(d))),
            up.divide(top, down.fma(Decimal(n), low, Decimal(d))),
        )

    return _certify(exponent, enclose)


def exponential(exponent: Fraction, bits: int = BITS) -> int:
    """Certifies floor(2^bits * exp(-exponent)) for a rational exponent of at least 0."""
    if exponent == 0:
        return 1 << bits
    top = Decimal(1 << bits)

    def enclose(low: Decimal, high: Decimal, down: Context, up: Context) -> tuple[Decimal, Decimal]:
        return down.multiply(top, low), up.multiply(top, high)

    return _certify(-exponent, enclose)


_Enclose = Callable[[Decimal, Decimal, Context, Context], tuple[Decimal, Decimal]]


def _certify(exponent: Fraction, enclose: _Enclose) -> int:
    """The common floor of both ends of `enclose`, which gets an enclosure of exp(exponent)."""
    precision = 64
    while True:
        down = Context(prec=precision, rounding=ROUND_FLOOR, Emax=MAX_EMAX, Emin=MIN_EMIN)
        up = Context(prec=precision, rounding=ROUND_CEILING, Emax=MAX_EMAX, Emin=MIN_EMIN)
        n, d = Decimal(exponent.numerator), Decimal(exponent.denominator)
        # exp rounds to nearest whatever the context says, so the neighbours of its results enclose.
        low = down.next_minus(down.exp(down.divide(n, d)))
        high = up.next_plus(up.exp(up.divide(n, d)))
        first, last = (int(end) for end in enclose(low, high, down, up))
        if first == last:
            return first
        precision *= 2
