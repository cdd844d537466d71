"""SpendQueue: names that are spent once, as tokens are; all that wait during one commit go into the next."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from dpmesh.errors import LedgerError
from dpmesh.ledger.commit_queue import MAX_BATCH, MAX_WAITING
from dpmesh.ledger.store import LAST_SECOND, NAME_BYTES, Store

Spend = tuple[bytes, int]
"""(name, the second in which it may be forgotten)."""


class RedemptionQueue:
    """Spends what waits, batch by batch. It belongs to one event loop.

    Args:
        store: Where spent names are kept.
        clock: Seconds since the epoch.
        timeout: The longest that a spend waits, in seconds.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float], timeout: float) -> None:
        self._store = store
        self._clock = clock
        self._timeout = timeout
        self._waiting: deque[tuple[Spend, asyncio.Future[bool]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def spend(self, name: bytes, until: float) -> bool:
        """Whether the name is spent by this very call; see Ledger.spend_once.

        Raises:
            LedgerError: The name or the time is none, too many wait already, or the store can't answer in time.
        """
        spend = _checked(name, until)
        if len(self._waiting) >= MAX_WAITING:
            raise LedgerError(f"the ledger is too slow: {MAX_WAITING} spends are waiting already")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((spend, answer))
        # The task itself says whether it is at work: an eager task can end before create_task returns it.
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            # The store may spend it yet. Nobody will be told that it was theirs.
            raise LedgerError(f"the ledger did not answer within {self._timeout:g} s") from None

    async def stop(self) -> None:
        """Refuses who waits, and lets the commit under way finish."""
        self._refuse([self._waiting.popleft() for _ in range(len(self._waiting))], "the ledger is closing")
        if self._flusher is not None:
            await asyncio.wait({self._flusher}, timeout=self._timeout)

    async def _flush(self) -> None:
        batch: list[tuple[Spend, asyncio.Future[bool]]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                # Who gave up before the store was asked has spent nothing.
                batch = [each for each in batch if not each[1].done()]
                await self._commit(batch)
        except BaseException as error:
            text = (
                str(error) if isinstance(error, LedgerError) else f"the ledger failed: {type(error).__name__}"
            )
            self._refuse(batch + list(self._waiting), text)
            self._waiting.clear()
            if not isinstance(error, Exception):
                raise

    async def _commit(self, batch: Sequence[tuple[Spend, asyncio.Future[bool]]]) -> None:
        now = self._clock()
        if not 0 <= now < LAST_SECOND:
            raise LedgerError("the ledger's clock is broken: it shows no time")
        fresh = await self._store.spend_once(math.floor(now), [spend for spend, _ in batch])
        for (_, answer), is_fresh in zip(batch, fresh, strict=True):
            if not answer.done():
                answer.set_result(is_fresh)

    @staticmethod
    def _refuse(batch: Sequence[tuple[Spend, asyncio.Future[bool]]], text: str) -> None:
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(LedgerError(text))


def _checked(name: bytes, until: float) -> Spend:
    if type(name) is not bytes or len(name) != NAME_BYTES:
        raise LedgerError(f"a name that is spent must be {NAME_BYTES} bytes")
    if not isinstance(until, int | float) or not 0 <= until < LAST_SECOND:
        raise LedgerError("a spent name must be kept until some time in seconds since the epoch")
    return name, math.ceil(until)
