"""Charges: from held leases, and durably on SQLite and PostgreSQL, beside one transaction a charge in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import sqlite3
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from benchmarks.table import Row
from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.ledger import Batch, Budget, Ledger, MemoryStore, Store, commit_queue, open_store
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.store import PostgresStore
from tests.support.postgres import Server

UNITS = 100_000
CONCURRENT = 64
COST = AMOUNT // 10
UNIT = Budget("unit-daily", "unit", 8.0, 0.0, Accounting.PURE)
PLENTY = Budget("plenty", "global", 1e9, 0.0, Accounting.PURE)
PLENTY_TOO = Budget("plenty-too", "global", 1e9, 0.0, Accounting.PURE)
LEASED = 300_000
SINGLE = 1000
MILLION = 1_000_000
BLOCK = 1000
TURN = 20_000
CONNECTIONS = (1, 16, 64)
HOLDERS = 16
SHARED = 160_000


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


async def durable(store: Store, first: int, count: int) -> tuple[float, float]:
    """Durable charges a second of units that are charged once each, and the longest commit.

    Raises:
        AssertionError: Anything else was debited than what was charged.
    """
    ledger = Ledger(store, [UNIT])
    await ledger.open()
    before = await _debited(store)
    commits: list[float] = []
    ledger.on_commit = commits.append
    units = iter(range(first, first + count))

    async def sender() -> None:
        for unit in units:
            await ledger.charge([(0, unit.to_bytes(8, "big"), COST)])

    start = time.perf_counter()
    await asyncio.gather(*[sender() for _ in range(CONCURRENT)])
    rate = count / (time.perf_counter() - start)
    debited = await _debited(store)
    await ledger.close()
    if debited - before != count * COST:
        raise AssertionError(f"{debited - before - count * COST} was debited that nobody charged")
    return rate, max(commits)


async def _debited(store: Store) -> int:
    """What all accounts were debited. The store is asked in its own words: a million of them fill no list."""
    if isinstance(store, PostgresStore):
        query = "SELECT sum(debited)::bigint FROM dpmesh.accounts"
        return int(await store._reading.call(lambda connection: connection.fetchval(query)) or 0)
    return sum(account.spent for account in await store.accounts(None, None))


async def many_units(server: Server) -> tuple[float, float, float]:
    """Charges a second of 100,000 units, their longest commit, and how charges compare with a million there already.

    The two are measured in turns, on a full database and on empty ones: the machine may have other things to do.
    """
    full = await _fresh(server)
    rate, longest = await durable(PostgresStore(full), 0, UNITS)
    await durable(PostgresStore(full), UNITS, MILLION - UNITS)
    many, few = [], []
    for first in range(MILLION, MILLION + 3 * TURN, TURN):
        few.append((await durable(PostgresStore(await _fresh(server)), first, TURN))[0])
        many.append((await durable(PostgresStore(full), first, TURN))[0])
    return rate, longest, statistics.median(many) / statistics.median(few)


async def one_a_transaction(server: Server) -> float:
    """The same statement with one charge each, 64 concurrent over the number of connections that is fastest."""
    url = await _fresh(server)
    best = 0.0
    for size in CONNECTIONS:
        stores = [PostgresStore(url) for _ in range(size)]
        free: asyncio.LifoQueue[PostgresStore] = asyncio.LifoQueue()
        for store in stores:
            await store.open([UNIT])
            free.put_nowait(store)
        units = iter(range(size * MILLION, size * MILLION + SINGLE * 4))

        async def sender() -> None:
            for unit in units:  # noqa: B023 - awaited below
                account = (0, unit.to_bytes(16, "big"))
                store = await free.get()  # noqa: B023
                window = int(store._now()) // 86_400 * 86_400
                outcome = await store.debit(Batch((window,), {account: 0}, [{account: COST}]))
                free.put_nowait(store)  # noqa: B023
                if outcome.denied_by != [None]:
                    raise AssertionError("a charge was refused")

        start = time.perf_counter()
        await asyncio.gather(*[sender() for _ in range(CONCURRENT)])
        best = max(best, SINGLE * 4 / (time.perf_counter() - start))
        for store in stores:
            await store.close()
    return best


async def one_account(server: Server, holders: int) -> float:
    """Charges a second to one account that so many holders share, each with a connection and leases of its own."""
    url = await _fresh(server)
    ledgers = [Ledger(PostgresStore(url), [PLENTY]) for _ in range(holders)]
    for ledger in ledgers:
        await ledger.open()
    charges = [(0, b"", COST)]

    async def sender(ledger: Ledger) -> None:
        for _ in range(SHARED // holders):
            await ledger.charge(charges)
            await asyncio.sleep(0)

    start = time.perf_counter()
    await asyncio.gather(*[sender(ledger) for ledger in ledgers])
    rate = SHARED / (time.perf_counter() - start)
    for ledger in ledgers:
        await ledger.close()
    admin = PostgresAdmin(url)
    async with admin.view() as view:
        spent = sum([account.spent async for account in view.accounts()])
    if spent != SHARED * COST:
        raise AssertionError("what was debited is not what was charged")
    return rate


async def _fresh(server: Server) -> str:
    url = server.url(server.create_database())
    await PostgresAdmin(url).migrate()
    return url


async def held() -> tuple[float, float, float]:
    """Bytes for each of a million units with a lease in hand; charges a second from those, and beside a thousand's.

    It is the worst case: a lease that is not used is handed back before so many could be taken.
    """
    commit_queue._IDLE_SECONDS = 86_400.0
    gc.collect()
    before = _resident()
    many = await _leases(MILLION)
    gc.collect()
    size = (_resident() - before) / MILLION
    few = await _leases(1000)
    commits: list[float] = []
    many.on_commit = few.on_commit = commits.append
    rates: dict[Ledger, list[float]] = {many: [], few: []}
    for _ in range(5):  # in turns, for the machine may have other things to do
        for ledger, count in ((many, MILLION), (few, 1000)):
            start = time.perf_counter()
            for _ in range(MILLION // count):
                for unit in range(count):
                    await ledger.charge([(0, unit.to_bytes(8, "big"), 1)])
            rates[ledger].append(MILLION / (time.perf_counter() - start))
    if commits:
        raise AssertionError("a lease was used up")
    await many.close()
    await few.close()
    rate = statistics.median(rates[many])
    return size, rate, rate / statistics.median(rates[few])


async def _leases(count: int) -> Ledger:
    """A ledger with a lease for each of so many units."""
    ledger = Ledger(_Forgetful(), [UNIT])
    await ledger.open()
    for first in range(0, count, BLOCK):
        units = range(first, min(first + BLOCK, count))
        for _ in range(2):  # A lease is taken with the second charge.
            await asyncio.gather(*[ledger.charge([(0, unit.to_bytes(8, "big"), COST)]) for unit in units])
    return ledger


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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
    size, million, beside = asyncio.run(held())
    with tempfile.TemporaryDirectory() as place:
        rate, longest = asyncio.run(durable(open_store(f"sqlite:///{place}/ledger.db"), 0, UNITS))
        single = one_by_one(Path(place) / "single.db")
    # Room as a server for a million units would have; the tests' servers checkpoint all the time.
    with Server(max_connections=2 * max(CONNECTIONS), shared_buffers="1GB", max_wal_size="8GB") as server:
        shared, shared_longest, flat = asyncio.run(many_units(server))
        shared_single = asyncio.run(one_a_transaction(server))
        alone, together = asyncio.run(one_account(server, 1)), asyncio.run(one_account(server, HOLDERS))
    return [
        Row("charges from a held lease, one core", 1 / one, "/s", "at least 500,000"),
        Row("spend from two held leases, all or nothing", two * 1e6, "us", ""),
        Row("await charge on a held lease", awaited * 1e6, "us", "at most 1.5"),
        Row("durable charges, SQLite, 100,000 units once each, 64 concurrent", rate, "/s", "at least 5,000"),
        Row("  beside one transaction a charge", rate / single, "times", ""),
        Row("  longest commit", longest * 1e3, "ms", ""),
        Row("durable charges, PostgreSQL, the same", shared, "/s", "at least 10,000"),
        Row(
            "  beside one transaction a charge, 64 concurrent", shared / shared_single, "times", "at least 8"
        ),
        Row("  longest commit", shared_longest * 1e3, "ms", ""),
        Row("  with 1,000,000 units in it, beside none, in turns", flat, "times", "at least 0.8"),
        Row("charges to one account by 16 holders, beside one holder", together / alone, "times", ""),
        Row("memory for a unit, 1,000,000 with a lease in hand", size, "bytes", "at most 300"),
        Row("  awaited charges from those", million, "/s", ""),
        Row("    beside those from 1,000 units' leases", beside, "times", ""),
        Row("memory for a unit whose leases are used up", asyncio.run(memory()), "bytes", ""),
    ]


class _Forgetful(MemoryStore):
    """Keeps no account, so that what is measured is the ledger's own memory."""

    def _row(self, account: tuple[int, bytes]) -> tuple[str, bytes]:
        return self._budgets[account[0]].name, bytes(16)

    def _debited(self, account: tuple[int, bytes], window: int) -> int:
        return 3 * COST
