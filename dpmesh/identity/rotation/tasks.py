"""Tasks that end together, and that know nothing of who started them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Tasks:
    """Tasks of one owner.

    Attributes:
        ended: No task of these is to go on. In a forked child it is set from outside: the tasks are its parent's.
    """

    def __init__(self) -> None:
        self.ended = False
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Starts a task in an empty context.

        Who opens an identity or asks for a new one may do so inside of a trace. It would tie all rotations to each
        other, at the issuer too.
        """
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, _T], ended: Exception) -> _T:
        """Runs work in such a task, which is cancelled with its caller.

        Args:
            work: What to do.
            ended: What is raised if all tasks are ended meanwhile.
        """
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
        """Cancels all, and waits for them no longer than so many seconds."""
        self.ended = True
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=patience)
