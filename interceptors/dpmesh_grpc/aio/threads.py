"""Threads: a handler in the executor waits for the server's event loop, unless that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from dpmesh.errors import LedgerError

_T = TypeVar("_T")

# Seconds after which a waiting thread checks again whether the loop runs.
_CHECK_EVERY = 0.5


def result_of(work: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop) -> _T:
    """Runs a coroutine in an event loop and waits for it, in a thread of an executor.

    Python joins the executor's threads when a process exits. A thread that waited for a loop that has ended would keep
    the process alive for ever.

    Raises:
        LedgerError: The loop has ended.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise _ended() from None
    stood_still = False
    while True:
        try:
            return future.result(_CHECK_EVERY)
        except TimeoutError:
            if future.done():
                return future.result()  # It ended just now, or the coroutine itself raised TimeoutError.
        # A loop also stands still between two `run_until_complete`. If it does so twice in a row, it has ended.
        if loop.is_running():
            stood_still = False
        elif stood_still:
            if not loop.is_closed():
                future.cancel()
            raise _ended()
        else:
            stood_still = True


def _ended() -> LedgerError:
    return LedgerError("the server's event loop has ended, so nothing may leave or be let in")
