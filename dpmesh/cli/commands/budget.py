"""`dpmesh budget`: shows and exports what is spent and left, as the ledger has it; grants more."""

from __future__ import annotations

import enum
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from dpmesh.cli import console
from dpmesh.cli.app import require_command
from dpmesh.cli.console import InputError, data_stdout, print_json, say, stdout
from dpmesh.cli.options import accounts, inputs, ledger_access, notes
from dpmesh.cli.progress import counted

if TYPE_CHECKING:
    from dpmesh.cli.commands.export_writers import Writer
    from dpmesh.ledger import Account, Budget
    from dpmesh.ledger.admin import LedgerAdmin, LedgerView
    from dpmesh.report.balances import Balance, Spending

app = typer.Typer(
    add_completion=False,
    help="Show what is spent and what is left, as the ledger has it; export it; grant more.",
    epilog="Example: dpmesh budget list --config dpmesh.toml",
)


class Format(enum.StrEnum):
    """What `export` writes."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


app.callback(invoke_without_command=True)(require_command)


@app.command("list", epilog="Example: dpmesh budget list --ledger sqlite:///.dpmesh/ledger.db --json")
def list_(
    config_file: inputs.ConfigFile = None,
    ledger: ledger_access.LedgerUrl = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Show for each budget how much its accounts have spent in the current window, but not whose they are.

    A budget that is in the ledger but not in the configuration is "not configured": what is spent of it counts for no
    other budget. With --ledger, add --config to see that.
    """
    from dpmesh.cli.commands import budget_text
    from dpmesh.report import balances

    configured = ledger_access.configured_names(config_file, ledger)
    admin = ledger_access.open_admin(config_file, ledger)
    spending = [
        replace(entry, state=balances.state(entry.window.budget, configured))
        for entry in ledger_access.ask(admin, _spending)
    ]
    if as_json:
        print_json([balances.document(entry) for entry in spending])
        return
    budget_text.write_spending(spending)
    for line in balances.not_configured_lines([entry.window.budget for entry in spending], configured):
        say(line)


async def _spending(view: LedgerView) -> list[Spending]:
    from dpmesh.report.balances import Tally

    tallies = {budget.name: Tally(budget, view.windows[row]) for row, budget in view.budgets.items()}
    async for account in counted(view.accounts(), "accounts"):
        tallies[account.budget].add(account)
    return [tally.spending() for tally in tallies.values()]


@app.command("show", epilog="Example: dpmesh budget show N10156")
def show(
    unit: accounts.Unit = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledger_access.LedgerUrl = None,
    as_hex: accounts.AsHex = False,
    is_global: accounts.IsGlobal = False,
    consumer: accounts.Consumer = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Show what one unit has spent and has left, and what that promises. A unit that never sent has all of it left.

    With --consumer: this consumer's quotas under the unit's budgets (with --global, under those of all aggregates).
    Quotas that are meant for other consumers show as unspent.
    """
    from dpmesh.cli.commands import budget_text
    from dpmesh.report import balances

    selected = accounts.selector(unit, as_hex, is_global, consumer)
    configured = ledger_access.configured_names(config_file, ledger)
    admin = ledger_access.open_admin(config_file, ledger)
    entries = ledger_access.ask(admin, lambda view: _balances(view, selected))
    if as_json:
        print_json([balances.document(entry) for entry in entries])
        return
    if not entries:
        say(f"the ledger holds no budget of key {selected.key!r}")
        return
    budget_text.write_balances(entries)
    out = stdout()
    if selected.unit and consumer is None and not any(entry.lifetime.value for entry in entries):
        out.print(budget_text.NEVER_CHARGED)
    for line in balances.not_configured_lines([entry.window.budget for entry in entries], configured):
        out.print(line)


async def _balances(view: LedgerView, selected: accounts.AccountSelector) -> list[Balance]:
    from dpmesh.report.balances import balance

    key = selected.account(view.secret)
    by_budget = {entry.budget: entry async for entry in view.accounts(account=key)}
    return [
        balance(budget, by_budget.get(budget.name), view.windows[row])
        for row, budget in view.budgets.items()
        if budget.key == selected.key
    ]


@app.command(
    "grant", epilog='Example: dpmesh budget grant N10156 --budget daily --to 12 --reason "audit 7, once"'
)
def grant(
    name: Annotated[
        str, typer.Option("--budget", metavar="NAME", help="The budget or quota.", show_default=False)
    ],
    to: Annotated[
        float,
        typer.Option(
            "--to",
            metavar="EPSILON",
            help="What the unit may lose in this window in all.",
            show_default=False,
        ),
    ],
    reason: notes.Reason,
    unit: accounts.Unit = None,
    by: notes.By = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledger_access.LedgerUrl = None,
    as_hex: accounts.AsHex = False,
    is_global: accounts.IsGlobal = False,
    consumer: accounts.Consumer = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Let one unit lose more in the current window than its budget's cap, and log who says so and why.

    A grant holds until the window ends; in a lifetime budget it holds for ever. It can't be revoked. The unit's other
    budgets and quotas cap it as before. The charge log keeps the reason: write nobody's id into it.
    """
    from dpmesh.cli.commands import budget_text
    from dpmesh.report import balances

    selected = accounts.selector(unit, as_hex, is_global, consumer)
    note = notes.note(reason, by, selected)
    configured = ledger_access.configured_names(config_file, ledger)
    admin = ledger_access.open_admin(config_file, ledger)
    definition, key, granted = ledger_access.ask(admin, lambda view: _granted(view, selected, name))
    raised = _grant_amount(definition, granted, to)
    account = ledger_access.run(admin.grant(name, key, raised, note, has=granted))
    entry = balances.balance(definition, account, account.window_start)
    more = balances.amount(definition, raised)
    for line in balances.not_configured_lines([name], configured):
        console.note(line)
    if as_json:
        print_json({"raised": asdict(more), **balances.document(entry)})
    else:
        budget_text.write_grant(entry, more)
        if selected.unit and consumer is None and not entry.lifetime.value:
            say(budget_text.NEVER_CHARGED)


async def _granted(
    view: LedgerView, selected: accounts.AccountSelector, name: str
) -> tuple[Budget, bytes, int]:
    """The budget, the account's hash, and what the account was granted in this window; InputError if none fits."""
    budget = ledger_access.budget_named(view.budgets.values(), name)
    _check_key(budget, selected)
    key = selected.account(view.secret)
    window = next(view.windows[row] for row, each in view.budgets.items() if each is budget)
    granted = [a.granted async for a in view.accounts(name, key) if a.window_start == window]
    return budget, key, sum(granted)


def _grant_amount(budget: Budget, granted: int, to: float) -> int:
    """By how much the grant raises the cap, as a ledger amount.

    Raises:
        InputError: `to` is not a valid epsilon, or not more than what may be lost already.
    """
    from dpmesh.report.balances import amount, raised_cap

    try:
        raised = raised_cap(budget, granted, to)
    except ValueError as error:
        raise InputError(f"--to: {error}") from None
    if raised <= 0:
        epsilon = amount(budget, budget.cap + granted).epsilon
        raise InputError(f"--to: {to:g} is not more than the ε {epsilon:.6g} that may be lost already")
    return raised


def _check_key(budget: Budget, selected: accounts.AccountSelector) -> None:
    """Refuses a budget whose accounts have another key; the text says which options select them."""
    if budget.key == selected.key:
        return
    owner, _, quota = budget.key.partition("/")
    give = "UNIT" if owner == "unit" else "--global"
    also = "--consumer" if quota else "no --consumer"
    raise InputError(
        f"--budget: the accounts of {budget.name!r} are of key {budget.key!r}: give {give} and {also}"
    )


@app.command("export", epilog="Example: dpmesh budget export --format parquet --output budgets.parquet")
def export(
    form: Annotated[
        Format, typer.Option("--format", help="Parquet needs --output, and the package pyarrow.")
    ] = Format.CSV,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="A file instead of stdout (-); replaced as a whole or not at all, readable by its owner only.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--budget", metavar="NAME", help="Only this one.", show_default=False)
    ] = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledger_access.LedgerUrl = None,
) -> None:
    """Write one row for each account: what it spent, may spend and has left in the window it was last charged in.

    The ledger holds no unit's id. `account` is a hash keyed with the ledger's secret: it is the same in all exports of
    this ledger, and differs in other ledgers. Amounts are exact decimals, of epsilon if the accounting is pure, of
    rho if it is zcdp. `lifetime` is what was debited in all windows together.
    """
    from dpmesh.cli.commands import export_writers
    from dpmesh.report.wording import count

    admin = ledger_access.open_admin(config_file, ledger)
    if output is None or str(output) == "-":
        if form is Format.PARQUET:
            raise InputError("--format parquet needs --output FILE")
        _export(admin, name, lambda: _writer(form, data_stdout()), quiet=sys.stdout.isatty())
        return
    with export_writers.replacing(output) as new:
        if form is Format.PARQUET:
            rows = _export(admin, name, lambda: export_writers.Parquet(new))
        else:
            with new.open("w", encoding="utf-8", newline="") as file:
                rows = _export(admin, name, lambda: _writer(form, file))
    say(f"{output}: {count(rows, 'account')}")


def _writer(form: Format, file: IO[str]) -> Writer:
    from dpmesh.cli.commands import export_writers

    return export_writers.Csv(file) if form is Format.CSV else export_writers.JsonLines(file)


def _export(
    admin: LedgerAdmin, name: str | None, writer_of: Callable[[], Writer], *, quiet: bool = False
) -> int:
    """Writes all rows, and returns how many."""
    from dpmesh.report.export_rows import row

    writer: Writer | None = None
    rows = 0

    async def work() -> None:
        nonlocal rows, writer
        # The ledger is read in a generator of its own, so that a full disk or a broken pipe here is not its fault.
        async with aclosing(_accounts(admin, name, quiet)) as entries:
            async for budget, account in entries:
                # The first row makes the writer, so that nothing is written if there is no ledger.
                writer = writer or writer_of()
                writer.write(row(budget, account))
                rows += 1
        writer = writer or writer_of()
        writer.close()

    ledger_access.read(work, may_repeat=lambda: writer is None)
    return rows


async def _accounts(
    admin: LedgerAdmin, name: str | None, quiet: bool
) -> AsyncGenerator[tuple[Budget, Account], None]:
    async with ledger_access.viewing(admin) as view:
        budgets = {budget.name: budget for budget in view.budgets.values()}
        if name is not None:
            ledger_access.budget_named(budgets.values(), name)
        async for account in counted(view.accounts(name), "accounts", quiet=quiet):
            yield budgets[account.budget], account
