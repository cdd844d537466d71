"""Counts and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def count(number: int, one: str, many: str = "") -> str:
    """A number of things, such as "2 errors".

    Args:
        number: How many.
        one: What one of them is called.
        many: What several are called; by default `one` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def minute(at: int) -> str:
    """A time in seconds since 1970, to the minute, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"{at} s since 1970"
