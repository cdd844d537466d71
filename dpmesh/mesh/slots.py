"""Slots: messages leave at the moments of a fixed grid only, one each, and a cover where there is no message.

How it works:
    A message is released during one slot, and leaves at the beginning of a later one, so that the time that its
    release takes does not show. The grid begins when the stream or sender does, which shows in any case, and counts on
    a clock that nobody sets. A fixed beginning for all machines would make them all send at once.
    Where the event loop was busy at the beginning of a slot, the slot stays empty. Nothing is caught up with.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any

from dpmesh.errors import DpmeshError

# What is later than its slot's beginning by more than this part of a slot waits for the next slot.
_LATE = 0.25


class Clock:
    """The time, in seconds, and how to wait."""

    now = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)


CLOCK = Clock()


class Slots:
    """The slots of one stream or sender. The first is one slot after this is made.

    Args:
        seconds: The time between two slots.
    """

    def __init__(self, seconds: float) -> None:
        self._clock = CLOCK
        self._seconds = seconds
        self._begun = self._clock.now()
        self._number = 0

    async def next(self) -> None:
        """Waits until a slot begins that `next` has not given before."""
        while True:
            elapsed = self._clock.now() - self._begun
            self._number = max(self._number, math.floor(elapsed / self._seconds)) + 1
            moment = self._begun + self._number * self._seconds
            await self._clock.sleep(moment - self._clock.now())
            if self._clock.now() <= moment + _LATE * self._seconds:
                return


async def in_slots(
    slots: Slots, requests: AsyncIterable[Any], cover: Any, protect: Callable[[Any], Awaitable[Any]]
) -> AsyncGenerator[Any, None]:
    """What leaves of a stream of requests: one message at each slot, until the stream ends, which is at a slot too.

    Args:
        slots: When.
        requests: The stream. Its next message is taken once the one before is released.
        cover: What is released where no message waits.
        protect: Releases a message, or raises why nothing may leave. That ends the stream, at a slot.
    """
    waiting: asyncio.Queue[Any] = asyncio.Queue(1)

    async def read() -> None:
        async for request in requests:
            await waiting.put(request)
            await waiting.join()  # The application may change its message for the next one.

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(_noticed)
    try:
        await asyncio.sleep(0)  # A message that is there at once leaves at the first slot.
        while not (reader.done() and waiting.empty()):
            given = not waiting.empty()
            try:
                protected = await protect(waiting.get_nowait() if given else cover)
            except DpmeshError:
                await slots.next()
                raise
            if given:
                waiting.task_done()
            await slots.next()
            yield protected
        await slots.next()
        reader.result()  # Raises what the application's stream has raised.
    finally:
        reader.cancel()


def _noticed(reader: asyncio.Future[None]) -> None:
    """Keeps asyncio from logging an exception, whose text may quote a value."""
    if not reader.cancelled():
        reader.exception()
