"""How long budgets last: messages and seconds until a window is spent, and what many windows add up to."""

from __future__ import annotations

from dpmesh.accounting import AMOUNT, Accounting, rho_to_epsilon
from dpmesh.ledger import Budget
from dpmesh.report.balances import Amount


def messages_per_window(budget: Budget, amount: int) -> int:
    """How many messages one account's window covers.

    Args:
        budget: What pays.
        amount: What one message costs, as a ledger amount (1e-9 of epsilon or rho); above 0.
    """
    return budget.cap // amount


def seconds_until_spent(budget: Budget, amount: int, rate: float) -> float | None:
    """After how many seconds one account's window is spent; None if the window renews before.

    Args:
        budget: What pays.
        amount: What one message costs, as a ledger amount; above 0.
        rate: Messages per second; above 0.
    """
    seconds = messages_per_window(budget, amount) / rate
    return None if budget.window is not None and seconds >= budget.window else seconds


def loss_over(budget: Budget, windows: int) -> Amount:
    """The most that one account loses over so many windows, if nothing is granted to it."""
    if budget.accounting is Accounting.PURE:
        return Amount(windows * budget.epsilon, windows * budget.epsilon)
    rho = windows * budget.cap / AMOUNT
    return Amount(rho, rho_to_epsilon(rho, budget.delta))
