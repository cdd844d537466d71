"""Tasks that end together; tasks that are woken together; and the result of a coroutine in another event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")

# Seconds between checks of whether another event loop still runs.
_POLL = 0.5


class Tasks:
    """The tasks of one owner.

    Attributes:
        ended: No task goes on. In a forked child the owner sets it: the tasks are the parent's.
    """

    def __init__(self) -> None:
        self.ended = False
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Starts a task in an empty context.

        The caller may be inside of a trace. In its context, all rotations would be part of that trace, and so be
        linked to each other, at the issuer too.
        """
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, _T], ended: Exception) -> _T:
        """Runs work in a task of its own, which is cancelled with its caller; raises `ended` if all tasks end."""
        caller = asyncio.current_task()
        assert caller is not None
        cancels = caller.cancelling()
        try:
            return await self.start(work)
        except asyncio.CancelledError:
            if not self.ended or caller.cancelling() > cancels:
                raise
        raise ended

    async def end(self, patience: float) -> None:
        """Cancels all tasks, and waits for them no longer than so many seconds."""
        self.ended = True
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=patience)


async def result_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T], stopped: Exception) -> _T:
    """The result of a coroutine in another event loop; raises `stopped` if that loop stops before there is one."""
    result = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
    stood_still = False
    try:
        while not (await asyncio.wait({result}, timeout=_POLL))[0]:
            # Once is not enough: a loop also stands still between two calls of `run_until_complete`.
            if stood_still and not loop.is_running():
                raise stopped
            stood_still = not loop.is_running()
        return await result
    finally:
        if not loop.is_closed():
            result.cancel()


class Waiters:
    """The tasks, of any event loop, that wait for the next wake(). Any thread may wake them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: set[asyncio.Future[None]] = set()

    @contextlib.contextmanager
    def waiter(self) -> Iterator[asyncio.Future[None]]:
        """A future of the running event loop that is done at the next wake()."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._futures.add(future)
        try:
            yield future
        finally:
            with self._lock:
                self._futures.discard(future)

    def wake(self) -> None:
        """Wakes all tasks that wait now."""
        with self._lock:
            futures, self._futures = self._futures, set()
        for future in futures:
            with contextlib.suppress(RuntimeError):  # Its event loop is closed, so its task is gone.
                future.get_loop().call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
