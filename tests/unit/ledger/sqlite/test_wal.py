"""A log that its writer left behind, and a file that was put in the place of the one that it belongs to."""

import asyncio
import os
import shutil
import sqlite3

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import LedgerError
from dpmesh.ledger import Budget, Ledger, open_admin, open_store
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.sqlite import wal
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.support import children

UNIT = Budget("unit", epsilon=1.0, delta=0.0, accounting=Accounting.PURE)


def charge(path, first, count):
    """Charges units in a process that ends without closing, and so leaves the log."""

    def holder():
        async def run():
            ledger = Ledger(SQLiteStore(path, busy_timeout=60.0), [UNIT], timeout=120.0)
            await ledger.open()
            for unit in range(first, first + count):
                await ledger.charge([(0, unit.to_bytes(4, "big"), AMOUNT // 10)])
            os._exit(0)

        asyncio.run(run())

    pid = os.fork()
    if pid == 0:
        try:
            holder()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def settle(path):
    """Opens and closes the ledger, so that the file has everything and there is no log."""

    async def run():
        ledger = Ledger(open_store(f"sqlite:///{path}"), [UNIT])
        await ledger.open()
        await ledger.close()

    asyncio.run(run())
    assert not os.path.exists(f"{path}-wal")


def opens(path):
    async def run():
        ledger = Ledger(open_store(f"sqlite:///{path}"), [UNIT])
        await ledger.open()
        await ledger.close()

    try:
        asyncio.run(run())
    except LedgerError as error:
        return str(error)
    return None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.mark.parametrize("charged", [1, 5, 50, 300])
def test_an_older_copy_beside_a_newer_log(path, charged):
    charge(path, 0, 10)
    settle(path)
    shutil.copy(path, f"{path}.copy")
    charge(path, 100, charged)
    settle(path)  # the file moves on, so the log to come begins after this
    charge(path, 1000, charged)
    assert wal.gap(path) == 0
    shutil.copy(f"{path}.copy", path)
    missing = wal.gap(path)
    assert missing >= charged  # more, where the log was begun anew in between
    assert f"{missing} commits" in opens(path)
    assert os.path.exists(f"{path}-wal"), "the evidence is gone"
    assert "older copy" in opens(path)

    async def accept():
        admin = open_admin(f"sqlite:///{path}")
        with pytest.raises(LedgerError, match="older copy"):
            await admin.grant("unit", b"a" * 16, 1, "why")
        await admin.accept("the disk was lost")
        async with admin.view() as view:
            assert await verify(view) == []

    asyncio.run(accept())
    assert opens(path) is None


@pytest.mark.parametrize("charged", [1, 40])
def test_a_log_that_has_everything_since_the_copy_loses_nothing(path, charged):
    """The copy is of the very state that the log continues: SQLite brings it up to date."""
    charge(path, 0, 10)
    settle(path)
    shutil.copy(path, f"{path}.copy")
    charge(path, 100, charged)
    shutil.copy(f"{path}.copy", path)
    assert wal.gap(path) == 0
    assert opens(path) is None

    async def count():
        async with open_admin(f"sqlite:///{path}").view() as view:
            assert await verify(view) == []
            return len([account async for account in view.accounts()])

    assert asyncio.run(count()) == 10 + charged


def test_checkpoints_of_a_log_in_use_raise_no_alarm(path):
    charge(path, 0, 5)

    def checkpoints():
        connection = sqlite3.connect(path, isolation_level=None, timeout=60)
        for _ in range(300):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        connection.close()

    started = [children.start(checkpoints), children.start(lambda: charge(path, 100, 400))]
    gaps = [wal.gap(path) for _ in range(300)]
    for each in started:
        children.finish(each)
    assert set(gaps) == {0}


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"\x37\x7f\x06\x82" + bytes(28), bytes(100)])
def test_a_log_that_is_none(path, content):
    charge(path, 0, 1)
    settle(path)
    (path.parent / "ledger.db-wal").write_bytes(content)
    assert wal.gap(path) == 0


@pytest.mark.parametrize("commits", [0, 1, 2, 127, 128, 40_000, 2**23, 2**31, 2**40, 2**47, 2**55])
@pytest.mark.parametrize("moved", [None, "somewhere else"])
def test_the_count_of_any_size_is_read(path, commits, moved):
    charge(path, 0, 3)
    settle(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE ledger SET commits = ?, moved = ?", (commits, moved))
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger'").fetchone()
    assert wal._in_log(path.with_name("ledger.db-wal"), page) == commits
    connection.close()
