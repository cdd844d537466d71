"""Administration of SQLite ledgers: grants, pruning, going on with an older copy, upgrades, and reading on the side."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time

import pytest

from dpmesh.accounting import MAX_AMOUNT
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Ledger, account_hash, inspect, open_admin
from dpmesh.ledger.admin import ReadAgainError, ahead_of_the_clock
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import Entry, EntryKind, Posting, decode
from dpmesh.ledger.sqlite import admin as admin_module
from dpmesh.ledger.sqlite import queries, rollback_guard, schema
from dpmesh.ledger.sqlite import view as view_module
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import AMOUNT, BUDGETS, DAY, TENTH, pure
from tests.support import children, old_ledgers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def admin(path):
    return SQLiteAdmin(path)


@contextlib.asynccontextmanager
async def opened(path, budgets=BUDGETS, clock=time.time):
    ledger = Ledger(SQLiteStore(path, busy_timeout=60.0), budgets, clock=clock, timeout=120.0)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def logged(admin) -> list[Entry]:
    """All entries, in the order of their time and kind."""
    async with admin.view() as view:
        return sorted([decode(e.body) async for e in view.entries()], key=lambda e: (e.at, e.kind))


async def whole(admin):
    async with admin.view() as view:
        assert await verify(view) == []


def today():
    return int(time.time()) // DAY * DAY


# Grants


async def test_a_grant_raises_one_account_s_cap_in_one_window(path, admin):
    async with opened(path) as ledger:
        name = account_hash(ledger.secret, b"a")
        await ledger.charge([(0, b"a", AMOUNT), (0, b"b", AMOUNT)])
        granted = await admin.grant("unit", name, 3 * TENTH, "an audit, says A. Auditor")
        assert (granted.spent, granted.cap, granted.granted, granted.lifetime) == (
            AMOUNT,
            AMOUNT,
            3 * TENTH,
            AMOUNT,
        )
        assert granted == (await ledger.accounts("unit", b"a"))[0]
        await ledger.charge([(0, b"a", 2 * TENTH)])
        with pytest.raises(LedgerError, match="changed meanwhile"):
            await admin.grant("unit", name, TENTH, "more")
        await admin.grant("unit", name, TENTH, "more", has=3 * TENTH)
        await ledger.charge([(0, b"a", 2 * TENTH)])
        for unit in (b"a", b"b"):
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(0, unit, 1)])
        assert ledger.usage(0, b"a") == (AMOUNT + 4 * TENTH, AMOUNT + 4 * TENTH)
    grants = [entry for entry in await logged(admin) if entry.kind is EntryKind.GRANT]
    second, first = sorted(grants, key=lambda entry: entry.postings[0].amount)
    assert first.postings == (Posting(1, name, today(), 3 * TENTH),)
    assert second.postings == (Posting(1, name, today(), TENTH),)
    assert (first.note, second.note) == ("an audit, says A. Auditor", "more")
    await whole(admin)
    async with opened(path, clock=lambda: time.time() + DAY) as later:
        await later.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await later.charge([(0, b"a", 1)])
    await whole(admin)


async def test_a_grant_for_an_account_that_was_never_charged(path, admin):
    async with opened(path) as ledger:
        name = account_hash(ledger.secret, b"a")
        for budget, start in (("unit", today()), ("life", 0)):
            granted = await admin.grant(budget, name, TENTH, "")
            assert (granted.window_start, granted.spent, granted.granted) == (start, 0, TENTH)
        await ledger.charge([(0, b"a", AMOUNT + TENTH), (2, b"a", 5 * AMOUNT + TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(2, b"a", 1)])
    await whole(admin)


async def test_a_grant_belongs_to_the_latest_window_that_anybody_saw(path, admin):
    ahead = time.time() + 5 * DAY
    async with opened(path, clock=lambda: ahead) as ledger:
        name = account_hash(ledger.secret, b"a")
        await ledger.charge([(0, b"b", 1)])
        granted = await admin.grant("unit", name, TENTH, "")
        assert granted.window_start == ahead // DAY * DAY
    async with opened(path, clock=lambda: ahead - 20 * DAY) as ledger:
        await ledger.charge([(0, b"a", AMOUNT + TENTH)])
    await whole(admin)


async def test_a_grant_moves_the_windows_on_as_a_charge_would(path, admin):
    """Else a holder whose clock is slow would go on in a window that the account has left."""
    async with opened(path, clock=lambda: time.time() - 10 * DAY) as slow:
        await slow.charge([(0, b"a", AMOUNT)])
        await admin.grant("unit", account_hash(slow.secret, b"a"), TENTH, "")
        await slow.charge([(0, b"a", AMOUNT + TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await slow.charge([(0, b"a", 1)])
        (account,) = await slow.accounts("unit")
        assert (account.window_start, account.lifetime) == (today(), 2 * AMOUNT + TENTH)
    await whole(admin)


async def test_grants_that_are_refused(path, admin):
    with pytest.raises(LedgerError, match="there is no ledger"):
        await admin.grant("unit", bytes(16), 1, "")
    async with opened(path):
        pass
    with pytest.raises(
        ConfigError, match=r"budget\.name: 'other' is not in the ledger; there are unit, all, life"
    ):
        await admin.grant("other", bytes(16), 1, "")
    for raised in (0, -1, 0.5, True):
        with pytest.raises(LedgerError, match="positive"):
            await admin.grant("unit", bytes(16), raised, "")
    with pytest.raises(LedgerError, match="16 bytes"):
        await admin.grant("unit", b"a", 1, "")
    await admin.grant("unit", bytes(16), MAX_AMOUNT - AMOUNT, "")
    with pytest.raises(LedgerError, match="grant less"):
        await admin.grant("unit", bytes(16), 1, "", has=MAX_AMOUNT - AMOUNT)
    assert len(await logged(admin)) == 1


async def test_what_was_granted_may_not_exceed_what_can_be_counted(path, admin):
    async with opened(path) as ledger:
        name = account_hash(ledger.secret, b"a")
    await admin.grant("unit", name, MAX_AMOUNT - AMOUNT, "")
    async with opened(path, [pure("unit", 2.0)]) as ledger:
        await ledger.charge([(0, b"a", MAX_AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
    await whole(admin)


# Pruning


async def past(path, days_ago, unit=b"a"):
    """A charge that was made some days ago."""
    then = time.time() - days_ago * DAY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries.time, "time", lambda: then)
        async with opened(path, clock=lambda: then) as ledger:
            await ledger.charge([(0, unit, TENTH), (2, unit, 1)])
            await ledger.charge([(0, unit, TENTH), (2, unit, 1)])


async def test_old_entries_go_and_the_odometer_stays(path, admin):
    await past(path, 9.5, b"b")
    for days_ago in (9, 8, 3, 0):
        await past(path, days_ago)
    before = inspect(f"sqlite:///{path}").accounts
    many = len(await logged(admin))
    with pytest.raises(
        LedgerError, match=rf"longest window, {DAY} s, have to stay: .* beyond 20..-..-.. ..:..:.. UTC"
    ):
        await admin.prune(int(time.time() - DAY / 2))
    assert len(await logged(admin)) == many
    gone = await admin.prune(today() - 5 * DAY)
    assert gone > 0
    left = await logged(admin)
    assert len(left) == many - gone
    assert {(int(time.time()) - entry.at) // DAY for entry in left} == {3, 0}
    assert inspect(f"sqlite:///{path}").accounts == before
    async with admin.view() as view:
        assert view.pruned_before == today() - 5 * DAY
        assert sum(chain.pruned.seq for chain in await view.chains()) == gone
    await whole(admin)
    assert await admin.prune(today() - 6 * DAY) == 0
    async with admin.view() as view:
        assert view.pruned_before == today() - 5 * DAY
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
    await whole(admin)


async def test_what_charges_a_window_that_begins_later_is_not_pruned(path, admin):
    """A clock was ahead: the entry is old, and its window is not."""
    then = time.time() - 9 * DAY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries.time, "time", lambda: then)
        async with opened(path, clock=lambda: then + 8 * DAY) as ledger:
            await ledger.charge([(0, b"a", TENTH)])
    assert await admin.prune(today() - 5 * DAY) == 0
    await whole(admin)


async def test_a_broken_chain_is_not_pruned(path, admin):
    await past(path, 9)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE charges SET hash = zeroblob(32) WHERE seq = 1")
        connection.commit()
    with pytest.raises(LedgerError, match=r"chain [0-9a-f]{32} is broken, so it is not pruned: entry 1"):
        await admin.prune(today() - 5 * DAY)
    assert [e.at for e in await logged(admin)]


async def test_many_entries_are_pruned_in_parts(path, admin, monkeypatch):
    monkeypatch.setattr(admin_module, "_PRUNED_AT_ONCE", 2)
    for _ in range(5):
        await past(path, 9)
    many = len(await logged(admin))
    assert await admin.prune(today() - 5 * DAY) == many
    await whole(admin)
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
    await whole(admin)


# An older copy


async def older(path):
    """A ledger in whose place there is a copy that lacks a commit."""
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", TENTH), (2, b"a", TENTH)])
    copy = shutil.copy2(path, path.with_name("copy.db"))
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 9 * TENTH)])
    shutil.copy2(path, path.with_name("newest.db"))
    shutil.copy2(copy, path)


@pytest.mark.parametrize("how", ["ahead", "missing", "foreign"])
async def test_going_on_with_an_older_copy_spends_nothing_twice(path, admin, how):
    await older(path)
    if how == "missing":
        rollback_guard.path_of(path).unlink()
    elif how == "foreign":
        rollback_guard.path_of(path).write_bytes(os.urandom(24))
    for work in (admin.grant("unit", bytes(16), 1, ""), admin.prune(1), admin.migrate()):
        with pytest.raises(LedgerError, match="accept --help"):
            await work
    assert await admin.accept("the disk died, says A. Admin") == ("life",)
    (accepted,) = [entry for entry in await logged(admin) if entry.kind is EntryKind.ACCEPT]
    assert (accepted.postings, accepted.note) == ((), "the disk died, says A. Admin")
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError) as caught:
            await ledger.charge([(0, b"a", 1)])
        assert DAY < caught.value.retry_after <= 2 * DAY
        (account,) = await ledger.accounts("unit")
        assert account.window_start == today() + DAY
    await whole(admin)
    with pytest.raises(LedgerError, match="nothing to accept"):
        await admin.accept("again")
    if how == "ahead":  # the file that was given up is the older one now
        shutil.copy2(path.with_name("newest.db"), path)
        with pytest.raises(LedgerError, match="older copy"):
            async with opened(path):
                pass


async def test_nobody_skips_a_window_by_accident(path, admin):
    with pytest.raises(LedgerError, match="there is no ledger"):
        await admin.accept("?")
    async with opened(path):
        pass
    rollback_guard.path_of(path).unlink()  # nothing was ever committed
    with pytest.raises(LedgerError, match="nothing to accept"):
        await admin.accept("?")
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1)])
        with pytest.raises(LedgerError, match="nothing to accept"):
            await admin.accept("?")
        await ledger.charge([(0, b"a", 1)])
        assert (await ledger.accounts())[0].window_start == today()
    async with opened(path):
        pass


async def test_an_older_copy_that_shows_nothing_is_accepted_by_who_knows(path, admin):
    """As when the witness was put back, too."""
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", TENTH), (2, b"a", TENTH)])
    with pytest.raises(LedgerError, match="--unnoticed"):
        await admin.accept("a checkpoint says so")
    assert await admin.accept("a checkpoint says so", unnoticed=True) == ("life",)
    (accepted,) = [entry for entry in await logged(admin) if entry.kind is EntryKind.ACCEPT]
    assert accepted.note == "a checkpoint says so"
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        (account,) = await ledger.accounts("unit")
        assert (account.window_start, account.spent) == (today() + DAY, AMOUNT)
    await whole(admin)


@pytest.mark.parametrize("how", ["ahead", "missing"])
async def test_an_accept_that_is_interrupted_spends_nothing_twice(path, admin, monkeypatch, how):
    await older(path)
    if how == "missing":
        rollback_guard.path_of(path).unlink()

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rollback_guard, "remake", fails)
        with pytest.raises(LedgerError, match="No space left"):
            await admin.accept("?")
    if how == "missing":  # the windows have moved, and whoever opens it has still to be told
        with pytest.raises(LedgerError, match="is missing"):
            async with opened(path):
                pass
        assert await admin.accept("!") == ("life",)
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        assert (await ledger.accounts("unit"))[0].window_start > today()


async def test_an_accept_is_refused_while_the_witness_can_not_be_used(path, admin):
    await older(path)
    rollback_guard.path_of(path).unlink()
    rollback_guard.path_of(path).mkdir()
    with pytest.raises(LedgerError, match="witness is not a plain file"):
        await admin.accept("?")
    assert not [entry for entry in await logged(admin) if entry.kind is EntryKind.ACCEPT]


# Upgrades


ACCOUNTS = [
    (BUDGETS[0], b"a" * 16, 1000 * DAY, TENTH),
    (BUDGETS[2], b"a" * 16, 0, AMOUNT),
    (BUDGETS[2], b"b" * 16, 0, 0),
]


@pytest.mark.parametrize("version", [1, 2])
async def test_an_old_ledger_is_brought_up_to_date(path, admin, version):
    old_ledgers.make(path, version, ACCOUNTS)
    async with admin.view() as view:  # it can be read as it is
        assert (await view.chains(), [e async for e in view.entries()], view.pruned_before) == ([], [], 0)
        viewed = [account async for account in view.accounts()]
        assert [(a.spent, a.granted, a.lifetime) for a in viewed] == [
            (TENTH, 0, TENTH),
            (AMOUNT, 0, AMOUNT),
            (0, 0, 0),
        ]
        (finding,) = await verify(view)
        assert "dpmesh ledger migrate" in finding
    assert os.listdir(path.parent) == ["ledger.db"]
    assert await admin.migrate() == (version, 5)
    assert await admin.migrate() == (5, 5)
    assert inspect(f"sqlite:///{path}").accounts == tuple(viewed)
    (opening,) = await logged(admin)
    assert (opening.kind, opening.note) == (EntryKind.OPENING, "")
    assert sorted(line.amount for line in opening.postings) == [TENTH, AMOUNT]
    await whole(admin)
    async with opened(path, clock=lambda: 1000.5 * DAY) as ledger:
        assert ledger.secret == old_ledgers.SECRET
        await ledger.charge([(0, b"a", AMOUNT)])
    await whole(admin)


@pytest.mark.parametrize("version", [1, 2])
def test_several_who_bring_it_up_to_date_at_once(path, version):
    old_ledgers.make(path, version, ACCOUNTS)

    def process(which):
        async def run():
            if which % 2:
                await SQLiteAdmin(path).migrate()
            async with opened(path, clock=lambda: 1000.5 * DAY) as ledger:
                await ledger.charge([(2, bytes([which]), 7), (1, b"", 3)])

        asyncio.run(run())

    for child in [children.start(lambda which=which: process(which)) for which in range(6)]:
        children.finish(child)

    async def check():
        entries = await logged(SQLiteAdmin(path))
        assert [entry.kind for entry in entries].count(EntryKind.OPENING) == 1
        await whole(SQLiteAdmin(path))

    asyncio.run(check())
    snapshot = inspect(f"sqlite:///{path}")
    assert {(a.account, a.lifetime) for a in snapshot.accounts if a.budget == "life"} >= {
        ((b"a" * 16).hex(), AMOUNT)
    }
    assert sum(a.lifetime for a in snapshot.accounts if a.budget == "life") == AMOUNT + 6 * 7


async def test_an_upgrade_to_version_3_that_fails_changes_nothing(path, admin, monkeypatch):
    old_ledgers.make(path, 2, ACCOUNTS)
    before = inspect(f"sqlite:///{path}")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "LOG", schema.LOG + "CREATE TABLE charges (name)")
        with pytest.raises(LedgerError):
            await admin.migrate()
    assert inspect(f"sqlite:///{path}") == before
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT schema_version FROM meta").fetchone() == (2,)
    assert await admin.migrate() == (2, 5)
    await whole(admin)


async def test_a_ledger_of_version_3_gets_keys_of_epochs_and_keeps_what_is_spent(path, admin):
    async with opened(path, clock=lambda: 1000.5 * DAY) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE epochs; UPDATE meta SET schema_version = 3")
    before = inspect(f"sqlite:///{path}").accounts
    async with opened(path, clock=lambda: 1000.5 * DAY) as ledger:
        await ledger.hold_keys([DAY])
        assert ledger.epoch_key(DAY).number == 1000
    assert inspect(f"sqlite:///{path}").accounts == before
    assert await admin.migrate() == (5, 5)
    await whole(admin)


async def test_a_ledger_is_made_where_there_is_none(path, admin):
    assert await admin.migrate() == (0, 5)
    await whole(admin)
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1)])
    assert await admin.migrate() == (5, 5)


async def test_what_is_no_ledger_is_not_touched(path, admin):
    for content in (b"", b"garbage" * 1000):
        path.write_bytes(content)
        for work in (
            admin.migrate(),
            admin.grant("unit", bytes(16), 1, ""),
            admin.prune(1),
            admin.accept("?"),
        ):
            with pytest.raises(LedgerError, match=r"ledger\.db is (not )?an SQLite database"):
                await work
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["ledger.db"]


# Reading on the side


async def test_a_view_is_of_one_moment(path, admin):
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1)])
        async with admin.view() as view:
            before = [account async for account in view.accounts()], await view.chains()
            await ledger.charge([(0, b"a", 1), (1, b"", 1)])
            await ledger.charge([(0, b"b", 1)])
            assert ([account async for account in view.accounts()], await view.chains()) == before
            assert len([entry async for entry in view.entries()]) == before[1][0].head.seq
            assert await verify(view) == []
    await whole(admin)


async def test_a_ledger_at_rest_that_is_opened_meanwhile_is_read_again(path, admin):
    async with opened(path) as ledger:
        await asyncio.gather(*[ledger.charge([(0, i.to_bytes(4, "big"), 1)]) for i in range(3000)])
    with pytest.raises(ReadAgainError, match="read it again"):
        async with admin.view() as view:
            once = True
            async for _ in view.accounts():
                if once:
                    async with opened(path) as ledger:
                        await ledger.charge([(1, b"", 1)])
                once = False
    with pytest.raises(ReadAgainError):
        async with admin.view() as view, opened(path):
            await view.chains()


async def test_reading_tries_again_by_itself(path, monkeypatch):
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1)])
    at_rest, faults = view_module._at_rest, [0]

    def unsettled(path):
        faults[0] += 1
        return None if faults[0] == 4 else at_rest(path)

    monkeypatch.setattr(view_module, "_at_rest", unsettled)
    assert len(inspect(f"sqlite:///{path}").accounts) == 1
    assert faults[0] > 4


async def test_it_is_what_a_url_names(path):
    assert open_admin(f"sqlite:///{path}").path == path


@pytest.mark.parametrize(
    ("now", "shown"), [(0.0, "1970-01-01 00:00 UTC"), (2.0**53, "9007199254740992 s since 1970")]
)
def test_whoever_accepts_is_told_what_the_clock_shows(now, shown):
    """It may be the one that is wrong, and to accept by one that is behind refills the present window."""
    assert f"The clock shows {shown}: if that is wrong" in ahead_of_the_clock("it", ["day"], now)
