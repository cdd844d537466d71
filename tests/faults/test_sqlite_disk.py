"""The disk under an SQLite ledger is full."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from dpmesh.errors import LedgerError
from dpmesh.ledger.sqlite import rollback_guard
from tests.faults.holders import Event, Work, check
from tests.support import disk

ROUNDS = 12


def test_a_full_disk_is_refused_and_served_when_there_is_room(crew):
    """The disk under a ledger is full twelve times, so that commits fail at their first page, later, or in the middle.

    What no lease covers is refused in time, and the error says that the disk is full. When there is room again, the
    same holders are served; nothing that was refused is debited, and nobody sees an older copy.
    """
    chance = random.Random(3)
    with disk.small_disk(24) as folder:
        url = f"sqlite:///{folder}/ledger.db"
        # Time enough to wait for one another: that is no refusal which this is about.
        works = [
            Work(url, seed=i, senders=16, pause=0.0, hot=0, cold=100_000, timeout=20.0) for i in range(3)
        ]
        crew.start(*works)
        crew.wait_released()
        served = 0.0
        for number in range(ROUNDS):
            time.sleep(chance.uniform(0, 0.2))
            before = sum(len(holder.of(Event.REFUSED)) for holder in crew.holders)
            disk.fill(folder, leave=4096 * (number % 6) * 2)
            crew.wait(
                lambda before=before: (
                    sum(len(holder.of(Event.REFUSED)) for holder in crew.holders) >= before + 20
                ),
                40,
                "charges are refused on the full disk",
            )
            disk.free(folder)
            served = max(served, crew.wait_released())
        crew.stop()
        tally = check(url, crew.holders)
        assert tally.refused
        assert all("disk is full" in text or "free some space" in text for text in tally.refused), (
            tally.refused
        )
        print(f"{ROUNDS} times full, served after {served:.1f} s at most: {tally}")
        print(tally.refused)


def test_a_ledger_that_is_made_or_opened_on_a_full_disk():
    """Neither a ledger nor its witness can be made on a full disk, and the error says so.

    When there is room the same process opens it: what was made halfway is no trouble.
    """

    async def refused_then_served(folder: Path, leave: int, texts: set[str]) -> None:
        ledger = Work(f"sqlite:///{folder}/ledger.db").ledger()
        disk.fill(folder, leave=leave)
        for _ in range(2):
            try:
                await ledger.open()
            except LedgerError as error:
                texts.add(str(error).replace(str(folder), ""))
        disk.free(folder)
        await ledger.open()
        await ledger.charge([(0, b"a", 1)])
        await ledger.close()

    texts: set[str] = set()
    with disk.small_disk(4) as folder:
        path = folder / "ledger.db"
        for leave in range(0, 256 * 1024, 16 * 1024):  # the witness is the last to be made
            asyncio.run(refused_then_served(folder, leave, texts))
            for each in (path, rollback_guard.path_of(path)):
                each.unlink()
        asyncio.run(_made(path))
        for leave in range(0, 64 * 1024, 4 * 1024):
            rollback_guard.path_of(path).unlink()
            asyncio.run(refused_then_served(folder, leave, texts))
            for each in (path, rollback_guard.path_of(path)):
                each.unlink()
            asyncio.run(_made(path))
    words = ("disk is full", "free some space", "No space left on device")
    assert all(any(word in text for word in words) for text in texts), texts
    assert any("witness" in text for text in texts), texts
    print(texts)


async def _made(path: Path) -> None:
    """A ledger that nobody has charged."""
    ledger = Work(f"sqlite:///{path}").ledger()
    await ledger.open()
    await ledger.close()
