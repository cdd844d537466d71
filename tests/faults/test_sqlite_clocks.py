"""Clocks of holders jump a day forth and back, and holders of one file disagree about the time."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import random
import sqlite3
import struct
import time
from collections import defaultdict
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Budget, Ledger, open_admin
from dpmesh.ledger.charge_log import decode
from tests.faults.holders import Work, check

DAY = 86_400
NOON = 20_000 * DAY + DAY // 2
BUDGETS = (
    Budget("daily", "unit", 1.0, 0.0, Accounting.PURE, DAY),
    Budget("all-daily", "global", 1e6, 0.0, Accounting.PURE, DAY),
    Budget("unit", "unit", 3.0, 0.0, Accounting.PURE, None),
)


class Clock:
    """A clock that a test sets while another process reads it. It starts at noon of a day."""

    def __init__(self) -> None:
        self._offset = mmap.mmap(-1, 8)  # shared with forked children
        self._zero = time.monotonic()

    def __call__(self) -> float:
        return NOON + struct.unpack("d", self._offset[:8])[0] + time.monotonic() - self._zero

    def set(self, days: float) -> None:
        self._offset[:8] = struct.pack("d", days * DAY)

    def ledger(self, work: Work) -> Ledger:
        return Ledger(work.store(), work.budgets, clock=self, timeout=work.timeout)


def windows_of(path: Path) -> dict[str, int]:
    """When the window in force began, for each budget."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT name, window_start FROM budgets"))


async def charged_windows(url: str) -> list[list[int]]:
    """The windows that each chain charged daily budgets in, in order."""
    async with open_admin(url).view() as view:
        daily = {number for number, budget in view.budgets.items() if budget.window}
        chains = defaultdict(list)
        async for written in view.entries():
            chains[written.chain] += [
                line.window
                for line in decode(written.body).postings
                if line.budget in daily and line.amount > 0
            ]
    return list(chains.values())


def test_a_clock_that_jumps_refills_nothing_twice(tmp_path):
    """A unit that is used up has another day's budget when the clock has jumped forth, once; back and forth gives none."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    clock = Clock()
    charge = [(0, b"a", AMOUNT), (1, b"", 1), (2, b"a", AMOUNT)]

    async def run() -> None:
        ledger = clock.ledger(Work(url, budgets=BUDGETS))
        await ledger.open()
        await ledger.charge(charge)
        for days, served in [
            (0, False),
            (-1, False),
            (0, False),
            (1, True),
            (0, False),
            (-3, False),
            (1, False),
        ]:
            clock.set(days)
            for _ in range(2):
                if served:
                    await ledger.charge(charge)
                    served = False
                with pytest.raises(BudgetExhaustedError):
                    await ledger.charge([(0, b"a", 1)])
            await ledger.close()
            await ledger.open()
        clock.set(2)
        await ledger.charge(charge)
        clock.set(3)  # the lifetime's budget is gone by now
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(2, b"a", 1)])
        await ledger.charge([(0, b"a", 1)])
        (account,) = await ledger.accounts("daily")
        assert account.lifetime == 3 * AMOUNT + 1
        await ledger.close()

    asyncio.run(run())


def test_holders_of_one_file_whose_clocks_differ_and_jump(crew, tmp_path):
    """Four holders of one file have clocks that are up to a day apart, and each jumps again and again; one is killed.

    Windows never move back, neither in the file nor in any holder's charges; no window is charged beyond the cap, and
    no window is charged that no clock has shown. All are served all the time.
    """
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    chance = random.Random(4)
    clocks = [Clock() for _ in range(4)]
    for clock, days in zip(clocks, (0, -1, 0.5, 1), strict=True):
        clock.set(days)
    crew.start(
        *[
            Work(url, seed=i, budgets=BUDGETS, make=clock.ledger, timeout=40.0)
            for i, clock in enumerate(clocks)
        ]
    )
    crew.wait_released()
    seen = windows_of(path)
    latest = 1.0
    moves = 0
    for number in range(60):
        further = number % 6 == 5
        days = latest + (1 if further else chance.choice([-2, -1, -0.5, 0]))
        latest = max(latest, days)
        chance.choice(clocks if number <= 30 else clocks[1:]).set(
            days
        )  # the first one's holder is killed then
        if further:
            crew.wait(lambda seen=seen: windows_of(path) != seen, 40, "a window begins")
        else:
            time.sleep(0.05)
        now = windows_of(path)
        assert all(now[name] >= seen[name] for name in seen), (seen, now)
        moves += now != seen
        seen = now
        if number == 30:
            crew.holders[0].kill()
    crew.wait_released()
    crew.stop()
    tally = check(url, crew.holders, windows=False)
    assert not tally.refused, tally.refused
    assert moves >= 10
    last = int(NOON + latest * DAY) // DAY * DAY
    for windows in asyncio.run(charged_windows(url)):
        assert windows == sorted(windows)
        assert all(window <= last for window in windows)
    assert seen["unit"] == 0
    print(f"{moves} windows began: {tally}")
