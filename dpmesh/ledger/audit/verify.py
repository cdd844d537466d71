"""Verification: whether a ledger's chains are unbroken, and its accounts are what the charge log says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from dpmesh.accounting import MAX_AMOUNT
from dpmesh.errors import LedgerError
from dpmesh.ledger import clock_rewind
from dpmesh.ledger.admin import Chain, LedgerView, StoredEntry
from dpmesh.ledger.audit.checkpoint import Checkpoint, fingerprint
from dpmesh.ledger.charge_log import Entry, EntryKind, Head, Posting, begin, decode, follow, wrong_end
from dpmesh.ledger.store import Account


async def verify(view: LedgerView, checkpoint: Checkpoint | None = None) -> list[str]:
    """Checks every chain entry by entry, and every account against the sum of its postings.

    Memory grows with the accounts and chains, not with the entries.

    Args:
        view: The ledger.
        checkpoint: An earlier checkpoint of this ledger, whose signature was checked.

    Returns:
        A text for everything that is wrong, with the chain and the entry's number, or the account's hash and budget.

    Raises:
        LedgerError: The ledger can't be read.
    """
    chains = await view.chains()
    if not chains and [account async for account in view.accounts()]:
        return [
            "the ledger has accounts, and no charge log: it was removed, or `dpmesh ledger migrate` has yet to make it"
        ]
    walk = _Walk(chains, {} if checkpoint is None else checkpoint.heads)
    sums = _Sums(view, any(chain.pruned.seq for chain in chains))
    async for stored in view.entries():
        entry = walk.step(stored)
        if entry is not None:
            sums.add(entry)
    if sums.retracted:
        charged: clock_rewind.Charged = {key: {} for key in sums.retracted}
        async for stored in view.entries():
            with suppress(LedgerError):
                clock_rewind.count(decode(stored.body), charged, {})
        sums.correct(charged)
    found = [*walk.finish(view.pruned_before), *walk.compare(view, checkpoint)]
    async for account in view.accounts():
        found += sums.check(account)
    return [*found, *sums.without_account()]


class _Walk:
    """Follows all chains at once, entry by entry. Of a broken chain it reports only the first break.

    `marks` are the heads that chains had at a checkpoint.
    """

    def __init__(self, chains: list[Chain], marks: Mapping[bytes, Head]) -> None:
        self._chains = {chain.name: chain for chain in chains}
        self._at = {chain.name: chain.pruned for chain in chains}
        self._broken: dict[bytes, str] = {}
        self._marks = marks
        self._marked: dict[bytes, bytes] = {}  # the present hashes of the entries that were heads

    def step(self, stored: StoredEntry) -> Entry | None:
        """Follows one entry; returns it, unless it can't be read."""
        name = stored.chain
        mark = self._marks.get(name)
        if mark is not None and mark.seq == stored.seq:
            self._marked[name] = stored.hash
        if name not in self._at:
            self._broken.setdefault(name, "has entries, and no end")
        if name not in self._broken:
            try:
                self._at[name], entry = follow(self._at[name], *stored[1:])
            except LedgerError as error:
                self._broken[name] = str(error)
            else:
                return entry
        try:
            return decode(stored.body)
        except LedgerError:
            return None

    def finish(self, pruned_before: int) -> Iterator[str]:
        """Reports what is wrong with the chains, after the last entry."""
        for name, chain in self._chains.items():
            wrong = self._broken.get(name) or wrong_end(self._at[name], chain.head)
            if chain.pruned.seq == 0 and chain.pruned != begin(name):
                wrong = "its beginning was altered"
            elif chain.pruned.seq and not pruned_before:
                wrong = f"entries up to {chain.pruned.seq} are missing, and none was ever pruned"
            if wrong:
                yield f"chain {name.hex()}: {wrong}"
        for name, wrong in self._broken.items():
            if name not in self._chains:
                yield f"chain {name.hex()}: {wrong}"

    def compare(self, view: LedgerView, checkpoint: Checkpoint | None) -> Iterator[str]:
        """Reports how the chains differ from a checkpoint."""
        if checkpoint is None:
            return
        if checkpoint.ledger != fingerprint(view.secret):
            yield "the checkpoint is of another ledger"
            return
        for name, mark in checkpoint.heads.items():
            wrong = self._change_since(name, mark)
            if wrong:
                yield f"chain {name.hex()}: {wrong}"

    def _change_since(self, name: bytes, mark: Head) -> str | None:
        chain = self._chains.get(name)
        if chain is None:
            return f"it is gone, and at the checkpoint it had {mark.seq} entries"
        if chain.head.seq < mark.seq:
            return f"it has {chain.head.seq} entries, and at the checkpoint it had {mark.seq}"
        if chain.pruned.seq > mark.seq:
            return f"entry {mark.seq} was pruned, so this checkpoint can't tell: use one that is not as old"
        there = chain.pruned.hash if chain.pruned.seq == mark.seq else self._marked.get(name)
        if there != mark.hash:
            return f"entry {mark.seq} is not the one that was there at the checkpoint"
        return None


@dataclass(slots=True)
class _Sum:
    """What the postings of one account add up to: in the latest window, and in all windows.

    Attributes:
        gross: As lifetime, without credits. An odometer stops at the largest amount, so that it can't be compared.
    """

    window: int = 0
    debited: int = 0
    granted: int = 0
    lifetime: int = 0
    gross: int = 0

    def add(self, kind: EntryKind, posting: Posting) -> None:
        if posting.window > self.window:
            self.window, self.debited, self.granted = posting.window, 0, 0
        if kind is EntryKind.GRANT:
            if posting.window == self.window:
                self.granted += posting.amount
            return
        if posting.window == self.window:
            self.debited += posting.amount
        self.lifetime += posting.amount
        self.gross += max(0, posting.amount)


@dataclass(slots=True)
class _Sums:
    """The sums of all accounts, by the charge log.

    A sum forgets a window when it finds a later one. That is too early where an administrator took everything out of
    later windows, because a wrong clock began them. Those accounts are counted again, window by window.

    Attributes:
        pruned: Whether any chain was pruned.
        retracted: For each account, the windows that everything was taken out of.
    """

    view: LedgerView
    pruned: bool
    retracted: dict[clock_rewind.Key, set[int]] = field(default_factory=lambda: defaultdict(set))
    _sums: dict[clock_rewind.Key, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    _numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {budget.name: number for number, budget in self.view.budgets.items()}

    def add(self, entry: Entry) -> None:
        """Counts an entry. The order doesn't matter."""
        for posting in entry.postings:
            self._sums[posting[:2]].add(entry.kind, posting)
        for key, window in clock_rewind.retracted(entry):
            self.retracted[key].add(window)

    def correct(self, charged: clock_rewind.Charged) -> None:
        """Sets the latest window of accounts with retracted windows: it has something in it, or was never retracted."""
        for key, windows in charged.items():
            retracted = self.retracted[key]
            left = [
                w for w, net in windows.items() if w not in retracted or net.debited > 0 or net.granted > 0
            ]
            found = self._sums[key]
            found.window = max(left, default=0)
            found.debited, found.granted = windows.get(found.window, clock_rewind.Net())

    def check(self, account: Account) -> Iterator[str]:
        """Reports what is wrong with an account. It must be called once for each."""
        where = f"account {account.account} of budget {account.budget!r}"
        key = self._numbers[account.budget], bytes.fromhex(account.account)
        logged = self._sums.pop(key, None)
        if logged is None:
            logged = _Sum(account.window_start)
            if not self.pruned and (account.spent or account.granted or account.lifetime):
                yield f"{where}: no entry of the charge log is about it"
                return
        # After pruning, the entries that are left add up to at most what the account has. All entries of windows that
        # began later than that are there.
        complete = not self.pruned or (
            account.window_end is not None and account.window_start >= self.view.pruned_before
        )
        if logged.window > account.window_start or (complete and logged.window != account.window_start):
            yield f"{where}: its window began at {account.window_start}, and by the charge log at {logged.window}"
        elif logged.window == account.window_start:
            yield from _differ(where, "debited", account.spent, logged.debited, complete)
            yield from _differ(where, "granted", account.granted, logged.granted, complete)
        if logged.gross <= MAX_AMOUNT:
            yield from _differ(
                where, "debited in all windows", account.lifetime, logged.lifetime, not self.pruned
            )

    def without_account(self) -> Iterator[str]:
        """Reports accounts that are only in the charge log, after all others were checked."""
        for number, account in sorted(self._sums):
            budget = self.view.budgets.get(number)
            name = f"number {number}, which is gone too" if budget is None else repr(budget.name)
            yield f"account {account.hex()} of budget {name}: it is gone, and the charge log has entries about it"


def _differ(where: str, what: str, stored: int, logged: int, complete: bool) -> Iterator[str]:
    if stored < logged or (complete and stored != logged):
        yield f"{where}: {what} is {stored}, and by the charge log {logged if complete else f'at least {logged}'}"
