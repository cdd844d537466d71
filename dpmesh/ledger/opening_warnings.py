"""Warnings of a ledger that was just opened: what it holds does not fit the configuration or the clock."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dpmesh.ledger import clock_rewind
from dpmesh.ledger.admin import ahead_of_the_clock
from dpmesh.ledger.budget import Budget, similar
from dpmesh.ledger.store import Opened, Window

# As of the ledger itself: operators filter by this name.
_log = logging.getLogger("dpmesh.ledger.ledger")


def warn(budgets: Sequence[Budget], opened: Opened, now: float) -> None:
    """Logs what an operator should know.

    Args:
        budgets: The configured ones.
        opened: What the store has.
        now: Seconds since the epoch, by the ledger's clock.
    """
    _warn_of_unconfigured(budgets, opened.others, now)
    _warn_of_windows_ahead(budgets, [window.start for window in opened.windows], now)
    _warn_of_lower_caps(budgets, opened.windows)


def _warn_of_windows_ahead(budgets: Sequence[Budget], windows: Sequence[int], now: float) -> None:
    """Warns of windows that began by a wrong clock: these budgets do not renew before that time."""
    found = clock_rewind.ahead(dict(enumerate(budgets)), dict(enumerate(windows)), now, 1)
    if found:
        names = [budgets[index].name for index in found]
        _log.error("%s", ahead_of_the_clock("the ledger", names, now))


def _warn_of_lower_caps(budgets: Sequence[Budget], windows: Sequence[Window]) -> None:
    """Warns of lifetime budgets whose larger cap in the configuration has no effect."""
    for budget, window in zip(budgets, windows, strict=True):
        if window.length is None and window.cap < budget.cap:
            _log.warning(
                "budget %r: its cap in the ledger is lower than the configured one, and holds, because a lifetime "
                "has no next window. `dpmesh budget grant` raises the cap of one account",
                budget.name,
            )


def _warn_of_unconfigured(
    budgets: Sequence[Budget], others: Sequence[tuple[Budget, int]], now: float
) -> None:
    """Warns of budgets that the configuration no longer names: a budget that was renamed starts anew."""
    names = [budget.name for budget in budgets]
    texts = []
    for budget, start in others:
        if budget.window is None or now < start + budget.window:
            alike = similar(budget.name, names)
            texts.append(f"{budget.name!r}" + (f" (similar: {', '.join(map(repr, alike))})" if alike else ""))
    if texts:
        _log.warning(
            "the ledger holds budgets that are not configured, and what is spent of them counts for no other: %s. "
            "If one was renamed, restore its name, or it starts anew with nothing spent",
            ", ".join(texts),
        )
