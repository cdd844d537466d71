"""Two versions of the software, or of the configuration, on one ledger at the same time."""

from __future__ import annotations

import asyncio
import os
import select
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, open_admin
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.postgres.schema import VERSION
from tests.faults.holders import Event, Work, check
from tests.support import children, old_ledgers

UNIT = Budget("unit", "unit", 1.0, 0.0, Accounting.PURE, None)
LARGER = Budget("unit", "unit", 2.0, 0.0, Accounting.PURE, None)

# What version 2 of the SQLite tables was sent (dpmesh/ledger/sqlite/store.py as of dfd28c7), in the order of its calls.
V2_VERSION = "SELECT * FROM meta"
V2_OPEN = "UPDATE meta SET schema_version = schema_version"
V2_WINDOWS = "SELECT id, window_start FROM budgets"
V2_DEBITED = "SELECT debited FROM accounts WHERE budget = ? AND account = ? AND window_start = ?"
V2_DEBIT = (
    "INSERT INTO accounts (budget, account, window_start, debited) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (budget, account) "
    "DO UPDATE SET window_start = excluded.window_start, debited = excluded.debited"
)
V2_CREDIT = (
    "UPDATE accounts SET debited = debited - :amount WHERE budget = :budget "
    "AND account = :account AND window_start = :window AND :amount BETWEEN 0 AND debited"
)
V2_SPEND = "INSERT INTO spent (name, until) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"


class OldHolder:
    """What version 2 does with an SQLite ledger of one lifetime budget, and what it may release."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=40.0, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA journal_mode = WAL")
        version = self._connection.execute(V2_VERSION).fetchone()[1]
        if version not in (1, 2):
            raise LedgerError(f"written by another version of dpmesh (tables {version}, this one knows 2)")
        self._change(V2_OPEN)
        self.released = self.held = 0

    def charge(self, account: bytes, amount: int, slice_: int) -> None:
        """Pays from what it holds, or debits a slice first."""
        if self.held < amount:
            with_it = self.held + slice_
            self._debit(account, slice_)
            self.held = with_it
        self.held -= amount
        self.released += amount

    def give_back(self, account: bytes) -> None:
        self._change(V2_CREDIT, {"budget": 1, "account": account, "window": 0, "amount": self.held})
        self.held = 0

    def spend(self, name: bytes) -> bool:
        return self._change(V2_SPEND, (name, 1 << 40)) == 1

    def _debit(self, account: bytes, amount: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            list(self._connection.execute(V2_WINDOWS))
            row = self._connection.execute(V2_DEBITED, (1, account, 0)).fetchone()
            self._connection.execute(V2_DEBIT, (1, account, 0, (row[0] if row else 0) + amount))
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._connection.execute("ROLLBACK")
            raise

    def _change(self, statement: str, values: Any = ()) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            count = self._connection.execute(statement, values).rowcount
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._connection.execute("ROLLBACK")
            raise
        return count


async def wrong(url: str) -> list[str]:
    async with open_admin(url).view() as view:
        return await verify(view)


async def opened(url: str, budget: Budget = UNIT) -> Ledger:
    ledger = Work(url, budgets=(budget,), timeout=40.0).ledger()
    await ledger.open()
    return ledger


async def exhaust(ledger: Ledger, unit: bytes, amount: int) -> int:
    """Charges a unit until it is used up; returns how much was released."""
    released = 0
    try:
        while True:
            await ledger.charge([(0, unit, amount)])
            released += amount
            await asyncio.sleep(0)
    except BudgetExhaustedError:
        return released


def test_an_older_version_that_has_the_file_open_is_shut_out(tmp_path):
    """A process of version 2 is at work while version 3 brings its file up to date.

    It releases what it had debited before, and nothing more; neither can it return anything past the charge log, and it
    can't open the file again. Names that it spends count for both, as before. The rest of the unit's budget is version
    3's, and both together release no more than the cap.
    """
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    name = account_hash(old_ledgers.SECRET, b"a")
    old_ledgers.make(path, 2, [(UNIT, name, 0, AMOUNT // 10)])
    steps, ready = os.pipe(), os.pipe()

    def old() -> tuple[int, list[str], list[bool]]:
        holder = OldHolder(str(path))
        holder.charge(name, AMOUNT // 20, AMOUNT // 5)
        os.write(ready[1], b".")
        os.read(steps[0], 1)
        texts, spent = [], [holder.spend(b"n" * 32), holder.spend(b"n" * 32)]
        holder.charge(name, AMOUNT // 20, 0)  # what it holds already
        before = holder.released
        for call in (
            lambda: holder.charge(name, AMOUNT // 2, AMOUNT // 2),
            lambda: holder.charge(b"b" * 16, AMOUNT, AMOUNT),
            lambda: holder.give_back(name),
            lambda: OldHolder(str(path)),
        ):
            try:
                call()
            except (sqlite3.Error, LedgerError) as error:
                texts.append(str(error))
            else:
                texts.append("")
        assert holder.released == before
        return holder.released, texts, spent

    child = children.start(old)
    assert select.select([ready[0]], [], [], 120)[0], "the child has failed"

    async def run() -> int:
        ledger = await opened(url)
        os.write(steps[1], b".")
        released = await exhaust(ledger, b"a", AMOUNT // 40)
        old_released, texts, spent = await asyncio.to_thread(children.finish, child)
        assert spent == [True, False]
        assert not await ledger.redeem_once(b"n" * 32, 1e10)
        assert "cap" in texts[0]
        assert "cap" in texts[1]
        assert "brought up to date while in use" in texts[2]
        assert "another version" in texts[3]
        (account,) = await ledger.accounts()
        await ledger.close()
        assert account.spent == AMOUNT // 10 + AMOUNT // 5 + released
        assert AMOUNT // 10 + old_released + released <= UNIT.cap
        return released

    assert asyncio.run(run()) == (AMOUNT - AMOUNT // 10 - AMOUNT // 5) // (AMOUNT // 40) * (AMOUNT // 40)
    assert asyncio.run(wrong(url)) == []


def test_tables_of_a_newer_version_are_not_opened(postgres, make_ledger, tmp_path):
    """This version opens no ledger of a newer one, says what to do, and changes nothing."""
    path = tmp_path / "ledger.db"
    asyncio.run(_use(f"sqlite:///{path}"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET schema_version = 6")
    kept = path.read_bytes()
    for call in (opened(f"sqlite:///{path}"), open_admin(f"sqlite:///{path}").migrate()):
        with pytest.raises(
            LedgerError, match=r"another version of dpmesh \(tables 6, this one knows 5\): use that"
        ):
            asyncio.run(call)
    assert path.read_bytes() == kept
    url = make_ledger(postgres)
    asyncio.run(_use(url))
    database = url.rpartition("/")[2]
    postgres.execute(f"UPDATE dpmesh.ledger SET version = {VERSION + 1}", database)
    with pytest.raises(
        LedgerError, match=r"another version of dpmesh .* run `dpmesh ledger migrate` with the newest"
    ):
        asyncio.run(opened(url))
    with pytest.raises(LedgerError, match="newer version of dpmesh"):
        asyncio.run(open_admin(url).migrate())
    with pytest.raises(LedgerError, match="run `dpmesh ledger migrate` with the newest dpmesh"):
        asyncio.run(wrong(url))
    assert postgres.execute("SELECT version FROM dpmesh.ledger", database) == str(VERSION + 1)


async def _use(url: str) -> None:
    ledger = await opened(url)
    await ledger.charge([(0, b"a", 1)])
    await ledger.close()


RENAMED = "ALTER FUNCTION dpmesh.debit RENAME TO debit_2; ALTER FUNCTION dpmesh.credit RENAME TO credit_2;"
RENAMED_BACK = (
    "ALTER FUNCTION dpmesh.debit_2 RENAME TO debit; ALTER FUNCTION dpmesh.credit_2 RENAME TO credit;"
)


@pytest.mark.parametrize(
    ("newer", "older", "refused"),
    [
        # Another body: it may as well be served.
        (
            "ALTER FUNCTION dpmesh.debit SET work_mem = '8MB';",
            "ALTER FUNCTION dpmesh.debit RESET work_mem;",
            False,
        ),
        # Other calls: version 1's are not there any more.
        (RENAMED, RENAMED_BACK, True),
        # Another answer.
        (
            "ALTER TYPE dpmesh.answer ADD ATTRIBUTE more bigint;",
            "ALTER TYPE dpmesh.answer DROP ATTRIBUTE more;",
            False,
        ),
        # Another column that has to be given.
        (
            "ALTER TABLE dpmesh.accounts ADD COLUMN more bigint NOT NULL DEFAULT 1; "
            "ALTER TABLE dpmesh.accounts ALTER COLUMN more DROP DEFAULT;",
            "ALTER TABLE dpmesh.accounts DROP COLUMN more;",
            True,
        ),
    ],
    ids=["body", "renamed", "answer", "column"],
)
def test_a_newer_migration_under_holders_at_work(crew, postgres, make_ledger, newer, older, refused):
    """The functions of a PostgreSQL ledger change while holders of this version are at work.

    They are served as before or refused, never wrongly; and served again if the change is taken back.
    """
    url = make_ledger(postgres)
    database = url.rpartition("/")[2]
    crew.start(*[Work(url, seed=i) for i in range(3)])
    crew.wait_released()
    postgres.execute(f"BEGIN; {newer} UPDATE dpmesh.ledger SET version = {VERSION + 1}; COMMIT;", database)
    changed = time.monotonic()
    if refused:
        crew.wait(
            lambda: all(any(r.began > changed for r in each.of(Event.REFUSED)) for each in crew.holders),
            40,
            "all are refused",
        )
    else:
        crew.wait_released()
        time.sleep(0.5)
    postgres.execute(f"BEGIN; {older} UPDATE dpmesh.ledger SET version = {VERSION}; COMMIT;", database)
    served = crew.wait_released()
    crew.stop()
    tally = check(url, crew.holders, faults=1)
    print(f"served after {served:.1f} s: {tally}")
    print(tally.refused)


@pytest.mark.parametrize(
    ("newer", "older", "refused"),
    [
        ("UPDATE meta SET schema_version = 6", "UPDATE meta SET schema_version = 5", False),
        ("ALTER TABLE accounts RENAME TO accounts_4", "ALTER TABLE accounts_4 RENAME TO accounts", True),
        (
            "ALTER TABLE charges RENAME COLUMN body TO entry",
            "ALTER TABLE charges RENAME COLUMN entry TO body",
            True,
        ),
        ("ALTER TABLE accounts ADD COLUMN more INTEGER", "ALTER TABLE accounts DROP COLUMN more", False),
    ],
    ids=["number", "table", "column", "more"],
)
def test_newer_tables_under_holders_of_an_sqlite_file(crew, tmp_path, newer, older, refused):
    """The tables of an SQLite file change while holders of this version are at work.

    They are served as before or refused, never wrongly; nobody of this version opens it meanwhile; and they are served
    again if the change is taken back.
    """
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    crew.start(*[Work(url, seed=i, timeout=40.0) for i in range(3)])
    crew.wait_released()
    _execute(path, "UPDATE meta SET schema_version = 6", newer)
    changed = time.monotonic()
    with pytest.raises(LedgerError, match=r"not a dpmesh ledger|use that version"):
        asyncio.run(opened(url))
    if refused:
        crew.wait(
            lambda: all(any(r.began > changed for r in each.of(Event.REFUSED)) for each in crew.holders),
            40,
            "all are refused",
        )
    else:
        crew.wait_released()
    _execute(path, older, "UPDATE meta SET schema_version = 5")
    served = crew.wait_released()
    crew.stop()
    tally = check(url, crew.holders)
    assert bool(tally.refused) == refused
    print(f"served after {served:.1f} s: {tally}")
    print(tally.refused)


def _execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, timeout=40.0, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_holders_with_different_caps(kind, request, tmp_path):
    """During a roll-out one process has a cap of 1, the other of 2, on the same accounts.

    From when on the smaller one is known, it holds for both. The total never exceeds the larger, in whichever order they
    come.
    """
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
    else:
        url = request.getfixturevalue("make_ledger")(request.getfixturevalue("postgres"))
    units = [b"%d" % i for i in range(12)]

    def process(budget: Budget, order: list[bytes]) -> dict[bytes, int]:
        async def run() -> dict[bytes, int]:
            ledger = await opened(url, budget)
            found = dict.fromkeys(order, 0)
            for _ in range(2):  # what others returned meanwhile
                for unit in order:
                    found[unit] += await exhaust(ledger, unit, AMOUNT // 37)
            await ledger.close()
            return found

        return asyncio.run(run())

    started = [
        children.start(lambda budget=budget, order=order: process(budget, order))
        for budget in (UNIT, LARGER)
        for order in (units, units[::-1])
    ]
    released = [children.finish(child) for child in started]
    for unit in units:
        each = [found[unit] for found in released]
        assert max(each[:2]) <= UNIT.cap
        assert UNIT.cap - AMOUNT // 37 < sum(each) <= LARGER.cap
    asyncio.run(_settle(url, units, released))
    assert asyncio.run(wrong(url)) == []


async def _settle(url: str, units: list[bytes], released: list[dict[bytes, int]]) -> None:
    ledger = await opened(url, LARGER)
    spent = {account.account: account.spent for account in await ledger.accounts()}
    for unit in units:
        assert spent[account_hash(ledger.secret, unit).hex()] == sum(found[unit] for found in released)
    await ledger.close()
    ledger = await opened(url, UNIT)
    for unit in units:
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, unit, AMOUNT // 37)])
    await ledger.close()
