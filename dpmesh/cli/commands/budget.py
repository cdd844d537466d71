"""`dpmesh budget`: what is spent and what is left, read from the ledger itself while others use it; and grants."""

from __future__ import annotations

import enum
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from dpmesh.cli import console
from dpmesh.cli.console import UNUSABLE, InputError, data_stdout, print_json, say, say_help, stdout
from dpmesh.cli.options import inputs, ledgers

if TYPE_CHECKING:
    from dpmesh.cli.commands.export import Writer
    from dpmesh.ledger import Account, Budget
    from dpmesh.ledger.admin import LedgerAdmin
    from dpmesh.report.balances import Amount, Balance, Spending

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    help="Show what is spent and what is left, from the ledger itself; export it; grant more.",
    epilog="Example: dpmesh budget list --config dpmesh.toml",
)

# A grant for an id that is spelt wrong would raise the cap of nobody.
_NEVER = (
    "Nothing was ever charged to this id. Another spelling is another unit; of a unit with `normalize`, write the "
    "normalized id."
)


class Format(enum.StrEnum):
    """What `export` writes."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@app.callback(invoke_without_command=True)
def budget(context: typer.Context) -> None:
    """Without a command there is only help."""
    if context.invoked_subcommand is None:
        say_help(context)
        raise typer.Exit(UNUSABLE)


@app.command("list", epilog="Example: dpmesh budget list --ledger sqlite:///.dpmesh/ledger.db --json")
def list_(
    config_file: inputs.ConfigFile = None, ledger: ledgers.LedgerUrl = None, as_json: inputs.AsJson = False
) -> None:
    """Show for each budget how much its accounts have spent in the current window, and never whose they are.

    A budget that the ledger holds and the configuration does not name is "not configured": what is spent of it counts
    for no other. With --ledger, give --config too to see that.
    """
    from dpmesh.report import balances

    configured = ledgers.configured(config_file, ledger)
    books = ledgers.books(config_file, ledger)
    spending = [
        replace(entry, state=balances.state(entry.standing.budget, configured))
        for entry in ledgers.read(lambda: _spending(books))
    ]
    if as_json:
        print_json([_document(entry) for entry in spending])
        return
    stray = any(entry.state == balances.NOT_CONFIGURED for entry in spending)
    table = _table(
        "budget", *["state"] * stray, "window", "cap", "accounts", "median", "95 %", "most", "least left"
    )
    for entry in spending:
        standing = entry.standing
        amounts = (entry.median, entry.percentile_95, entry.most)
        table.add_row(
            standing.budget,
            *[entry.state] * stray,
            balances.shown_window(standing),
            balances.shown(standing.cap, standing),
            str(entry.accounts),
            *(balances.shown(amount, standing) if entry.accounts else "-" for amount in amounts),
            balances.shown(entry.least_remaining, standing),
        )
    stdout().print(table)
    for entry in spending:
        if entry.granted:
            say(
                f"{entry.standing.budget}: more than the cap was granted to {entry.granted} of these accounts "
                "(dpmesh ledger log --grants tells why)"
            )
    for line in balances.not_configured([entry.standing.budget for entry in spending], configured):
        say(line)


async def _spending(books: LedgerAdmin) -> list[Spending]:
    from dpmesh.report.balances import Tally

    async with ledgers.viewing(books) as view:
        tallies = {budget.name: Tally(budget, view.windows[row]) for row, budget in view.budgets.items()}
        async for account in ledgers.counted(view.accounts(), "accounts"):
            tallies[account.budget].add(account)
    return [tally.spending() for tally in tallies.values()]


@app.command("show", epilog="Example: dpmesh budget show N10156")
def show(
    unit: ledgers.Unit = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledgers.LedgerUrl = None,
    as_hex: ledgers.AsHex = False,
    of_all: ledgers.OfAll = False,
    consumer: ledgers.Consumer = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Show what one unit has spent and has left, and what that promises; a unit that never sent has all of it left.

    With --consumer: the quotas of this consumer under the unit's budgets (under those of all aggregates with --global),
    also those that are meant for other consumers, which show as unspent.
    """
    from dpmesh.report import balances

    whose = ledgers.holder(unit, as_hex, of_all, consumer)
    configured = ledgers.configured(config_file, ledger)
    books = ledgers.books(config_file, ledger)
    entries = ledgers.read(lambda: _balances(books, whose))
    if as_json:
        print_json([_document(entry) for entry in entries])
        return
    if not entries:
        say(f"the ledger holds no budget of key {whose.key!r}")
        return
    table = _table("budget", "window", "spent", "cap", "granted", "remaining", "lifetime loss")
    for entry in entries:
        standing = entry.standing
        table.add_row(
            standing.budget,
            balances.shown_window(standing),
            balances.shown(entry.spent, standing),
            balances.shown(standing.cap, standing),
            balances.shown_grant(entry),
            balances.shown(entry.remaining, standing),
            balances.shown(entry.lifetime, standing),
        )
    out = stdout()
    out.print(table)
    for line in balances.promises(entries):
        out.print(line)
    if whose.unit and consumer is None and not any(entry.lifetime.value for entry in entries):
        out.print(_NEVER)
    for line in balances.not_configured([entry.standing.budget for entry in entries], configured):
        out.print(line)


async def _balances(books: LedgerAdmin, whose: ledgers.AccountSelector) -> list[Balance]:
    from dpmesh.report.balances import balance

    async with ledgers.viewing(books) as view:
        found = {a.budget: a async for a in view.accounts(account=whose.account(view.secret))}
        return [
            balance(budget, found.get(budget.name), view.windows[row])
            for row, budget in view.budgets.items()
            if budget.key == whose.key
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
            "--to", metavar="EPSILON", help="What may be lost in this window in all.", show_default=False
        ),
    ],
    reason: ledgers.Reason,
    unit: ledgers.Unit = None,
    by: ledgers.By = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledgers.LedgerUrl = None,
    as_hex: ledgers.AsHex = False,
    of_all: ledgers.OfAll = False,
    consumer: ledgers.Consumer = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Let one unit lose more in the current window than its budget's cap, and write down who says so and why.

    It holds until the window ends; in a lifetime budget it holds for ever. It can't be taken back. The unit's other
    budgets and quotas cap it as before. The charge log keeps the reason: write nobody's id into it.
    """
    from dpmesh.report import balances

    whose = ledgers.holder(unit, as_hex, of_all, consumer)
    note = ledgers.note(reason, by, whose)
    configured = ledgers.configured(config_file, ledger)
    books = ledgers.books(config_file, ledger)
    definition, key, has = ledgers.read(lambda: _granted(books, whose, name))
    raised = _raise(definition, has, to)
    account = ledgers.run(books.grant(name, key, raised, note, has=has))
    entry = balances.balance(definition, account, account.window_start)
    more = balances.amount(definition, raised)
    for line in balances.not_configured([name], configured):
        console.note(line)
    if as_json:
        print_json({"raised": asdict(more), **_document(entry)})
    else:
        _print_grant(entry, more)
        if whose.unit and consumer is None and not entry.lifetime.value:
            say(_NEVER)


async def _granted(
    books: LedgerAdmin, whose: ledgers.AccountSelector, name: str
) -> tuple[Budget, bytes, int]:
    """The budget, the account's hash, and what was granted to it in the current window already.

    Raises:
        InputError: There is no such budget, or it has no such accounts.
    """
    async with ledgers.viewing(books) as view:
        budget = ledgers.pick(list(view.budgets.values()), name)
        _check_key(budget, whose)
        key = whose.account(view.secret)
        window = next(view.windows[row] for row, each in view.budgets.items() if each is budget)
        granted = [a.granted async for a in view.accounts(name, key) if a.window_start == window]
    return budget, key, sum(granted)


def _raise(budget: Budget, granted: int, to: float) -> int:
    """By how much the cap has to be raised, as a ledger amount.

    Raises:
        InputError: It is no epsilon, or not more than what may be lost already.
    """
    from dpmesh.accounting import cap
    from dpmesh.report.balances import amount

    try:
        raised = cap(budget.accounting, to, budget.delta) - budget.cap - granted
    except ValueError as error:
        raise InputError(f"--to: {error}") from None
    if raised <= 0:
        has = amount(budget, budget.cap + granted).epsilon
        raise InputError(f"--to: {to:g} is not more than the ε {has:.6g} that may be lost already")
    return raised


def _check_key(budget: Budget, whose: ledgers.AccountSelector) -> None:
    """Checks that a budget has accounts of the kind that was asked for.

    Raises:
        InputError: It has not; the text says what to give.
    """
    if budget.key == whose.key:
        return
    owner, _, quota = budget.key.partition("/")
    give = "UNIT" if owner == "unit" else "--global"
    also = "--consumer" if quota else "no --consumer"
    raise InputError(
        f"--budget: the accounts of {budget.name!r} are of key {budget.key!r}: give {give} and {also}"
    )


def _print_grant(entry: Balance, raised: Amount) -> None:
    """What a unit may lose now, and what that does to the promise."""
    from dpmesh.report import balances

    standing, promise = entry.standing, entry.promise
    now_at, usual, remaining = (
        balances.shown(amount, standing)
        for amount in (promise.this_window, promise.any_window, entry.remaining)
    )
    rows = {
        "granted": balances.shown(raised, standing) + " more",
        "window": balances.shown_window(standing),
        "spent": balances.shown(entry.spent, standing),
        "may be lost": f"{now_at} in all, so {remaining} from now on",
    }
    for name, value in rows.items():
        say(f"{name:12} {value}")
    if promise.across_an_edge is None:
        say(
            f"The promise is weaker for ever: at most {now_at} instead of {usual}, and nothing can take that back."
        )
        return
    across = balances.shown(promise.across_an_edge, standing)
    say(
        f"The promise is weaker in this window: at most {now_at} instead of {usual}, and up to {across} in a span as "
        "long across its edge. The next window has the budget's cap again."
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
            help="Instead of stdout, which is also -; replaced as a whole or not at all, readable by its owner only.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--budget", metavar="NAME", help="Only this one.", show_default=False)
    ] = None,
    config_file: inputs.ConfigFile = None,
    ledger: ledgers.LedgerUrl = None,
) -> None:
    """Write one row for each account: what it spent, may spend and has left in the window it was last charged in.

    No unit's id is in it: the ledger holds none. `account` is a hash keyed with the ledger's secret, the same in every
    export of this ledger and in no other. Amounts are exact decimals, of epsilon if the accounting is pure and of rho
    if it is zcdp; `lifetime` is what was debited in all windows together.
    """
    from dpmesh.cli.commands import export

    books = ledgers.books(config_file, ledger)
    if output is None or str(output) == "-":
        if form is Format.PARQUET:
            raise InputError("--format parquet needs --output FILE")
        _export(books, name, lambda: _writer(form, data_stdout()), quiet=sys.stdout.isatty())
        return
    with export.replacing(output) as new:
        if form is Format.PARQUET:
            rows = _export(books, name, lambda: export.Parquet(new))
        else:
            with new.open("w", encoding="utf-8", newline="") as file:
                rows = _export(books, name, lambda: _writer(form, file))
    say(f"{output}: {rows} account{'' if rows == 1 else 's'}")


def _writer(form: Format, file: IO[str]) -> Writer:
    from dpmesh.cli.commands import export

    return export.Csv(file) if form is Format.CSV else export.JsonLines(file)


def _export(
    books: LedgerAdmin, name: str | None, writer_of: Callable[[], Writer], *, quiet: bool = False
) -> int:
    """Writes all rows; returns how many."""
    from dpmesh.cli.commands.export import row

    writer: Writer | None = None
    rows = 0

    async def work() -> None:
        nonlocal rows, writer
        # The ledger is read in a generator of its own: a full disk or a broken pipe here is no fault of the ledger's.
        async with aclosing(_accounts(books, name, quiet)) as found:
            async for budget, account in found:
                # Made only now, so that nothing is written where there is no ledger.
                writer = writer or writer_of()
                writer.write(row(budget, account))
                rows += 1
        writer = writer or writer_of()
        writer.close()

    ledgers.read(work, may_repeat=lambda: writer is None)
    return rows


async def _accounts(
    books: LedgerAdmin, name: str | None, quiet: bool
) -> AsyncGenerator[tuple[Budget, Account], None]:
    async with ledgers.viewing(books) as view:
        budgets = {budget.name: budget for budget in view.budgets.values()}
        if name is not None:
            ledgers.pick(list(budgets.values()), name)
        async for account in ledgers.counted(view.accounts(name), "accounts", quiet=quiet):
            yield budgets[account.budget], account


def _document(entry: Spending | Balance) -> dict[str, Any]:
    """As JSON has it: the budget's standing beside the rest."""
    document = asdict(entry)
    return {**document.pop("standing"), **document}


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
