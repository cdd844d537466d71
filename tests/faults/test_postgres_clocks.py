"""The database's clock and the holders' jump: nothing is refilled, windows never move back, serving goes on."""

from __future__ import annotations

import asyncio
import math
import os
import random
import tempfile
import time
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, inspect, open_store
from tests.faults.holders import Work, check

DAY = 86_400
NOON = 20_000.5 * DAY
BUDGETS = (
    Budget("day", "unit", 1.0, 0.0, Accounting.PURE, DAY),
    Budget("life", "unit", 5.0, 0.0, Accounting.PURE, None),
)
TENTH = AMOUNT // 10


class DatabaseClock:
    """The clock of a ledger in PostgreSQL: a file, which the test writes and `dpmesh.now()` reads."""

    def __init__(self, server, url: str, folder: Path) -> None:
        self._path = folder / "clock"
        self.set(NOON)
        server.execute(
            "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
            f"$$SELECT pg_read_file('{self._path}')::double precision$$",
            url.rpartition("/")[2],
        )

    def set(self, now: float | str) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(str(now))
        os.replace(new, self._path)  # never half of it


@pytest.fixture
def ledger(postgres, make_ledger):
    """The URL of a ledger, and its clock."""
    url = make_ledger(postgres)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user
        yield url, DatabaseClock(postgres, url, Path(folder))


def whole(url: str) -> None:
    """The charge log is, and no cap is exceeded in any window."""
    check(url, [])


def windows(url: str) -> dict[str, int]:
    """The window that the account of each unit was last charged in, by its name."""
    return {a.account: a.window_start for a in inspect(url).accounts if a.budget == "day"}


async def charge(ledger: Ledger, unit: bytes, tenths: int = 1) -> bool:
    """Whether a charge was admitted."""
    try:
        await ledger.charge([(0, unit, tenths * TENTH), (1, unit, tenths * TENTH)])
    except BudgetExhaustedError:
        return False
    return True


@pytest.mark.parametrize("jumps", [(1, 0), (1, -10, 0.9), (-1, 0), (-1, 1, 0), (-400, 400, 0, 401)])
def test_a_clock_that_jumps_refills_nothing(ledger, jumps):
    """The database's clock goes days forth and back, and back and forth, with two holders at work.

    A unit is paid for once in each window that a later clock had begun, and in none that is over. Other units are
    served all the time, also by a holder that opens the ledger while the clock is wrong.
    """
    url, clock = ledger

    async def run() -> None:
        holders = [Ledger(open_store(url), BUDGETS) for _ in range(2)]
        for holder in holders:
            await holder.open()
        furthest = 0.0
        assert await charge(holders[0], b"unit", 6)
        assert await charge(holders[1], b"unit", 4)
        for number, jump in enumerate(jumps):
            clock.set(NOON + jump * DAY)
            new_window = math.floor(NOON / DAY + jump) > math.floor(NOON / DAY + furthest)
            furthest = max(furthest, jump)
            newcomer = Ledger(open_store(url), BUDGETS)
            await newcomer.open()
            for holder in (*holders, newcomer):
                assert await charge(holder, f"fresh {number} {id(holder)}".encode())
            admitted = [await charge(holder, b"unit", 5) for holder in (*holders, newcomer)]
            assert sum(admitted) == (2 if new_window else 0), (number, jump)
            in_force = math.floor(NOON / DAY + furthest) * DAY
            snapshot = inspect(url)
            name = snapshot.account(f"fresh {number} {id(newcomer)}".encode())
            assert windows(url)[name] == in_force
            await newcomer.close()
        for holder in holders:
            await holder.close()

    asyncio.run(run())
    whole(url)


@pytest.mark.parametrize("clocks", [(0.0, 1e12), (math.nan, -5.0), (NOON + DAY, NOON - DAY)])
def test_a_holder_s_own_clock_does_not_matter(ledger, clocks):
    """Two holders' clocks are wrong, and then wrong in another way: windows follow the database's."""
    url, clock = ledger

    async def run() -> None:
        now = [*clocks]
        holders = [Ledger(open_store(url), BUDGETS, clock=lambda i=i: now[i]) for i in range(2)]
        for holder in holders:
            await holder.open()
        for day in range(3):
            clock.set(NOON + day * DAY)
            for holder in holders:
                assert await charge(holder, f"fresh {day} {id(holder)}".encode())
            assert await charge(holders[day % 2], b"unit", 10)
            for holder in holders:
                assert not await charge(holder, b"unit")
            now.reverse()
            for holder in holders:
                assert not await charge(holder, b"unit")
        for holder in holders:
            await holder.close()

    asyncio.run(run())
    whole(url)


@pytest.mark.parametrize("broken", ["NaN", "-1", "Infinity", "1e300"])
def test_a_clock_that_shows_no_time_refuses_until_it_does(ledger, broken):
    """The database's clock is broken: what needs it is refused and says why, and served when it shows a time again."""
    url, clock = ledger

    async def run() -> None:
        ledger = Ledger(open_store(url), BUDGETS)
        await ledger.open()
        assert await charge(ledger, b"unit", 10)
        clock.set(broken)
        for unit in (b"unit", b"fresh"):
            with pytest.raises(LedgerError, match="clock is broken"):
                await charge(ledger, unit)
        clock.set(NOON)
        assert not await charge(ledger, b"unit")
        assert await charge(ledger, b"fresh", 10)
        await ledger.close()

    asyncio.run(run())
    whole(url)


def test_a_clock_that_jumps_all_the_time(ledger, crew):
    """The database's clock jumps by days, many times a second, while three holders charge.

    No cap is exceeded in any window, the windows in force never move back, and everybody is served.
    """
    url, clock = ledger
    chance = random.Random(6)
    crew.start(*[Work(url, seed=i, budgets=BUDGETS, cold=10**6) for i in range(3)])
    crew.wait_released()
    latest, jumps = 0, 0
    seen: set[int] = set()  # windows that were charged
    began = time.monotonic()
    while (took := time.monotonic() - began) < 8 or len(seen) < 3:
        assert took < 120, seen
        # Further with time, so that windows renew while it goes back as often.
        clock.set(NOON + DAY * (chance.uniform(-3, 3) + jumps / 20))
        jumps += 1
        time.sleep(chance.uniform(0, 0.15))
        if jumps % 10 == 0:
            starts = [account.window_start for account in inspect(url).accounts if account.budget == "day"]
            assert max(starts) >= latest
            latest = max(starts)
            seen.update(starts)
    served = crew.wait_released()
    crew.stop()
    tally = check(url, crew.holders, windows=False)
    charged = {window for _, budget, _, window in tally.waste if budget == "day"}
    assert len(charged) >= 3
    print(f"{jumps} jumps, {len(charged)} windows, served after {served:.1f} s: {tally}")
