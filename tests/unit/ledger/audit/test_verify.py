"""Verification: every kind of tampering is named, and a healthy ledger has nothing to hide."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time

import pytest

from dpmesh import sqlite_file
from dpmesh.errors import BudgetExhaustedError
from dpmesh.ledger import Ledger, account_hash
from dpmesh.ledger.audit.checkpoint import checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import EntryKind, Posting, begin, encode, link
from dpmesh.ledger.sqlite import queries
from dpmesh.ledger.sqlite.admin import SQLiteAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore
from tests.contract.suite import AMOUNT, BUDGETS, DAY, TENTH, Clock
from tests.support import children, old_ledgers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@contextlib.asynccontextmanager
async def opened(path, now=None):
    store = SQLiteStore(path, busy_timeout=60.0)
    ledger = Ledger(store, BUDGETS, clock=time.time if now is None else Clock(now), timeout=120.0)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def findings(path, known=None):
    async with SQLiteAdmin(path).view() as view:
        return await verify(view, known)


async def taken(path):
    async with SQLiteAdmin(path).view() as view:
        return await checkpoint(view)


async def make(path):
    """A ledger of two chains, several windows, and a grant; returns unit a's hash."""
    now = time.time()
    for chain in range(2):
        async with opened(path, now - 3 * DAY + chain) as ledger:
            for unit in (b"a", b"b", b"c"):
                await ledger.charge([(0, unit, TENTH), (2, unit, TENTH), (1, b"", 5)])
        async with opened(path, now) as ledger:
            for unit in (b"a", b"b"):
                await ledger.charge([(0, unit, 2 * TENTH), (1, b"", 5)])
    name = account_hash(ledger.secret, b"a")
    await SQLiteAdmin(path).grant("unit", name, TENTH, "why")
    return name


def change(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0
        connection.commit()


async def test_a_healthy_ledger(path):
    await make(path)
    assert await findings(path) == []


LONGEST = "(SELECT id FROM chains ORDER BY seq DESC, id LIMIT 1)"


def longest(path):
    """The longest chain's name in hex, and its length."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT lower(hex(name)), seq FROM chains WHERE id = {LONGEST}").fetchone()


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (
            [f"UPDATE charges SET body = zeroblob(13) WHERE chain = {LONGEST} AND seq = 2"],
            "entry 2 was altered",
        ),
        (
            [f"UPDATE charges SET hash = zeroblob(32) WHERE chain = {LONGEST} AND seq = 2"],
            "entry 2 was altered",
        ),
        ([f"DELETE FROM charges WHERE chain = {LONGEST} AND seq = 1"], "entry 1 is missing"),
        ([f"DELETE FROM charges WHERE chain = {LONGEST} AND seq = 2"], "entry 2 is missing"),
        ([f"DELETE FROM charges WHERE chain = {LONGEST} AND seq = {{last}}"], "entry {last} is missing"),
        (
            [
                f"UPDATE charges SET seq = 100 WHERE chain = {LONGEST} AND seq = 1",
                f"UPDATE charges SET seq = 1 WHERE chain = {LONGEST} AND seq = 2",
                f"UPDATE charges SET seq = 2 WHERE chain = {LONGEST} AND seq = 100",
            ],
            "entry 1 was altered",
        ),
        ([f"UPDATE chains SET hash = zeroblob(32) WHERE id = {LONGEST}"], "entry {last} is not the last one"),
        ([f"UPDATE chains SET seq = seq + 1 WHERE id = {LONGEST}"], "entry {more} is missing"),
        ([f"UPDATE chains SET seq = seq - 1 WHERE id = {LONGEST}"], "is not the last one"),
        ([f"UPDATE chains SET pruned_hash = zeroblob(32) WHERE id = {LONGEST}"], "its beginning was altered"),
        ([f"UPDATE chains SET pruned_seq = 1 WHERE id = {LONGEST}"], "none was ever pruned"),
        (
            [
                f"DELETE FROM charges WHERE chain = {LONGEST} AND seq = 1",
                f"UPDATE chains SET pruned_seq = 1 WHERE id = {LONGEST}",
            ],
            "none was ever pruned",
        ),
    ],
)
async def test_a_chain_that_was_tampered_with(path, statements, expected):
    await make(path)
    name, last = longest(path)
    change(path, *[statement.format(last=last) for statement in statements])
    assert any(
        found.startswith(f"chain {name}: ") and expected.format(last=last, more=last + 1) in found
        for found in await findings(path)
    )


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("debited = debited - 1", "debited is"),
        ("debited = debited + 1", "debited is"),
        ("granted = granted + 1", "granted is"),
        ("lifetime = lifetime - 1", "debited in all windows is"),
        ("lifetime = lifetime + 1", "debited in all windows is"),
        ("window_start = window_start + 86400", "its window began at"),
        ("window_start = window_start - 86400", "its window began at"),
    ],
)
async def test_an_account_that_was_altered(path, what, expected):
    name = await make(path)
    where = f"WHERE account = x'{name.hex()}' AND budget = (SELECT id FROM budgets WHERE name = 'unit')"
    change(path, f"UPDATE accounts SET {what} {where}")
    (found,) = await findings(path)
    assert found.startswith(f"account {name.hex()} of budget 'unit': ")
    assert expected in found


async def test_an_account_that_was_added_or_removed(path):
    name = await make(path)
    change(path, "INSERT INTO accounts VALUES (1, x'00112233445566778899aabbccddeeff', 0, 1, 5, 0, 1)")
    (found,) = await findings(path)
    assert found.startswith("account 00112233445566778899aabbccddeeff of budget ")
    assert "no entry of the charge log is about it" in found
    change(path, "DELETE FROM accounts WHERE account = x'00112233445566778899aabbccddeeff'")
    assert await findings(path) == []
    change(path, f"DELETE FROM accounts WHERE account = x'{name.hex()}'")
    found = await findings(path)
    assert len(found) == 2  # of two budgets
    assert all(name.hex() in text and "it is gone, and the charge log has entries" in text for text in found)


async def test_a_budget_that_was_removed(path):
    name = await make(path)
    change(path, "DELETE FROM budgets WHERE name = 'life'")
    assert any(f"account {name.hex()} of budget number" in text for text in await findings(path))


async def test_a_chain_that_was_removed_shows_in_its_accounts(path):
    await make(path)
    change(path, f"DELETE FROM charges WHERE chain = {LONGEST}", f"DELETE FROM chains WHERE id = {LONGEST}")
    found = await findings(path)
    assert found
    assert all(text.startswith("account ") for text in found)


async def test_a_charge_log_that_was_removed(path):
    await make(path)
    change(path, "DELETE FROM charges", "DELETE FROM chains")
    (found,) = await findings(path)
    assert "no charge log" in found


async def test_entries_of_a_chain_without_an_end(path):
    await make(path)

    class Bare:
        """A view whose chains lack one."""

        def __init__(self, view):
            self.view = view

        def __getattr__(self, name):
            return getattr(self.view, name)

        async def chains(self):
            return (await self.view.chains())[1:]

    async with SQLiteAdmin(path).view() as view:
        gone = (await view.chains())[0].name.hex()
        assert f"chain {gone}: has entries, and no end" in await verify(Bare(view))


async def test_one_break_is_told_once_and_the_rest_is_still_checked(path):
    name = await make(path)
    change(path, f"UPDATE charges SET hash = zeroblob(32) WHERE chain = {LONGEST} AND seq = 1")
    (found,) = await findings(path)
    assert "entry 1 was altered" in found
    change(
        path, f"UPDATE accounts SET lifetime = lifetime + 1 WHERE account = x'{name.hex()}' AND budget = 1"
    )
    assert len(await findings(path)) == 2


# Healthy ledgers with a life behind them


async def test_an_odometer_that_can_not_count_further(path):
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        name = account_hash(ledger.secret, b"a")
        huge = 2**63 - 1
        chain = bytes(16)
        connection = ledger._store._connection
        with sqlite_file.transaction(connection):
            queries.write_entry(
                connection, chain, begin(chain), EntryKind.OPENING, [Posting(1, name, 0, huge)]
            )
            connection.execute("UPDATE accounts SET lifetime = ?", (huge,))
    assert await findings(path) == []


def count(path):
    """How many chains there are."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM chains").fetchone()[0]
        except sqlite3.OperationalError:  # not upgraded yet
            return 0


def test_a_ledger_that_was_upgraded_shared_and_killed(path):
    """Processes charge, move on to new windows, are killed, and leave nothing that would look like tampering."""
    now = time.time() - 10 * DAY
    accounts = [(BUDGETS[2], bytes([i]) * 16, 0, 1000 + i) for i in range(5)]
    old_ledgers.make(path, 2, [*accounts, (BUDGETS[0], b"o" * 16, int(now) // DAY * DAY - DAY, TENTH)])

    def process(seed):
        chance = random.Random(seed)
        clock = Clock(now)

        async def run():
            ledger = Ledger(SQLiteStore(path, busy_timeout=60.0), BUDGETS, clock=clock, timeout=120.0)
            await ledger.open()

            async def sender():
                while True:
                    unit, cost = bytes([chance.randrange(20)]), chance.randint(1, AMOUNT // 30)
                    clock.now += chance.choice([0, 0, 0, 600, -300])
                    with contextlib.suppress(BudgetExhaustedError):
                        await ledger.charge([(0, unit, cost), (1, b"", cost), (2, unit, cost)])
                    if chance.random() < 0.01:
                        ledger._queue._rotate()

            await asyncio.gather(*[sender() for _ in range(5)])

        asyncio.run(run())

    def closing(seed):
        async def run():
            async with opened(path, now + seed * DAY) as ledger:
                for _ in range(5):
                    await ledger.charge([(0, b"x", 7), (2, b"x", 7)])

        asyncio.run(run())

    for round_ in range(4):
        before = count(path)
        holders = [children.start(lambda seed=10 * round_ + i: process(seed)) for i in range(2)]
        children.run(lambda seed=round_: closing(seed))
        time.sleep(0.2)
        end = time.monotonic() + 60
        while count(path) < before + 3:  # both have charged, and go on
            assert time.monotonic() < end
            time.sleep(0.05)
        for pid, pipe in holders:
            os.kill(pid, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
            os.close(pipe)

    async def check():
        known = await taken(path)
        assert len(known.heads) >= 12
        assert await findings(path, known) == []
        await SQLiteAdmin(path).prune(int(time.time()) - 2 * DAY)
        assert await findings(path) == []
        async with opened(path) as ledger:
            await ledger.charge([(0, b"x", 7), (2, b"x", 7)])
        assert await findings(path) == []

    asyncio.run(check())


@pytest.mark.parametrize(
    "what", ["debited = debited - 1", "lifetime = 1", "window_start = window_start - 86400"]
)
async def test_a_pruned_ledger_still_shows_an_account_that_was_lowered(path, what):
    """Of a window whose entries are all left. An odometer may show more than the rest adds up to, never less."""
    with pytest.MonkeyPatch.context() as patch:
        then = time.time() - 9 * DAY
        patch.setattr(time, "time", lambda: then)
        async with opened(path, then) as ledger:
            await ledger.charge([(0, b"a", TENTH)])
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
        name = account_hash(ledger.secret, b"a")
    assert await SQLiteAdmin(path).prune(int(time.time()) - 5 * DAY) == 1
    assert await findings(path) == []
    change(path, f"UPDATE accounts SET {what}")
    (found,) = await findings(path)
    assert found.startswith(f"account {name.hex()} of budget 'unit': ")


# Checkpoints


async def test_a_checkpoint_holds_while_the_ledger_grows(path):
    await make(path)
    known = await taken(path)
    async with opened(path) as ledger:
        await ledger.charge([(0, b"a", 1), (0, b"new", 1)])
        middle = await taken(path)
        await ledger.charge([(0, b"b", 1), (0, b"newer", 1)])
        assert await findings(path, middle) == []
    assert await findings(path, middle) == await findings(path, known) == []


async def test_a_ledger_that_was_restored_shows(path):
    await make(path)
    shutil.copy2(path, path.with_name("copy.db"))
    async with opened(path) as ledger:
        await ledger.charge([(0, b"new", 1)])
    known = await taken(path)
    shutil.copy2(path.with_name("copy.db"), path)
    assert await findings(path) == []  # it is whole
    (found,) = await findings(path, known)
    assert "it is gone, and at the checkpoint it had 1 entries" in found
    await SQLiteAdmin(path).accept("no backup was newer")
    assert await findings(path) == []
    assert await findings(path, known) == [found]  # what was accepted is not forgotten
    assert await findings(path, await taken(path)) == []


def rewrite(path, keep):
    """Rewrites the longest chain consistently, with its accounts: a unit's debits were never made."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        row, name, last = connection.execute(
            f"SELECT id, name, seq FROM chains WHERE id = {LONGEST}"
        ).fetchone()
        entries = connection.execute(
            "SELECT body FROM charges WHERE chain = ? ORDER BY seq", (row,)
        ).fetchall()
        connection.execute("DELETE FROM charges WHERE chain = ?", (row,))
        head = begin(name)
        for number, (body,) in enumerate(entries[: len(entries) - (not keep)]):
            new = encode(EntryKind.DEBIT, 1, []) if number == len(entries) - 1 else body
            head = link(head, new)
            connection.execute("INSERT INTO charges VALUES (?, ?, 1, ?, ?)", (row, head.seq, new, head.hash))
        connection.execute("UPDATE chains SET seq = ?, hash = ? WHERE id = ?", (*head, row))
        connection.commit()
    return name.hex(), last


@pytest.mark.parametrize("keep", [True, False])
async def test_a_ledger_that_was_rewritten_consistently_shows(path, keep):
    async with opened(path) as ledger:
        for unit in (b"a", b"b", b"c"):
            await ledger.charge([(0, unit, TENTH)])
        gone = account_hash(ledger.secret, b"c")
    known = await taken(path)
    name, last = rewrite(path, keep)
    change(path, f"DELETE FROM accounts WHERE account = x'{gone.hex()}'")
    assert await findings(path) == []
    (found,) = await findings(path, known)
    assert found.startswith(f"chain {name}: ")
    if keep:
        assert f"entry {last} is not the one that was there at the checkpoint" in found
    else:
        assert f"it has {last - 1} entries, and at the checkpoint it had {last}" in found


async def test_a_checkpoint_of_another_ledger(path):
    await make(path)
    await make(path.with_name("other.db"))
    assert await findings(path, await taken(path.with_name("other.db"))) == [
        "the checkpoint is of another ledger"
    ]


async def test_a_checkpoint_and_pruning(path):
    with pytest.MonkeyPatch.context() as patch:
        then = time.time() - 9 * DAY
        patch.setattr(time, "time", lambda: then)
        async with opened(path, then) as ledger:
            await ledger.charge([(0, b"a", 1)])
            old = await taken(path)
            await ledger.charge([(0, b"b", 1)])
    known = await taken(path)
    assert await SQLiteAdmin(path).prune(int(time.time()) - 5 * DAY) == 2
    assert await findings(path) == await findings(path, known) == []
    (found,) = await findings(path, old)
    assert "entry 1 was pruned, so this checkpoint can't tell" in found
