"""Clocks that nobody can set."""

from __future__ import annotations

import time


def since_boot() -> float:
    """Seconds that only grow, while the machine sleeps, too, where the system counts those."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
