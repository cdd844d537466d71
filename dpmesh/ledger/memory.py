"""MemoryStore: budgets that last as long as the process, for tests and trials."""

from __future__ import annotations

import heapq
import os
import secrets
from collections.abc import Mapping, Sequence

from typing_extensions import override

from dpmesh.errors import LedgerError
from dpmesh.ledger.budget import Budget, check_adoptable, check_names, check_unchanged
from dpmesh.ledger.store import (
    KEY_BYTES,
    SECRET_BYTES,
    Account,
    AccountId,
    Batch,
    EpochKey,
    Opened,
    Outcome,
    Store,
    Window,
    account_end,
    decide,
    epoch_in_force,
    window_at_opening,
    window_in_force,
)


class MemoryStore(Store):
    """Keeps debits in this process's memory; a restart refills every budget.

    Attributes:
        notes: What was recorded.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._stored: dict[str, Budget] = {}
        self._windows: dict[str, Window] = {}
        # (budget, account): (window start, debited, in all windows)
        self._rows: dict[tuple[str, bytes], tuple[int, int, int]] = {}
        self._redeemed: set[bytes] = set()
        # A heap: redeemed names, by when they may be forgotten.
        self._forgettable: list[tuple[int, bytes]] = []
        self._now = 0
        self._epoch_keys: dict[int, EpochKey] = {}  # by the epoch's length
        self._budgets: tuple[Budget, ...] = ()
        self._process = os.getpid()
        self.notes: list[str] = []

    @override
    async def open(self, budgets: Sequence[Budget]) -> Opened:
        self._check_process()
        check_names(budgets)
        for budget in budgets:
            check_unchanged(self._stored.get(budget.name, budget), budget)
        windows = self._take(budgets)
        return Opened(self._secret, windows, self._others())

    @override
    async def may_adopt(self, budgets: Sequence[Budget]) -> None:
        self._check_process()
        for budget in budgets:
            check_adoptable(self._stored.get(budget.name, budget), budget)

    @override
    async def adopt(self, budgets: Sequence[Budget], now: float) -> tuple[Window, ...]:
        await self.may_adopt(budgets)
        self._begin([now] * len(self._budgets))
        return self._take(budgets)

    def _take(self, budgets: Sequence[Budget]) -> tuple[Window, ...]:
        for budget in budgets:
            self._stored[budget.name] = budget
            self._windows[budget.name] = window_at_opening(self._windows.get(budget.name), budget)
        self._budgets = tuple(budgets)
        return tuple(self._windows[budget.name] for budget in budgets)

    def _begin(self, times: Sequence[float]) -> tuple[Window, ...]:
        """Begins the windows that are due, at a time for each budget; returns those in force."""
        for budget, now in zip(self._budgets, times, strict=True):
            self._windows[budget.name] = window_in_force(self._windows[budget.name], budget, now)
        return tuple(self._windows[budget.name] for budget in self._budgets)

    @override
    async def debit(self, batch: Batch) -> Outcome:
        self._check_process()
        windows = self._begin([batch.time(index) for index in range(len(self._budgets))])
        debited = {a: self._debited(a, windows[a[0]].start) for a in batch.leased}
        outcome = decide(batch, windows, debited)
        for a, amount in outcome.debits.items():
            row = self._row(a)
            lifetime = self._rows[row][2] if row in self._rows else 0
            self._rows[row] = (windows[a[0]].start, outcome.debited[a], lifetime + amount)
        return outcome

    @override
    async def credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        self._check_process()
        for a, amount in unspent.items():
            start, debited, lifetime = self._rows.get(self._row(a), (0, 0, 0))
            if start > windows[a[0]] and 0 < amount <= lifetime:
                self._rows[self._row(a)] = (start, debited, lifetime - amount)
            elif start == windows[a[0]] and 0 < amount <= debited:
                self._rows[self._row(a)] = (start, debited - amount, lifetime - amount)

    @override
    async def redeem_once(self, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
        self._check_process()
        self._now = max(self._now, now)
        while self._forgettable and self._forgettable[0][0] <= self._now:
            self._redeemed.discard(heapq.heappop(self._forgettable)[1])
        return [self._redeem(name, until) for name, until in redemptions]

    @override
    async def redeemed(self, names: Sequence[bytes]) -> list[bool]:
        self._check_process()
        return [name in self._redeemed for name in names]

    @override
    async def epoch_keys(self, now: int, lengths: Sequence[int]) -> list[EpochKey]:
        self._check_process()
        latest = max([now, *[self._windows[budget.name].start * 1_000_000 for budget in self._budgets]])
        for length in lengths:
            stored = self._epoch_keys.get(length)
            number = epoch_in_force(latest, length, None if stored is None else stored.number)
            if stored is None or stored.number != number:
                self._epoch_keys[length] = EpochKey(number, secrets.token_bytes(KEY_BYTES))
        return [self._epoch_keys[length] for length in lengths]

    @override
    async def accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        order = list(self._stored)
        return [
            self._account(name, key, *row)
            for (name, key), row in sorted(
                self._rows.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
            )
            if budget in (None, name) and account in (None, key)
        ]

    @override
    async def record(self, note: str) -> None:
        self._check_process()
        self.notes.append(note)

    @override
    async def ping(self) -> None:
        self._check_process()

    @override
    async def close(self) -> None:
        pass  # What was debited stays: a closed store may be opened again.

    @override
    def after_fork_in_child(self) -> None:
        pass  # Two copies of one budget would spend it twice, so the child's copy refuses to answer.

    def _others(self) -> tuple[tuple[Budget, int], ...]:
        charged = {
            name
            for (name, _), (start, debited, _) in self._rows.items()
            if debited and start == self._windows[name].start
        }
        configured = {budget.name for budget in self._budgets}
        return tuple(
            (budget, self._windows[name].start)
            for name, budget in self._stored.items()
            if name in charged and name not in configured
        )

    def _redeem(self, name: bytes, until: int) -> bool:
        if until <= self._now or name in self._redeemed:
            return False
        self._redeemed.add(name)
        heapq.heappush(self._forgettable, (until, name))
        return True

    def _account(self, name: str, key: bytes, start: int, debited: int, lifetime: int) -> Account:
        window = self._windows[name]
        end = account_end(start, window)
        return Account(name, key.hex(), start, end, debited, window.cap, 0, lifetime)

    def _row(self, account: AccountId) -> tuple[str, bytes]:
        return self._budgets[account[0]].name, account[1]

    def _debited(self, account: AccountId, window: int) -> int:
        start, debited, _ = self._rows.get(self._row(account), (window, 0, 0))
        return debited if start == window else 0

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise LedgerError(
                "a ledger in memory belongs to the process that made it, and this is a forked child. "
                "Set ledger.url to an SQLite file, which both can share"
            )
