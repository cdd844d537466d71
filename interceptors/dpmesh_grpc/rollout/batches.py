"""Batches: items that come one by one and are written many at a time, each with an answer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

_MOST: Final = 1000  # items of one batch
_WAITING: Final = 20_000  # items that wait; more are refused


class FullError(Exception):
    """So many items wait that another one is refused."""


class Batches(Generic[_Item, _Answer]):
    """Writes items in batches: while one is written, the next one fills.

    Args:
        write: Writes a batch, and returns the answers in its order.
    """

    def __init__(self, write: Callable[[Sequence[_Item]], Awaitable[Sequence[_Answer]]]) -> None:
        self._write = write
        self._waiting: list[tuple[_Item, asyncio.Future[_Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: _Item) -> _Answer:
        """Adds an item, and waits for its answer.

        Raises:
            FullError: Too many items wait.
            Exception: What the write of its batch raised.
        """
        if len(self._waiting) >= _WAITING:
            raise FullError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()
        self._waiting.append((item, answer))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                answers = await self._write([item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
