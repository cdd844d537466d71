"""Threads: handlers that gRPC runs in an executor wait for the server's event loop, but not for one that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from dpmesh.errors import LedgerError

_T = TypeVar("_T")

# How often a waiting thread looks whether the loop still runs, in seconds.
_LOOK = 0.5


def result_of(work: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop) -> _T:
    """Runs a coroutine in an event loop and waits for it, in a thread of an executor.

    Python joins such threads when a process exits, so a thread that waited for a loop that has ended would keep the
    process for ever.

    Args:
        work: The coroutine.
        loop: The server's event loop.

    Raises:
        LedgerError: The loop has ended, so nobody can answer.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise _ended() from None
    stood_still = False
    while True:
        try:
            return future.result(_LOOK)
        except TimeoutError:
            if future.done():
                return future.result()  # Just now, or the error is the coroutine's own.
        # A loop may also stand still between two `run_until_complete`; one that does so twice in a row has ended.
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
