"""An SQLite ledger goes on as a PostgreSQL one: what it takes along, and what is refused."""

import asyncio
import shutil
import sys
import time
from pathlib import Path

import pytest

from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, open_admin, open_store
from dpmesh.ledger.audit.checkpoint import checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import Head
from dpmesh.ledger.import_sqlite import Moved, transfer
from dpmesh.ledger.postgres import admin as admin_module
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.store import PostgresStore
from dpmesh.ledger.sqlite import queries, rollback_guard
from tests.contract.suite import AMOUNT, BUDGETS, DAY, TENTH
from tests.support import old_ledgers
from tests.support.postgres import Server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def source(path):
    return f"sqlite:///{path}"


@pytest.fixture
async def target(database):
    await PostgresAdmin(database).migrate()
    return database


async def opened(url, clock=time.time):
    # One that waits for a machine that is slow.
    store = PostgresStore(url, timeout=60.0) if url.startswith("postgresql:") else open_store(url)
    ledger = Ledger(store, BUDGETS, clock=clock, timeout=60.0)
    await ledger.open()
    return ledger


async def used(url, clock=time.time):
    ledger = await opened(url, clock)
    await ledger.charge([(0, b"a", 3 * TENTH), (1, b"", TENTH)])
    await ledger.charge([(0, b"b", AMOUNT)])
    await ledger.redeem_once(b"n" * 32, 1e10)
    await ledger.close()


async def content(url):
    """All that a ledger holds, and what is wrong with it."""
    async with open_admin(url).view() as view:
        return {
            "secret": view.secret,
            "budgets": view.budgets,
            "pruned": view.pruned_before,
            "accounts": [account async for account in view.accounts()],
            "chains": await view.chains(),
            "entries": [entry async for entry in view.entries()],
            "wrong": await verify(view),
        }


async def test_everything_goes_along(source, target):
    """Names, numbers, windows, grants, what is spent, the log: all as it was; and it goes on from there."""
    await used(source, clock=lambda: time.time() + 3 * DAY)
    admin = open_admin(source)
    await admin.grant("unit", account_hash((await content(source))["secret"], b"a"), TENTH, "an audit")
    before = await content(source)
    async with admin.view() as view:
        mark = await checkpoint(view)
    assert before["wrong"] == []
    moved = await transfer(source, target)
    assert moved == Moved(3, len(before["accounts"]), len(before["entries"]), again=False)
    assert await content(target) == before
    async with open_admin(target).view() as view:
        assert await verify(view, mark) == []
    ledger = await opened(target)
    await ledger.charge([(0, b"a", 8 * TENTH)])
    for unit in (b"a", b"b"):
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, unit, 1)])
    assert not await ledger.redeem_once(b"n" * 32, 1e10)
    (account,) = await ledger.accounts("unit", b"a")
    assert account.window_start == max(a.window_start for a in before["accounts"])
    assert (account.spent, account.granted, account.lifetime) == (11 * TENTH, TENTH, 11 * TENTH)
    await ledger.close()
    async with open_admin(target).view() as view:
        assert await verify(view, mark) == []


async def test_keys_of_epochs_go_along_and_leave_the_file(source, target):
    keys = []
    for url in (source, target):
        if url == target:
            await transfer(source, target)
        ledger = await opened(url)
        await ledger.hold_keys([1e9])
        keys.append(ledger.epoch_key(1e9).key)
        await ledger.close()
    assert keys[0] == keys[1]
    folder = Path(source.removeprefix("sqlite:///")).parent
    assert keys[0] not in b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())


async def test_new_budgets_get_numbers_of_their_own(source, target):
    await used(source)
    await transfer(source, target)
    ledger = Ledger(open_store(target), [*BUDGETS, Budget("another")])
    await ledger.open()
    await ledger.close()
    numbers = (await content(target))["budgets"]
    assert [budget.name for budget in numbers.values()] == [*[b.name for b in BUDGETS], "another"]


async def test_what_was_pruned_stays_pruned(source, target):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda now=time.time: now() - 40 * DAY)
        await used(source, clock=lambda: time.time())
    await used(source)
    admin = open_admin(source)
    assert await admin.prune(int(time.time()) - 30 * DAY) > 0
    before = await content(source)
    assert any(chain.pruned != Head(0, chain.pruned.hash) for chain in before["chains"])
    await transfer(source, target)
    assert await content(target) == before


async def test_the_file_takes_nothing_any_more(source, target, path):
    """Neither a holder that has it open, nor one that opens it, nor an administrator."""
    await used(source)
    holder = await opened(source)
    await holder.charge([(0, b"c", TENTH)])
    await transfer(source, target)
    with pytest.raises(LedgerError, match="was imported into another while in use: restart"):
        await holder.charge([(0, b"d", 1)])
    with pytest.raises(LedgerError, match="was imported into another"):
        await holder.redeem_once(b"o" * 32, 1e10)
    await holder.close()
    with pytest.raises(LedgerError, match="was imported into .*set ledger.url to that"):
        await opened(source)
    with pytest.raises(LedgerError, match="was imported into"):
        await open_admin(source).grant("unit", b"a" * 16, 1, "more")
    assert (await content(source))["wrong"] == []


async def test_an_older_copy_of_the_file_does_not_come_alive(source, target, path):
    """A copy from just before the move is older than what was moved."""
    await used(source)
    copy = shutil.copy2(path, path.with_name("copy.db"))
    await transfer(source, target)
    shutil.copy2(copy, path)
    with pytest.raises(LedgerError, match="older copy"):
        await opened(source)
    with pytest.raises(LedgerError, match="older copy"):
        await transfer(source, target)


async def test_an_older_copy_is_not_moved(source, target, path):
    await used(source)
    copy = shutil.copy2(path, path.with_name("copy.db"))
    await used(source, clock=lambda: time.time() + DAY)
    shutil.copy2(copy, path)
    with pytest.raises(LedgerError, match="older copy"):
        await transfer(source, target)
    assert (await content(target))["accounts"] == []


async def test_done_twice_it_doubles_nothing(source, target):
    await used(source)
    first = await transfer(source, target)
    ledger = await opened(target)
    await ledger.charge([(0, b"c", TENTH)])
    await ledger.close()
    before = await content(target)
    again = await transfer(source, target)
    assert again == Moved(first.budgets, first.accounts, first.entries, again=True)
    assert await content(target) == before


async def test_done_by_two_at_once_it_doubles_nothing(source, target):
    await used(source)
    before = await content(source)
    moved = await asyncio.gather(*[transfer(source, target) for _ in range(2)])
    assert sorted(each.again for each in moved) == [False, True]
    assert await content(target) == before


async def test_a_second_target_is_refused(source, target, postgres):
    await used(source)
    await transfer(source, target)
    with postgres.database() as other:
        await PostgresAdmin(other).migrate()
        with pytest.raises(LedgerError, match="was imported into .*, where its budgets live on"):
            await transfer(source, other)
        assert (await content(other))["accounts"] == []


async def test_a_target_in_use_is_refused_and_the_file_goes_on(source, target):
    await used(source)
    await used(target)
    before = await content(target)
    with pytest.raises(ConfigError, match="is in use already"):
        await transfer(source, target)
    assert await content(target) == before
    await used(source, clock=lambda: time.time() + DAY)


async def test_a_target_that_was_not_migrated(source, database):
    await used(source)
    with pytest.raises(LedgerError, match="migrate"):
        await transfer(source, database)
    await used(source, clock=lambda: time.time() + DAY)


async def test_a_wrong_address_leaves_the_file_as_it_is(source, target, postgres, monkeypatch):
    """Whoever mistypes where it goes can try again."""
    await used(source)
    with monkeypatch.context() as patch:
        patch.setattr(admin_module, "_TIMEOUT", 1.0)
        with pytest.raises(LedgerError):
            await transfer(source, "postgresql://postgres@127.0.0.1:1/ledger")
    with pytest.raises(LedgerError, match="create the database first"):
        await transfer(source, postgres.url("nowhere"))
    await used(source, clock=lambda: time.time() + DAY)
    assert not (await transfer(source, target)).again


async def test_no_source(source, target, path):
    with pytest.raises(LedgerError, match="there is no ledger at"):
        await transfer(source, target)
    assert not path.exists()
    path.write_bytes(b"no ledger at all" * 100)
    with pytest.raises(LedgerError, match="not an SQLite database"):
        await transfer(source, target)


async def test_what_can_not_be_moved(source, target):
    await used(source)
    with pytest.raises(ConfigError, match="target must be a PostgreSQL ledger"):
        await transfer(source, source)
    with pytest.raises(ConfigError, match="source must be an SQLite ledger"):
        await transfer(target, target)
    with pytest.raises(ConfigError):
        await transfer("memory:", target)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_file_of_an_older_version(path, source, target, version):
    """It is brought up to date first."""
    name = account_hash(old_ledgers.SECRET, b"a")
    old_ledgers.make(path, version, [(BUDGETS[0], name, int(time.time()) // DAY * DAY, 4 * TENTH)])
    await transfer(source, target)
    assert (await content(target))["wrong"] == []
    ledger = await opened(target)
    await ledger.charge([(0, b"a", 6 * TENTH)])
    with pytest.raises(BudgetExhaustedError):
        await ledger.charge([(0, b"a", 1)])
    await ledger.close()


async def test_a_missing_witness(source, target, path):
    await used(source)
    rollback_guard.path_of(path).unlink()
    with pytest.raises(LedgerError, match="witness is missing"):
        await transfer(source, target)
    assert (await content(target))["accounts"] == []


async def test_what_fails_halfway_is_undone(source, target, monkeypatch):
    """The file goes on; done again, everything arrives."""
    await used(source)
    module = sys.modules[transfer.__module__]
    copy = module._copy
    for table in ("accounts", "charges", "spent"):

        async def fails(into, which, rows, table=table):
            if which == table:
                raise LedgerError("no more")
            return await copy(into, which, rows)

        with monkeypatch.context() as patch:
            patch.setattr(module, "_copy", fails)
            with pytest.raises(LedgerError, match="no more"):
                await transfer(source, target)
        assert (await content(target))["budgets"] == {}
    await used(source, clock=lambda: time.time() + DAY)
    before = await content(source)
    await transfer(source, target)
    assert await content(target) == before


async def test_a_target_that_can_not_be_asked_afterwards(source, target, monkeypatch):
    """Nobody knows whether it was imported, so the file stays closed until it is tried again."""
    await used(source)
    before = await content(source)
    change, calls = PostgresAdmin.change, 0

    async def fails(self, work, **more):
        nonlocal calls
        calls += 1
        if calls == 1:
            return await change(self, work, **more)
        if calls == 2:  # it was, and the answer is lost
            await change(self, work, **more)
        raise LedgerError("the connection is gone")

    with monkeypatch.context() as patch:
        patch.setattr(PostgresAdmin, "change", fails)
        with pytest.raises(LedgerError, match=r"the connection is gone; .* stays closed, .* import it again"):
            await transfer(source, target)
    with pytest.raises(LedgerError, match="was imported into"):
        await opened(source)
    assert (await transfer(source, target)).again
    assert await content(target) == before


async def test_a_replica_that_starts_meanwhile_starts_with_what_arrives(
    source, target, monkeypatch, postgres
):
    """The tables are empty while it opens them; the secret that they were made with names none of the accounts."""
    await used(source)
    secret = (await content(source))["secret"]
    module = sys.modules[transfer.__module__]
    fill, filled, go = module._fill, asyncio.Event(), asyncio.Event()

    async def slow(*args):
        moved = await fill(*args)
        filled.set()
        await asyncio.wait_for(go.wait(), 60)
        return moved

    monkeypatch.setattr(module, "_fill", slow)
    moving = asyncio.create_task(transfer(source, target))
    await asyncio.wait_for(filled.wait(), 60)
    opening = asyncio.create_task(opened(target))
    waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(60):
        while not await postgres.sql(target.rpartition("/")[2], waits):
            await asyncio.sleep(0.01)
    go.set()
    await moving
    ledger = await opening
    assert ledger.secret == secret
    with pytest.raises(BudgetExhaustedError):
        await ledger.charge([(0, b"b", 1)])
    await ledger.charge([(0, b"a", 7 * TENTH)])
    await ledger.close()
    assert (await content(target))["wrong"] == []


@pytest.mark.parametrize(
    "days", [(-20_000, 0), (60, 0), (-10, -20, -5)], ids=["at the epoch", "ahead", "back"]
)
async def test_a_file_of_a_machine_whose_clock_was_wrong(source, target, monkeypatch, days):
    """It comes along whatever days its entries are of, and is pruned without a gap."""
    now = time.time()
    ledger = await opened(source)
    for number, day in enumerate(days):
        monkeypatch.setattr(queries.time, "time", lambda day=day: max(0.0, now + day * DAY))
        await ledger.charge([(0, bytes([number]), TENTH)])
    monkeypatch.undo()
    await ledger.close()
    before = await content(source)
    await transfer(source, target)
    assert await content(target) == before
    await open_admin(target).prune(int(now) - 15 * DAY)
    assert (await content(target))["wrong"] == []
    after = await opened(target)
    await after.charge([(0, b"a", TENTH)])
    await after.close()
    assert (await content(target))["wrong"] == []


async def test_a_holder_of_the_file_says_that_it_was_imported(source, target):
    await used(source)
    holder = await opened(source)
    await holder.check()
    await transfer(source, target)
    with pytest.raises(LedgerError, match="was imported into"):
        await holder.check()
    await holder.close()


async def test_the_secret_is_in_no_log_of_statements(source):
    with Server(log_statement="all", log_parameter_max_length=-1) as server:
        url = server.url(server.create_database())
        await PostgresAdmin(url).migrate()
        secrets = [(await content(url))["secret"]]
        await used(source)
        await transfer(source, url)
        secrets.append((await content(url))["secret"])
        ledger = await opened(url)
        await ledger.charge([(0, b"a", TENTH)])
        await ledger.close()
        log = server.log.read_text(errors="replace")
    assert "INSERT INTO dpmesh.ledger" in log
    assert "dpmesh.debit" in log
    assert secrets[0] != secrets[1]
    for secret in secrets:
        assert secret.hex() not in log.lower()
