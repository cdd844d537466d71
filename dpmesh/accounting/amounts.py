"""Ledger amounts: integers of 1e-9, costs rounded up and caps rounded down."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

AMOUNT = 10**9
"""How many ledger amounts make one unit of privacy loss (epsilon or rho)."""

MAX_AMOUNT = 2**63 - 1
"""The largest amount that every ledger can hold."""

Number = int | float | Fraction | Decimal


def exact(value: Number, name: str = "value") -> Fraction:
    """The number that was meant, as a fraction.

    A float stands for the shortest decimal that reads back as it, which is what its author wrote: 0.1 is one
    tenth. So three releases of 0.1 fit a budget of 0.3. Fractions and Decimals are taken as they are.

    Args:
        value: The number.
        name: What to call it in the error.

    Raises:
        ValueError: It is no number, NaN, infinite or negative.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction, Decimal)):
        raise ValueError(f"{name} must be a number, not {type(value).__name__}")  # noqa: TRY004 - one kind of error
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    fraction = Fraction(Decimal(repr(float(value))) if isinstance(value, float) else value)
    if fraction < 0:
        raise ValueError(f"{name} must not be negative: {value}")
    return fraction


def amount_up(value: Number, name: str = "amount") -> int:
    """A cost as a ledger amount: the smallest integer of 1e-9 that is not below it.

    Raises:
        ValueError: It is NaN, infinite, negative, or more than a ledger can hold (9.2e9).
    """
    return _held(math.ceil(exact(value, name) * AMOUNT), name)


def amount_down(value: Number, name: str = "amount") -> int:
    """A cap as a ledger amount: the largest integer of 1e-9 that is not above it.

    Raises:
        ValueError: It is NaN, infinite, negative, or more than a ledger can hold (9.2e9).
    """
    return _held(math.floor(exact(value, name) * AMOUNT), name)


def _held(amount: int, name: str) -> int:
    if amount > MAX_AMOUNT:
        raise ValueError(f"{name} must be at most {MAX_AMOUNT // AMOUNT}, the most that a ledger can hold")
    return amount
