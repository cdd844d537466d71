"""Threads that are waited for no longer than some time: for reads that can hang in the kernel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def start(function: Callable[[], _T], name: str) -> Future[_T]:
    """Runs a function in a thread of its own, which does not keep the process alive.

    A thread of asyncio's pool would: the pool waits for all of its threads at the end.

    Args:
        function: It goes on, even if nobody waits for it any more.
        name: The thread's name.
    """
    outcome: Future[_T] = Future()
    outcome.set_running_or_notify_cancel()  # Nobody can cancel it.

    def work() -> None:
        try:
            value = function()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(value)

    threading.Thread(target=work, name=name, daemon=True).start()
    return outcome


async def run(function: Callable[[], _T], seconds: float, name: str) -> _T:
    """Awaits a function that runs in a thread as of `start`.

    Args:
        function: If it takes longer, it goes on, and nobody learns its outcome.
        seconds: How long it is waited for.
        name: The thread's name.

    Raises:
        TimeoutError: It has taken longer.
    """
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(start(function, name))
