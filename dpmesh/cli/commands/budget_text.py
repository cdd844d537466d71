"""The tables and sentences of `dpmesh budget`."""

from __future__ import annotations

from collections.abc import Sequence

from dpmesh.cli.console import say, stdout, table
from dpmesh.report.balances import (
    NOT_CONFIGURED,
    Amount,
    Balance,
    Spending,
    grant_text,
    loss_text,
    promises,
    window_text,
)

# A grant for an id that is spelt wrong would raise the cap of nobody.
NEVER_CHARGED = (
    "Nothing was ever charged to this id. Another spelling is another unit; of a unit with `normalize`, write the "
    "normalized id."
)


def write_spending(spending: Sequence[Spending]) -> None:
    """Writes one row for each budget."""
    with_state = any(entry.state == NOT_CONFIGURED for entry in spending)
    rows = table(
        "budget", *["state"] * with_state, "window", "cap", "accounts", "median", "95 %", "most", "least left"
    )
    for entry in spending:
        window = entry.window
        amounts = (entry.median, entry.percentile_95, entry.most)
        rows.add_row(
            window.budget,
            *[entry.state] * with_state,
            window_text(window),
            loss_text(window.cap, window),
            str(entry.accounts),
            *(loss_text(amount, window) if entry.accounts else "-" for amount in amounts),
            loss_text(entry.least_remaining, window),
        )
    stdout().print(rows)
    for entry in spending:
        if entry.granted:
            say(
                f"{entry.window.budget}: more than the cap was granted to {entry.granted} of these accounts "
                "(dpmesh ledger log --grants tells why)"
            )


def write_balances(balances: Sequence[Balance]) -> None:
    """Writes one row for each account, and what they promise."""
    rows = table("budget", "window", "spent", "cap", "granted", "remaining", "lifetime loss")
    for entry in balances:
        window = entry.window
        rows.add_row(
            window.budget,
            window_text(window),
            loss_text(entry.spent, window),
            loss_text(window.cap, window),
            grant_text(entry),
            loss_text(entry.remaining, window),
            loss_text(entry.lifetime, window),
        )
    out = stdout()
    out.print(rows)
    for line in promises(balances):
        out.print(line)


def write_grant(entry: Balance, raised: Amount) -> None:
    """Writes what an account may lose now, and what that does to the promise."""
    window, promise = entry.window, entry.promise
    now_at, usual, remaining = (
        loss_text(amount, window) for amount in (promise.this_window, promise.any_window, entry.remaining)
    )
    rows = {
        "granted": loss_text(raised, window) + " more",
        "window": window_text(window),
        "spent": loss_text(entry.spent, window),
        "may be lost": f"{now_at} in all, so {remaining} from now on",
    }
    for name, value in rows.items():
        say(f"{name:12} {value}")
    if promise.across_an_edge is None:
        say(
            f"The promise is weaker for ever: at most {now_at} instead of {usual}, and nothing can take that back."
        )
        return
    across = loss_text(promise.across_an_edge, window)
    say(
        f"The promise is weaker in this window: at most {now_at} instead of {usual}, and up to {across} in a span as "
        "long across its edge. The next window has the budget's cap again."
    )
