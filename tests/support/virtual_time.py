"""An event loop whose time is virtual: whoever sleeps for an hour wakes at once, and an hour later."""

from __future__ import annotations

import asyncio
import functools
import selectors

_PATIENCE = 20.0  # seconds


class _Selector(selectors.DefaultSelector):
    """Doesn't wait for what is due later, but makes it later."""

    loop: VirtualLoop

    def select(self, timeout=None):
        if timeout is None:  # Only another thread can wake it now.
            events = super().select(_PATIENCE)
            if not events:
                raise RuntimeError("all tasks wait for something that will never happen")
            return events
        events = super().select(0)
        if not events and timeout > 0:
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Only for what happens inside of the loop: it doesn't wait for other threads while anything is due later."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def in_virtual_time(test):
    """Runs an async test in a virtual loop."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(test(*args, **kwargs))

    return run
