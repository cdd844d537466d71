"""What `dpmesh ledger verify` and `checkpoint` read, and what they count under way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpmesh.cli.console import InputError
from dpmesh.cli.options import key_files, ledgers
from dpmesh.errors import LedgerError
from dpmesh.ledger.audit.checkpoint import Checkpoint, checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.report.balances import shown_time

if TYPE_CHECKING:
    from dpmesh.ledger import Account
    from dpmesh.ledger.admin import Chain, LedgerAdmin, LedgerView, StoredEntry


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a verification.

    Attributes:
        findings: What is wrong, one line each.
        chains: How many chains were followed.
        entries: How many entries they have.
        accounts: How many accounts were compared with them.
        pruned_before: Windows that began before this may lack entries; 0 if none was pruned.
    """

    findings: list[str]
    chains: int
    entries: int
    accounts: int
    pruned_before: int

    def line(self, known: Checkpoint | None) -> str:
        """Says for people that all is well, and what that covers."""
        since = f"; nothing was changed since the checkpoint of {shown_time(known.time)} UTC" if known else ""
        pruned = (
            f"; of windows before {shown_time(self.pruned_before)} UTC entries may be pruned"
            if self.pruned_before
            else ""
        )
        chains = ledgers.number(self.chains, "chain", "chains")
        entries = ledgers.number(self.entries, "entry", "entries")
        accounts = ledgers.number(self.accounts, "account that is", "accounts that are")
        return f"whole: {chains}, {entries}, {accounts} what the log says{pruned}{since}"


class Counting:
    """A view that counts what is read of it.

    Args:
        view: Another one.
    """

    def __init__(self, view: LedgerView) -> None:
        self._view = view
        self.secret, self.budgets, self.windows = view.secret, view.budgets, view.windows
        self.remark, self.older, self.ahead = view.remark, view.older, view.ahead
        self.pruned_before = view.pruned_before
        self.seen_chains = self.seen_entries = self.seen_accounts = 0

    async def chains(self) -> list[Chain]:
        """See View."""
        found = await self._view.chains()
        self.seen_chains = len(found)
        return found

    async def accounts(
        self, budget: str | None = None, account: bytes | None = None
    ) -> AsyncIterator[Account]:
        """See View."""
        async for found in self._view.accounts(budget, account):
            self.seen_accounts += 1
            yield found

    async def entries(self) -> AsyncIterator[StoredEntry]:
        """See View."""
        self.seen_entries = 0  # they may be read twice
        async for found in self._view.entries():
            self.seen_entries += 1
            yield found


async def check(books: LedgerAdmin, known: Checkpoint | None) -> Checked:
    """Verifies a ledger.

    Args:
        books: The ledger's.
        known: An earlier checkpoint, whose signature was checked.
    """
    async with ledgers.viewing(books) as view:
        counting = Counting(view)
        findings = [*([view.remark] if view.older else []), *await verify(counting, known)]
        return Checked(
            findings,
            counting.seen_chains,
            counting.seen_entries,
            counting.seen_accounts,
            view.pruned_before,
        )


async def point(books: LedgerAdmin) -> Checkpoint:
    """How far a ledger has come, not signed yet."""
    async with ledgers.viewing(books) as view:
        return await checkpoint(view)


def read_checkpoint(path: Path, public_key: Path) -> tuple[Checkpoint, str]:
    """A checkpoint, and what is wrong with its signature, if anything is.

    Raises:
        InputError: One of the files can't be read, or is something else.
    """
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
