"""Tumbling windows: [k * length, (k + 1) * length) in seconds since the epoch, the same for every holder."""

from __future__ import annotations

import math

MAX_SECONDS = 2**53
"""Times and lengths up to here are exact in a float."""


def check_length(length: float | None) -> None:
    """Checks a window's length.

    Raises:
        ValueError: It is neither None (lifetime) nor a whole, positive number of seconds.
    """
    if length is None:
        return
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not math.isfinite(length):
        raise ValueError(f"window must be a number of seconds, not {length!r}")
    if not 1 <= length <= MAX_SECONDS or length != int(length):
        raise ValueError(f"window must be a whole number of seconds, 1 or more, not {length!r}")


def window_start(now: float, length: float | None) -> int:
    """When the window that holds `now` began, in seconds since the epoch; 0 for a lifetime budget.

    Args:
        now: Seconds since the epoch.
        length: The window's length in whole seconds, or None for lifetime.

    Raises:
        ValueError: now is NaN, infinite or before the epoch, or the length is not valid.
    """
    check_length(length)
    if isinstance(now, bool) or not isinstance(now, (int, float)) or not 0 <= now <= MAX_SECONDS:
        raise ValueError(f"now must be in seconds since the epoch, not {now!r}")
    return 0 if length is None else int(now) // int(length) * int(length)


def window_end(now: float, length: float | None) -> int | None:
    """When the window that holds `now` ends, in seconds since the epoch; None for a lifetime budget.

    Raises:
        ValueError: now is NaN, infinite or before the epoch, or the length is not valid.
    """
    start = window_start(now, length)
    return None if length is None else start + int(length)
