"""An older copy of an SQLite ledger is put in its place: at rest, under holders at work, and at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, open_admin, open_store
from dpmesh.ledger.audit.checkpoint import Checkpoint, checkpoint
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.sqlite import rollback_guard
from tests.faults.holders import BUDGETS, Crew, Event, Work, check
from tests.faults.test_sqlite_kills import dying_at_line
from tests.support import children

DAY = 86_400
NOON = 20_000 * DAY + DAY // 2
DAILY = Budget("daily", "unit", 1.0, 0.0, Accounting.PURE, DAY)
LIFETIME = Budget("lifetime", "unit", 3.0, 0.0, Accounting.PURE, None)
LOGS = ("-wal", "-shm")
NOTICED = (
    "older copy",
    "lost charges",
    "replaced while in use",
    "was removed while in use",
    "is damaged",
    "is empty",
    "older copy than the log",
)
# Of a file that cp has emptied and not yet written.
HALFWAY = ("is not an SQLite database", "but not a dpmesh ledger")


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def remove_logs(path: Path) -> None:
    for suffix in LOGS:
        beside(path, suffix).unlink(missing_ok=True)


def by_sqlite(source: Path, target: Path) -> None:
    """A copy as SQLite makes it; also over a file that is in use."""
    with contextlib.closing(sqlite3.connect(source)) as a, contextlib.closing(sqlite3.connect(target)) as b:
        a.backup(b)


def by_cp(source: Path, target: Path, *, log: bool) -> None:
    """A copy as cp makes it, over what is there."""
    shutil.copyfile(source, target)
    if log and beside(source, "-wal").exists():
        shutil.copyfile(beside(source, "-wal"), beside(target, "-wal"))


def by_cp_at_work(source: Path, target: Path, *, log: bool) -> None:
    """As `by_cp`, of a file in use, and again if that caught SQLite while it copied the log into the file.

    What it makes then may be no older copy but a damaged file, which is not what is tested here.
    """
    for _ in range(100):
        by_cp(source, target, log=log)
        place = target.with_name("look")
        place.mkdir()
        by_cp(target, place / target.name, log=log)
        with contextlib.closing(sqlite3.connect(place / target.name)) as connection:
            try:
                (found,) = connection.execute("PRAGMA integrity_check").fetchone()
            except sqlite3.DatabaseError as error:
                found = str(error)
        shutil.rmtree(place)
        if found == "ok":
            return
    raise AssertionError(f"no copy is whole: {found}")


def round_of(path: Path) -> bytes:
    """What changes when the log begins anew: the number and the salts in its header."""
    return beside(path, "-wal").read_bytes()[12:24]


def commits_without_log(path: Path) -> int:
    """How many commits the file has by itself; -1 while SQLite copies the log into it."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            return connection.execute("SELECT commits FROM ledger").fetchone()[0]
    except sqlite3.DatabaseError:
        return -1


def commits_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT commits FROM ledger").fetchone()[0]


def more_commits(crew: Crew, path: Path) -> None:
    """Waits until something was committed and acknowledged that is not there yet."""
    before = commits_of(path)
    crew.wait(lambda: commits_of(path) > before, 40, "the ledger grows")
    crew.wait_released()


async def wrong(path: Path, mark: Checkpoint | None = None) -> list[str]:
    async with open_admin(f"sqlite:///{path}").view() as view:
        return await verify(view, mark)


async def open_and_close(path: Path, budgets: Sequence[Budget] = BUDGETS) -> None:
    ledger = Ledger(open_store(f"sqlite:///{path}"), budgets)
    await ledger.open()
    await ledger.close()


def refusal(path: Path, budgets: Sequence[Budget] = BUDGETS) -> str:
    """Why nobody may open it: the same for holders and administrators, and again and again; or nothing."""
    texts = []
    for holder in (True, False, True):
        try:
            asyncio.run(open_and_close(path, budgets) if holder else open_admin(f"sqlite:///{path}").prune(0))
        except LedgerError as error:
            texts.append(str(error))
        else:
            texts.append("")
    assert len({text == "" for text in texts}) == 1, texts
    return texts[0]


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("taken", ["at rest", "by SQLite", "with its log", "without its log"])
def test_an_older_copy_is_refused_when_it_is_opened(crew, tmp_path, taken, end):
    """A copy is refused however it was taken, and the newest file is served again when it is put back.

    It was taken at rest, or while holders were at work: by SQLite, or by cp, with its write-ahead log or without.
    Afterwards the holders went on, and closed the file or were killed, which leaves a log.
    """
    path, copy, newest = (tmp_path / name / "ledger.db" for name in ("used", "copy", "newest"))
    url = f"sqlite:///{path}"
    copy.parent.mkdir()
    works = [Work(url, seed=i) for i in range(2)]
    crew.start(*works)
    crew.wait_released()
    if taken == "at rest":
        crew.stop()
        by_cp(path, copy, log=True)
        crew.start(*works)
        crew.wait_released()
    elif taken == "by SQLite":
        by_sqlite(path, copy)
    else:
        by_cp_at_work(path, copy, log=taken == "with its log")
    more_commits(crew, path)
    if end == "closed":
        crew.stop()
    else:
        for holder in crew.holders:
            if not holder.ended.is_set():
                holder.kill()
    shutil.copytree(path.parent, newest.parent)
    path.unlink()
    remove_logs(path)
    by_cp(copy, path, log=True)
    assert "older copy" in refusal(path)
    path.unlink()
    remove_logs(path)
    by_cp(newest, path, log=True)
    assert refusal(path) == ""
    check(url, crew.holders)


@pytest.mark.parametrize("log", ["kept", "removed"])
def test_an_older_copy_under_the_log_that_killed_holders_left(crew, tmp_path, log):
    """Whoever restores a file and leaves the log of the newer one beside it gets neither the one nor the other.

    SQLite would read the newest pages from the log and all others from the copy, and the last commit's number is among
    the newest. It is refused before SQLite sees it, again and again, and with the log removed it is an older copy.
    """
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    crew.start(*[Work(f"sqlite:///{path}", seed=i, pause=0.0, hot=0, cold=20_000) for i in range(2)])
    crew.wait_released()
    by_cp_at_work(path, copy, log=False)
    copied = commits_without_log(copy)
    crew.wait(lambda: commits_without_log(path) > copied, 90, "the log is copied into the file")
    # Until then it continues the copy as well.
    before = round_of(path)
    crew.wait(lambda: round_of(path) != before, 90, "the log begins anew")
    more_commits(crew, path)
    for holder in crew.holders:
        holder.kill()
    shutil.copytree(tmp_path, tmp_path / "newest")
    by_cp(copy, path, log=False)
    if log == "removed":
        remove_logs(path)
    text = refusal(path)
    assert ("older copy than the log beside it" if log == "kept" else "older copy") in text
    remove_logs(path)
    assert "older copy" in refusal(path)
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copyfile(tmp_path / "newest" / name, tmp_path / name)
    assert refusal(path) == ""
    check(f"sqlite:///{path}", crew.holders)


HOWS = ["by SQLite", "by rename", "by rename, logs removed", "in place", "in place, logs removed"]


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("how", HOWS)
def test_an_older_copy_is_refused_while_holders_have_the_file_open(crew, tmp_path, how, end):
    """Holders at work are refused when an older copy is put in place of their file, and afterwards nobody can open it.

    Whoever writes over a file in use with cp goes past SQLite and its locks, and mixes the copy with the log that the
    holders write. They notice before they copy more of that log into the file; should they miss it, because the log
    was being copied at that moment, then verification finds it. Nothing is ever lost that nobody finds.
    """
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    url = f"sqlite:///{path}"
    crew.start(*[Work(url, seed=i, pause=0.0, hot=0, cold=20_000, timeout=30.0) for i in range(2)])
    crew.wait_released()
    by_sqlite(path, copy)
    began = path.stat().st_mtime_ns
    crew.wait(lambda: path.stat().st_mtime_ns > began, 90, "the log is copied into the file")
    more_commits(crew, path)
    restored = time.monotonic()
    if how == "by SQLite":
        by_sqlite(copy, path)
    elif how.startswith("in place"):
        by_cp(copy, path, log=False)
    else:
        copy.rename(path)
    if how.endswith("logs removed"):
        remove_logs(path)

    def refused() -> Counter[str]:
        return Counter(
            r.text for holder in crew.holders for r in holder.of(Event.REFUSED) if r.began > restored
        )

    if not how.startswith("in place"):
        crew.wait(lambda: bool(refused()), 40, "the holders notice it")
    time.sleep(0.7)
    texts = refused()
    noticed = (*NOTICED, *HALFWAY) if how.startswith("in place") else NOTICED
    assert all(any(words in text for words in noticed) for text in texts), texts
    for holder in crew.holders:
        holder.stop() if end == "closed" else holder.kill()
    if how.startswith("by rename"):
        remove_logs(path)
    if how.startswith("in place"):
        found = asyncio.run(found_wrong(path))
        if not found:  # then it is whole
            check(url, crew.holders, lost=True, faults=1)
        print(how, end, dict(texts), found[:2], sep="\n")
    else:
        assert "older copy" in refusal(path)


def test_a_holder_that_charged_nothing_goes_on_after_an_accept(tmp_path):
    """A restore and an accept under a holder that had charged nothing: it goes on with the copy, after a refusal at most."""
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"

    async def run() -> None:
        idle, busy = (Ledger(open_store(f"sqlite:///{path}"), [DAILY]) for _ in range(2))
        await busy.open()
        await busy.charge([(0, b"a", AMOUNT // 2)])
        by_sqlite(path, copy)
        for first in range(0, 2000, 20):  # so many pages that the log is copied into the file
            charges = [busy.charge([(0, b"%d" % unit, 1)]) for unit in range(first, first + 20)]
            await asyncio.gather(*charges)
        await busy.close()
        await idle.open()
        await idle.redeem_once(b"n" * 32, 1e10)
        by_sqlite(copy, path)
        with pytest.raises(LedgerError, match="older copy"):
            await idle.charge([(0, b"a", 1)])
        await open_admin(f"sqlite:///{path}").accept("restored")
        for _ in range(2):
            with contextlib.suppress(LedgerError):
                await idle.charge([(0, b"b", AMOUNT // 4)])
        await idle.charge([(0, b"b", AMOUNT // 4)])
        await idle.close()
        assert await wrong(path) == []
        await open_and_close(path, [DAILY])

    asyncio.run(run())


async def found_wrong(path: Path) -> list[str]:
    """What opening a ledger and verifying it find."""
    try:
        await open_and_close(path)
        return await wrong(path)
    except LedgerError as error:
        return [str(error)]


def test_only_a_checkpoint_shows_a_copy_that_has_its_witness(tmp_path):
    """Whoever restores the witness together with the file gets a ledger that nothing in the folder tells from the newest.

    The witness can't know: it forgot too. A checkpoint that was kept elsewhere shows it, and verification by that
    checkpoint names each chain that has become shorter.
    """
    path, copy = tmp_path / "used" / "ledger.db", tmp_path / "copy"

    async def run() -> None:
        ledger = Ledger(open_store(f"sqlite:///{path}"), [DAILY])
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT // 2)])
        await ledger.close()
        shutil.copytree(path.parent, copy)
        ledger = Ledger(open_store(f"sqlite:///{path}"), [DAILY])
        await ledger.open()
        await ledger.charge([(0, b"a", AMOUNT // 2)])
        await ledger.close()
        async with open_admin(f"sqlite:///{path}").view() as view:
            mark = await checkpoint(view)
        assert await wrong(path, mark) == []
        shutil.rmtree(path.parent)
        shutil.copytree(copy, path.parent)
        assert await wrong(path) == []
        (found,) = await wrong(path, mark)
        assert "is gone, and at the checkpoint it had" in found

    asyncio.run(run())


@pytest.mark.parametrize("taken", ["at rest", "at work"])
def test_what_was_accepted_spends_nothing_twice_in_a_window(tmp_path, taken):
    """`accept` makes a restored copy usable, from the next window on: the one at hand may have been spent.

    What was released before and afterwards is at most the cap in each window. The odometer and a lifetime budget can't
    know what the copy has forgotten, and the operator is told which budgets those are.
    """
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    url = f"sqlite:///{path}"
    # Noon of tomorrow: windows never move back, so no midnight of the real clock, which `accept` goes by, is between.
    noon = (time.time() // DAY + 1.5) * DAY
    days = 0

    def ledger() -> Ledger:
        return Ledger(open_store(url), [DAILY, LIFETIME], clock=lambda: noon + days * DAY)

    async def exhaust(each: Ledger, released: Counter[int]) -> None:
        with contextlib.suppress(BudgetExhaustedError):
            while True:
                await each.charge([(0, b"a", AMOUNT // 50)])
                (account,) = await each.accounts("daily")
                released[account.window_start] += AMOUNT // 50

    async def run() -> None:
        nonlocal days
        released: Counter[int] = Counter()
        holder = ledger()
        await holder.open()
        await holder.charge([(0, b"a", AMOUNT // 2), (1, b"a", AMOUNT)])
        (account,) = await holder.accounts("daily")
        released[account.window_start] += AMOUNT // 2
        if taken == "at rest":
            await holder.close()
            by_cp(path, copy, log=True)
            await holder.open()
        else:
            by_sqlite(path, copy)
        await exhaust(holder, released)
        await holder.close()
        by_cp(copy, path, log=False)
        with pytest.raises(LedgerError, match="older copy"):
            await holder.open()
        assert await open_admin(url).accept("restored, says an operator") == ("lifetime",)
        for later in (0, 0, 1, 2):
            days = later
            holder = ledger()
            await holder.open()
            await exhaust(holder, released)
            await holder.close()
        assert len(released) == 3
        assert all(amount <= DAILY.cap for amount in released.values()), released
        assert await wrong(path) == []

    asyncio.run(run())


def test_an_accept_that_is_read_along_or_killed(tmp_path):
    """Accepting a restored copy works while somebody reads the ledger, and when it is killed at any line, done again.

    The file is then no older than its log, whatever stayed there. It is usable in the end, or refused until it is
    accepted again; and what was spent in the window at hand is never spent again.
    """
    kept, copy = tmp_path / "kept", tmp_path / "copy.db"

    async def use(path: Path, *amounts: int) -> None:
        ledger = Ledger(open_store(f"sqlite:///{path}"), [DAILY], clock=lambda: NOON + time.time() % 60)
        await ledger.open()
        for amount in amounts:
            await ledger.charge([(0, b"a", amount)])
        await ledger.close()

    def restored(name: str) -> Path:
        path = shutil.copytree(kept, tmp_path / name) / "ledger.db"
        by_cp(copy, path, log=False)
        return path

    def accept(path: Path, lines: int | None = None) -> None:
        if lines is not None:
            dying_at_line(lines)(Work(f"sqlite:///{path}"))
            sys.settrace(threading._trace_hook)
        asyncio.run(open_admin(f"sqlite:///{path}").accept("restored"))

    asyncio.run(use(kept / "ledger.db", AMOUNT // 4))
    shutil.copy(kept / "ledger.db", copy)
    asyncio.run(use(kept / "ledger.db", AMOUNT // 4, AMOUNT // 4, AMOUNT // 4))

    path = restored("read")
    with contextlib.closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ledger").fetchall()
        accept(path)
        asyncio.run(use(path, AMOUNT))
    asyncio.run(use(path))
    assert asyncio.run(wrong(path)) == []

    outcomes: Counter[str] = Counter()
    for lines in range(1, 400, 8):
        path = restored(f"killed-{lines}")
        child = children.start(lambda path=path, lines=lines: accept(path, lines))
        os.close(child[1])
        killed = os.WIFSIGNALED(os.waitpid(child[0], 0)[1])
        text = refusal(path, [DAILY])
        outcomes[f"{'killed' if killed else 'done'}, {'refused' if text else 'accepted'}"] += 1
        if text:
            assert killed
            assert "older copy" in text
            accept(path)
        asyncio.run(use(path, AMOUNT))  # all of the next window, and nothing of this one
        with pytest.raises(BudgetExhaustedError):
            asyncio.run(use(path, 1))
        assert asyncio.run(wrong(path)) == []
    assert set(outcomes) == {"killed, refused", "killed, accepted", "done, accepted"}, outcomes
    print(dict(outcomes))


def test_copies_of_random_moments_are_refused_or_as_new(crew, tmp_path):
    """Copies are taken at random moments while holders work, are killed and close; each is restored at a later one.

    Either nothing had been committed since, and it is served, or it is refused. The newest file, put back, is always
    served, and in the end nothing was released that isn't debited.
    """
    chance = random.Random(5)
    path, newest = tmp_path / "used" / "ledger.db", tmp_path / "newest"
    url = f"sqlite:///{path}"
    outcomes: Counter[str] = Counter()
    copies: list[Path] = []
    for round_ in range(25):
        started = crew.start(
            *[Work(url, seed=10 * round_ + i, senders=4) for i in range(chance.randint(1, 3))]
        )
        if round_ == 0:
            crew.wait_released()
        for number in range(chance.randint(0, 2)):
            time.sleep(chance.uniform(0, 0.1))
            copy = tmp_path / f"copy-{round_}-{number}.db"
            with contextlib.suppress(FileNotFoundError):
                if chance.random() < 0.5:
                    by_sqlite(path, copy)
                else:
                    by_cp(path, copy, log=True)
                copies.append(copy)
        time.sleep(chance.uniform(0, 0.1))
        for holder in started:
            if chance.random() < 0.5:
                holder.kill()
            else:
                # In every other round it has charged something by then, however slow it is.
                event = Event.RELEASED if round_ % 2 else Event.OPENED
                crew.wait(
                    lambda holder=holder, event=event: bool(holder.of(event)), 40, "the holder is at work"
                )
                holder.stop()
        if chance.random() < 0.3:  # a copy that nothing follows
            copy = tmp_path / f"copy-{round_}-last.db"
            by_cp(path, copy, log=True)
            copies.append(copy)
        if not copies:
            continue
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(path.parent, newest)
        copy = chance.choice(copies[-4:])
        behind = _commits_if_whole(newest / path.name) - _commits_if_whole(copy)
        path.unlink()
        remove_logs(path)
        by_cp(copy, path, log=True)
        text = refusal(path)
        if behind > 0:
            assert any(words in text for words in ("older copy", "is damaged")), (text, behind)
        elif behind == 0:
            assert text == ""
        outcomes["refused" if text else "as new"] += 1
        shutil.rmtree(path.parent)
        shutil.copytree(newest, path.parent)
        assert refusal(path) == ""
    check(url, crew.holders)
    assert outcomes["refused"] >= 5, outcomes
    assert outcomes["as new"] >= 1, outcomes
    print(dict(outcomes))


def _commits_if_whole(path: Path) -> int:
    """How many commits a copy holds, read from another copy; -1 if cp took it in the middle of something."""
    place = path.with_name(f"look-{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    by_cp(path, place / path.name, log=True)
    try:
        return commits_of(place / path.name)
    except sqlite3.DatabaseError:
        return -1
    finally:
        shutil.rmtree(place)


def test_the_witness_follows_every_acknowledged_commit(crew, tmp_path):
    """After a kill the witness knows of all commits but those that nobody was told of: one for each dead holder."""
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    for number in range(6):
        holders = crew.start(*[Work(url, seed=10 * number + i) for i in range(2)])
        crew.wait_released(holders=holders)
        for holder in holders:
            holder.kill()
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            name, commits = connection.execute("SELECT witness, commits FROM ledger").fetchone()
        assert commits - 2 <= rollback_guard.seen(path, name) <= commits
    check(url, crew.holders)
