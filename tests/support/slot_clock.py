"""A clock of slots that a test moves."""

from __future__ import annotations

import asyncio

from dpmesh.mesh import slots


class SlotClock:
    """Takes the place of dpmesh.mesh.slots.CLOCK; time passes only when the test says so."""

    def __init__(self, monkeypatch) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, asyncio.Future]] = []
        self._asleep = asyncio.Event()
        monkeypatch.setattr(slots, "CLOCK", self)

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, woken))
        self._asleep.set()
        await woken

    async def pass_until(self, moment: float) -> None:
        """Waits until somebody waits for a slot, and lets the time pass."""
        await self._asleep.wait()
        self.time = moment
        due = [each for each in self._sleepers if each[0] <= moment]
        self._sleepers = [each for each in self._sleepers if each not in due]
        if not self._sleepers:
            self._asleep.clear()
        for _, woken in due:
            if not woken.done():
                woken.set_result(None)
