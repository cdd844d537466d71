"""Clocks that jump, grants, idle leases and pruning in random order: whatever the order, the charge log stays whole."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress

import pytest

from dpmesh.accounting import Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, open_admin, open_store
from dpmesh.ledger.audit.verify import verify

DAY = 86_400
NOON = 20_000.5 * DAY
BUDGETS = (
    Budget("day", "unit", 1.0, 0.0, Accounting.PURE, DAY),
    Budget("life", "unit", 5.0, 0.0, Accounting.PURE, None),
    Budget("two", "unit", 1.0, 0.0, Accounting.PURE, 2 * DAY),
)
UNITS = (b"a", b"b", b"c")
STEPS = 60
SEEDS = (5, 27, 29, 34, 35)
# What an administrator is told who comes at the wrong moment.
_REFUSED = ("changed meanwhile", "pruned within", "pruned beyond")


class Episode:
    """Two holders of one ledger, of which each has the budgets in an order of its own, and an administrator.

    Args:
        url: The ledger's.
        seed: For what happens.
        tell: Called with the time that the machine's or the database's clock shows from now on.
    """

    def __init__(self, url: str, seed: int, tell) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._tell = tell
        self._now = NOON
        self._released: Counter[tuple[str, bytes]] = Counter()
        self._log: list[str] = []
        self._secret = b""

    async def run(self) -> None:
        """Plays it."""
        await open_admin(self._url).migrate()
        self._tell(self._now)
        holders = [await self._opened(which) for which in range(2)]
        self._secret = holders[0].secret
        for _ in range(STEPS):
            which = self._random.randrange(2)
            what = self._random.choices(
                [self._charge, self._hand_back, self._jump, self._grant, self._prune, self._reopen],
                [60, 10, 14, 4, 8, 6],
            )[0]
            await what(holders, which)
            if self._random.random() < 0.2:
                await self._check()
        for holder in holders:
            await holder.close()
        await self._check()

    async def _opened(self, which: int) -> Ledger:
        holder = Ledger(open_store(self._url), BUDGETS if which else BUDGETS[::-1], clock=lambda: self._now)
        await holder.open()
        return holder

    async def _charge(self, holders: list[Ledger], which: int) -> None:
        holder, unit = holders[which], self._random.choice(UNITS)
        for _ in range(self._random.randrange(1, 6)):
            chosen = self._random.sample(range(len(BUDGETS)), self._random.randrange(1, 4))
            charges = [
                (index, unit, holder.budgets[index].cap // self._random.choice([20, 60])) for index in chosen
            ]
            with suppress(BudgetExhaustedError):
                await holder.charge(charges)
                self._released.update({(holder.budgets[index].name, unit): n for index, _, n in charges})

    async def _hand_back(self, holders: list[Ledger], which: int) -> None:
        holders[which]._queue._rotate()
        await asyncio.sleep(0)

    async def _jump(self, holders: list[Ledger], which: int) -> None:
        seconds = self._random.choice([30, DAY // 2, DAY, 3 * DAY, 10 * DAY, -30, -DAY, -4 * DAY])
        self._now += seconds
        self._tell(self._now)
        self._log.append(f"{seconds:+}")

    async def _grant(self, holders: list[Ledger], which: int) -> None:
        budget, unit = self._random.choice(BUDGETS), self._random.choice(UNITS)
        has = max([0, *[a.granted for a in await holders[which].accounts(budget.name, unit)]])
        await self._administer(
            open_admin(self._url).grant(
                budget.name, account_hash(self._secret, unit), budget.cap // 30, "an audit", has=has
            )
        )

    async def _prune(self, holders: list[Ledger], which: int) -> None:
        before = int(self._now) - self._random.choice([2, 3, 6]) * DAY
        self._log.append(f"pruned {await self._administer(open_admin(self._url).prune(before))}")

    async def _reopen(self, holders: list[Ledger], which: int) -> None:
        await holders[which].close()
        holders[which] = await self._opened(which)

    async def _administer(self, work):
        try:
            return await work
        except LedgerError as error:
            if not any(text in str(error) for text in _REFUSED):
                raise

    async def _check(self) -> None:
        """The log is whole, no cap exceeded, and nothing released that is not on an odometer."""
        async with open_admin(self._url).view() as view:
            assert await verify(view) == [], self._log
            accounts = {(a.budget, a.account): a async for a in view.accounts()}
        assert all(a.spent <= a.cap + a.granted for a in accounts.values())
        for (budget, unit), amount in self._released.items():
            name = account_hash(self._secret, unit).hex()
            assert amount <= accounts[budget, name].lifetime, (budget, unit, self._log)


@pytest.mark.parametrize("seed", SEEDS)
async def test_in_postgresql(postgres, database, seed):
    def tell(now: float) -> None:
        postgres.execute(
            "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
            f"'SELECT {now}::double precision'",
            database.rpartition("/")[2],
        )

    await Episode(database, seed, tell).run()


@pytest.mark.parametrize("seed", SEEDS)
async def test_in_a_file(tmp_path, monkeypatch, seed):
    def tell(now: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now)

    await Episode(f"sqlite:///{tmp_path}/ledger.db", seed, tell).run()
