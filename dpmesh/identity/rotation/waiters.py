"""Waiters: tasks of any event loop that wait for one event, woken together from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class Waiters:
    """The tasks that wait for the next wake()."""

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
