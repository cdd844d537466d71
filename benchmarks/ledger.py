"""Charges: from a held lease, and durably on SQLite, beside one transaction a charge in the same run.

`python -m benchmarks.ledger` prints the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
import time
import tracemalloc
from pathlib import Path

from benchmarks.table import Row, show
from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.ledger import Budget, Ledger, MemoryStore, open_store

UNITS = 100_000
CONCURRENT = 64
COST = AMOUNT // 10
UNIT = Budget("unit-daily", "unit", 8.0, 0.0, Accounting.PURE)
PLENTY = Budget("plenty", "global", 1e9, 0.0, Accounting.PURE)
PLENTY_TOO = Budget("plenty-too", "global", 1e9, 0.0, Accounting.PURE)
LEASED = 300_000
SINGLE = 1000


async def leased() -> tuple[float, float, float]:
    """Seconds for one spend, one spend on two budgets, and one awaited charge, all on held leases."""
    ledger = Ledger(MemoryStore(), [PLENTY, PLENTY_TOO])
    await ledger.open()
    one, two = [(0, b"", 1)], [(0, b"", 1), (1, b"", 1)]
    for index in (0, 1):  # enough commits for slices that outlast the measurement
        for _ in range(40):
            await ledger.charge([(index, b"", ledger.budgets[index].cap // 1000)])
    spend = ledger.spend
    seconds = []
    for charges in (one, two):
        start = time.perf_counter()
        paid = all(spend(charges) for _ in range(LEASED))
        seconds.append((time.perf_counter() - start) / LEASED)
        if not paid:
            raise AssertionError("the lease was used up")
    start = time.perf_counter()
    for _ in range(LEASED):
        await ledger.charge(one)
    seconds.append((time.perf_counter() - start) / LEASED)
    await ledger.close()
    return seconds[0], seconds[1], seconds[2]


async def durable(path: Path) -> tuple[float, float, int]:
    """Durable charges a second, the longest commit, and what was debited beyond what was charged."""
    ledger = Ledger(open_store(f"sqlite:///{path}"), [UNIT])
    await ledger.open()
    commits: list[float] = []
    ledger.on_commit = commits.append
    units = iter(range(UNITS))

    async def sender() -> None:
        for unit in units:
            await ledger.charge([(0, unit.to_bytes(8, "big"), COST)])

    start = time.perf_counter()
    await asyncio.gather(*[sender() for _ in range(CONCURRENT)])
    rate = UNITS / (time.perf_counter() - start)
    accounts = await ledger.accounts()
    await ledger.close()
    return rate, max(commits), sum(account.spent for account in accounts) - UNITS * COST


def one_by_one(path: Path) -> float:
    """Durable charges a second with one transaction each and nothing around it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE accounts (account BLOB PRIMARY KEY, debited INTEGER) WITHOUT ROWID")
        start = time.perf_counter()
        for unit in range(SINGLE):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO accounts VALUES (?, ?)", (unit.to_bytes(16, "little"), COST))
            connection.execute("COMMIT")
        return SINGLE / (time.perf_counter() - start)


async def memory() -> float:
    """Bytes that the ledger keeps for a unit whose leases are used up."""
    ledger = Ledger(_Forgetful(), [UNIT])
    await ledger.open()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for batch in range(UNITS // 1000):
        await asyncio.gather(
            *[ledger.charge([(0, (1000 * batch + i).to_bytes(8, "big"), COST)]) for i in range(1000)]
        )
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await ledger.close()
    return (after - before) / UNITS


def rows() -> list[Row]:
    """All figures of the ledger."""
    one, two, awaited = asyncio.run(leased())
    with tempfile.TemporaryDirectory() as place:
        rate, longest, excess = asyncio.run(durable(Path(place) / "ledger.db"))
        single = one_by_one(Path(place) / "single.db")
    if excess:
        raise AssertionError(f"units that were charged once were debited {excess} too much")
    return [
        Row("spend from a held lease", one * 1e6, "us", "at most 1"),
        Row("spend from two held leases, all or nothing", two * 1e6, "us", ""),
        Row("await charge on a held lease", awaited * 1e6, "us", "at most 1.5"),
        Row("durable charges, SQLite, 100,000 units once each, 64 concurrent", rate, "/s", "at least 5,000"),
        Row("  beside one transaction a charge", rate / single, "times", ""),
        Row("  longest commit", longest * 1e3, "ms", ""),
        Row("memory per unit whose leases are used up", asyncio.run(memory()), "bytes", ""),
    ]


class _Forgetful(MemoryStore):
    """Keeps no account, so that what is measured is the ledger's own memory."""

    def _row(self, account: tuple[int, bytes]) -> tuple[str, bytes]:
        return self._budgets[account[0]].name, bytes(16)

    def _debited(self, account: tuple[int, bytes], window: int) -> int:
        return 0


if __name__ == "__main__":
    show(rows())
