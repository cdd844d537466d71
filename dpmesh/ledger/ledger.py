"""Ledger: charges privacy budgets durably, and mostly without I/O."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from dpmesh import forks
from dpmesh.accounting import MAX_AMOUNT
from dpmesh.errors import ConfigError, LedgerError, LostChargesError
from dpmesh.ledger import opening_warnings
from dpmesh.ledger.budget import Budget, Charge, check_names, check_threshold_delta
from dpmesh.ledger.commit_queue import CommitQueue
from dpmesh.ledger.epoch_keys import EpochKeyQueue, EpochKeys
from dpmesh.ledger.leases import Key, LeaseTable
from dpmesh.ledger.redemptions import RedemptionQueue
from dpmesh.ledger.store import Account, AccountId, Store, account_hash

_T = TypeVar("_T")

_GRACE = 1.0  # seconds that another event loop gets beyond its own time limit

_log = logging.getLogger(__name__)


class Ledger:
    """Budgets, charged before anything leaves: what is released never exceeds what is durably debited.

    A charge is paid from a lease: a slice of the account's budget that is debited durably first, and then spent in
    memory. Charges that no lease covers wait for the next commit, and all that wait go into one. A crash wastes what
    is left of the leases, and never overspends. A charge whose commit times out, fails or is cancelled counts as spent.

    Any thread may call `spend` and `usage`. All other methods belong to the event loop that opened the ledger, but
    `charge`, `redeemed`, `redeem_once` and `hold_keys` may be awaited in others too. A forked child starts with no
    lease and may charge for itself.

    Args:
        store: Where the debits are kept.
        budgets: What charges refer to by index.
        clock: Seconds since the epoch. Windows follow it, but never move back. If the store has a clock, that one is
            used.
        monotonic: Seconds that only grow: the size of leases follows the rate of charges by this clock.
        timeout: The longest that a charge waits for the store, in seconds.

    Attributes:
        budgets: As given; `adopt` replaces terms and appends. A budget keeps its name and index.
        on_commit: If set, called with the seconds that each commit took.
        spend: Pays for all charges from the leases that this process holds, or for none; returns whether it did. If
            not, `charge` may still find it in the budget. It is LeaseTable.spend, and no method here, for speed.
        epoch_key: The key that this process fetched last for epochs of a length in seconds. It is EpochKeys.of, for
            speed, too.

    Raises:
        ConfigError: Two budgets share a name, or the timeout is not a positive number.
    """

    def __init__(
        self,
        store: Store,
        budgets: Sequence[Budget],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        timeout: float = 5.0,
    ) -> None:
        check_names(budgets)
        if not 0 < timeout < math.inf:
            raise ConfigError(f"the ledger's timeout must be a positive number of seconds, not {timeout}")
        self.budgets = tuple(budgets)
        self.on_commit: Callable[[float], None] | None = None
        self._store = store
        self._clock = store.clock or clock
        self._monotonic = monotonic
        self._timeout = timeout
        self._leases = LeaseTable(self._clock)
        self._secret = b""
        self._keys = EpochKeys()
        self._open = False
        self._owner_lock = threading.Lock()  # for `_loop` and what belongs to it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue, self._redemptions, self._key_queue = self._new_queues()
        self.spend = self._leases.spend
        self.epoch_key = self._keys.of
        forks.register(self)

    @property
    def secret(self) -> bytes:
        """32 bytes made with the ledger and as durable as it; they key account names.

        Raises:
            LedgerError: The ledger was never opened.
        """
        if not self._secret:
            raise LedgerError("the ledger was never opened")
        return self._secret

    async def open(self) -> None:
        """Opens the store.

        Raises:
            ConfigError: A budget's key or accounting is not what the ledger was made with, or only one of them is for a
                lifetime.
            LedgerError: The store can't be opened, or the clock shows no time.
        """
        if self._open:
            return
        self._loop = asyncio.get_running_loop()
        self._queue, self._redemptions, self._key_queue = self._new_queues()
        self._keys.clear()
        try:
            opened = await self._store.open(self.budgets)
            self._leases.start(self.budgets, opened.windows)
            self._queue.roll()
        except BaseException:
            await self._store.close()
            raise
        self._secret = opened.secret
        self._open = True
        opening_warnings.warn(self.budgets, opened, self._clock())

    async def close(self) -> None:
        """Refuses the charges that wait, returns what is left of the leases, and closes the store.

        Raises:
            LedgerError: Another event loop owns the ledger and doesn't answer.
        """
        if self._open:
            # Shielded: a ledger whose closing was cancelled could not be closed again.
            await asyncio.shield(self._in_owner(self._close, 4 * self._timeout))

    def places(self, budgets: Sequence[Budget]) -> tuple[int, ...]:
        """The indexes that budgets have or, if their names are new, are going to have once they are adopted.

        Raises:
            ConfigError: Two budgets share a name.
        """
        check_names(budgets)
        known = {budget.name: index for index, budget in enumerate(self.budgets)}
        for budget in budgets:
            known.setdefault(budget.name, len(known))
        return tuple(known[budget.name] for budget in budgets)

    async def may_adopt(self, budgets: Sequence[Budget]) -> None:
        """Returns if `adopt` could take these budgets now. Nothing changes.

        Raises:
            ConfigError: As of `adopt`; so is LedgerError.
        """
        self._merged(budgets)
        await self._ask(lambda: self._store.may_adopt(budgets))

    async def adopt(self, budgets: Sequence[Budget]) -> tuple[int, ...]:
        """Takes other terms for budgets, and new budgets, while charges go on. All or none, and durably.

        A lower cap holds at once, and leases of before are returned first. A larger cap and another length begin with
        the budget's next window. Budgets that are not among them stay as they are: who holds their indexes may charge
        them.

        Args:
            budgets: What is going to be charged from now on.

        Returns:
            The index of each, as of `places`.

        Raises:
            ConfigError: A budget's key or accounting is not what the ledger holds, it changes between a window and a
                lifetime, a lifetime budget would get a larger cap, or more delta of histograms would fit a budget.
            LedgerError: The ledger can't answer in time. Caps may have been lowered in the windows in force.
        """
        if not self._open:
            raise LedgerError("the ledger is not open")
        return await self._in_owner(lambda: self._adopt_in_time(tuple(budgets)), self._timeout)

    async def charge(self, charges: Sequence[Charge]) -> None:
        """Charges all accounts, or none: from leases if they cover it, or else durably.

        Raises:
            BudgetExhaustedError: A budget doesn't cover it, or other holders have leased the rest of it. Nothing is
                charged.
            LedgerError: The ledger can't answer in time. What was charged may stay charged.
        """
        if self.spend(charges):
            return
        if self._loop is asyncio.get_running_loop():
            await self._charge_durably(charges)
        else:
            await self._in_owner(lambda: self._charge_durably(charges), self._timeout)

    async def redeem_once(self, name: bytes, until: float) -> bool:
        """Redeems a name durably: true for exactly one call, over all holders of the store and all time.

        A call that times out, fails or is cancelled may redeem the name, and then no call returns true.

        Args:
            name: 32 bytes.
            until: When the name may be forgotten, in seconds since the epoch. Give the same time for a name each time.
                From then on the name counts as redeemed, by the latest time that any holder of the store saw.

        Raises:
            LedgerError: The ledger can't tell. The caller must refuse what the name stands for.
        """

        async def redeem() -> bool:
            if not self._open:
                raise LedgerError("the ledger is not open")
            return await self._redemptions.redeem(name, until)

        return await self._in_owner(redeem, self._timeout)

    def now(self) -> float:
        """Seconds since the epoch, by the ledger's clock; never before a window in force began."""
        return max(self._clock(), self._leases.latest_start)

    def holds_keys(self, epochs: Sequence[float]) -> bool:
        """Whether this process holds the keys of the epochs in force, for all of these lengths. Any thread may call it.

        Args:
            epochs: Lengths in seconds, 1 s at least.
        """
        if not epochs:
            return True
        now, latest = self._clock(), self._leases.latest_start
        return self._keys.are_held(epochs, latest if latest > now else now)

    async def hold_keys(self, epochs: Sequence[float]) -> None:
        """Fetches the keys of the epochs in force that this process does not hold.

        Args:
            epochs: Lengths in seconds, 1 s at least.

        Raises:
            LedgerError: The ledger can't answer in time.
        """
        if not self.holds_keys(epochs):
            await self._in_owner(lambda: self._fetch_keys(epochs), self._timeout)

    async def redeemed(self, names: Sequence[bytes]) -> list[bool]:
        """For each name, whether it is known that somebody redeemed it: false is no promise, it may be forgotten.

        Args:
            names: 32 bytes each.

        Raises:
            LedgerError: The ledger can't tell.
        """
        return await self._ask(lambda: self._store.redeemed(names))

    def usage(self, budget: int, unit: bytes) -> tuple[int, int] | None:
        """What an account has (spent, cap) in the window in force, as this process knows it. Any thread may call it.

        Args:
            budget: The budget's index.
            unit: The account's key, as in a Charge.

        Returns:
            None if this process does not know the account, or no longer.
        """
        return self._leases.usage(budget, unit)

    def is_whole(self, budget: int, epoch: float) -> bool:
        """Whether the window in force of a budget is made of whole epochs, as this process knows it.

        Args:
            budget: The budget's index.
            epoch: The length of an epoch, in seconds.
        """
        return self._leases.is_whole(budget, epoch)

    async def check(self) -> None:
        """Returns if the ledger could take a charge now.

        Raises:
            LedgerError: It couldn't, or doesn't answer in time.
        """
        await self._ask(self._store.ping)

    async def record(self, note: str) -> None:
        """Writes into the charge log that a looser policy is about to be put in force.

        Args:
            note: Which policy, and why. It names no unit and no value.

        Raises:
            LedgerError: It may not be durable, so the policy must not be put in force.
        """
        await self._ask(lambda: self._store.record(note))

    async def accounts(self, budget: str | None = None, unit: bytes | None = None) -> list[Account]:
        """What the ledger holds, as of the last window in which each account was charged.

        Args:
            budget: Only this budget's accounts.
            unit: Only this unit's accounts (canonical bytes).

        Raises:
            LedgerError: The ledger can't answer.
        """
        if not self._open:
            raise LedgerError("the ledger is not open")
        account = None if unit is None else account_hash(self._secret, unit)
        return await self._store.accounts(budget, account)

    # Event loops: one owns the queue; others hand over to it.

    async def _in_owner(self, function: Callable[[], Coroutine[Any, Any, _T]], seconds: float) -> _T:
        """Runs a coroutine in the event loop that owns the ledger."""
        loop = asyncio.get_running_loop()
        if self._owner(loop) is loop:
            return await function()
        work = function()
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._owner(loop))
        except RuntimeError as error:
            work.close()
            raise LedgerError("the event loop that owns the ledger has just closed") from error
        try:
            # The owner keeps its own deadline; this one is for an owner that has stopped running.
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds + _GRACE)
        except TimeoutError as error:
            raise LedgerError("the event loop that owns the ledger does not answer") from error

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Makes a call of the store, within the time limit.

        Raises:
            LedgerError: The ledger is not open, or doesn't answer in time.
        """
        if not self._open:
            raise LedgerError("the ledger is not open")
        try:
            async with asyncio.timeout(self._timeout):
                return await self._in_owner(call, self._timeout)
        except LostChargesError:
            self._leases.drop()
            raise
        except TimeoutError:
            raise LedgerError(f"the ledger did not answer within {self._timeout:g} s") from None

    def _owner(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """The loop that owns the ledger: `loop`, if there is no other (a forked child, a closed loop)."""
        with self._owner_lock:
            if self._loop is None or self._loop.is_closed():
                self._loop = loop
                self._queue, self._redemptions, self._key_queue = self._new_queues()
            return self._loop

    async def _adopt_in_time(self, budgets: tuple[Budget, ...]) -> tuple[int, ...]:
        # It is not cancelled: store, leases and `budgets` have to agree, whatever becomes of the caller.
        task = asyncio.get_running_loop().create_task(self._adopt(budgets))
        await asyncio.wait({task}, timeout=self._timeout)
        if not task.done():
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise LedgerError(f"the ledger did not answer within {self._timeout:g} s")
        return task.result()

    async def _adopt(self, budgets: tuple[Budget, ...]) -> tuple[int, ...]:
        queue = self._queue
        async with queue.exclusive:
            if not self._open:
                raise LedgerError("the ledger is not open")
            places, merged = self.places(budgets), self._merged(budgets)
            await queue.adopt(merged)
            self.budgets = merged
        return places

    def _merged(self, budgets: Sequence[Budget]) -> tuple[Budget, ...]:
        """All budgets once some are adopted, by index.

        Raises:
            ConfigError: Two budgets share a name, or more delta of histograms would fit one.
        """
        merged = list(self.budgets)
        for place, budget in zip(self.places(budgets), budgets, strict=True):
            if place < len(merged):
                check_threshold_delta(merged[place], budget)
                merged[place] = budget
            else:
                merged.append(budget)
        return tuple(merged)

    async def _close(self) -> None:
        self._open = False
        credits = await self._queue.close()
        await self._redemptions.stop()
        await self._key_queue.stop()
        self._keys.clear()
        left = self._leases.clear()
        for starts, unspent in (*credits, *self._queue.to_credit([left, *self._leases.ended()])):
            if not await self._last_call(self._store.credit(starts, unspent), "return its unspent leases"):
                break
        await self._last_call(self._store.close(), "close its store")

    async def _last_call(self, work: Coroutine[Any, Any, None], what: str) -> bool:
        """Runs a step of closing within the time limit; returns whether it succeeded.

        A failure wastes leases at most.
        """
        task = asyncio.get_running_loop().create_task(work)
        await asyncio.wait({task}, timeout=self._timeout)
        if not task.done():
            _log.warning("the ledger could not %s within %g s", what, self._timeout)
        elif task.cancelled() or (error := task.exception()) is not None:
            _log.warning("the ledger could not %s: %s", what, "cancelled" if task.cancelled() else error)
        else:
            return True
        return False

    async def _fetch_keys(self, epochs: Sequence[float]) -> None:
        if not self._open:
            raise LedgerError("the ledger is not open")
        await asyncio.gather(*[self._key_queue.join(epoch) for epoch in epochs])

    async def _charge_durably(self, charges: Sequence[Charge]) -> None:
        sums = self._sums(charges)
        if sums:
            await self._queue.join(sums)

    def _sums(self, charges: Sequence[Charge]) -> dict[Key, int]:
        """The sum of the charges for each account.

        Raises:
            BudgetExhaustedError: An amount exceeds what any cap can be.
            LedgerError: A charge is malformed, or the ledger is not open.
        """
        if not self._open:
            raise LedgerError("the ledger is not open")
        sums: dict[Key, int] = {}
        for index, key, amount in charges:
            if type(index) is not int or not 0 <= index < len(self.budgets):
                raise LedgerError(f"a charge's budget must be an index below {len(self.budgets)}")
            if type(key) is not bytes:
                raise LedgerError(f"a charge's account key must be bytes, not {type(key).__name__}")
            if type(amount) is not int or amount < 0:
                raise LedgerError("a charge's amount must be a non-negative integer of 1e-9")
            if amount:
                sums[index, key] = sums.get((index, key), 0) + amount
        for (index, _), amount in sums.items():
            if amount > MAX_AMOUNT:
                raise self._queue.exhausted(index)
        return sums

    def _account(self, key: Key) -> AccountId:
        return key[0], account_hash(self._secret, key[1])

    def _new_queues(self) -> tuple[CommitQueue, RedemptionQueue, EpochKeyQueue]:
        queue = CommitQueue(
            self._store,
            self.budgets,
            self._leases,
            self._account,
            self._committed,
            clock=self._clock,
            monotonic=self._monotonic,
            timeout=self._timeout,
        )
        redemptions = RedemptionQueue(self._store, clock=self._clock, timeout=self._timeout)
        keys = EpochKeyQueue(self._store, self._keys, now=self.now, timeout=self._timeout)
        return queue, redemptions, keys

    def _committed(self, seconds: float) -> None:
        if self.on_commit is not None:
            self.on_commit(seconds)

    def after_fork_in_child(self) -> None:
        """Forgets the leases, the waiting charges and the event loop: they are the parent's."""
        self._owner_lock = threading.Lock()
        self._loop = None
        self._queue, self._redemptions, self._key_queue = self._new_queues()
        self._leases.after_fork_in_child()
        self._store.after_fork_in_child()
