"""Probabilities as certified integers: floor(2^bits * p) for p made of one exponential.

`decimal`'s exp is correctly rounded, so the neighbours of its result enclose the true value. Every further step rounds
outwards. Where both ends of the enclosure have the same floor, that floor is proven; where they differ, the
precision grows. It ends, because the exponential of a rational other than 0 is irrational.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    def enclose(low: Decimal, high: Decimal, down: Context, up: Context) -> Iterator[_Enclosure]:
        top = Decimal(ONE * d)  # exact; arithmetic outside a context would round to 28 digits
        yield (
            down.divide(top, up.fma(Decimal(n), high, Decimal(d))),
            up.divide(top, down.fma(Decimal(n), low, Decimal(d))),
        )

    return _certify(exponent, enclose)[0]


def logistics(exponent: Fraction, count: int) -> list[int]:
    """Certifies floor(2^128 / (1 + exp(2^k * exponent))) for k = 0..count-1.

    The square of an exponential's enclosure encloses the next one. It is twice as wide, and costs far
    less than another exponential.

    Args:
        exponent: Any rational but 0.
        count: How many.
    """

    def enclose(low: Decimal, high: Decimal, down: Context, up: Context) -> Iterator[_Enclosure]:
        top, one = Decimal(ONE), Decimal(1)
        for _ in range(count):
            yield down.divide(top, up.add(one, high)), up.divide(top, down.add(one, low))
            low, high = down.multiply(low, low), up.multiply(high, high)

    return _certify(exponent, enclose)


def exponential(exponent: Fraction, bits: int = BITS) -> int:
    """Certifies floor(2^bits * exp(-exponent)) for a rational exponent of at least 0."""
    if exponent == 0:
        return 1 << bits
    top = Decimal(1 << bits)

    def enclose(low: Decimal, high: Decimal, down: Context, up: Context) -> Iterator[_Enclosure]:
        yield down.multiply(top, low), up.multiply(top, high)

    return _certify(-exponent, enclose)[0]


_Enclosure = tuple[Decimal, Decimal]
_Enclose = Callable[[Decimal, Decimal, Context, Context], Iterator[_Enclosure]]


def _certify(exponent: Fraction, enclose: _Enclose) -> list[int]:
    """The common floors of both ends of what `enclose` makes of an enclosure of exp(exponent)."""
    precision = 60
    while True:
        down = Context(prec=precision, rounding=ROUND_FLOOR, Emax=MAX_EMAX, Emin=MIN_EMIN)
        up = Context(prec=precision, rounding=ROUND_CEILING, Emax=MAX_EMAX, Emin=MIN_EMIN)
        n, d = Decimal(exponent.numerator), Decimal(exponent.denominator)
        # The exponent lies from `start` to `gap` above it. exp rounds to nearest whatever the context says.
        start = down.divide(n, d)
        gap = up.subtract(up.divide(n, d), start)
        power = down.exp(start)
        low, above = down.next_minus(power), up.next_plus(power)
        if gap <= 1:
            high = up.fma(above, up.add(gap, gap), above)  # exp(gap) is at most 1 + 2 gap
            floors = [(int(first), int(last)) for first, last in enclose(low, high, down, up)]
            if all(first == last for first, last in floors):
                return [first for first, _ in floors]
        precision *= 2
