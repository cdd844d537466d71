"""Names that are spent once, against stores that are slow, stuck or broken, and files of an older version."""

import asyncio
import contextlib
import sqlite3

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, MemoryStore, batching, inspect
from dpmesh.ledger.sqlite import schema
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import AMOUNT, BUDGETS, Clock
from tests.support import children, old_ledgers

NAME = b"n" * 32
UNTIL = Clock().now + 100


class SlowStore(MemoryStore):
    """Spends when it is let, or fails."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()
        self.fault = None
        self.batches = []

    async def redeem_once(self, now, spends):
        self.batches.append(spends)
        await self.go.wait()
        fresh = await super().redeem_once(now, spends)
        if self.fault is not None:
            raise self.fault
        return fresh


@pytest.fixture
async def store():
    return SlowStore()


async def opened(store, timeout=60.0):
    ledger = Ledger(store, BUDGETS, clock=Clock(), timeout=timeout)
    await ledger.open()
    return ledger


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def test_what_arrives_during_a_commit_goes_into_the_next(store):
    ledger = await opened(store)
    first = asyncio.create_task(ledger.redeem_once(NAME, UNTIL))
    await until(lambda: store.batches)
    others = [asyncio.create_task(ledger.redeem_once(bytes([i]) * 32, UNTIL)) for i in range(50)]
    again = asyncio.create_task(ledger.redeem_once(NAME, UNTIL))
    await asyncio.sleep(0)
    store.go.set()
    assert [await first, await again] == [True, False]
    assert all(await asyncio.gather(*others))
    assert [len(batch) for batch in store.batches] == [1, 51]
    await ledger.close()


async def test_a_store_that_fails_after_it_spent_has_told_nobody(store):
    ledger = await opened(store)
    store.go.set()
    store.fault = LedgerError("the disk is gone")
    results = await asyncio.gather(
        *[ledger.redeem_once(NAME, UNTIL) for _ in range(5)], return_exceptions=True
    )
    assert [str(result) for result in results] == ["the disk is gone"] * 5
    assert len(set(map(id, results))) == 5
    store.fault = None
    assert not await ledger.redeem_once(NAME, UNTIL)
    assert await ledger.redeem_once(b"m" * 32, UNTIL)
    await ledger.close()


async def test_another_error_does_not_show_its_text(store):
    ledger = await opened(store)
    store.go.set()
    store.fault = ValueError("the token was 1234")
    with pytest.raises(LedgerError, match="ValueError") as caught:
        await ledger.redeem_once(NAME, UNTIL)
    assert "1234" not in str(caught.value)
    await ledger.close()


async def test_a_store_that_is_stuck_refuses_in_time_and_nobody_wins_later(store):
    ledger = await opened(store, timeout=0.05)
    results = await asyncio.gather(
        *[ledger.redeem_once(NAME, UNTIL) for _ in range(3)], return_exceptions=True
    )
    assert all(isinstance(result, LedgerError) and "did not answer" in str(result) for result in results)
    store.go.set()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(LedgerError):  # the machine may be as slow as the store was
                assert not await ledger.redeem_once(NAME, UNTIL)
                break
    await ledger.close()


async def test_who_gives_up_before_the_store_was_asked_has_spent_nothing(store):
    ledger = await opened(store)
    first = asyncio.create_task(ledger.redeem_once(b"m" * 32, UNTIL))
    await until(lambda: store.batches)
    second = asyncio.create_task(ledger.redeem_once(NAME, UNTIL))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.wait({first, second})
    store.go.set()
    assert not await ledger.redeem_once(b"m" * 32, UNTIL)  # the store had it
    assert await ledger.redeem_once(NAME, UNTIL)
    await ledger.close()


async def test_too_many_at_once_are_refused(store, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING", 3)
    ledger = await opened(store)
    spends = [asyncio.create_task(ledger.redeem_once(bytes(32), UNTIL))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # The store has the first one. Three may wait behind it.
    spends += [asyncio.create_task(ledger.redeem_once(bytes([i]) * 32, UNTIL)) for i in range(1, 7)]
    await asyncio.wait(spends[4:])
    store.go.set()
    results = await asyncio.gather(*spends, return_exceptions=True)
    assert results[:4] == [True] * 4
    assert all("too slow" in str(result) for result in results[4:])
    await ledger.close()


async def test_closing_refuses_who_waits(store):
    ledger = await opened(store)
    tasks = [asyncio.create_task(ledger.redeem_once(NAME, UNTIL))]
    await until(lambda: store.batches)
    tasks.append(asyncio.create_task(ledger.redeem_once(b"m" * 32, UNTIL)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0)
    store.go.set()
    await closing
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert first is True
    assert isinstance(second, LedgerError)
    assert "closing" in str(second)


# SQLite files


def old_file(path):
    """A ledger as version 1 made it, in which one account was charged."""
    old_ledgers.make(path, 1, [(BUDGETS[2], b"a" * 16, 0, AMOUNT)])


async def test_an_old_file_opens_and_gains_the_tables(tmp_path):
    path = tmp_path / "ledger.db"
    old_file(path)
    assert inspect(f"sqlite:///{path}").secret == b"s" * 32  # reading changes nothing
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchone() == (1,)
    for first in (True, False):
        ledger = await opened(SQLiteStore(path, busy_timeout=60.0))
        assert ledger.secret == b"s" * 32
        assert await ledger.redeem_once(NAME, UNTIL) is first
        assert [(a.budget, a.spent) for a in await ledger.accounts()] == [("life", AMOUNT)]
        await ledger.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchone() == (schema.VERSION,)
    assert [a.spent for a in inspect(f"sqlite:///{path}").accounts] == [AMOUNT]


def test_an_old_file_that_several_open_at_once(tmp_path):
    path = tmp_path / "ledger.db"
    old_file(path)

    def process():
        async def run():
            ledger = await opened(SQLiteStore(path, busy_timeout=60.0))
            won = await ledger.redeem_once(NAME, UNTIL)
            await ledger.close()
            return won

        return asyncio.run(run())

    started = [children.start(process) for _ in range(4)]
    assert sum(children.finish(child) for child in started) == 1


async def test_an_upgrade_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    old_file(path)
    monkeypatch.setattr(schema, "SPENT", schema.SPENT + "CREATE TABLE spent (name)")
    with pytest.raises(LedgerError):
        await opened(SQLiteStore(path, busy_timeout=60.0))
    monkeypatch.undo()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchone() == (1,)
    ledger = await opened(SQLiteStore(path, busy_timeout=60.0))
    assert await ledger.redeem_once(NAME, UNTIL)
    await ledger.close()


async def test_a_file_keeps_no_more_than_it_must(tmp_path):
    clock = Clock(1000.0)
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), [], clock=clock)
    await ledger.open()
    for second in range(5):
        clock.now = 1000.0 + 10 * second
        spends = [ledger.redeem_once(bytes([second, i]) * 16, clock.now + 10) for i in range(100)]
        assert all(await asyncio.gather(*spends))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        assert connection.execute("SELECT count(*) FROM spent").fetchone() == (100,)
    await ledger.close()


async def test_a_file_that_is_removed_refuses(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = await opened(SQLiteStore(path, busy_timeout=60.0))
    assert await ledger.redeem_once(NAME, UNTIL)
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(LedgerError):
        await ledger.redeem_once(b"m" * 32, UNTIL)
    (tmp_path / "elsewhere.db").rename(path)
    assert not await ledger.redeem_once(NAME, UNTIL)
    await ledger.close()
