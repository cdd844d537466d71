"""What is spent and left in the current window, and what these numbers promise to whom."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dpmesh.accounting import AMOUNT, Accounting, cap, rho_to_epsilon, window_end
from dpmesh.report.wording import minute

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
class BudgetWindow:
    """One budget in its current window.

    Attributes:
        budget: Its name.
        key: "unit" or "global", and with "/consumer" behind it for a quota.
        accounting: "pure" or "zcdp".
        delta: The delta of its epsilons.
        window_start: In seconds since 1970; 0 for lifetime.
        window_end: In seconds since 1970; None for lifetime.
        cap: What one account may spend in one window without a grant.
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
    """What the accounts of a budget spent in the current window; only those that spent anything count.

    Attributes:
        window: The budget in its current window.
        accounts: How many accounts spent anything in this window.
        granted: How many of them were granted more than the cap.
        median: Half of them spent at most this.
        percentile_95: Nineteen of twenty spent at most this.
        most: The most that one of them spent.
        least_remaining: The least that one of them has left, grants included; the cap if nobody spent anything.
        state: "configured" or "not configured": whether holders that start now charge it; None if unknown.
    """

    window: BudgetWindow
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
        this_window: In the current window, grants included.
        any_window: In any other window without a grant; T windows lose T times this value.
        across_an_edge: In a span as long as a window that begins in this window and ends in the next; None for
            lifetime.
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
    """One account in its budget's current window.

    Attributes:
        window: The budget in its current window.
        spent: What is debited, the leases of running processes included.
        granted: By how much the cap was raised in this window; its epsilon is that of this amount alone.
        remaining: What is left; its epsilon is that of this amount alone.
        lifetime: What was debited in all windows together.
        promise: What these numbers promise.
    """

    window: BudgetWindow
    spent: Amount
    granted: Amount
    remaining: Amount
    lifetime: Amount
    promise: Promise


class Tally:
    """Adds up what the accounts of one budget spent, in any order; it takes eight bytes for each.

    Args:
        budget: The budget.
        window: When the current window began, in seconds since 1970.
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
        """What the accounts that were added spent in the current window."""
        import numpy

        numpy.frombuffer(self._spent, dtype="q").sort()  # in place: no list of a million integers
        budget = self._budget
        return Spending(
            window=budget_window(budget, self._window),
            accounts=len(self._spent),
            granted=self._granted,
            median=amount(budget, quantile(self._spent, 50)),
            percentile_95=amount(budget, quantile(self._spent, 95)),
            most=amount(budget, quantile(self._spent, 100)),
            least_remaining=amount(budget, self._least),
        )


def quantile(ordered: Sequence[int], percent: int) -> int:
    """The smallest of the values that at least so many percent of them don't exceed; 0 if there are none."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def balance(budget: Budget, account: Account | None, window: int) -> Balance:
    """What one account has spent and has left in the current window.

    Args:
        budget: Its budget.
        account: As the ledger holds it; None if it was never charged.
        window: When the current window began, in seconds since 1970.
    """
    spent = granted = lifetime = 0
    if account is not None:
        lifetime = account.lifetime
        if account.window_start == window:
            spent, granted = account.spent, account.granted
    return Balance(
        window=budget_window(budget, window),
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


def document(entry: Spending | Balance) -> dict[str, Any]:
    """A spending or a balance for JSON: the budget's window beside the rest."""
    parts = asdict(entry)
    return {**parts.pop("window"), **parts}


def budget_window(budget: Budget, window: int) -> BudgetWindow:
    """A budget in the window that begins at a time, in seconds since 1970."""
    return BudgetWindow(
        budget=budget.name,
        key=budget.key,
        accounting=str(budget.accounting),
        delta=budget.delta,
        window_start=window,
        window_end=window_end(window, budget.window),
        cap=amount(budget, budget.cap),
    )


def amount(budget: Budget, value: int) -> Amount:
    """A ledger amount (1e-9 of epsilon or rho) of a budget as a privacy loss."""
    loss = value / AMOUNT
    pure = budget.accounting is Accounting.PURE
    return Amount(loss, loss if pure else rho_to_epsilon(loss, budget.delta))


def loss_over(budget: Budget, windows: int) -> Amount:
    """The most that one account loses over so many windows, if nothing is granted to it."""
    if budget.accounting is Accounting.PURE:
        return Amount(windows * budget.epsilon, windows * budget.epsilon)
    rho = windows * budget.cap / AMOUNT
    return Amount(rho, rho_to_epsilon(rho, budget.delta))


def raised_cap(budget: Budget, granted: int, epsilon: float) -> int:
    """By how much a grant raises an account's cap, as a ledger amount; 0 or less if it would not raise it.

    Args:
        budget: The account's budget.
        granted: What was granted to it in the current window already, as a ledger amount.
        epsilon: What may be lost in this window in all, at the budget's delta.

    Raises:
        ValueError: That is no epsilon that a budget can have.
    """
    return cap(budget.accounting, epsilon, budget.delta) - budget.cap - granted


def loss_text(loss: Amount, window: BudgetWindow) -> str:
    """A loss for people, in the budget's own accounting."""
    if window.accounting == "pure":
        return f"ε {loss.value:.4g}"
    return f"ρ {loss.value:.4g} (ε {loss.epsilon:.3g})"


def state(budget: str, configured: frozenset[str] | None) -> str | None:
    """Whether a budget is configured, as Spending.state says it."""
    if configured is None:
        return None
    return "configured" if budget in configured else NOT_CONFIGURED


def not_configured_lines(budgets: Sequence[str], configured: frozenset[str] | None) -> list[str]:
    """A line for each budget that is not configured, with similar names that are."""
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


def grant_text(entry: Balance) -> str:
    """A grant for people: how much more, and what may be lost in all; "-" if there is none."""
    if not entry.granted.value:
        return "-"
    letter = "ε" if entry.window.accounting == "pure" else "ρ"
    return f"{letter} +{entry.granted.value:.4g} (to ε {entry.promise.this_window.epsilon:.4g})"


def window_text(window: BudgetWindow) -> str:
    """A window for people."""
    if window.window_end is None:
        return "lifetime"
    return f"{minute(window.window_start)} to {minute(window.window_end)} UTC"


def promises(entries: Sequence[Balance]) -> list[str]:
    """What accounts of budgets of one key promise, and to whom: two lines in front, and one for each account."""
    if not entries:
        return []
    lines = ["What this promises, and to whom:", _WHOSE[entries[0].window.key]]
    lines += [_promise(entry) for entry in entries]
    if any(entry.promise.across_an_edge for entry in entries):
        lines.append(_ON_TOP)
    return lines


def _promise(entry: Balance) -> str:
    window, promise = entry.window, entry.promise
    this, usual, so_far = (
        loss_text(loss, window) for loss in (promise.this_window, promise.any_window, promise.so_far)
    )
    at = f" Epsilons are at δ {window.delta:g}." if window.accounting == "zcdp" else ""
    granted = bool(entry.granted.value)
    if promise.across_an_edge is None:
        with_grants = f", of which {grant_text(entry).partition(' (')[0]} was granted" if granted else ""
        return f"{window.budget}: at most {this} in all, for ever{with_grants}; so far at most {so_far}.{at}"
    windows = f"in any one window at most {usual}"
    if granted:
        windows = f"in this window at most {this}, as was granted, and in any other one {usual}"
    across = loss_text(promise.across_an_edge, window)
    each = usual.partition(" (")[0]
    return (
        f"{window.budget}: {windows}; in a span as long across the edge of two windows up to {across}. "
        f"T windows cost at most T times {each}; all windows so far cost at most {so_far}.{at}"
    )
