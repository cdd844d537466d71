"""Holders: processes that charge a ledger at random while a test breaks something, and a check of what came of it.

A holder reports every release through a pipe before it charges again, so whatever is killed, and wherever it stood, the
test knows at least what was released, less the charges that were on their way. `check` compares that with the ledger.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import selectors
import signal
import struct
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from dpmesh.accounting import AMOUNT, Accounting, window_start
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, open_admin
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.charge_log import EntryKind, decode
from dpmesh.ledger.postgres.store import PostgresStore
from dpmesh.ledger.sqlite.store import SQLiteStore
from dpmesh.ledger.store import Store

MARGIN = 2.0
"""Seconds that a holder's event loop may be late on a busy machine, beyond the ledger's own time limit.

What a holder's process did not get to run at all, because the machine or the test had stopped it, is not among them:
the process measures that itself, and `check` adds it.
"""

LARGEST = AMOUNT // 50
"""The most that one charge costs."""

BUDGETS = (
    Budget("unit", "unit", 2.0, 0.0, Accounting.PURE, None),
    Budget("all", "global", 1e6, 0.0, Accounting.PURE, None),
    Budget("short", "unit", 1.0, 0.0, Accounting.PURE, 20),
)
"""A lifetime budget for each unit, one for all that every charge needs, and one whose windows end while a test runs."""

_PULSE = 0.1  # seconds between two looks of a process at how late it is
_SHIFT = 4.0  # seconds after which other accounts are the hot ones, because these are used up
_HEAD = struct.Struct("<BIQddH")


class Event(IntEnum):
    """What a holder reports."""

    OPENED = 1
    UNOPENED = 2
    RELEASED = 3
    EXHAUSTED = 4
    REFUSED = 5
    CLOSED = 6
    FAILED = 7
    CANCELLED = 8
    SAMPLE = 9
    LATE = 10


class Record(NamedTuple):
    """One report.

    Attributes:
        event: What happened.
        unit: Whose charge it was. SAMPLE: how many charges wait for a commit.
        amount: What it cost, from every budget. SAMPLE: the process's memory, in bytes. LATE: for how many nanoseconds
            of the time from `began` to `ended` the process did not run, although it would have.
        began: When the call began, on the machine's monotonic clock.
        ended: When it returned.
        payload: OPENED: the name of the holder's chain. UNOPENED, REFUSED, FAILED: what the error says.
    """

    event: Event
    unit: int
    amount: int
    began: float
    ended: float
    payload: bytes

    @property
    def text(self) -> str:
        return self.payload.decode()


@dataclass(frozen=True)
class Work:
    """What a holder does.

    Attributes:
        url: The ledger.
        seed: Of what it does at random.
        senders: How many charges it makes at a time.
        hot: How many accounts are charged again and again; they change with time, and are the same for all holders.
        cold: How many others there are.
        pause: Seconds between two charges of a sender.
        every: With it charges don't wait for one another: one begins every so many seconds, and there are no senders.
        most: It ends by itself when it has released so many.
        cancel: The share of the charges that are cancelled at a random moment, if they are still under way then.
        timeout: The ledger's; a call of its store may take four fifths of that. A longer one than the default is for
            ledgers that nothing is done to, so that nobody is refused only because the machine is slow.
        budgets: Every charge is charged to all of them.
        make: Makes the ledger; by default as an application does.
    """

    url: str
    seed: int = 1
    senders: int = 8
    hot: int = 3
    cold: int = 2000
    pause: float = 0.004
    every: float | None = None
    most: int | None = None
    cancel: float = 0.0
    timeout: float = 5.0
    budgets: Sequence[Budget] = BUDGETS
    make: Callable[[Work], Ledger] | None = None

    def ledger(self) -> Ledger:
        """A new ledger, not open yet."""
        if self.make is not None:
            return self.make(self)
        return Ledger(self.store(), self.budgets, timeout=self.timeout)

    def store(self) -> Store:
        """Where it keeps debits."""
        if self.url.startswith("sqlite:///"):
            return SQLiteStore(self.url.removeprefix("sqlite:///"), busy_timeout=0.8 * self.timeout)
        return PostgresStore(self.url, timeout=0.8 * self.timeout)

    def charges(self, unit: int, amount: int) -> list[tuple[int, bytes, int]]:
        """What one release is charged to."""
        return [(i, account_key(budget, unit), amount) for i, budget in enumerate(self.budgets)]


def account_key(budget: Budget, unit: int) -> bytes:
    """The key of a unit's account."""
    return b"" if budget.key == "global" else unit.to_bytes(4, "big")


Tell = Callable[[Record], None]


async def hold(work: Work, tell: Tell, stop: asyncio.Event) -> None:
    """Opens the ledger, again until it is let in, charges until it is told to stop, and closes it."""
    ledger = work.ledger()
    while True:
        began = time.monotonic()
        try:
            await ledger.open()
            break
        except LedgerError as error:
            tell(Record(Event.UNOPENED, 0, 0, began, time.monotonic(), str(error).encode()))
            if stop.is_set():
                return
            await asyncio.sleep(random.uniform(0.05, 0.2))
    tell(Record(Event.OPENED, 0, 0, began, time.monotonic(), ledger._store._chain.name))
    sender = _Sender(ledger, work, tell, stop)
    sampling = asyncio.create_task(sender.sample())
    if work.every is None:
        await asyncio.gather(*[sender.send() for _ in range(work.senders)])
    else:
        await sender.pace(work.every)
    sampling.cancel()
    began = time.monotonic()
    await ledger.close()
    tell(Record(Event.CLOSED, 0, 0, began, time.monotonic(), b""))


class _Sender:
    """Makes charges at random, and tells what became of each."""

    def __init__(self, ledger: Ledger, work: Work, tell: Tell, stop: asyncio.Event) -> None:
        self._ledger = ledger
        self._work = work
        self._tell = tell
        self._stop = stop
        self._chance = random.Random(work.seed)
        self._released = 0

    async def send(self) -> None:
        """One charge after the other."""
        while not self._stop.is_set():
            event = await self.charge()
            least = {Event.EXHAUSTED: 0.02, Event.REFUSED: 0.05}.get(event, 0.0)
            await asyncio.sleep(max(self._work.pause, least))

    async def pace(self, every: float) -> None:
        """A charge each time, whatever became of the others."""
        under_way: set[asyncio.Task[Event]] = set()
        while not self._stop.is_set():
            task = asyncio.create_task(self.charge())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(every)
        await asyncio.gather(*under_way)

    async def sample(self) -> None:
        """Tells once in a while how much waits, and how much memory that takes."""
        while True:
            now = time.monotonic()
            with open("/proc/self/statm") as file:
                memory = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
            self._tell(Record(Event.SAMPLE, len(self._ledger._queue._waiting), memory, now, now, b""))
            await asyncio.sleep(0.5)

    async def charge(self) -> Event:
        """One charge, of an account that may be hot."""
        chance, work = self._chance, self._work
        unit = chance.randrange(work.cold)
        if work.hot and chance.random() < 0.7:
            unit = 1_000_000 + int(time.monotonic() / _SHIFT) * work.hot + chance.randrange(work.hot)
        amount = chance.randint(1, LARGEST)
        patience = chance.expovariate(1 / 0.005) if chance.random() < work.cancel else None
        began = time.monotonic()
        event, payload = Event.RELEASED, b""
        try:
            async with asyncio.timeout(patience):
                await self._ledger.charge(work.charges(unit, amount))
        except BudgetExhaustedError:
            event = Event.EXHAUSTED
        except LedgerError as error:
            event, payload = Event.REFUSED, str(error).encode()
        except TimeoutError:
            event = Event.CANCELLED
        self._tell(Record(event, unit, amount, began, time.monotonic(), payload))
        if event is Event.RELEASED:
            self._released += 1
            if self._released == work.most:
                self._stop.set()
        return event


@dataclass
class Report:
    """What one holder reported.

    Attributes:
        work: What it was told to do.
        records: In order.
        killed: Whether it was killed, and may have had charges on their way.
    """

    work: Work
    records: list[Record] = field(default_factory=list)
    killed: bool = False

    def of(self, *events: Event) -> list[Record]:
        """The records of some kinds."""
        return [record for record in list(self.records) if record.event in events]

    @property
    def chain(self) -> bytes | None:
        """The name of its chain, if it ever opened the ledger."""
        return next((record.payload for record in self.of(Event.OPENED)), None)

    @property
    def closed(self) -> bool:
        return any(record.event is Event.CLOSED for record in reversed(self.records))


class Holder(Report):
    """A process that holds leases. `Crew.start` makes it.

    Attributes:
        pid: Its number.
        ended: Set when its reports have come to their end, which is when the process has.
    """

    def __init__(self, work: Work, pid: int, pipe: int) -> None:
        super().__init__(work)
        self.pid = pid
        self.pipe = pipe
        self.ended = threading.Event()
        self._rest = b""
        self._reaped = False

    def take(self, data: bytes) -> None:
        """Takes what came through the pipe."""
        data = self._rest + data
        at = 0
        while len(data) - at >= _HEAD.size:
            event, unit, amount, began, ended, size = _HEAD.unpack_from(data, at)
            if len(data) - at < _HEAD.size + size:
                break
            payload = data[at + _HEAD.size : at + _HEAD.size + size]
            self.records.append(Record(Event(event), unit, amount, began, ended, payload))
            at += _HEAD.size + size
        self._rest = data[at:]

    def kill(self) -> None:
        """Kills it where it stands."""
        self.killed = True
        os.kill(self.pid, signal.SIGKILL)
        assert self.join(60) == -signal.SIGKILL, f"a holder died by itself: {self.failure()}"

    def stop(self, timeout: float = 90.0) -> None:
        """Has it close its ledger in order and end; fails if it can't."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.join(timeout) == 0, self.failure()

    def join(self, timeout: float) -> int:
        """Waits for its end; returns its exit code, negative for a signal."""
        assert self.ended.wait(timeout), f"holder {self.pid} does not end"
        self._reaped = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def failure(self) -> str:
        """What it says if it failed by itself."""
        return "; ".join(record.text for record in self.of(Event.FAILED)) or "it does not say why"

    def put_away(self) -> None:
        """Ends it, however it does."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reaped = True
            os.waitpid(self.pid, 0)


class Crew:
    """Holders and what they report; a thread reads it, whatever the test is doing. Leaving it ends them all."""

    def __init__(self) -> None:
        self.holders: list[Holder] = []
        self._selector = selectors.DefaultSelector()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="reports", daemon=True)

    def __enter__(self) -> Crew:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for holder in self.holders:
            holder.put_away()
        self._closing = True
        self._thread.join(60)
        self._selector.close()

    def start(self, *works: Work) -> list[Holder]:
        """Forks a holder for each."""
        started = []
        for work in works:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _be_holder(work, writer)
            os.close(writer)
            holder = Holder(work, pid, reader)
            self.holders.append(holder)
            started.append(holder)
            with self._lock:
                self._selector.register(reader, selectors.EVENT_READ, holder)
        return started

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Waits for something that the reports are to show; returns how long that took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
            for holder in self.holders:
                assert holder.killed or not holder.of(Event.FAILED), holder.failure()
            time.sleep(0.02)
        return time.monotonic() - began

    def wait_released(self, seconds: float = 40.0, holders: Iterable[Holder] | None = None) -> float:
        """Waits until each holder has released something that it began to charge after now."""
        now = time.monotonic()
        running = [each for each in (self.holders if holders is None else holders) if not each.ended.is_set()]
        return self.wait(
            lambda: all(
                any(r.event is Event.RELEASED and r.began > now for r in reversed(list(each.records)[-2000:]))
                for each in running
            ),
            seconds,
            "every holder is served",
        )

    def stop(self) -> None:
        """Has all that run close their ledgers in order."""
        running = [holder for holder in self.holders if not holder._reaped]
        for holder in running:
            os.kill(holder.pid, signal.SIGTERM)
        for holder in running:
            assert holder.join(90) == 0, holder.failure()

    def _read(self) -> None:
        while not self._closing:
            with self._lock:
                ready = self._selector.select(0)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data.take(data)
                    continue
                with self._lock:
                    self._selector.unregister(key.fd)
                os.close(key.fd)
                key.data.ended.set()
            if not ready:
                time.sleep(0.005)


def _be_holder(work: Work, pipe: int) -> None:
    """What a forked child does; it never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with the test's process
        _isolate(pipe)
        tell = _through(pipe)
        threading.Thread(target=feel_pulse, args=(tell,), name="pulse", daemon=True).start()

        async def run() -> None:
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            await hold(work, tell, stop)

        try:
            asyncio.run(run())
            code = 0
        except BaseException:
            now = time.monotonic()
            tell(Record(Event.FAILED, 0, 0, now, now, traceback.format_exc()[-3000:].encode()))
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def _isolate(pipe: int) -> None:
    """Lets go of the parent's files: a socket that is still open in a child is not closed for its peer.

    Their numbers stay taken, so nobody who closes one later closes another file.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number not in (pipe, null):
            with suppress(OSError):
                os.fstat(number)
                os.dup2(null, number)


def feel_pulse(tell: Tell) -> None:
    """Tells when this process did not run. A thread of its own: an event loop that is kept busy or waits is no excuse."""
    before = time.monotonic()
    while True:
        time.sleep(_PULSE)
        now = time.monotonic()
        late = now - before - _PULSE
        if late > _PULSE:
            tell(Record(Event.LATE, 0, int(late * 1e9), before, now, b""))
        before = now


def _through(pipe: int) -> Tell:
    def tell(record: Record) -> None:
        payload = record.payload[:3000]
        head = _HEAD.pack(*record[:5], len(payload))
        os.write(pipe, head + payload)

    return tell


# The check


@dataclass
class Tally:
    """What a check found, for a test to look at and to tell.

    Attributes:
        released: How many charges were released.
        exhausted: How many found no budget.
        cancelled: How many were cancelled under way.
        refused: How many the ledger could not answer, by the error's text.
        slowest: The longest that a charge took, in seconds.
        waste: For each holder that is gone, budget, account and window: what is debited and was not released.
        slices: For the same, the largest amount that was debited at once.
        entries: How many entries the charge log has.
    """

    released: int = 0
    exhausted: int = 0
    cancelled: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    waste: dict[tuple[bytes, str, str, int], int] = field(default_factory=dict)
    slices: dict[tuple[bytes, str, str, int], int] = field(default_factory=dict)
    entries: int = 0

    def __str__(self) -> str:
        share = max((waste for waste in self.waste.values()), default=0) / AMOUNT
        return (
            f"{self.released} released, {self.exhausted} exhausted, {sum(self.refused.values())} refused, "
            f"{self.cancelled} cancelled, slowest {self.slowest:.2f} s, {self.entries} entries, largest waste {share:.4f}"
        )


def check(
    url: str,
    reports: Iterable[Report],
    *,
    faults: int = 0,
    limit: float | None = None,
    lost: bool = False,
    windows: bool = True,
) -> Tally:
    """Compares what holders reported with the ledger; they may be at work, and may be dead.

    Args:
        url: The ledger, whose charge log was not pruned.
        reports: Of all who ever charged it.
        faults: How many commits a holder may have that took effect and were not acknowledged; each wastes what it
            debited.
        limit: The longest that a charge may take, in seconds; by default the ledger's limit and a margin. What the
            holder's process did not run for meanwhile is added.
        lost: Whether holders may say that the ledger has lost charges.
        windows: Whether the ledger's clock is this machine's, which tells the window that paid for a release. If not,
            releases are compared with what is debited in all windows together.
    """
    # First what was released, then the ledger, which goes on.
    seen = [(report, list(report.records)) for report in reports]
    return asyncio.run(_check(url, seen, faults, limit, lost, windows))


async def _check(
    url: str,
    seen: Sequence[tuple[Report, list[Record]]],
    faults: int,
    limit: float | None,
    lost: bool,
    windows: bool,
) -> Tally:
    tally = Tally()
    offset = time.time() - time.monotonic()
    async with open_admin(url).view() as view:
        found = await verify(view)
        assert not found, found
        accounts = [account async for account in view.accounts()]
        entries = [(written.chain, decode(written.body)) async for written in view.entries()]
        budgets, secret = dict(view.budgets), view.secret
    tally.entries = len(entries)
    for account in accounts:
        assert 0 <= account.spent <= account.cap + account.granted, account

    # What each chain debited: (budget's name, account, window) -> net, and the largest at once.
    net: dict[bytes, Counter[tuple[str, str, int]]] = defaultdict(Counter)
    largest: dict[bytes, Counter[tuple[str, str, int]]] = defaultdict(Counter)
    granted: Counter[tuple[str, str, int]] = Counter()
    for chain, entry in entries:
        for line in entry.postings:
            where = budgets[line.budget].name, line.account.hex(), line.window
            if entry.kind is EntryKind.GRANT:
                granted[where] += line.amount
                continue
            net[chain][where] += line.amount
            largest[chain][where] = max(largest[chain][where], line.amount)
    debited: Counter[tuple[str, str, int]] = Counter()
    for sums in net.values():
        debited.update(sums)
    caps = {budget.name: budget.cap for budget in budgets.values()}
    for where, amount in debited.items():
        assert 0 <= amount <= caps[where[0]] + granted[where], (where, amount)

    names: dict[tuple[bytes, bytes], str] = {}

    def name_of(key: bytes) -> str:
        if (secret, key) not in names:
            names[secret, key] = account_hash(secret, key).hex()
        return names[secret, key]

    released: Counter[tuple[str, str, int]] = Counter()  # in this window for certain
    total: Counter[tuple[str, str]] = Counter()  # in all windows
    for report, records in seen:
        chain = next((r.payload for r in records if r.event is Event.OPENED), None)
        stops = [r for r in records if r.event is Event.LATE]
        own: Counter[tuple[str, str]] = Counter()
        cancelled: Counter[tuple[str, str]] = Counter()
        for record in records:
            if record.event is Event.FAILED:
                assert report.killed, record.text
            _check_time(report, record, limit, stops, tally)
            if record.event in (Event.REFUSED, Event.UNOPENED):
                tally.refused[record.text] += 1
                assert lost or "lost charges" not in record.text, record.text
            elif record.event is Event.EXHAUSTED:
                tally.exhausted += 1
            elif record.event is Event.CANCELLED:
                tally.cancelled += 1
                for budget in report.work.budgets:
                    cancelled[budget.name, name_of(account_key(budget, record.unit))] += record.amount
            elif record.event is Event.RELEASED:
                tally.released += 1
                for budget in report.work.budgets:
                    account = budget.name, name_of(account_key(budget, record.unit))
                    own[account] += record.amount
                    # What is paid around the end of a window can belong to either.
                    first = window_start(record.began + offset - 0.5, budget.window)
                    last = window_start(record.ended + offset + 0.5, budget.window)
                    if first == last and (windows or budget.window is None):
                        released[*account, first] += record.amount
        total.update(own)
        if chain is None:
            assert not own, "a holder released before it had opened the ledger"
            continue
        # Who did not run for long gives up on what was committed meanwhile.
        long = sum(stop.amount >= report.work.timeout / 4 * 1e9 for stop in stops)
        _check_waste(report, chain, own, cancelled, net[chain], largest[chain], faults + long, tally)
    for where, amount in released.items():
        assert amount <= debited[where], f"{where}: {amount} released, {debited[where]} debited"
    everything: Counter[tuple[str, str]] = Counter()
    for (budget, account, _), amount in debited.items():
        everything[budget, account] += amount
    for where, amount in total.items():
        assert amount <= everything[where], f"{where}: {amount} released, {everything[where]} debited"
    return tally


def _check_time(
    report: Report, record: Record, limit: float | None, stops: Sequence[Record], tally: Tally
) -> None:
    if record.event in (Event.RELEASED, Event.EXHAUSTED, Event.REFUSED, Event.UNOPENED):
        took = record.ended - record.began
        tally.slowest = max(tally.slowest, took)
        most = report.work.timeout + MARGIN if limit is None else limit
        if took <= most:
            return
        stopped = sum(
            stop.amount for stop in stops if stop.began < record.ended and stop.ended > record.began
        )
        assert took <= most + stopped / 1e9, (
            f"{record.event.name} after {took:.2f} s, {stopped / 1e9:.2f} of them stopped: {record.text}"
        )


def _check_waste(
    report: Report,
    chain: bytes,
    own: Counter[tuple[str, str]],
    cancelled: Counter[tuple[str, str]],
    net: Counter[tuple[str, str, int]],
    largest: Counter[tuple[str, str, int]],
    faults: int,
    tally: Tally,
) -> None:
    """What a holder that is gone has debited and not released is at most one slice of each account.

    A killed one may also have released what it could no longer report: one charge for each sender. In a window that
    has ended, what is left of a slice is worthless, so that is waste too, at most one slice again. A charge that was
    cancelled may have been debited before.
    """
    if not (report.killed or report.closed):
        return
    by_account: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for (budget, account, window), amount in net.items():
        by_account[budget, account].append((window, amount))
    forever = {budget.name for budget in report.work.budgets if budget.window is None}
    work = report.work
    at_once = LARGEST * (work.senders if work.every is None else int(2 * work.timeout / work.every))
    unreported = at_once if report.killed else 0
    caps = {budget.name: budget.cap for budget in work.budgets}
    for where, windows in by_account.items():
        waste = sum(amount for _, amount in windows) - own[where]
        assert waste >= 0, f"{where}: a holder released {-waste} more than it debited"
        for window, _ in windows:
            assert largest[*where, window] <= at_once + caps[where[0]] // 4, f"{where}: that is no slice"
        most = sum(largest[*where, window] for window, _ in windows)
        tally.waste[chain, *where, windows[-1][0]] = waste
        tally.slices[chain, *where, windows[-1][0]] = most
        if where[0] in forever and report.closed and not faults:
            assert waste <= cancelled[where], f"{where}: {waste} was not returned"
        bound = (1 + faults) * most + unreported + cancelled[where]
        assert waste <= bound, f"{where}: {waste} wasted, more than a slice of {most}"
