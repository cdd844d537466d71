"""What a verification of a ledger finds, and how much of the ledger it covers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from dpmesh.ledger.admin import LedgerView
from dpmesh.ledger.audit.checkpoint import Checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.report.wording import count, minute

if TYPE_CHECKING:
    from dpmesh.ledger import Account
    from dpmesh.ledger.admin import Chain, StoredEntry


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        findings: What is wrong, one line each.
        chains: How many chains were followed.
        entries: How many entries they have.
        accounts: How many accounts were compared with them.
        pruned_before: Entries of windows that began before this (seconds since 1970) may be pruned; 0 if none was.
    """

    findings: list[str]
    chains: int
    entries: int
    accounts: int
    pruned_before: int

    def summary(self, checkpoint: Checkpoint | None) -> str:
        """Says that all is well, and what that covers.

        Args:
            checkpoint: The one that the ledger was compared with.
        """
        since = (
            f"; nothing was changed since the checkpoint of {minute(checkpoint.time)} UTC"
            if checkpoint
            else ""
        )
        pruned = (
            f"; of windows before {minute(self.pruned_before)} UTC entries may be pruned"
            if self.pruned_before
            else ""
        )
        chains = count(self.chains, "chain")
        entries = count(self.entries, "entry", "entries")
        accounts = count(self.accounts, "account that is", "accounts that are")
        return f"whole: {chains}, {entries}, {accounts} what the log says{pruned}{since}"


async def verification(view: LedgerView, checkpoint: Checkpoint | None) -> Verification:
    """Verifies a ledger.

    Args:
        view: The ledger as it was at one moment.
        checkpoint: An earlier one, whose signature was checked.
    """
    counting = _CountingView(view)
    findings = [*([view.remark] if view.older else []), *await verify(counting, checkpoint)]
    return Verification(
        findings,
        counting.seen_chains,
        counting.seen_entries,
        counting.seen_accounts,
        view.pruned_before,
    )


class _CountingView(LedgerView):
    """A view that counts what is read of another one."""

    def __init__(self, view: LedgerView) -> None:
        self._view = view
        self.secret, self.budgets, self.windows = view.secret, view.budgets, view.windows
        self.remark, self.older, self.ahead = view.remark, view.older, view.ahead
        self.pruned_before = view.pruned_before
        self.seen_chains = self.seen_entries = self.seen_accounts = 0

    @override
    async def chains(self) -> list[Chain]:
        chains = await self._view.chains()
        self.seen_chains = len(chains)
        return chains

    @override
    async def accounts(
        self, budget: str | None = None, account: bytes | None = None
    ) -> AsyncIterator[Account]:
        async for entry in self._view.accounts(budget, account):
            self.seen_accounts += 1
            yield entry

    @override
    async def entries(self) -> AsyncIterator[StoredEntry]:
        self.seen_entries = 0  # they may be read twice
        async for entry in self._view.entries():
            self.seen_entries += 1
            yield entry
