"""`dpmesh ledger`: makes tables, checks and shows the charge log, moves a ledger, while its holders may charge it."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh import extras
from dpmesh.cli.app import require_command
from dpmesh.cli.console import (
    FOUND,
    InputError,
    data_stdout,
    fail,
    print_json,
    print_json_line,
    say,
)
from dpmesh.cli.options import inputs, ledger_access, notes
from dpmesh.cli.progress import counted, waiting
from dpmesh.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dpmesh.ledger import Budget
    from dpmesh.ledger.admin import LedgerAdmin, LedgerView, StoredEntry
    from dpmesh.ledger.audit.checkpoint import Checkpoint

app = typer.Typer(
    add_completion=False,
    help="Make a ledger's tables, check and show its charge log, and move it.",
    epilog="Example: dpmesh ledger verify --config dpmesh.toml",
)


app.callback(invoke_without_command=True)(require_command)


@app.command("migrate", epilog="Example: dpmesh ledger migrate --config dpmesh.toml")
def migrate(
    config_file: inputs.ConfigFile = None, url: ledger_access.LedgerUrl = None, as_json: inputs.AsJson = False
) -> None:
    """Make the tables of a new ledger, or bring those of an older one up to date, all or nothing.

    An older version of dpmesh can't use them afterwards: update or stop every holder first.
    """
    admin = ledger_access.open_admin(config_file, url)
    with waiting("migrating"):
        before, after = ledger_access.run(admin.migrate())
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"tables: version {after}, up to date")
    elif before == 0:
        say(f"tables: made, version {after}")
    else:
        say(f"tables: from version {before} to version {after}")


@app.command(
    "verify", epilog="Example: dpmesh ledger verify --checkpoint monday.json --public-key audit.key.pub"
)
def verify(
    checkpoint_file: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="An earlier checkpoint; only it shows what was rewritten consistently since.",
            show_default=False,
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", metavar="FILE", help="The public key of its signature.", show_default=False
        ),
    ] = None,
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Check every chain of the charge log entry by entry, and every account against it; exit 1 if anything is wrong.

    A user who may write to the whole database can rewrite it consistently. Make checkpoints, keep them where no such
    user can write, and give the latest one here.
    """
    from dpmesh.report.verification import verification

    if (checkpoint_file is None) != (public_key is None):
        raise InputError(
            "--checkpoint and --public-key go together: anybody could have written an unsigned checkpoint"
        )
    admin = ledger_access.open_admin(config_file, url)
    known, findings = None, []
    if checkpoint_file is not None and public_key is not None:
        known, wrong = _read_checkpoint(checkpoint_file, public_key)
        findings += [wrong] * bool(wrong)
    trusted = None if findings else known
    with waiting("verifying"):
        verified = ledger_access.ask(admin, lambda view: verification(view, trusted))
    findings += verified.findings
    if as_json:
        print_json(
            {
                "whole": not findings,
                "chains": verified.chains,
                "entries": verified.entries,
                "accounts": verified.accounts,
                "pruned_before": verified.pruned_before,
                "checkpoint": None if trusted is None else trusted.time,
                "findings": findings,
            }
        )
    else:
        say(*(findings or [verified.summary(trusted)]))
    if findings:
        raise typer.Exit(FOUND)


def _read_checkpoint(path: Path, public_key: Path) -> tuple[Checkpoint, str]:
    """A checkpoint, and what is wrong with its signature; "" if it is good. Other files raise InputError."""
    from dpmesh.cli.options import key_files
    from dpmesh.ledger.audit.checkpoint import Checkpoint

    key = key_files.read_public(public_key)
    try:
        found = Checkpoint.from_json(key_files.read(path).decode())
    except (LedgerError, UnicodeDecodeError):
        raise InputError(f"{path}: not a checkpoint of a dpmesh ledger, or one of another version") from None
    try:
        found.check(key)
    except LedgerError as error:
        return found, f"{path}: {error}"
    return found, ""


@app.command(
    "checkpoint", epilog="Example: dpmesh ledger checkpoint --key audit.key --new-key --output monday.json"
)
def checkpoint(
    key: Annotated[
        Path,
        typer.Option(
            "--key", metavar="FILE", help="An Ed25519 private key in PEM, which signs it.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="A new file; - is stdout.", show_default=False)
    ],
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key", help="Make the key if it isn't there, and its public key beside it, FILE.pub."
        ),
    ] = False,
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
) -> None:
    """Write a signed checkpoint: how far every chain of the charge log has come. Nothing is ever overwritten.

    Keep it, and the public key, where nobody who may write to the ledger can write. `verify` then tells whether
    anything that is logged now was changed or removed later.
    """
    from dpmesh.cli.options import key_files
    from dpmesh.ledger.audit import checkpoint as checkpoints
    from dpmesh.report.wording import count

    to_stdout = str(output) == "-"
    if not to_stdout and output.exists():
        raise InputError(f"{output} is there already, and is never overwritten")
    admin = ledger_access.open_admin(config_file, url)
    # Before a key is made for an unreadable ledger.
    unsigned = ledger_access.ask(admin, checkpoints.checkpoint)
    private = key_files.private(key, make=new_key)
    text = unsigned.sign(private).to_json()
    if to_stdout:
        data_stdout().write(text)
        return
    key_files.write_once(output, text.encode(), 0o644)
    entries = sum(head.seq for head in unsigned.heads.values())
    say(f"{output}: {count(len(unsigned.heads), 'chain')}, {count(entries, 'entry', 'entries')}")


@app.command(
    "import", epilog="Example: dpmesh ledger import sqlite:///.dpmesh/ledger.db --ledger postgresql://..."
)
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE_URL", help="The ledger to move.", show_default=False)
    ],
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Move an SQLite ledger, with all that is spent, granted and logged, into the PostgreSQL one that --ledger names.

    The new ledger must be migrated and unused. The old file accepts no charge afterwards, so nothing is spent in both:
    give its holders the new URL. A repeated import doubles nothing, and continues after a failure.
    """
    from dpmesh.report.wording import count

    target = ledger_access.ledger_url(config_file, url)
    try:
        from dpmesh.ledger.import_sqlite import transfer
    except ImportError as error:
        if error.name != "asyncpg":
            raise
        raise InputError(f"import needs another package: {extras.install('postgres')}") from None
    with waiting("importing"):
        moved = ledger_access.run(transfer(source, target))
    if as_json:
        print_json(asdict(moved))
        return
    entries = count(moved.entries, "entry", "entries")
    what = f"{count(moved.budgets, 'budget')}, {count(moved.accounts, 'account')}, {entries}"
    say(f"imported before, nothing was doubled: {what}" if moved.again else f"imported: {what}")


@app.command("prune", epilog="Example: dpmesh ledger prune --keep 400d")
def prune(
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="TIME",
            help="How long entries stay, such as 400d; at least the longest window.",
            show_default=False,
        ),
    ],
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Remove old entries from the charge log, for ever. What accounts spent in all their lifetime stays.

    The rest can still be verified, also against an earlier checkpoint. Only the single charges of the pruned time are
    no longer known.
    """
    from dpmesh import config
    from dpmesh.report.wording import count

    kept = config.seconds(keep, "--keep")
    if kept is None:
        raise InputError('--keep: "lifetime" removes nothing; give a length such as "400d"')
    admin = ledger_access.open_admin(config_file, url)
    longest = ledger_access.ask(admin, _longest)
    if longest is not None and kept < (longest.window or 0):
        raise InputError(
            f"--keep must be at least {longest.window:.0f}s, the window of {longest.name!r}: "
            "the charges of a window that is not over must stay"
        )
    with waiting("pruning"):
        pruned = ledger_access.run(admin.prune(max(0, int(time.time() - kept))))
    if as_json:
        print_json({"pruned": pruned})
    else:
        say(f"pruned: {count(pruned, 'entry', 'entries')}")


async def _longest(view: LedgerView) -> Budget | None:
    """The budget with the longest window."""
    return max(view.budgets.values(), key=lambda budget: budget.window or 0, default=None)


@app.command("accept", epilog='Example: dpmesh ledger accept --reason "restored the backup of Monday" --yes')
def accept(
    reason: notes.Reason,
    by: notes.By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it is only explained.")] = False,
    unnoticed: Annotated[
        bool,
        typer.Option(
            "--unnoticed",
            help="You know that it is an older copy (a checkpoint says so), though the ledger does not show it.",
        ),
    ] = False,
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
    as_json: inputs.AsJson = False,
) -> None:
    """Go on with a ledger that is an older copy of itself, after a restore or when its witness is lost.

    Every budget with windows moves to the window after the current one, so nothing is spent twice in a window.
    Lifetime budgets have no next window; they are listed.

    This also unlocks a ledger that a wrong clock locked. What was spent in windows that the clock has not reached
    counts in the window after the current one, and every holder must be restarted.
    """
    from dpmesh.cli.commands import ledger_text

    note = notes.note(reason, by)
    admin = ledger_access.open_admin(config_file, url)
    if not yes:
        lifetime, ahead, only_ahead = ledger_access.ask(admin, _affected)
        if as_json:
            print_json({"accepted": False, "lifetime": list(lifetime), "ahead": list(ahead)})
            raise InputError("nothing was done: add --yes")
        ledger_text.write_explanation(lifetime, ahead, only_ahead=only_ahead)
        raise InputError("nothing was done: read the above, and add --yes")
    try:
        _, ahead, only_ahead = ledger_access.ask(admin, _affected)
    except InputError:  # It may be accepted because it can't be read.
        ahead, only_ahead = (), False
    lifetime = ledger_access.run(admin.accept(note, unnoticed=unnoticed))
    if as_json:
        print_json({"accepted": True, "lifetime": list(lifetime), "ahead": list(ahead)})
        return
    ledger_text.write_accepted(lifetime, ahead, only_ahead=only_ahead and not unnoticed)


async def _affected(view: LedgerView) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The lifetime budgets, the budgets whose windows are ahead of the clock, and whether only these need accepting."""
    lifetime = tuple(budget.name for budget in view.budgets.values() if budget.window is None)
    return lifetime, view.ahead, bool(view.ahead) and not view.older


@app.command("log", epilog="Example: dpmesh ledger log --grants")
def log(
    grants: Annotated[
        bool,
        typer.Option(
            "--grants",
            help="Only the entries with a reason: grants, copies that were accepted, and looser policies.",
        ),
    ] = False,
    config_file: inputs.ConfigFile = None,
    url: ledger_access.LedgerUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
) -> None:
    """Show the charge log, chain after chain: when, what, on how many accounts, how much, and the reason if given.

    Amounts are in each budget's own accounting: what was debited (+) or returned (-), or by how much a grant raises the
    cap. The log holds nobody's id.
    """
    from dpmesh.report.wording import count

    unreadable = _log(ledger_access.open_admin(config_file, url), grants, as_json)
    if unreadable:
        fail(f"{count(unreadable, 'entry', 'entries')} can't be read: see dpmesh ledger verify")
        raise typer.Exit(FOUND)


def _log(admin: LedgerAdmin, grants: bool, as_json: bool) -> int:
    """Prints the log, and returns how many entries can't be read."""
    from dpmesh.cli.commands import ledger_text
    from dpmesh.report.log_entries import WITH_REASON, log_entry

    unreadable = 0
    begun = False

    async def work() -> None:
        nonlocal begun, unreadable
        # The ledger is read in a generator of its own, so that a pipe that breaks here is not its fault.
        async with aclosing(_entries(admin)) as entries:
            async for stored, budgets in entries:
                if not begun and not as_json:
                    say(ledger_text.LOG_HEAD)
                begun = True
                try:
                    entry = log_entry(stored, budgets)
                except LedgerError:
                    unreadable += 1
                    continue
                if not grants or entry.kind in WITH_REASON:
                    if as_json:
                        print_json_line(ledger_text.log_json_line(entry))
                    else:
                        say(ledger_text.log_line(entry))

    ledger_access.read(work, may_repeat=lambda: not begun)
    return unreadable


async def _entries(admin: LedgerAdmin) -> AsyncGenerator[tuple[StoredEntry, Mapping[int, Budget]], None]:
    async with ledger_access.viewing(admin) as view:
        async for entry in counted(view.entries(), "entries", quiet=sys.stdout.isatty()):
            yield entry, view.budgets
