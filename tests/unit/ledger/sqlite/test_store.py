"""SQLite files: who may read them, what is in them, and every way in which they can be bad."""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import sys

import pytest

from dpmesh import sqlite_file
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Batch, Ledger
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import AMOUNT, BUDGETS, DAY, TENTH
from tests.support import children
from tests.support.steady import no_time_passes

AT_REST = ["ledger.db", "ledger.db-witness"]
"""What a ledger that nobody has open leaves in its directory."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def make(path, busy_timeout=60.0):
    """A ledger that waits for others, and for its disk, however slow the machine is."""
    return Ledger(
        SQLiteStore(path, busy_timeout=busy_timeout), BUDGETS, monotonic=no_time_passes, timeout=120.0
    )


@contextlib.asynccontextmanager
async def opened(path, busy_timeout=60.0):
    ledger = make(path, busy_timeout)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def made(path):
    """A ledger at rest, in which unit a has spent its window."""
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT), (2, b"a", 1)])


def attempt(path):
    """What opening and charging gives, as text; for children."""

    async def run():
        async with opened(path) as ledger:
            await ledger.charge([(0, b"b", 1)])

    try:
        asyncio.run(run())
    except LedgerError as error:
        return str(error)
    return "it worked"


async def charge_units(ledger, count):
    await asyncio.gather(*[ledger.charge([(0, i.to_bytes(4, "big"), 1)]) for i in range(count)])


# What is in a file


async def test_only_the_owner_may_read_it(tmp_path):
    path = tmp_path / "new" / "dir" / "ledger.db"
    old = os.umask(0)
    try:
        async with opened(path) as ledger:
            await ledger.charge([(0, b"a", 1)])
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert modes == {f"ledger.db{suffix}": 0o600 for suffix in ("", "-wal", "-shm", "-witness")}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(path.parent)) == AT_REST


async def test_it_holds_no_ids(path):
    unit = b"tail-number-N14228"
    async with opened(path) as ledger:
        await ledger.charge([(0, unit, 1)])
        stored = b"".join(p.read_bytes() for p in path.parent.iterdir())
    assert unit not in stored + path.read_bytes()


async def test_every_commit_is_durable_and_the_checks_are_there(path):
    async with opened(path) as ledger:
        connection = ledger._store._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        await ledger.charge([(0, b"a", 1)])
        beyond = "debited = debited + 1 + cap", "debited = 1 + cap + granted"
        for bad in ("debited = -1", "window_start = -1", "account = x'00'", "lifetime = -1", *beyond):
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                connection.execute(f"UPDATE accounts SET {bad}")
    if sqlite3.sqlite_version_info >= (3, 37):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (tables,) = connection.execute(
                "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND strict"
            ).fetchone()
            assert tables == 9


async def test_several_who_make_one_file_at_once_share_it(path):
    def child():
        async def run():
            async with opened(path) as ledger:
                return ledger.secret

        return asyncio.run(run())

    started = [children.start(child) for _ in range(8)]
    assert len({children.finish(one) for one in started}) == 1
    assert sorted(os.listdir(path.parent)) == AT_REST


async def test_what_comes_back_is_no_more_than_was_ever_debited(path):
    store, a = SQLiteStore(path), (0, b"a" * 16)
    await store.open(BUDGETS[:1])
    await store.debit(Batch((DAY,), {a: 0}, [{a: 2}]))
    await store.debit(Batch((2 * DAY,), {a: 0}, [{a: 1}]))
    await store.credit((DAY,), {a: 4})
    assert [account.lifetime for account in await store.accounts(None, None)] == [3]
    await store.close()
    async with SQLiteAdmin(path).view() as view:
        assert await verify(view) == []


# Bad files: a clear error at the earliest moment


def give(path):
    """Gives a file to whom children.as_ordinary_user runs as."""
    if os.geteuid() == 0:
        os.chown(path, children.NOBODY, children.NOBODY)


async def test_a_file_that_may_not_be_written(anyones):
    path = anyones / "ledger.db"
    await made(path)
    for mode in (0o444, 0):
        path.chmod(mode)
        answer = children.as_ordinary_user(lambda: attempt(path))
        assert "ledger.db is read-only: make it and its directory writable" in answer
    assert sorted(os.listdir(anyones)) == AT_REST
    witness = path.with_name("ledger.db-witness")
    path.chmod(0o600)
    witness.chmod(0)
    give(path)
    answer = children.as_ordinary_user(lambda: attempt(path))
    assert "ledger.db-witness can't be used: Permission denied" in answer
    witness.chmod(0o600)
    give(witness)
    assert children.as_ordinary_user(lambda: attempt(path)) == "it worked"


async def test_a_directory_that_may_not_be_written(anyones):
    anyones.chmod(0o555)
    answer = children.as_ordinary_user(lambda: attempt(anyones / "sub" / "ledger.db"))
    assert "sub/ledger.db can't be used as a ledger: Permission denied" in answer
    answer = children.as_ordinary_user(lambda: attempt(anyones / "ledger.db"))
    assert "ledger.db can't be used as a ledger: Permission denied" in answer


async def test_a_file_system_that_refuses_writes(path, monkeypatch):
    await made(path)
    connect = sqlite_file.connect
    monkeypatch.setattr(sqlite_file, "connect", lambda path, mode, timeout: connect(path, "mode=ro", timeout))
    with pytest.raises(LedgerError, match=r"ledger\.db is read-only"):
        await make(path).open()


async def test_no_file_at_all(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="can't be used as a ledger: (Not a directory|File exists)"):
        await make(tmp_path / "file" / "ledger.db").open()
    (tmp_path / "dir.db").mkdir()
    with pytest.raises(LedgerError, match=r"dir\.db is not a plain file"):
        await make(tmp_path / "dir.db").open()
    os.mkfifo(tmp_path / "pipe.db")
    with pytest.raises(LedgerError, match=r"pipe\.db is not a plain file"):
        await make(tmp_path / "pipe.db").open()


async def test_a_file_locked_by_another_process(path):
    await made(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        async with opened(path, busy_timeout=0.1) as ledger:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerError, match=r"ledger\.db is locked by another process"):
                await make(path, busy_timeout=0.1).open()
            async with asyncio.timeout(60):
                results = await asyncio.gather(
                    *[ledger.charge([(0, bytes([i]), 1)]) for i in range(100)], return_exceptions=True
                )
            assert all(isinstance(result, LedgerError) and "locked" in str(result) for result in results)
            other.execute("ROLLBACK")
            await ledger.charge([(0, b"b", 1)])  # it serves again by itself
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(0, b"a", 1)])


async def test_a_full_disk(path, monkeypatch):
    pages = [2**31 - 2]
    connect = sqlite_file.connect

    def limited(path, mode, timeout):
        connection = connect(path, mode, timeout)
        connection.execute(f"PRAGMA max_page_count = {pages[0]}")
        return connection

    monkeypatch.setattr(sqlite_file, "connect", limited)
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        ledger._store._connection.execute("PRAGMA max_page_count = 1")  # no less than it has
        with pytest.raises(LedgerError, match=r"ledger\.db can't grow, the disk is full"):
            await charge_units(ledger, 10_000)
        for _ in range(2):  # the store connects afresh, and there is room now
            await ledger.charge([(0, b"more", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
    pages[0] = 1
    with pytest.raises(LedgerError, match="the disk is full"):
        await make(path.with_name("new.db")).open()
    assert sorted(os.listdir(path.parent)) == AT_REST


async def test_a_limit_on_the_size_of_files(path):
    await made(path)

    def child():
        async def run():
            async with opened(path) as ledger:
                answers = []
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                await ledger.charge([(0, b"before", 1)])
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
                for _ in range(2):
                    try:
                        await ledger.charge([(0, b"during", 1)])
                    except LedgerError as error:
                        answers.append(str(error))
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                await ledger.charge([(0, b"after", 1)])
                return answers

        return asyncio.run(run())

    answers = children.run(child)
    assert len(answers) == 2
    assert all("can't be read or written" in answer or "disk is full" in answer for answer in answers)
    async with opened(path) as ledger:
        assert [len(await ledger.accounts("unit", unit)) for unit in (b"before", b"after")] == [1, 1]
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])


async def test_failing_writes_leave_little_to_remember(path):
    """Of all that was tried only what could still be there is remembered: nothing but the last try."""
    await made(path)

    def child():
        async def run():
            async with opened(path) as ledger:
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
                    reader.execute("BEGIN")
                    reader.execute("SELECT * FROM accounts").fetchall()  # so that the log can only grow
                    await ledger.charge([(0, b"before", 1)])
                    size = max(os.path.getsize(f"{path}{suffix}") for suffix in ("-wal", "-shm"))
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
                    failed = 0
                    for i in range(100):
                        try:
                            await ledger.charge([(0, b"%d" % i, 1)])
                        except LedgerError:
                            failed += 1
                    remembered = len(ledger._store._chain._possible)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                await ledger.charge([(0, b"after", 1)])
                return failed, remembered, ledger._store._chain.doubtful

        return asyncio.run(run())

    failed, remembered, doubtful = children.run(child)
    assert failed > 50
    assert remembered <= 1
    assert not doubtful
    async with SQLiteAdmin(path).view() as view:
        assert await verify(view) == []


async def test_garbage(path):
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(LedgerError, match=r"ledger\.db is not an SQLite database"):
        await make(path).open()
    assert path.read_bytes() == b"this is no database" * 1000


async def test_a_damaged_ledger(path):
    async with opened(path) as ledger:
        await charge_units(ledger, 2500)
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        # Not other bytes each time: some of a million would look like a page.
        file.write(random.Random(7).randbytes(path.stat().st_size - 3 * 4096))
    ledger = make(path)

    async def use():
        await ledger.open()
        await charge_units(ledger, 50)

    with pytest.raises(LedgerError, match=r"ledger\.db is damaged"):
        await use()
    await ledger.close()


async def test_an_emptied_file_is_not_taken_for_a_new_one(path):
    await made(path)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match=r"ledger\.db is empty, so what was spent is lost"):
        await make(path).open()


async def test_another_application_s_database(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts (balance)")
    with pytest.raises(LedgerError, match=r"ledger\.db is an SQLite database, but not a dpmesh ledger"):
        await make(path).open()


async def test_a_file_of_a_newer_version(path):
    await made(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET schema_version = 7")
        connection.commit()
    with pytest.raises(LedgerError, match=r"another version of dpmesh \(tables 7, this one knows 5\)"):
        await make(path).open()


@pytest.mark.parametrize("how", ["removed", "replaced by another", "replaced by an old copy", "moved"])
async def test_a_file_that_is_swapped_while_in_use(path, how):
    await made(path)
    shutil.copy(path, path.with_name("copy.db"))
    await made(path.with_name("other.db"))
    ledger = make(path)
    await ledger.open()
    if how == "removed":
        path.unlink()
    elif how == "moved":
        path.rename(path.with_name("elsewhere.db"))
    else:
        path.with_name("other.db" if "another" in how else "copy.db").rename(path)
    with pytest.raises(LedgerError, match="was (removed|replaced) while in use: restore it"):
        await ledger.charge([(0, b"b", 1)])
    if how == "moved":
        path.with_name("elsewhere.db").rename(path)
        await ledger.charge([(0, b"b", 1)])
    await ledger.close()


async def test_another_ledger_under_the_same_name_after_a_lost_connection(path, monkeypatch):
    await made(path)
    ledger = make(path)
    await ledger.open()
    ledger._store._disconnect()
    await made(path.with_name("other.db"))
    with path.open("r+b") as file:  # in place: the same inode
        file.write(path.with_name("other.db").read_bytes())
    with pytest.raises(LedgerError, match="was replaced while in use"):
        await ledger.charge([(0, b"b", 1)])
    await ledger.close()


# Forks


async def charge_all(ledger, unit=b"a", cost=TENTH):
    admitted = 0
    with contextlib.suppress(BudgetExhaustedError):
        while True:
            await ledger.charge([(0, unit, cost)])
            admitted += 1
    return admitted


def test_a_forked_child_spends_nothing_of_its_parent_and_charges_for_itself(path):
    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())
        for _ in range(3):
            runner.run(ledger.charge([(0, b"a", TENTH)]))  # the parent holds one more tenth

        def child():
            held = ledger.spend([(0, b"a", 1)])
            admitted = asyncio.run(charge_all(ledger))
            asyncio.run(ledger.close())
            return held, admitted

        assert children.run(child) == (False, 6)
        assert ledger.spend([(0, b"a", TENTH)])
        assert runner.run(charge_all(ledger)) == 0
        (account,) = runner.run(ledger.accounts())
        assert account.spent == AMOUNT
        runner.run(ledger.close())


def test_parent_and_child_have_locks_of_their_own(path):
    """A child that kept the parent's view of the file would lose its commits when the parent closes."""
    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())
        runner.run(ledger.charge([(0, b"a", 1)]))
        to_child, from_parent = os.pipe()

        def child():
            async def run():
                await ledger.charge([(0, b"a", 1)])
                os.read(to_child, 1)  # the parent has closed
                for _ in range(100):
                    await ledger.charge([(0, b"a", 1)])
                return await ledger.accounts()

            return asyncio.run(run())

        started = children.start(child)
        runner.run(ledger.charge([(0, b"a", 1)]))
        runner.run(ledger.close())
        os.write(from_parent, b".")
        (account,) = children.finish(started)
        assert account.spent >= 103

        again = make(path)
        runner.run(again.open())
        assert runner.run(again.accounts()) == [account]
        runner.run(again.close())
        for end in (to_child, from_parent):
            os.close(end)


def test_a_fork_waits_for_the_commit_under_way(path):
    async def run():
        async with opened(path) as ledger:
            stop = asyncio.Event()

            async def busy():
                i = 0
                while not stop.is_set():
                    i += 1
                    await ledger.charge([(1, b"", 1 + i % 7)])

            tasks = [asyncio.create_task(busy()) for _ in range(4)]
            started = []
            for i in range(8):
                await asyncio.sleep(0.003)

                def child(i=i):
                    async def charge():
                        await ledger.charge([(0, bytes([i]), TENTH)])
                        await ledger.close()

                    asyncio.run(charge())
                    return "charged"

                started.append(children.start(child))
            stop.set()
            await asyncio.gather(*tasks)
            answers = await asyncio.to_thread(lambda: [children.finish(one) for one in started])
            return answers, await ledger.accounts("unit")

    answers, accounts = asyncio.run(run())
    assert answers == ["charged"] * 8
    assert [account.spent for account in accounts] == [TENTH] * 8


def test_a_child_of_a_fork_that_could_not_wait_refuses(path, monkeypatch):
    monkeypatch.setattr("dpmesh.ledger.sqlite.store._FORK_WAIT", 0.01)
    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())

        def child():
            with pytest.raises(LedgerError, match="when this process was forked"):
                asyncio.run(ledger.charge([(0, b"a", 1)]))
            return "refused"

        with ledger._store._lock:
            started = children.start(child)
        assert children.finish(started) == "refused"
        runner.run(ledger.charge([(0, b"a", 1)]))
        runner.run(ledger.close())


def test_a_child_refuses_after_a_fork_whose_wait_was_broken_off(path):
    """A signal handler may raise while the fork waits. Python forks all the same, with the connection still open."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())

        def child():
            with pytest.raises(LedgerError, match="when this process was forked"):
                asyncio.run(ledger.charge([(0, b"a", 1)]))
            return "refused"

        before = signal.signal(signal.SIGALRM, interrupt)
        unraisable, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with ledger._store._lock:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                started = children.start(child)
        finally:
            signal.signal(signal.SIGALRM, before)
            sys.unraisablehook = unraisable
        assert children.finish(started) == "refused"
        runner.run(ledger.charge([(0, b"a", 1)]))
        runner.run(ledger.close())


def test_a_pause_that_was_broken_off_halfway_leaves_the_parent_its_ledger_and_the_child_none(
    path, monkeypatch
):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())

        def child():
            with pytest.raises(LedgerError, match="when this process was forked"):
                asyncio.run(ledger.charge([(0, b"a", 1)]))
            return "refused"

        def interrupted(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("dpmesh.ledger.sqlite.rollback_guard.RollbackGuard.close", interrupted)
            started = children.start(child)
        assert children.finish(started) == "refused"
        runner.run(ledger.charge([(0, b"a", 1)]))
        runner.run(ledger.close())


def test_a_child_that_refuses_has_children_that_refuse_and_touches_nothing_of_its_parent(path, monkeypatch):
    monkeypatch.setattr("dpmesh.ledger.sqlite.store._FORK_WAIT", 0.01)
    with asyncio.Runner() as runner:
        ledger = make(path)
        runner.run(ledger.open())

        def refused():
            with pytest.raises(LedgerError, match="when this process was forked"):
                asyncio.run(ledger.charge([(0, b"a", 1)]))
            return "refused"

        def child():
            connection = ledger._store._connection
            return children.run(refused), refused(), connection is ledger._store._connection

        with ledger._store._lock:
            started = children.start(child)
        assert children.finish(started) == ("refused", "refused", True)
        runner.run(ledger.charge([(0, b"a", 1)]))
        runner.run(ledger.close())
