"""What is spent and left in the window in force, and what these numbers promise to whom. Pure functions, no I/O."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dpmesh.accounting import AMOUNT, Accounting, rho_to_epsilon, window_end

if TYPE_CHECKING:
    from dpmesh.ledger import Account, Budget

NOT_CONFIGURED = "not configured"

# Whose loss a budget caps, and towards whom, by its key.
_WHOSE = {
    "unit": "The loss is this unit's, towards everyone who receives its messages, all of them together.",
    "global": "The loss is that of any one unit whose data are in the aggregates, towards everyone who receives them, "
    "all of them together.",
    "unit/consumer": "The loss is this unit's, towards this consumer. "
    "Consumers who put together what they received are capped by the unit's budgets alone (without --consumer).",
    "global/consumer": "The loss is that of any one unit whose data are in the aggregates, towards this consumer. "
    "Consumers who put together what they received are capped by the budgets alone (without --consumer).",
}
_ON_TOP = "What is granted to an account in other windows comes on top (dpmesh ledger log --grants tells of grants)."


@dataclass(frozen=True, slots=True)
class Amount:
    """A privacy loss.

    Attributes:
        value: In the budget's own accounting: epsilon if pure, rho if zcdp.
        epsilon: The epsilon that it guarantees (at the budget's delta).
    """

    value: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget in the window in force.

    Attributes:
        budget: Its name.
        key: "unit" or "global", and with "/consumer" behind it for a quota.
        accounting: "pure" or "zcdp".
        delta: At which epsilons are meant.
        window_start: In seconds since 1970; 0 for lifetime.
        window_end: The same, or None for lifetime.
        cap: What one account may spend in one window, if nothing was granted to it.
    """

    budget: str
    key: str
    accounting: str
    delta: float
    window_start: int
    window_end: int | None
    cap: Amount


@dataclass(frozen=True, slots=True)
class Spending:
    """What all accounts of a budget spent in the window in force; the quantiles are of the accounts that spent.

    Attributes:
        standing: The budget.
        accounts: How many accounts spent anything in this window.
        granted: To how many of these more than the cap was granted.
        median: Half of these spent at most this.
        percentile_95: Nineteen of twenty spent at most this.
        most: Nobody spent more.
        least_remaining: None of these has less left, grants included.
        state: "configured" or "not configured": whether holders that are started now charge it; None if nobody knows.
    """

    standing: Standing
    accounts: int
    granted: int
    median: Amount
    percentile_95: Amount
    most: Amount
    least_remaining: Amount
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """What an account's numbers promise, each at most.

    Attributes:
        loss_of: Whose loss it is: "unit", or "any unit" whose data are in an aggregate.
        towards: Towards whom: "everyone together", or "this consumer".
        this_window: In the window in force, with what was granted.
        any_window: In any other window, if nothing is granted there; T of them cost T times this value.
        across_an_edge: In a span as long as a window, of which one part is in this window and the other in the next;
            None for lifetime.
        so_far: In all windows together until now: the odometer.
    """

    loss_of: str
    towards: str
    this_window: Amount
    any_window: Amount
    across_an_edge: Amount | None
    so_far: Amount


@dataclass(frozen=True, slots=True)
class Balance:
    """One account in the window in force.

    Attributes:
        standing: The budget.
        spent: What is debited, with what a running process has set aside for it.
        granted: By how much the cap was raised in this window; its epsilon is that of this much alone.
        remaining: What is left; its epsilon is that of this much alone.
        lifetime: What was debited in all windows together.
        promise: What all this promises.
    """

    standing: Standing
    spent: Amount
    granted: Amount
    remaining: Amount
    lifetime: Amount
    promise: Promise


class Tally:
    """Adds up what the accounts of one budget spent, eight bytes for each, in whatever order they come.

    Args:
        budget: The budget.
        window: When the window in force began, in seconds since the epoch.
    """

    def __init__(self, budget: Budget, window: int) -> None:
        self._budget = budget
        self._window = window
        self._spent = array("q")
        self._granted = 0
        self._least = self._budget.cap

    def add(self, account: Account) -> None:
        """Counts an account of this budget."""
        if account.window_start != self._window or account.spent <= 0:
            return
        self._spent.append(account.spent)
        self._granted += account.granted > 0
        left = max(0, account.cap + account.granted - account.spent)
        self._least = left if len(self._spent) == 1 else min(self._least, left)

    def spending(self) -> Spending:
        """What the accounts that were counted spent in the window in force."""
        import numpy

        numpy.frombuffer(self._spent, dtype="q").sort()  # in place: no list of a million integers
        budget = self._budget
        return Spending(
            standing=standing(budget, self._window),
            accounts=len(self._spent),
            granted=self._granted,
            median=amount(budget, quantile(self._spent, 50)),
            percentile_95=amount(budget, quantile(self._spent, 95)),
            most=amount(budget, quantile(self._spent, 100)),
            least_remaining=amount(budget, self._least),
        )


def quantile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent do not exceed; 0 of nothing."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def balance(budget: Budget, account: Account | None, window: int) -> Balance:
    """What one account has spent and left.

    Args:
        budget: Its budget.
        account: As the ledger holds it; None if it was never charged.
        window: When the window in force began, in seconds since the epoch.
    """
    spent = granted = lifetime = 0
    if account is not None:
        lifetime = account.lifetime
        if account.window_start == window:
            spent, granted = account.spent, account.granted
    return Balance(
        standing=standing(budget, window),
        spent=amount(budget, spent),
        granted=amount(budget, granted),
        remaining=amount(budget, max(0, budget.cap + granted - spent)),
        lifetime=amount(budget, lifetime),
        promise=Promise(
            loss_of="unit" if budget.key.startswith("unit") else "any unit",
            towards="this consumer" if budget.key.endswith("/consumer") else "everyone together",
            this_window=amount(budget, budget.cap + granted),
            any_window=amount(budget, budget.cap),
            across_an_edge=None if budget.window is None else amount(budget, 2 * budget.cap + granted),
            so_far=amount(budget, lifetime),
        ),
    )


def standing(budget: Budget, window: int) -> Standing:
    """A budget in the window that begins at a time."""
    return Standing(
        budget=budget.name,
        key=budget.key,
        accounting=str(budget.accounting),
        delta=budget.delta,
        window_start=window,
        window_end=window_end(window, budget.window),
        cap=amount(budget, budget.cap),
    )


def amount(budget: Budget, value: int) -> Amount:
    """A ledger amount of a budget as what it means."""
    loss = value / AMOUNT
    pure = budget.accounting is Accounting.PURE
    return Amount(loss, loss if pure else rho_to_epsilon(loss, budget.delta))


def shown(loss: Amount, budget: Standing) -> str:
    """An amount for people."""
    if budget.accounting == "pure":
        return f"ε {loss.value:.4g}"
    return f"ρ {loss.value:.4g} (ε {loss.epsilon:.3g})"


def state(budget: str, configured: frozenset[str] | None) -> str | None:
    """Whether a budget is configured, as Spending.state says it."""
    if configured is None:
        return None
    return "configured" if budget in configured else NOT_CONFIGURED


def not_configured(budgets: Sequence[str], configured: frozenset[str] | None) -> list[str]:
    """A line for each budget that is not configured, with the names that it may have now."""
    from dpmesh.ledger.budget import similar

    lines = []
    for name in budgets:
        if configured is not None and name not in configured:
            alike = similar(name, configured)
            names = f" (similar: {', '.join(alike)})" if alike else ""
            lines.append(
                f"{name}: {NOT_CONFIGURED}{names}. What is spent of it counts for no other budget: if it was renamed, "
                "restore its name"
            )
    return lines


def shown_grant(entry: Balance) -> str:
    """What was granted for people: how much more, and up to where."""
    if not entry.granted.value:
        return "-"
    letter = "ε" if entry.standing.accounting == "pure" else "ρ"
    return f"{letter} +{entry.granted.value:.4g} (to ε {entry.promise.this_window.epsilon:.4g})"


def shown_window(budget: Standing) -> str:
    """A window for people."""
    if budget.window_end is None:
        return "lifetime"
    start, end = (shown_time(at) for at in (budget.window_start, budget.window_end))
    return f"{start} to {end} UTC"


def shown_time(at: int) -> str:
    """A time for people, to the minute, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # beyond the year 9999
        return f"{at} s since 1970"


def promises(entries: Sequence[Balance]) -> list[str]:
    """What accounts of one key promise and to whom, in plain words, one line for each and one before them."""
    if not entries:
        return []
    lines = ["What this promises, and to whom:", _WHOSE[entries[0].standing.key]]
    lines += [_promise(entry) for entry in entries]
    if any(entry.promise.across_an_edge for entry in entries):
        lines.append(_ON_TOP)
    return lines


def _promise(entry: Balance) -> str:
    budget, promise = entry.standing, entry.promise
    this, usual, so_far = (
        shown(loss, budget) for loss in (promise.this_window, promise.any_window, promise.so_far)
    )
    at = f" Epsilons are at δ {budget.delta:g}." if budget.accounting == "zcdp" else ""
    granted = bool(entry.granted.value)
    if promise.across_an_edge is None:
        with_grants = f", of which {shown_grant(entry).partition(' (')[0]} was granted" if granted else ""
        return f"{budget.budget}: at most {this} in all, for ever{with_grants}; so far at most {so_far}.{at}"
    windows = f"in any one window at most {usual}"
    if granted:
        windows = f"in this window at most {this}, as was granted, and in any other one {usual}"
    across = shown(promise.across_an_edge, budget)
    each = usual.partition(" (")[0]
    return (
        f"{budget.budget}: {windows}; in a span as long across the edge of two windows up to {across}. "
        f"T windows cost at most T times {each}; all windows so far cost at most {so_far}.{at}"
    )
