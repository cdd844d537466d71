"""Numbers, lengths of time and paths, written for people."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """A number with four digits, or in full if it is whole and below a million; "-" for None."""
    if value is None:
        return "-"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


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


def short_path(path: str) -> str:
    """A path for people; of a long one its beginning and its end."""
    path = path.removesuffix(".")
    return path if len(path) <= 120 else f"{path[:60]}...{path[-57:]}"
