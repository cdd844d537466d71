"""BatchQueue: requests that wait for the store. All that wait during one commit go into the next."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dpmesh.errors import LedgerError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MAX_WAITING = 16_384
"""How many requests may wait in a queue; one more is refused at once."""

MAX_BATCH = 4096
"""How many requests one commit takes along."""

_EXPIRY_SECONDS = 0.05  # between two searches for requests that waited too long


@dataclass(slots=True, eq=False)
class Waiter(Generic[Item, Answer]):
    """A request, its deadline on the event loop's clock, and where its answer goes. The first answer counts."""

    item: Item
    deadline: float
    answer: asyncio.Future[Answer]

    def resolve(self, answer: Answer) -> None:
        """Answers the request."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def refuse(self, error: Exception) -> None:
        """Answers the request with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


class BatchQueue(ABC, Generic[Item, Answer]):
    """Commits requests, batch by batch. It belongs to one event loop.

    How it works: a queue is in one of three states. A request that its caller gave up before its commit began has
    no effect. A request in a commit that failed, or that took too long, may have one.

        state       event                           next state
        idle        a request joins, or `wake`      committing: one task commits until nothing waits
        committing  a request joins                 committing: it goes into the next batch
        committing  a deadline passes               committing: that request is refused, its commit goes on
        committing  a commit fails                  idle: all requests are refused
        committing  nothing waits                   idle
        any         `stop`                          stopped: what waits is refused, the commit may finish in time

    Args:
        requests: What the requests are called in errors, in the plural.
        timeout: The longest that a request waits, in seconds.
    """

    def __init__(self, requests: str, timeout: float) -> None:
        self._requests = requests
        self._timeout = timeout
        self._waiting: deque[Waiter[Item, Answer]] = deque()
        self._committing: list[Waiter[Item, Answer]] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._stopped = False

    @abstractmethod
    async def _commit(self, waiters: Sequence[Waiter[Item, Answer]]) -> None:
        """Has the store decide a batch, which is never empty, and answers every request in it."""

    def _answer_early(self, waiter: Waiter[Item, Answer]) -> bool:
        """Answers a request without the store, just before its commit; returns whether it could."""
        return False

    async def _after_batch(self) -> bool:
        """Does what else the store has to do between two batches; returns whether there is more of it."""
        return False

    def _on_idle(self) -> None:
        """Called when nothing waits any more, or after a failure."""

    def join(self, item: Item) -> asyncio.Future[Answer]:
        """Adds a request.

        Returns:
            The answer to wait for. It raises what the request is refused with.

        Raises:
            LedgerError: Too many requests wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise LedgerError(f"the ledger is too slow: {MAX_WAITING} {self._requests} are waiting already")
        loop = asyncio.get_running_loop()
        waiter: Waiter[Item, Answer] = Waiter(item, loop.time() + self._timeout, loop.create_future())
        self._waiting.append(waiter)
        # A timer of its own, so that deadlines hold whatever becomes of the task that commits.
        if self._expiry is None:
            self._expiry = loop.call_at(waiter.deadline, self._expire)
        self.wake()
        return waiter.answer

    def wake(self) -> None:
        """Starts the task that commits, unless it runs."""
        # The task itself says whether it runs: an eager task (Python 3.12) can end before create_task returns it.
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def stop(self) -> None:
        """Refuses the requests that wait, and lets the commit under way finish, within the time limit."""
        self._stopped = True
        closing = LedgerError("the ledger is closing")
        self._refuse_all(closing, ())
        if self._flusher is not None:
            await asyncio.wait({self._flusher}, timeout=self._timeout)
        self._refuse_all(closing, self._committing)
        if self._expiry is not None:
            self._expiry.cancel()

    async def _flush(self) -> None:
        """Commits batch by batch, until nothing waits and nothing else is to be done."""
        more = True
        try:
            while (self._waiting or more) and not self._stopped:
                self._take_batch()
                if self._committing:
                    await self._commit(self._committing)
                self._committing = []
                more = await self._after_batch()
        except BaseException as error:
            # Whatever went wrong: every request gets an answer, and the answer is a refusal.
            self._refuse_all(error, self._committing)
            if not isinstance(error, Exception):
                raise
        finally:
            self._committing = []
            self._on_idle()

    def _take_batch(self) -> None:
        """Takes requests from the queue, without those that were given up or can be answered early."""
        while self._waiting and len(self._committing) < MAX_BATCH:
            waiter = self._waiting[0]
            if not waiter.answer.done() and not self._answer_early(waiter):
                self._committing.append(waiter)
            self._waiting.popleft()

    def _expire(self) -> None:
        """Refuses all requests whose deadline has passed, in the commit under way or behind it."""
        loop = asyncio.get_running_loop()
        now, following = loop.time(), math.inf
        for waiter in (*self._committing, *self._waiting):
            if waiter.deadline <= now:
                waiter.refuse(LedgerError(f"the ledger did not answer within {self._timeout:g} s"))
            elif not waiter.answer.done():
                following = min(following, waiter.deadline)
        self._expiry = None
        if following < math.inf:
            # Not at each deadline: thousands may wait, and each search goes through all of them.
            self._expiry = loop.call_at(max(following, now + _EXPIRY_SECONDS), self._expire)

    def _refuse_all(self, error: BaseException, committing: Iterable[Waiter[Item, Answer]]) -> None:
        for waiter in (*committing, *self._waiting):
            waiter.refuse(self._refusal(error))  # each with an error of its own
        self._waiting.clear()

    def _refusal(self, error: BaseException) -> LedgerError:
        """What a request is refused with after an error. Only a LedgerError shows its text: others may quote values."""
        return LedgerError(
            str(error) if isinstance(error, LedgerError) else f"the ledger failed: {type(error).__name__}"
        )
