"""The witness: an older copy is refused, and nothing else is."""

import asyncio
import contextlib
import os
import shutil
import sqlite3

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, open_admin
from dpmesh.ledger.sqlite import queries, rollback_guard
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import AMOUNT, BUDGETS, TENTH
from tests.support import children


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


async def opened(path):
    ledger = Ledger(SQLiteStore(path, busy_timeout=60.0), BUDGETS, timeout=120.0)
    await ledger.open()
    return ledger


async def spent(path, *units):
    """Uses a ledger, and puts it down."""
    ledger = await opened(path)
    for unit in units:
        await ledger.charge([(0, unit, TENTH)])
    await ledger.close()


def copy(path):
    """A copy of a ledger at rest, as a backup has one."""
    return shutil.copy2(path, path.with_name("copy.db"))


def restore(older, path):
    """What a tool does that restores a database in use."""
    with (
        contextlib.closing(sqlite3.connect(older)) as source,
        contextlib.closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)


async def refused(path, match):
    for _ in range(2):  # also the second time
        with pytest.raises(LedgerError, match=match):
            await opened(path)


async def test_an_older_copy_is_refused_and_the_newest_is_not(path):
    await spent(path, b"a")
    older = copy(path)
    await spent(path, b"a", b"b")
    newest = path.with_name("newest.db")
    path.rename(newest)
    shutil.copy2(older, path)
    await refused(path, r"ledger\.db is an older copy: 2 commits are missing.*accept --help")
    newest.rename(path)
    await spent(path, b"c")


@pytest.mark.parametrize("how", ["in place", "by rename"])
async def test_an_older_copy_is_refused_while_the_ledger_is_open(path, how):
    await spent(path, b"a")
    older = copy(path)
    holders = [await opened(path), await opened(path)]
    await holders[0].charge([(0, b"a", TENTH)])
    await holders[1].charge([(0, b"b", TENTH)])
    if how == "by rename":
        older = path.with_name("copy.db").rename(path)
    else:
        restore(older, path)
    for holder in holders:
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"replaced while in use|lost charges|older copy"):
                await holder.charge([(0, b"c", 1)])
        await holder.close()
    for suffix in ("-wal", "-shm"):  # of the file that is gone; SQLite would add its commits to the other
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    await refused(path, "older copy")


async def test_a_holder_that_had_charged_nothing_notices_too(path):
    await spent(path, b"a")
    older = copy(path)
    idle, busy = await opened(path), await opened(path)
    await busy.charge([(0, b"a", TENTH)])
    restore(older, path)
    with pytest.raises(LedgerError, match="older copy"):
        await idle.charge([(0, b"b", 1)])
    with pytest.raises(LedgerError, match="older copy"):
        await idle.redeem_once(b"n" * 32, 1e10)
    await idle.close()
    await busy.close()


@pytest.mark.parametrize("how", ["removed", "emptied"])
async def test_a_missing_witness_is_refused(path, how):
    await spent(path, b"a")
    kept = rollback_guard.path_of(path).read_bytes()
    if how == "removed":
        rollback_guard.path_of(path).unlink()
    else:
        rollback_guard.path_of(path).write_bytes(b"")
    await refused(path, r"ledger\.db-witness is missing.*put it back")
    rollback_guard.path_of(path).write_bytes(kept)
    await spent(path, b"a")


@pytest.mark.parametrize("how", ["another's", "garbage", "short"])
async def test_a_foreign_witness_is_refused(path, how):
    await spent(path, b"a")
    await spent(path.with_name("other.db"), b"a")
    content = {
        "another's": rollback_guard.path_of(path.with_name("other.db")).read_bytes(),
        "garbage": os.urandom(24),
        "short": b"?",
    }
    rollback_guard.path_of(path).write_bytes(content[how])
    await refused(path, r"ledger\.db-witness belongs to another ledger than ledger\.db")


async def test_a_witness_that_can_not_be_used_is_named(path):
    await spent(path)
    rollback_guard.path_of(path).unlink()
    rollback_guard.path_of(path).mkdir()
    await refused(path, r"ledger\.db-witness is not a plain file")


async def test_a_ledger_that_is_gone_is_not_made_anew(path):
    await spent(path, b"a")
    path.unlink()
    await refused(path, r"ledger\.db is gone, and ledger\.db-witness remembers")
    assert not path.exists()


async def test_a_witness_that_lags_is_fine(path, monkeypatch):
    """A process may end between its commit and the witness's; so may the machine, a second later."""
    await spent(path, b"a")
    with monkeypatch.context() as patch:
        patch.setattr(rollback_guard.RollbackGuard, "reached", lambda *_: None)
        await spent(path, b"a", b"b")
    before = rollback_guard.path_of(path).read_bytes()
    await spent(path)
    await spent(path, b"c")
    assert rollback_guard.path_of(path).read_bytes() > before


async def test_a_maker_that_ended_before_there_was_a_witness(path):
    await spent(path)
    rollback_guard.path_of(path).unlink()
    await spent(path, b"a")
    rollback_guard.path_of(path).unlink()
    await refused(path, "is missing")


async def test_it_is_durable_before_the_first_commit(path, monkeypatch):
    order = []
    fsync, reached = os.fsync, rollback_guard.RollbackGuard.reached
    monkeypatch.setattr(
        os, "fsync", lambda file: order.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file)
    )
    monkeypatch.setattr(
        rollback_guard.RollbackGuard, "reached", lambda *args: order.append("reached") or reached(*args)
    )
    await spent(path, b"a")
    assert order[-3:-1] == [str(rollback_guard.path_of(path)), str(path.parent)]
    assert order[-1] == "reached"


@pytest.mark.parametrize("upgraded", [False, True])
def test_processes_that_open_and_commit_at_once_raise_no_false_alarm(path, upgraded):
    from tests.support import old_ledgers

    if upgraded:
        old_ledgers.make(path, 2, [(BUDGETS[2], b"a" * 16, 0, AMOUNT)])

    def process(which):
        async def run():
            for i in range(25):
                ledger = await opened(path)
                for unit in range(3):
                    await ledger.charge([(1, b"", 1), (0, bytes([which, i, unit]), TENTH)])
                await ledger.close()

        asyncio.run(run())
        return "fine"

    started = [children.start(lambda which=which: process(which)) for which in range(6)]
    assert [children.finish(child) for child in started] == ["fine"] * 6
    _, seen = rollback_guard._FORM.unpack(rollback_guard.path_of(path).read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT commits FROM ledger").fetchone() == (seen,)


@pytest.mark.parametrize("took_effect", [False, True])
async def test_a_commit_in_doubt_is_no_false_alarm(path, took_effect, monkeypatch):
    """Other commits may come before the next one of its chain."""
    ledger = await opened(path)
    await ledger.charge([(0, b"a", TENTH)])
    with monkeypatch.context() as patch:
        if took_effect:
            patch.setattr(rollback_guard.RollbackGuard, "reached", fails)
        else:
            patch.setattr(queries, "count_commit", fails)
        with pytest.raises(LedgerError, match="No space left"):
            await ledger.charge([(0, b"b", TENTH)])
    await ledger.check()
    assert await ledger.redeem_once(b"n" * 32, 1e10)
    await ledger.charge([(0, b"a", TENTH)])
    assert [a.spent for a in await ledger.accounts("unit", b"b")] == [TENTH] * took_effect
    await ledger.close()
    await spent(path, b"a")


def fails(*_):
    raise OSError(28, "No space left on device")


async def test_a_full_disk_is_no_false_alarm(path):
    ledger = await opened(path)
    await ledger.charge([(0, b"a", TENTH)])
    store = ledger._store
    advance = store._advance

    def fill(change, windows):
        change.connection.execute("PRAGMA max_page_count = 1")  # the disk is full
        return advance(change, windows)

    store._advance = fill
    with pytest.raises(LedgerError, match="disk is full"):
        await asyncio.gather(*[ledger.charge([(0, i.to_bytes(4, "big"), 1)]) for i in range(3000)])
    store._advance = advance
    await ledger.check()
    assert await ledger.redeem_once(b"n" * 32, 1e10)
    await ledger.charge([(0, b"a", TENTH)])
    await ledger.close()
    await spent(path, b"a")


async def in_use(path):
    """A holder at work, an older copy, and a log that continues the file only as it is now."""
    await spent(path, b"a")
    older = copy(path)
    holder = await opened(path)
    await holder.charge([(0, b"a", TENTH)])
    await holder.charge([(0, b"b", TENTH)])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    await holder.charge([(0, b"c", TENTH)])
    await holder.charge([(0, b"d", TENTH)])
    return older, holder


def remove_log(path):
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


@pytest.mark.parametrize("log", ["kept", "removed"])
async def test_a_file_that_is_written_over_while_in_use(path, log):
    """SQLite notices nothing, and would mix both; whoever does says so for all, until a copy is accepted."""
    older, holder = await in_use(path)
    shutil.copyfile(older, path)
    if log == "removed":
        remove_log(path)
    with pytest.raises(LedgerError, match="was overwritten by an older copy while in use"):
        await holder.charge([(0, b"e", 1)])
    with pytest.raises(LedgerError, match="was overwritten by an older copy"):
        await holder.charge([(0, b"e", 1)])
    await holder.close()
    await refused(path, "was overwritten by an older copy while it was in use.*accept --help")
    shutil.copyfile(older, path)
    await refused(path, "was overwritten")
    await open_admin(f"sqlite:///{path}").accept("restored")
    await spent(path, b"a")
    shutil.copyfile(older, path)
    await refused(path, "older copy: ")


async def test_a_log_that_is_removed_while_in_use(path):
    """Its commits are where nobody else finds them, so no more follow. Closing puts them into the file."""
    _, holder = await in_use(path)
    remove_log(path)
    for _ in range(2):
        with pytest.raises(LedgerError, match="log of .* was removed while in use: restart"):
            await holder.charge([(0, b"e", 1)])
    await holder.close()
    await spent(path, b"e")
    ledger = await opened(path)
    assert {account.spent for account in await ledger.accounts("unit", b"d")} == {TENTH}
    await ledger.close()


async def test_a_file_that_others_copy_their_log_into_is_no_false_alarm(path):
    """The file changes under a holder all the time: by its own checkpoints and those of others."""
    holders = [await opened(path), await opened(path)]
    for number in range(40):
        await holders[number % 2].charge([(0, bytes([number]), TENTH)])
        if number % 3 == 0:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for holder in holders:
        await holder.close()
