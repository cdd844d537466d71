"""Checks of parameters, before any arithmetic."""

from __future__ import annotations

from fractions import Fraction

MAX_EPSILON = 64


def integer(name: str, value: int, low: int, high: int) -> None:
    """Raises unless the value is an integer from low to high.

    Raises:
        TypeError: It is no integer.
        ValueError: It is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}")


def rational(name: str, value: Fraction, high: int) -> None:
    """Raises unless the value is an exact number above 0 and at most `high`.

    Raises:
        TypeError: It is not exact. Floats are refused: they stand for a number that nobody meant.
        ValueError: It is out of range.
    """
    if not isinstance(value, Fraction | int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a Fraction")
    if not 0 < value <= high:
        raise ValueError(f"{name} must be above 0 and at most {high}")


def epsilon(value: Fraction) -> None:
    """Raises unless the value is an exact epsilon above 0 and at most 64.

    Raises:
        TypeError: It is not exact.
        ValueError: It is out of range.
    """
    rational("epsilon", value, MAX_EPSILON)
