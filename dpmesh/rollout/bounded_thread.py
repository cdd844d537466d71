"""Threads that are waited for no longer than some time: for reads that can hang in the kernel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run(function: Callable[[], _T], seconds: float, name: str) -> _T:
    """Runs a function in a thread of its own, which does not keep the process alive.

    A thread of asyncio's pool would: the pool waits for all of its threads at the end.

    Args:
        function: If it takes longer, it goes on, and nobody learns its outcome.
        seconds: How long it is waited for.
        name: The thread's name.

    Raises:
        TimeoutError: It has taken longer.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_T] = loop.create_future()

    def tell(set_outcome: Callable[[Any], None], value: Any) -> None:
        if not outcome.done():
            set_outcome(value)

    def work() -> None:
        try:
            value: Any = function()
            set_outcome: Callable[[Any], None] = outcome.set_result
        except Exception as error:
            value, set_outcome = error, outcome.set_exception
        try:
            loop.call_soon_threadsafe(tell, set_outcome, value)
        except RuntimeError:
            return  # The loop was closed meanwhile.

    threading.Thread(target=work, name=name, daemon=True).start()
    async with asyncio.timeout(seconds):
        return await outcome
