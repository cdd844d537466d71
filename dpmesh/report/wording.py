"""Numbers, counts, times and lengths of time as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def number(value: float | None) -> str:
    """A number with four digits, or in full if it is whole and below a million; "-" for None."""
    if value is None:
        return "-"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def count(number: int, one: str, many: str = "") -> str:
    """A number of things, such as "2 errors".

    Args:
        number: How many.
        one: What one of them is called.
        many: What several are called; by default `one` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    rest, words = round(seconds), []
    for length, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        units, rest = divmod(rest, length)
        if units:
            words.append(f"{units} {name}")
    return " ".join(words[:2])


def minute(at: int) -> str:
    """A time in seconds since 1970, to the minute, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"{at} s since 1970"
