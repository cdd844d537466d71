"""`dpmesh budget`: what is spent and what is left, read from the ledger itself while others use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmesh.cli import inputs
from dpmesh.cli.console import UNUSABLE, InputError, print_json, stdout
from dpmesh.errors import LedgerError

if TYPE_CHECKING:
    from dpmesh.ledger import Account, Budget, Snapshot

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    help="Show what is spent and what is left, from the ledger itself.",
    epilog="Example: dpmesh budget list --config dpmesh.toml",
)

LedgerUrl = Annotated[
    str,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="The ledger, such as sqlite:///.dpmesh/ledger.db, instead of the configuration's.",
        show_default=False,
    ),
]


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
    """One budget in its current window.

    Attributes:
        budget: Its name.
        key: "unit" or "global".
        accounting: "pure" or "zcdp".
        delta: At which epsilons are meant.
        window_start: In seconds since 1970; 0 for lifetime.
        window_end: The same, or None for lifetime.
        cap: What one account may spend in one window.
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
    """What all accounts of a budget spent in its current window; the quantiles are of the accounts that spent.

    Attributes:
        standing: The budget.
        accounts: How many accounts spent anything in this window.
        median: Half of these spent at most this.
        percentile_95: Nineteen of twenty spent at most this.
        most: Nobody spent more.
        least_remaining: What is left to the account that spent most.
    """

    standing: Standing
    accounts: int
    median: Amount
    percentile_95: Amount
    most: Amount
    least_remaining: Amount


@dataclass(frozen=True, slots=True)
class Balance:
    """One account in the current window.

    Attributes:
        standing: The budget.
        spent: What is debited, with what a running process has set aside for it.
        remaining: What is left; its epsilon is that of this much alone.
    """

    standing: Standing
    spent: Amount
    remaining: Amount


@app.callback(invoke_without_command=True)
def budget(context: typer.Context) -> None:
    """Without a command there is only help."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(UNUSABLE)


@app.command("list", epilog="Example: dpmesh budget list --ledger sqlite:///.dpmesh/ledger.db --json")
def list_(
    config_file: inputs.ConfigFile = None, ledger: LedgerUrl = "", as_json: inputs.AsJson = False
) -> None:
    """Show for each budget how much its accounts have spent in the current window, and never whose they are."""
    snapshot, now = _snapshot(config_file, ledger, None), time.time()
    spending = [_spending(entry, snapshot.accounts, now) for entry in snapshot.budgets]
    if as_json:
        print_json([{**asdict(entry.standing), **_without_standing(entry)} for entry in spending])
        return
    table = _table("budget", "window", "cap", "accounts", "median", "95 %", "most", "least left")
    for entry in spending:
        amounts = (entry.median, entry.percentile_95, entry.most)
        table.add_row(
            entry.standing.budget,
            _window(entry.standing),
            _shown(entry.standing.cap, entry.standing),
            str(entry.accounts),
            *(_shown(amount, entry.standing) if entry.accounts else "-" for amount in amounts),
            _shown(entry.least_remaining, entry.standing),
        )
    stdout().print(table)


@app.command("show", epilog="Example: dpmesh budget show N10156")
def show(
    unit: Annotated[str, typer.Argument(metavar="UNIT", help="The unit's id, as its field holds it.")],
    config_file: inputs.ConfigFile = None,
    ledger: LedgerUrl = "",
    as_hex: Annotated[
        bool, typer.Option("--hex", help="UNIT is in hexadecimal, for a field of bytes.")
    ] = False,
    as_json: inputs.AsJson = False,
) -> None:
    """Show what one unit has spent and has left; a unit that never sent has all of it left."""
    snapshot, now = _snapshot(config_file, ledger, _canonical(unit, as_hex)), time.time()
    per_unit = [entry for entry in snapshot.budgets if entry.key == "unit"]
    balances = [_balance(entry, snapshot.accounts, now) for entry in per_unit]
    if as_json:
        print_json([{**asdict(entry.standing), **_without_standing(entry)} for entry in balances])
        return
    table = _table("budget", "window", "spent", "cap", "remaining")
    for entry in balances:
        amounts = (entry.spent, entry.standing.cap, entry.remaining)
        shown = (_shown(amount, entry.standing) for amount in amounts)
        table.add_row(entry.standing.budget, _window(entry.standing), *shown)
    stdout().print(table)


def _snapshot(config_file: Any, url: str, unit: bytes | None) -> Snapshot:
    """The ledger as it is now.

    Raises:
        ConfigError: The configuration or the URL is wrong.
        InputError: There is no ledger, or it can't be read.
    """
    from dpmesh import config
    from dpmesh.ledger import inspect

    try:
        return inspect(url or config.load(inputs.config_file(config_file)).ledger.url, unit=unit)
    except LedgerError as error:
        raise InputError(f"{error} (--ledger or --config names another)") from None


def _canonical(unit: str, as_hex: bool) -> bytes:
    try:
        canonical = bytes.fromhex(unit) if as_hex else unit.encode()
    except ValueError:
        raise InputError("UNIT is not hexadecimal") from None
    if not canonical:
        raise InputError("UNIT is empty, and no unit's id is")
    return canonical


def _spending(budget: Budget, accounts: Sequence[Account], now: float) -> Spending:
    own = (account for account in accounts if account.budget == budget.name)
    spent = sorted(amount for account in own if (amount := account.spent_at(now)) > 0)
    return Spending(
        standing=_standing(budget, now),
        accounts=len(spent),
        median=_amount(budget, _quantile(spent, 50)),
        percentile_95=_amount(budget, _quantile(spent, 95)),
        most=_amount(budget, _quantile(spent, 100)),
        least_remaining=_amount(budget, max(0, budget.cap - _quantile(spent, 100))),
    )


def _quantile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent do not exceed; 0 of nothing."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0


def _balance(budget: Budget, accounts: Sequence[Account], now: float) -> Balance:
    spent = sum(account.spent_at(now) for account in accounts if account.budget == budget.name)
    left = max(0, budget.cap - spent)
    return Balance(_standing(budget, now), _amount(budget, spent), _amount(budget, left))


def _standing(budget: Budget, now: float) -> Standing:
    from dpmesh.accounting import window_end, window_start

    return Standing(
        budget=budget.name,
        key=budget.key,
        accounting=str(budget.accounting),
        delta=budget.delta,
        window_start=window_start(now, budget.window),
        window_end=window_end(now, budget.window),
        cap=_amount(budget, budget.cap),
    )


def _amount(budget: Budget, amount: int) -> Amount:
    from dpmesh.accounting import AMOUNT, Accounting, rho_to_epsilon

    value = amount / AMOUNT
    pure = budget.accounting is Accounting.PURE
    return Amount(value, value if pure else rho_to_epsilon(value, budget.delta))


def _without_standing(entry: Spending | Balance) -> dict[str, Any]:
    document = asdict(entry)
    del document["standing"]
    return document


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _window(standing: Standing) -> str:
    if standing.window_end is None:
        return "lifetime"
    start, end = (datetime.fromtimestamp(at, UTC) for at in (standing.window_start, standing.window_end))
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"


def _shown(amount: Amount, standing: Standing) -> str:
    if standing.accounting == "pure":
        return f"ε {amount.value:.4g}"
    return f"ρ {amount.value:.4g} (ε {amount.epsilon:.3g})"
