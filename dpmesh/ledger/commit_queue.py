"""CommitQueue: charges that wait for the store; all that wait during one commit go into the next."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dpmesh.errors import BudgetExhaustedError, LedgerError, LostChargesError
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.leases import Key, Lease, LeaseTable, Left
from dpmesh.ledger.store import AccountId, Batch, Outcome, Store

_log = logging.getLogger(__name__)

MAX_WAITING = 16_384
"""How many charges may wait for a commit; one more is refused at once."""

MAX_BATCH = 4096
"""How many of them one commit takes along."""

_TICK = 0.05  # seconds from one look for charges that waited too long to the next
_IDLE = 10.0  # seconds after which a lease that nobody used is handed back, or twice that at most


class _Waiter:
    """A charge that needs the store, its deadline on the event loop's clock, and where the answer goes."""

    __slots__ = ("answer", "deadline", "needs")

    def __init__(self, needs: Mapping[Key, int], deadline: float, answer: asyncio.Future[None]) -> None:
        self.needs = needs
        self.deadline = deadline
        self.answer = answer

    def admit(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def refuse(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class CommitQueue:
    """Commits what waits, batch by batch. It belongs to one event loop.

    Args:
        store: Where the debits are kept.
        budgets: The ledger's budgets.
        holdings: What this process holds already, and where it puts what is left of new slices.
        account: The name under which an account is stored.
        committed: Called with the seconds that each commit took.
        clock: Seconds since the epoch.
        timeout: The longest that a charge waits, in seconds.
    """

    def __init__(
        self,
        store: Store,
        budgets: Sequence[Budget],
        holdings: LeaseTable,
        account: Callable[[Key], AccountId],
        committed: Callable[[float], None],
        *,
        clock: Callable[[], float],
        timeout: float,
    ) -> None:
        self._store = store
        self._budgets = budgets
        self._holdings = holdings
        self._account = account
        self._committed = committed
        self._clock = clock
        self._timeout = timeout
        self._waiting: deque[_Waiter] = deque()
        self._returns: deque[tuple[tuple[int, ...], dict[AccountId, int]]] = deque()
        self._committing: list[_Waiter] = []
        self._limit: asyncio.TimerHandle | None = None
        self._rotation: asyncio.TimerHandle | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._stopped = False

    def join(self, needs: Mapping[Key, int]) -> asyncio.Future[None]:
        """What to wait for until the amounts are debited durably, all or nothing. It raises what a refusal is.

        Raises:
            LedgerError: Too many wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise LedgerError(f"the ledger is too slow: {MAX_WAITING} charges are waiting already")
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        if not needs:
            answer.set_result(None)
            return answer
        deadline = loop.time() + self._timeout
        self._waiting.append(_Waiter(needs, deadline, answer))
        if self._limit is None:
            self._limit = loop.call_at(deadline, self._expire)
        self._start_flusher()
        return answer

    def _start_flusher(self) -> None:
        """Starts the task that commits what waits, unless it is at work.

        The task itself says whether it is: an eager task (Python 3.12) can end before create_task returns it.
        """
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def stop(self) -> list[tuple[tuple[int, ...], dict[AccountId, int]]]:
        """Refuses who waits, and lets the commit under way finish.

        Returns:
            What was to be handed back, and was not yet.
        """
        self._stopped = True
        if self._rotation is not None:
            self._rotation.cancel()
        self._refuse_waiting(LedgerError("the ledger is closing"))
        if self._flusher is not None:
            await asyncio.wait({self._flusher}, timeout=self._timeout)
        if self._limit is not None:
            self._limit.cancel()
        # Moved, not copied: who commits may still be at work, and must not hand the same back once more.
        returns, self._returns = list(self._returns), deque()
        return returns

    def roll(self) -> None:
        """Begins the windows that are due.

        Raises:
            LedgerError: The clock shows no time.
        """
        try:
            self._holdings.roll(self._clock())
        except ValueError as error:
            raise LedgerError(f"the ledger's clock is broken: {error}") from error

    def exhausted(self, index: int) -> BudgetExhaustedError:
        """The refusal of a budget, with the time until its window ends."""
        end = self._holdings.end(index)
        return BudgetExhaustedError(
            self._budgets[index].name, None if end == math.inf else max(0.0, end - self._clock())
        )

    async def _flush(self) -> None:
        """Commits what waits, batch by batch, until nothing does, and between batches hands back what is idle."""
        try:
            while (self._waiting or self._returns) and not self._stopped:
                self._committing = self._next_batch()
                if self._committing:
                    await self._commit(self._committing)
                self._committing = []
                self._returns.extend(self.parts(self._holdings.ended()))
                if self._returns and not self._stopped:
                    await self._hand_back(*self._returns.popleft())
        except BaseException as error:
            # Whatever went wrong, nobody may wait for ever, and nobody may release.
            self._refuse_waiting(error, self._committing)
            if not isinstance(error, Exception):
                raise
        finally:
            self._committing = []
            if self._rotation is None and not self._stopped and self._holdings.holds_any():
                self._rotation = asyncio.get_running_loop().call_later(_IDLE, self._rotate)

    def _rotate(self) -> None:
        """Finds the leases that nobody uses any more, and has them handed back."""
        self._rotation = None
        self._returns.extend(self.parts([*self._holdings.ended(), self._holdings.rotate()]))
        if self._returns or self._holdings.holds_any():
            self._start_flusher()

    def parts(self, left: Iterable[Left]) -> Iterator[tuple[tuple[int, ...], dict[AccountId, int]]]:
        """What is to be handed back, by accounts, in parts for one commit each."""
        for starts, amounts in left:
            accounts = [(self._account(key), amount) for key, amount in amounts.items()]
            for first in range(0, len(accounts), MAX_BATCH):
                yield starts, dict(accounts[first : first + MAX_BATCH])

    async def _hand_back(self, starts: tuple[int, ...], unspent: dict[AccountId, int]) -> None:
        """Returns leases. What fails is wasted, never spent: nobody holds them any more."""
        try:
            await self._store.credit(starts, unspent)
        except LedgerError as error:
            if isinstance(error, LostChargesError):
                self._holdings.drop()
            _log.warning("the ledger could not take back %d idle leases: %s", len(unspent), error)

    def _next_batch(self) -> list[_Waiter]:
        """Those that wait, less those that gave up or that a lease covers by now."""
        waiters: list[_Waiter] = []
        while self._waiting and len(waiters) < MAX_BATCH:
            waiter = self._waiting.popleft()
            if waiter.answer.done():
                continue
            if self._holdings.spend([(index, key, amount) for (index, key), amount in waiter.needs.items()]):
                waiter.admit()
            else:
                waiters.append(waiter)
        return waiters

    async def _commit(self, waiters: list[_Waiter]) -> None:
        """Has the store decide, and tells every waiter."""
        self.roll()
        ids = {key: self._account(key) for waiter in waiters for key in waiter.needs}
        starts, held = self._holdings.take(ids)
        now = time.monotonic()
        batch = Batch(
            windows=starts,
            held={ids[key]: held[key].left if key in held else 0 for key in ids},
            requests=[{ids[key]: amount for key, amount in waiter.needs.items()} for waiter in waiters],
            wants={ids[key]: lease.wants(now) for key, lease in held.items()},
            known={ids[key]: lease.debited for key, lease in held.items()},
        )
        try:
            outcome = await self._debit(batch)
        except LostChargesError:
            self._holdings.drop()
            raise
        except BaseException:
            # What was held is debited already. What was to be debited now may be, so it counts as spent.
            self._holdings.put(starts, held)
            raise
        self._returns.extend(self.parts([(starts, self._worthless(held, starts, outcome.windows))]))
        now = time.monotonic()
        after = {
            key: Lease(outcome.left[a], outcome.debited[a], batch.held[a] + outcome.debits.get(a, 0), now)
            for key, a in ids.items()
        }
        self._holdings.put(outcome.windows, after, {key: outcome.caps[a] for key, a in ids.items()})
        for waiter, lacking in zip(waiters, outcome.lacking, strict=True):
            if lacking is None:
                waiter.admit()
            else:
                waiter.refuse(self.exhausted(lacking))

    @staticmethod
    def _worthless(
        held: Mapping[Key, Lease], starts: Sequence[int], windows: Sequence[int]
    ) -> dict[Key, int]:
        """What was held in windows that were over by the time the store decided."""
        return {
            key: lease.left for key, lease in held.items() if lease.left and starts[key[0]] != windows[key[0]]
        }

    async def _debit(self, batch: Batch) -> Outcome:
        """Has the store debit a batch."""
        began = time.perf_counter()
        try:
            return await self._store.debit(batch)
        finally:
            self._committed(time.perf_counter() - began)

    def _expire(self) -> None:
        """Refuses all charges that waited too long, in the commit under way or behind it.

        A timer of its own, so that a charge's limit holds whatever becomes of the task that commits.
        """
        loop = asyncio.get_running_loop()
        now, following = loop.time(), math.inf
        for waiter in (*self._committing, *self._waiting):
            if waiter.deadline <= now:
                waiter.refuse(LedgerError(f"the ledger did not answer within {self._timeout:g} s"))
            elif not waiter.answer.done():
                following = min(following, waiter.deadline)
        # Not each at its very moment: thousands may wait, and all are looked through every time.
        self._limit = (
            None if following == math.inf else loop.call_at(max(following, now + _TICK), self._expire)
        )

    def _refuse_waiting(self, error: BaseException, others: Iterable[_Waiter] = ()) -> None:
        """Refuses all that wait, each with an error of its own."""
        text = str(error) if isinstance(error, LedgerError) else f"the ledger failed: {type(error).__name__}"
        for waiter in (*others, *self._waiting):
            refusal = LedgerError(text)
            refusal.__cause__ = error
            waiter.refuse(refusal)
        self._waiting.clear()
