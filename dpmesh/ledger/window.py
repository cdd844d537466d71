"""Windows of budgets: which one is in force, when it ends, and with which cap. Pure calculations for all stores."""

from __future__ import annotations

import math
from typing import NamedTuple

from dpmesh.accounting import window_end, window_start
from dpmesh.ledger.budget import Budget


class Window(NamedTuple):
    """The window of a budget that is in force, for all holders.

    Attributes:
        start: When it began, in seconds since the epoch; 0 for lifetime.
        length: The budget's length when it began, in seconds; None for lifetime.
        cap: The smallest cap of all holders that opened, adopted or charged the budget in it; a ledger amount.
    """

    start: int
    length: int | None
    cap: int

    @property
    def end(self) -> float:
        """When it ends, in seconds since the epoch; infinite for lifetime. The next one may begin then, or later."""
        return math.inf if self.length is None else (self.start // self.length + 1) * self.length


def first_window(budget: Budget) -> Window:
    """The window of a budget that nobody has charged."""
    return Window(0, None if budget.window is None else int(budget.window), budget.cap)


def window_in_force(stored: Window, budget: Budget, now: float) -> Window:
    """The window in force for a holder that charges a budget. Every store writes it where it differs. Pure.

    A window keeps its beginning and its end, whatever length the holder knows. Its cap falls to the holder's, and never
    rises. The holder that begins the next window decides its length and its cap.

    Args:
        stored: The window that was in force last.
        budget: What the holder knows of the budget.
        now: Seconds since the epoch.
    """
    if now < stored.end:
        return stored._replace(cap=min(stored.cap, budget.cap))
    start = max(int(stored.end), window_start(now, budget.window))
    return first_window(budget)._replace(start=start)


def window_at_opening(stored: Window | None, budget: Budget) -> Window:
    """The window of a budget once a holder with these terms opened the store, or adopted them. Pure.

    Args:
        stored: The window that was in force last; None if the store does not know the budget.
        budget: The holder's terms.
    """
    if stored is None or (stored.start == 0 and stored.length is not None):
        return first_window(budget)  # Nothing was charged yet.
    return stored._replace(cap=min(stored.cap, budget.cap))


def account_end(start: int, window: Window) -> int | None:
    """When the window ended, or ends, that an account was charged in last. None for lifetime.

    Args:
        start: When that window began.
        window: The budget's latest window, which may have another length.
    """
    end = window_end(start, window.length)
    return min(end, window.start) if end is not None and start < window.start else end
