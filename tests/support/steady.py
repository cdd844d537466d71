"""What keeps tests from depending on the hour at which they run, and on how fast the machine is just then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dpmesh.ledger import commit_queue

_DAY = 86_400
_LONGEST = 60.0  # seconds: more than any test takes that windows of a day matter to


@pytest.fixture(autouse=True)
def one_day() -> None:
    """Budgets' windows and pseudonyms' epochs follow the real clock where a test sets none: no test runs into midnight."""
    left = _DAY - time.time() % _DAY
    if left < _LONGEST:
        time.sleep(left + 0.1)


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    """Slices follow the rate at which they are used up: a machine that stalls between two charges would make them smaller.

    Many tests say what is in hand after three charges. Those that are about rates set this clock themselves.
    """
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo all that it has patched itself
        patch.setattr(
            commit_queue, "time", SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
        )
        yield
