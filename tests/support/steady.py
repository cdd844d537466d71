"""What keeps tests from depending on the hour at which they run, and on how fast the machine is just then."""

from __future__ import annotations

import time

import pytest

_DAY = 86_400
_LONGEST = 60.0  # seconds: more than any test takes that windows of a day matter to


@pytest.fixture(autouse=True)
def one_day() -> None:
    """Budgets' windows and pseudonyms' epochs follow the real clock where a test sets none: no test runs into midnight."""
    left = _DAY - time.time() % _DAY
    if left < _LONGEST:
        time.sleep(left + 0.1)


def no_time_passes() -> float:
    """A monotonic clock for ledgers of tests that say what is leased after three charges.

    Slices follow the rate of charges: by the real clock, a machine that stalls between two charges makes them smaller.
    """
    return 0.0
