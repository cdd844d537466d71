"""An SQLite ledger is moved to PostgreSQL while holders are at work, processes are killed, and servers are full or down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Ledger, account_hash, open_admin, open_store
from dpmesh.ledger.audit.checkpoint import Checkpoint, checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.import_sqlite import transfer
from dpmesh.ledger.postgres import admin as admin_module
from dpmesh.ledger.postgres.admin import PostgresAdmin
from tests.faults.holders import BUDGETS, Event, Work, check
from tests.support import children, disk
from tests.support.postgres import Server

KILLS = 40
MODULE = sys.modules[transfer.__module__]
TRACED = (
    "dpmesh/ledger/import_sqlite.py",
    "dpmesh/sqlite_file.py",
    "dpmesh/ledger/sqlite/queries.py",
    "dpmesh/ledger/sqlite/schema.py",
    "dpmesh/ledger/sqlite/rollback_guard.py",
)


async def content(url: str) -> dict[str, Any]:
    """All that a ledger holds, and what is wrong with it."""
    async with open_admin(url).view() as view:
        return {
            "secret": view.secret,
            "budgets": view.budgets,
            "accounts": [account async for account in view.accounts()],
            "chains": await view.chains(),
            "entries": [entry async for entry in view.entries()],
            "wrong": await verify(view),
        }


async def wrong_since(url: str, mark: Checkpoint) -> list[str]:
    async with open_admin(url).view() as view:
        return await verify(view, mark)


async def mark_of(url: str) -> Checkpoint:
    async with open_admin(url).view() as view:
        return await checkpoint(view)


def moved(path: Path) -> str | None:
    """Where an SQLite ledger was moved."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT moved FROM ledger").fetchone()[0]


@pytest.fixture
def filled(crew, tmp_path):
    """Makes a ledger that holders have used; returns its URL."""

    def fill(name: str = "filled", seconds: float = 0.5) -> str:
        path = tmp_path / name / "ledger.db"
        url = f"sqlite:///{path}"
        started = crew.start(*[Work(url, seed=i) for i in range(2)])
        crew.wait_released()
        time.sleep(seconds)
        for holder in started:
            holder.stop()
        return url

    return fill


def test_holders_at_work_lose_nothing_and_gain_nothing(crew, postgres, make_ledger, tmp_path):
    """The file is moved under the hands of its holders, one of which is killed just before.

    They are refused afterwards, with a text that says what to do. What they held counts as spent. Holders of the new
    place go on where they stopped, and for both together nothing is released that isn't debited there.
    """
    url, target = f"sqlite:///{tmp_path}/ledger.db", make_ledger(postgres)
    old = crew.start(*[Work(url, seed=i, pause=0.001, timeout=40.0) for i in range(4)])
    crew.wait_released()
    time.sleep(1.0)
    mark = asyncio.run(mark_of(url))
    old.pop().kill()
    done = asyncio.run(transfer(url, target))
    began = time.monotonic()
    assert not done.again
    new = crew.start(*[Work(target, seed=10 + i) for i in range(2)])
    crew.wait(
        lambda: all(any(r.began > began for r in holder.of(Event.REFUSED)) for holder in old),
        40,
        "all holders of the file are refused",
    )
    texts = {r.text for holder in old for r in holder.of(Event.REFUSED)}
    assert texts == {"the ledger was imported into another while in use: restart with ledger.url set to that"}
    crew.wait_released(holders=new)
    # The old ones can't return what they hold: that is the one commit that each of them lacks.
    for holder in old:
        holder.stop()
    served = crew.wait_released(holders=new)
    for holder in new:
        holder.stop()
    tally = check(target, crew.holders, faults=1)
    assert asyncio.run(wrong_since(target, mark)) == []
    print(f"moved {done}, served after {served:.1f} s: {tally}")


def test_a_transfer_that_is_killed_is_done_again(crew, postgres, filled, tmp_path):
    """Forty transfers are killed with -9, at random lines and at random moments, and done again until one gets through.

    At no time are both open. In the end everything is in PostgreSQL exactly once, and the file is closed; what was
    charged in the file between two attempts is there too.
    """
    chance = random.Random(8)
    first = Path(filled().removeprefix("sqlite:///"))
    template = postgres.create_database()
    asyncio.run(PostgresAdmin(postgres.url(template)).migrate())
    name = account_hash(asyncio.run(content(f"sqlite:///{first}"))["secret"], b"again")
    seen: Counter[str] = Counter()
    round_ = kills = 0
    while kills < KILLS:
        round_ += 1
        path = tmp_path / f"copy-{round_}" / "ledger.db"
        shutil.copytree(first.parent, path.parent)
        source, target = f"sqlite:///{path}", postgres.url(postgres.create_database(template=template))
        mark = asyncio.run(mark_of(source))
        charged = 0
        while True:
            way = chance.choice(["moment", "line", "line", "commit", "after"])
            how = DYING[way](chance)
            child = children.start(
                lambda source=source, target=target, how=how: _transfer(source, target, how)
            )
            if way == "moment":
                time.sleep(chance.uniform(0, 0.25))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child[0], signal.SIGKILL)
            os.close(child[1])
            _, status = os.waitpid(child[0], 0)
            killed = os.WIFSIGNALED(status)
            kills += killed
            arrived = _settled(postgres, target)
            closed = moved(path) is not None
            assert closed or not arrived, "both are open"
            seen[
                ("arrived" if arrived else "closed" if closed else "open") + (", killed" if killed else "")
            ] += 1
            if not closed:
                charged += asyncio.run(_charge(source))
            if not killed or chance.random() < 0.5:
                break
        expected = asyncio.run(content(source))
        done = asyncio.run(transfer(source, target))
        assert done.again == arrived
        assert asyncio.run(content(target)) == expected
        assert expected["wrong"] == []
        assert asyncio.run(wrong_since(target, mark)) == []
        assert moved(path) is not None
        spent = {(a.budget, a.account): a.lifetime for a in expected["accounts"]}
        assert spent.get(("unit", name.hex()), 0) == charged
        assert asyncio.run(transfer(source, target)).again
        postgres.drop_database(target.rpartition("/")[2])
    postgres.drop_database(template)
    assert {"arrived, killed", "closed, killed", "open, killed"} <= set(seen), seen
    print(f"{kills} kills of {round_} transfers: {dict(seen)}")


def _transfer(source: str, target: str, dying: Callable[[], None]) -> None:
    dying()
    asyncio.run(transfer(source, target))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_a_line(chance: random.Random) -> Callable[[], None]:
    """It kills itself before it runs so many lines of the code that transfers."""
    left = int(10 ** chance.uniform(0, 2.8))

    def line(frame: Any, event: str, _: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left <= 0:
            _die()
        return line

    return lambda: sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.endswith(TRACED) else None)


def _at_commit(chance: random.Random) -> Callable[[], None]:
    """It kills itself when it is about to commit in PostgreSQL, or while it does, or just afterwards."""
    seconds = chance.uniform(0, 0.006)

    def dying() -> None:
        copy = MODULE._copy

        async def copied(into: Any, table: str, rows: Any) -> int:
            if table == "spent":
                threading.Timer(seconds, _die).start()
            return await copy(into, table, rows)

        MODULE._copy = copied

    return dying


def _afterwards(_: random.Random) -> Callable[[], None]:
    """It kills itself when everything has arrived, before it knows."""

    def dying() -> None:
        change = PostgresAdmin.change
        calls = 0

        async def changed(self: PostgresAdmin, work: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            done = await change(self, work, **more)
            return done if calls == 1 else _die()

        PostgresAdmin.change = changed

    return dying


DYING: dict[str, Callable[[random.Random], Callable[[], None]]] = {
    "moment": lambda _: lambda: None,
    "line": _at_a_line,
    "commit": _at_commit,
    "after": _afterwards,
}


def _settled(server: Server, target: str) -> bool:
    """Whether the ledger arrived, once what a killed client left behind on the server has come to its end."""
    database = target.rpartition("/")[2]
    for _ in range(1000):
        if server.execute(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'") == "0":
            break
        time.sleep(0.01)
    return server.execute("SELECT count(*) FROM dpmesh.imports", database) == "1"


async def _charge(url: str) -> int:
    """Charges a file that is open, once; returns how much."""
    ledger = Ledger(open_store(url), BUDGETS)
    await ledger.open()
    await ledger.charge([(0, b"again", 1000)])
    await ledger.close()
    return 1000


def test_a_target_that_is_full_or_down(filled, monkeypatch):
    """A server whose disk is full, or that is killed meanwhile, takes nothing; what was moved halfway is moved again.

    The file is open as long as nothing can have arrived. When the server is back, the same transfer gets through.
    """
    monkeypatch.setattr(admin_module, "_TIMEOUT", 60.0)
    source = filled("full", 2.0)
    path = Path(source.removeprefix("sqlite:///"))
    texts: list[str] = []
    outcomes: Counter[str] = Counter()
    with disk.small_disk(150) as folder, Server(folder=folder) as server:
        target = server.url(server.create_database())
        asyncio.run(PostgresAdmin(target).migrate())
        server.stop()
        with pytest.raises(LedgerError) as refused:
            asyncio.run(transfer(source, target))
        texts.append(str(refused.value))
        assert moved(path) is None
        asyncio.run(_charge(source))
        server.start()
        pristine = shutil.copytree(path.parent, path.parents[1] / "pristine")
        disk.fill(folder)
        expected = asyncio.run(content(source))["entries"]
        if _refused(source, target, texts):
            assert moved(path) in (None, PostgresAdmin(target).address)
        disk.free(folder)
        if not server.running:  # it can't go on without room for its log
            server.start()
        asyncio.run(transfer(source, target))
        assert asyncio.run(content(target))["entries"] == expected
        chance = random.Random(9)
        for number in range(8):
            copy = path.parents[1] / f"killed-{number}" / path.name
            shutil.copytree(pristine, copy.parent)
            there, target = f"sqlite:///{copy}", server.url(server.create_database())
            asyncio.run(PostgresAdmin(target).migrate())
            child = children.start(lambda there=there, target=target: _slowly(there, target))
            time.sleep(chance.uniform(0.05, 0.4))
            server.kill()
            server.start()
            with contextlib.suppress(AssertionError):
                children.finish(child)
            arrived = _settled(server, target)
            outcomes["arrived" if arrived else "closed" if moved(copy) else "open"] += 1
            assert moved(copy) or not arrived
            assert asyncio.run(transfer(there, target)).again == arrived
            found = asyncio.run(content(target))
            assert found["entries"] == expected
            assert found["wrong"] == []
            assert moved(copy) is not None
    print(dict(outcomes), *texts, sep="\n")


def _refused(source: str, target: str, texts: list[str]) -> bool:
    """Transfers; returns whether that was refused, and notes why."""
    try:
        asyncio.run(transfer(source, target))
    except LedgerError as error:
        texts.append(str(error))
        return True
    return False


def _slowly(source: str, target: str) -> None:
    """A transfer that takes some time for each table."""
    copy = MODULE._copy

    async def copied(into: Any, table: str, rows: Any) -> int:
        await asyncio.sleep(0.05)
        return await copy(into, table, rows)

    MODULE._copy = copied
    asyncio.run(transfer(source, target))


def test_who_goes_on_in_postgresql_finds_what_was_spent(postgres, make_ledger, tmp_path):
    """A unit that is used up stays used up, one that is half used has the other half, and windows don't move back.

    The file's holders had a clock that is a day ahead of the server's.
    """
    url, target = f"sqlite:///{tmp_path}/ledger.db", make_ledger(postgres)
    cap = BUDGETS[2].cap

    async def run() -> None:
        ledger = Ledger(open_store(url), BUDGETS, clock=lambda: time.time() + 86_400)
        await ledger.open()
        await ledger.charge([(2, b"used up", cap), (2, b"half", cap // 2), (0, b"half", cap // 2)])
        await ledger.close()
        windows = {(a.budget, a.account): a.window_start for a in (await content(url))["accounts"]}
        await transfer(url, target)
        ledger = Ledger(open_store(target), BUDGETS)
        await ledger.open()
        for unit, amount in ((b"used up", 1), (b"half", cap - cap // 2 + 1)):
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(2, unit, amount)])
        await ledger.charge([(2, b"half", cap - cap // 2), (0, b"half", 5)])
        accounts = {(a.budget, a.account): a for a in await ledger.accounts()}
        await ledger.close()
        assert {where: accounts[where].window_start for where in windows} == windows
        half = account_hash(ledger.secret, b"half").hex()
        assert accounts["short", half].spent == cap
        assert accounts["unit", half].lifetime == cap // 2 + 5
        assert (await content(target))["wrong"] == []

    asyncio.run(run())
