"""CommitQueue: charges that no lease covers. They are debited batch by batch, and unused leases are returned."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from typing_extensions import override

from dpmesh.errors import BudgetExhaustedError, LedgerError, LostChargesError
from dpmesh.ledger import batching
from dpmesh.ledger.batching import BatchQueue, Waiter
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.leases import Key, Lease, LeaseTable, Unspent
from dpmesh.ledger.store import AccountId, Batch, Outcome, Store

_log = logging.getLogger(__name__)

Charges = Mapping[Key, int]
"""The amount that one request charges each account."""

Credit = tuple[tuple[int, ...], dict[AccountId, int]]
"""(for each budget, when the window began; for each account, what is returned): one call of Store.credit."""

_IDLE_SECONDS = 10.0  # after which an unused lease is returned, or twice that at most


class CommitQueue(BatchQueue[Charges, None]):
    """Debits charges in the store, and returns leases that nobody uses.

    How it works: BatchQueue says when a batch is committed. Around each commit, the leases of its accounts move:

        step    leases of the batch's accounts
        take    leave the lease table, so that nobody spends them while the store decides
        debit   the store debits what they lack, and a slice beyond it for accounts that are charged often
        put     return to the table, with the slice; after a failure without it, because it may be debited or not
        drop    all leases are forgotten where the store has lost their debits (LostChargesError)
        credit  what was left of leases that can't be spent, because a window ended, or its cap fell

    After each batch one group of unused leases is credited, so that charges never wait for more than one credit.
    A credit that fails is wasted, never spent: nobody holds those leases any more.

    Args:
        store: As for Ledger; so are `budgets`, `clock`, `monotonic` and `timeout`.
        leases: What this process holds already, and where new slices go.
        account: Gives the name under which an account is stored.
        committed: Called with the seconds that each commit took.

    Attributes:
        exclusive: Held while the store debits, credits or adopts: it does one of these at a time.
    """

    def __init__(
        self,
        store: Store,
        budgets: Sequence[Budget],
        leases: LeaseTable,
        account: Callable[[Key], AccountId],
        committed: Callable[[float], None],
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        timeout: float,
    ) -> None:
        super().__init__("charges", timeout)
        self._store = store
        self._budgets = budgets
        self._leases = leases
        self._account = account
        self._committed = committed
        self._clock = clock
        self._monotonic = monotonic
        self.exclusive = asyncio.Lock()
        self._credits: deque[Credit] = deque()
        self._rotation: asyncio.TimerHandle | None = None

    async def close(self) -> list[Credit]:
        """Stops the queue; returns what was to be credited, and was not yet."""
        if self._rotation is not None:
            self._rotation.cancel()
        await self.stop()
        # Moved, not copied: the commit under way may outlast the timeout, and must not credit the same once more.
        credits, self._credits = list(self._credits), deque()
        return credits

    def roll(self) -> None:
        """Begins the windows that are due.

        Raises:
            LedgerError: The clock shows no time.
        """
        try:
            self._leases.roll(self._clock())
        except ValueError as error:
            raise LedgerError(f"the ledger's clock is broken: {error}") from error

    async def adopt(self, budgets: Sequence[Budget]) -> None:
        """Takes other budgets, as Store.adopt does, and returns the leases of budgets whose cap falls.

        The caller holds `exclusive`.

        Raises:
            ConfigError: As of Store.adopt; so is LedgerError.
        """
        self.roll()
        try:
            windows = await self._store.adopt(budgets, self._clock())
        except LostChargesError:
            self._leases.drop()
            raise
        self._leases.adopt(budgets, windows)
        self._budgets = budgets
        for credit in self.to_credit(self._leases.ended()):
            await self._credit(*credit)

    def exhausted(self, index: int) -> BudgetExhaustedError:
        """The refusal of a budget, with the time until its window ends."""
        end = self._leases.end(index)
        return BudgetExhaustedError(
            self._budgets[index].name, None if end == math.inf else max(0.0, end - self._clock())
        )

    def to_credit(self, unspent: Iterable[Unspent]) -> Iterator[Credit]:
        """Divides unspent leases into groups for one commit each."""
        for starts, amounts in unspent:
            accounts = [(self._account(key), amount) for key, amount in amounts.items()]
            for first in range(0, len(accounts), batching.MAX_BATCH):
                yield starts, dict(accounts[first : first + batching.MAX_BATCH])

    @override
    def _answer_early(self, waiter: Waiter[Charges, None]) -> bool:
        paid = self._leases.spend([(index, key, amount) for (index, key), amount in waiter.item.items()])
        if paid:
            waiter.resolve(None)
        return paid

    @override
    async def _commit(self, waiters: Sequence[Waiter[Charges, None]]) -> None:
        async with self.exclusive:
            await self._decide(waiters)

    async def _decide(self, waiters: Sequence[Waiter[Charges, None]]) -> None:
        self.roll()
        ids = {key: self._account(key) for waiter in waiters for key in waiter.item}
        starts, leases = self._leases.take(ids)
        now = self._monotonic()
        batch = Batch(
            windows=starts,
            leased={ids[key]: leases[key].left if key in leases else 0 for key in ids},
            requests=[{ids[key]: amount for key, amount in waiter.item.items()} for waiter in waiters],
            forecast={ids[key]: lease.forecast(now) for key, lease in leases.items()},
            known={ids[key]: lease.debited for key, lease in leases.items()},
            now=self._clock(),
        )
        try:
            outcome = await self._debit(batch)
        except LostChargesError:
            self._leases.drop()
            raise
        except BaseException:
            # What was leased is debited already. What was to be debited now may be, so it counts as spent.
            self._leases.put(starts, leases)
            raise
        self._leases.settle(outcome.windows)
        began = tuple(window.start for window in outcome.windows)
        now = self._monotonic()
        after, overspent = {}, {}
        for key, a in ids.items():
            left, debited = outcome.remaining[a], outcome.debited[a]
            if debited > outcome.caps[a]:  # The cap fell.
                overspent[key], left, debited = left, 0, debited - left
            after[key] = Lease(left, debited, batch.leased[a] + outcome.debits.get(a, 0), now)
        self._credits.extend(self.to_credit([(starts, _expired(leases, starts, began)), (began, overspent)]))
        self._leases.put(began, after, {key: outcome.caps[a] for key, a in ids.items()})
        for waiter, budget in zip(waiters, outcome.denied_by, strict=True):
            if budget is None:
                waiter.resolve(None)
            else:
                waiter.refuse(self.exhausted(budget))

    async def _debit(self, batch: Batch) -> Outcome:
        """Has the store debit a batch, and measures the time."""
        began = time.perf_counter()
        try:
            return await self._store.debit(batch)
        finally:
            self._committed(time.perf_counter() - began)

    @override
    async def _after_batch(self) -> bool:
        """Credits one group of unused leases."""
        self._credits.extend(self.to_credit(self._leases.ended()))
        if self._credits and not self._stopped:
            async with self.exclusive:
                await self._credit(*self._credits.popleft())
        return bool(self._credits)

    async def _credit(self, starts: tuple[int, ...], unspent: dict[AccountId, int]) -> None:
        try:
            await self._store.credit(starts, unspent)
        except LedgerError as error:
            if isinstance(error, LostChargesError):
                self._leases.drop()
            _log.warning("the ledger could not take back %d idle leases: %s", len(unspent), error)

    @override
    def _on_idle(self) -> None:
        if self._rotation is None and not self._stopped and self._leases.any_left():
            self._rotation = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._rotate)

    def _rotate(self) -> None:
        """Finds the leases that nobody uses any more, and has them credited."""
        self._rotation = None
        self._credits.extend(self.to_credit([*self._leases.ended(), self._leases.rotate()]))
        if self._credits or self._leases.any_left():
            self.wake()

    @override
    def _refusal(self, error: BaseException) -> LedgerError:
        refusal = super()._refusal(error)
        refusal.__cause__ = error
        return refusal


def _expired(leases: Mapping[Key, Lease], starts: Sequence[int], windows: Sequence[int]) -> dict[Key, int]:
    """What was leased in windows that were over by the time the store decided."""
    return {
        key: lease.left for key, lease in leases.items() if lease.left and starts[key[0]] != windows[key[0]]
    }
