"""PostgresStore: budgets in PostgreSQL, shared by the replicas of a fleet."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
from typing_extensions import override

from dpmesh.accounting import MAX_SECONDS
from dpmesh.errors import LedgerError, LostChargesError
from dpmesh.ledger.budget import Budget, check_adoptable, check_names, check_unchanged, stored_terms
from dpmesh.ledger.charge_log import ChainWriter, EntryKind, Head, Posting, encode, link
from dpmesh.ledger.postgres import queries, schema
from dpmesh.ledger.postgres.connection import Connection, check_url
from dpmesh.ledger.store import (
    Account,
    AccountId,
    Batch,
    EpochKey,
    Opened,
    Outcome,
    Store,
    Window,
    decide,
    first_window,
)

_TRIES = 20
"""How often a batch is decided anew because other holders were faster. Each time, one of them succeeded."""

_DAY = 86_400
_AGAIN = ("40001", "40P01")  # serialization failure, deadlock: nothing was written


def _since_boot() -> float:
    """Seconds that only grow, even while the machine sleeps: a window may end meanwhile."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class PostgresStore(Store):
    """Keeps debits in PostgreSQL, or in a database that speaks its protocol and language.

    A batch is decided on what this holder last knew, and sent in one statement. The statement writes the batch if it
    fits the present state, and the windows in force by the database's clock. If not, it writes nothing and returns that
    state, on which the batch is decided anew. Rows are locked in one order. What has been written is durable, and in
    the charge log, before it is acknowledged. A call that takes too long ends its connection, and counts as spent.

    `dpmesh ledger migrate` makes the tables. The database holds keyed hashes of units, never their ids.

    Args:
        url: "postgresql://user@host:port/database"; to another machine with "?sslmode=verify-full" or another mode.
        timeout: The longest that a call takes, in seconds.
        monotonic: Seconds that only grow. They measure the time since the database's clock was last read.

    Raises:
        ConfigError: The URL does not say how the connection is protected, or is invalid.
    """

    def __init__(
        self, url: str, *, timeout: float = 4.0, monotonic: Callable[[], float] = _since_boot
    ) -> None:
        check_url(url)
        self._charging = Connection(url, timeout)
        self._reading = Connection(url, timeout)
        self.address = self._charging.address
        self._monotonic = monotonic
        self._budgets: tuple[Budget, ...] = ()
        self._rows: list[int] = []  # for each budget, its number in the database
        self._windows: tuple[Window, ...] = ()  # for each budget, what the database told last
        self._chain = ChainWriter()
        self._clock_reading = (0.0, 0.0)  # the database's time, and when it was asked for
        self._prepared: set[int] = set()  # days whose partition of the log exists
        self._failed = False  # whether the last write failed
        self._behind = False  # whether the database lacks what this holder charged
        self._accepted = 0  # losses that were accepted before this holder opened the ledger
        self.clock: Callable[[], float] | None = self._now

    @override
    async def open(self, budgets: Sequence[Budget]) -> Opened:
        check_names(budgets)
        self._budgets = tuple(budgets)
        return await self._charging.call(self._open)

    @override
    async def may_adopt(self, budgets: Sequence[Budget]) -> None:
        await self._reading.call(lambda connection: self._changed(connection, budgets, check_adoptable))

    @override
    async def adopt(self, budgets: Sequence[Budget], now: float) -> tuple[Window, ...]:
        return await self._charging.call(lambda connection: self._adopt(connection, tuple(budgets)))

    @override
    async def debit(self, batch: Batch) -> Outcome:
        self._failed = True
        outcome = await self._charging.call(lambda connection: self._debit(connection, batch))
        self._failed = False
        return outcome

    @override
    async def credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        await self._charging.call(lambda connection: self._credit(connection, windows, unspent))

    @override
    async def redeem_once(self, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
        names, untils = [name for name, _ in redemptions], [until for _, until in redemptions]

        async def redeem(connection: Any) -> Any:
            return await connection.fetchval("SELECT dpmesh.spend_once($1, $2, $3)", now, names, untils)

        fresh = set(await self._reading.call(redeem))
        # A name that the batch holds twice is redeemed by the first.
        return [name in fresh and not fresh.discard(name) for name in names]  # type: ignore[func-returns-value]

    @override
    async def redeemed(self, names: Sequence[bytes]) -> list[bool]:
        async def read(connection: Any) -> list[Any]:
            if await connection.fetchval("SELECT lost FROM dpmesh.ledger"):
                raise self._lost()
            rows: list[Any] = await connection.fetch(queries.REDEEMED, names)
            return rows

        found = {bytes(row["name"]) for row in await self._reading.call(read)}
        return [name in found for name in names]

    @override
    async def epoch_keys(self, now: int, lengths: Sequence[int]) -> list[EpochKey]:
        rows = await self._reading.call(
            lambda connection: connection.fetch(queries.EPOCH_KEYS, self._rows, lengths)
        )
        return [EpochKey(row["number"], bytes(row["key"])) for row in rows]

    @override
    async def accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        async def read(connection: Any) -> list[Account]:
            rows = await connection.fetch(queries.ACCOUNTS, budget, account)
            return [queries.read_account(row) for row in rows]

        return await self._reading.call(read)

    @override
    async def record(self, note: str) -> None:
        await self._charging.call(lambda connection: self._record(connection, note))

    @override
    async def ping(self) -> None:
        async def ask(connection: Any) -> Any:
            if self._failed:  # After a failed write only another write can tell.
                await connection.execute("SELECT dpmesh.probe()")
            sure = self._chain.latest()
            found = await self._found(connection)
            if self._behind or sure == self._chain.latest():  # else a charge has checked the chain meanwhile
                self._chain.check(found, self.address)
                self._behind = False
            return await connection.fetchval("SELECT lost FROM dpmesh.ledger")

        if await self._reading.call(ask):
            raise self._lost()

    @override
    async def close(self) -> None:
        await self._charging.close()
        await self._reading.close()

    @override
    def after_fork_in_child(self) -> None:
        self._charging.after_fork_in_child()
        self._reading.after_fork_in_child()
        self._chain = ChainWriter()

    def _now(self) -> float:
        """The database's time, by its last answer. It may be ahead by the time that the answer took, never behind."""
        read, asked_at = self._clock_reading
        return read + (self._monotonic() - asked_at)

    async def _open(self, connection: Any) -> Opened:
        # Each statement is a transaction of its own: a holder that is cut off between two of them holds no lock.
        await self._ledger(connection)
        if changed := await self._changed(connection, self._budgets, check_unchanged):
            await queries.write_budgets(connection, changed)
            # Another holder may have made them meanwhile, with other terms.
            await self._changed(connection, self._budgets, check_unchanged)
        # Read again after the budgets were written: until then another ledger, with another secret, can be imported.
        ledger = await self._ledger(connection)
        if ledger["accepted"] != self._accepted:
            self._chain = ChainWriter()  # The old chain is not in the copy that was accepted.
        self._accepted = ledger["accepted"]
        self._behind = False
        self._rows, windows = await self._stored(connection, self._budgets)
        self._windows = windows
        asked_at = self._monotonic()
        now = await connection.fetchval("SELECT dpmesh.now()")
        self._note_time({"status": "done" if 0 <= now <= MAX_SECONDS else "clock", "now": now}, asked_at)
        await self._prepare(connection, max(0, math.floor(self._now())) // _DAY)
        return Opened(bytes(ledger["secret"]), windows, await self._others(connection))

    async def _adopt(self, connection: Any, budgets: tuple[Budget, ...]) -> tuple[Window, ...]:
        await self._ledger(connection)
        await self._ask(connection, ())  # begins the windows that are due, under the old terms
        if changed := await self._changed(connection, budgets, check_adoptable):
            await queries.write_budgets(connection, changed)
            await self._changed(connection, budgets, check_unchanged)
        rows, windows = await self._stored(connection, budgets)
        self._budgets, self._rows, self._windows = budgets, rows, windows
        return windows

    async def _stored(
        self, connection: Any, budgets: Sequence[Budget]
    ) -> tuple[list[int], tuple[Window, ...]]:
        """For each budget, its number, and the latest window that was in force."""
        found = await connection.fetch("SELECT name, id, window_start, length, cap FROM dpmesh.budgets")
        rows = {name: (number, Window(*window)) for name, number, *window in found}
        return [rows[budget.name][0] for budget in budgets], tuple(rows[budget.name][1] for budget in budgets)

    async def _others(self, connection: Any) -> tuple[tuple[Budget, int], ...]:
        """Budgets that only the database knows, if anything is spent of them in their latest window."""
        charged = await connection.fetch(queries.OTHERS, [budget.name for budget in self._budgets])
        stored = await queries.read_budgets(connection) if charged else {}
        return tuple((stored[row["id"]], row["window_start"]) for row in charged)

    async def _ledger(self, connection: Any) -> Any:
        """What the database says of the whole ledger; LedgerError if it has another version, or is an older copy."""
        ledger = await connection.fetchrow("SELECT version, secret, lost, accepted FROM dpmesh.ledger")
        if ledger is None or ledger["version"] != schema.VERSION:
            raise LedgerError(
                f"{self.address} holds tables of another version of dpmesh ({ledger and ledger['version']}, this one "
                f"knows {schema.VERSION}): run `dpmesh ledger migrate` with the newest version, and use that"
            )
        if ledger["lost"]:
            raise self._lost()
        return ledger

    async def _changed(
        self, connection: Any, budgets: Sequence[Budget], check: Callable[[Budget, Budget], None]
    ) -> list[Budget]:
        """The budgets whose terms in the database are not these; ConfigError if they may not change."""
        stored = {budget.name: budget for budget in (await queries.read_budgets(connection)).values()}
        for budget in budgets:
            check(stored.get(budget.name, budget), budget)
        return [
            budget
            for budget in budgets
            if (known := stored.get(budget.name)) is None or stored_terms(budget) != stored_terms(known)
        ]

    async def _debit(self, connection: Any, batch: Batch) -> Outcome:
        accounts = list(batch.leased)
        windows, guessed = self._guess(batch), True
        debited = {a: batch.known.get(a, 0) for a in accounts}
        granted = dict.fromkeys(accounts, 0)
        for _ in range(_TRIES):
            outcome = decide(batch, windows, debited, granted)
            if not guessed and not outcome.debits:
                return outcome
            denies = any(budget is not None for budget in outcome.denied_by)
            if guessed and (denies or not outcome.debits):
                answer = await self._ask(connection, accounts)  # No request is denied on a guess.
            else:
                answer = await self._write(connection, outcome, granted)
                if answer["status"] == "done":
                    return self._settled(outcome, answer)
            if answer["status"] == "chain":
                continue
            guessed = False
            windows = self._read_windows(answer)
            debited = dict(zip(accounts, answer["debited"], strict=True))
            granted = dict(zip(accounts, answer["granted"], strict=True))
        raise LedgerError(f"{self.address} is too busy: others were faster {_TRIES} times")

    async def _ask(self, connection: Any, accounts: Sequence[AccountId]) -> Any:
        asked_at = self._monotonic()
        terms = [
            [None if budget.window is None else int(budget.window) for budget in self._budgets],
            [float(budget.epsilon) for budget in self._budgets],
            [float(budget.delta) for budget in self._budgets],
            [budget.cap for budget in self._budgets],
        ]
        rows = [self._rows[a[0]] for a in accounts]
        answer = await connection.fetchrow(queries.STATE, self._rows, *terms, rows, [a[1] for a in accounts])
        self._note_time(answer, asked_at)
        self._read_windows(answer)
        return answer

    def _read_windows(self, answer: Any) -> tuple[Window, ...]:
        """The windows in force by an answer of the database. They are kept for guesses."""
        found = zip(answer["starts"] or (), answer["lengths"] or (), answer["caps"] or (), strict=True)
        self._windows = tuple(Window(*window) for window in found)
        return self._windows

    def _guess(self, batch: Batch) -> tuple[Window, ...]:
        """The windows that the database told last, where they are those that the holder knows."""
        known = (
            self._windows if len(self._windows) == len(self._budgets) else map(first_window, self._budgets)
        )
        return tuple(window._replace(start=start) for window, start in zip(known, batch.windows, strict=True))

    async def _write(self, connection: Any, outcome: Outcome, granted: Mapping[AccountId, int]) -> Any:
        """Sends debits. The answer says whether they were written, and if not, why."""
        ordered = self._ordered(outcome.debits)
        starts = [window.start for window in outcome.windows]
        columns = self._columns(ordered, starts, outcome.debits)
        entry = await self._entry(connection, EntryKind.DEBIT, map(Posting, *columns))
        asked_at = self._monotonic()
        answer = await self._send(
            connection.fetchrow(
                queries.DEBIT,
                self._rows,
                starts,
                [window.cap for window in outcome.windows],
                *columns,
                [outcome.windows[a[0]].cap for a in ordered],
                [granted[a] for a in ordered],
                *entry,
            )
        )
        if answer is not None:
            self._note_time(answer, asked_at)
            if answer["status"] in ("done", "chain"):
                return answer
        # A new decision needs the state of all accounts of the batch, and the answer has only the debited ones.
        return await self._ask(connection, list(outcome.debited))

    async def _send(self, statement: Awaitable[Any]) -> Any:
        """Awaits a statement that writes an entry; returns its answer, or None if it met others' statements."""
        try:
            answer = await statement
        except asyncpg.PostgresError as error:
            # An ERROR undid the whole statement. FATAL and PANIC, which end the session, can follow the commit.
            if error.severity_en == "ERROR":
                self._chain.withdraw()
            if isinstance(error, asyncpg.CheckViolationError):
                self._prepared = set()  # the partition was pruned meanwhile: the database's clock was moved
            elif error.sqlstate not in _AGAIN:
                raise
            return None
        status = answer if isinstance(answer, str) else answer["status"]
        if status == "done":
            self._chain.acknowledge()
        else:
            self._chain.withdraw()
            if status == "chain":
                self._chain.doubt()
        return answer

    async def _entry(
        self, connection: Any, kind: EntryKind, postings: Iterable[Posting], note: str = ""
    ) -> tuple[Any, ...]:
        """The next entry as arguments: its chain, the head before it, its time, its bytes and its hash."""
        head = self._chain.latest()
        if self._chain.doubtful:
            head = await self._head(connection)
        at = self._chain.at(self._now())
        if at // _DAY not in self._prepared:
            await self._prepare(connection, at // _DAY)
        body = encode(kind, at, postings, note)
        after = link(head, body)
        self._chain.attempt(after)
        return (self._chain.name, head.seq, head.hash, at, body, after.hash)

    async def _head(self, connection: Any) -> Head:
        """The head of this holder's chain, from the database."""
        found = await self._found(connection)
        try:
            head = self._chain.check(found, self.address)
        except LedgerError:
            self._behind = True
            # Holders that start later can't notice the loss, so the database remembers it, unless it was accepted.
            if await connection.fetchval(queries.LOSE, self._accepted) is None:
                raise LostChargesError(
                    f"{self.address} goes on with an older copy of itself, which lacks what this holder charged: "
                    "restart this holder"
                ) from None
            raise
        self._behind = False
        return head

    async def _found(self, connection: Any) -> Head | None:
        row = await connection.fetchrow(queries.HEAD, self._chain.name)
        return None if row is None else Head(row["seq"], bytes(row["hash"]))

    async def _credit(
        self, connection: Any, windows: tuple[int, ...], unspent: Mapping[AccountId, int]
    ) -> None:
        left = dict(unspent)
        for _ in range(_TRIES):
            ordered = self._ordered(left)
            if not ordered:
                return
            columns = self._columns(ordered, windows, left)
            postings = map(Posting, *columns[:3], [-amount for amount in columns[3]])
            entry = await self._entry(connection, EntryKind.CREDIT, postings)
            status = await self._send(connection.fetchval(queries.CREDIT, *columns, *entry))
            if status == "done":
                return
            if status == "stale":
                valid = await connection.fetch(queries.CREDITABLE, *columns)
                left = {a: left[a] for a, row in zip(ordered, valid, strict=True) if row["valid"]}
        raise LedgerError(f"{self.address} is too busy: others were faster {_TRIES} times")

    async def _record(self, connection: Any, note: str) -> None:
        for _ in range(_TRIES):
            entry = await self._entry(connection, EntryKind.POLICY, (), note)
            status = await self._send(connection.fetchval(queries.RECORD, *entry))
            if status == "done":
                return
            if status == "lost":
                raise self._lost()
        raise LedgerError(f"{self.address} is too busy: it did not take the entry {_TRIES} times")

    async def _prepare(self, connection: Any, day: int) -> None:
        """Makes the log's partitions for a day and the next one."""
        await connection.execute("SELECT dpmesh.prepare($1)", day)
        self._prepared = {day, day + 1}

    def _note_time(self, answer: Any, asked_at: float) -> None:
        """Notes the database's time, unless its clock is broken or the ledger has lost charges."""
        if answer["status"] == "lost":
            raise self._lost()
        if answer["status"] == "clock":
            raise LedgerError("the ledger's clock is broken: the database shows no time")
        self._clock_reading = (answer["now"], asked_at)

    def _lost(self) -> LostChargesError:
        return LostChargesError(
            f"{self.address} has lost charges that it had committed: an older copy was put in its place, or a replica "
            "that was behind took over. Put the newest one back, or see `dpmesh ledger accept --help`"
        )

    def _ordered(self, accounts: Iterable[AccountId]) -> list[AccountId]:
        """Accounts in the order in which every holder locks rows."""
        return sorted(accounts, key=lambda a: (self._rows[a[0]], a[1]))

    def _columns(
        self, accounts: Sequence[AccountId], windows: Sequence[int], amounts: Mapping[AccountId, int]
    ) -> tuple[list[Any], ...]:
        """What SQL functions get of accounts: the budgets' numbers, the hashes, the windows and the amounts."""
        return (
            [self._rows[a[0]] for a in accounts],
            [a[1] for a in accounts],
            [windows[a[0]] for a in accounts],
            [amounts[a] for a in accounts],
        )

    def _settled(self, outcome: Outcome, answer: Any) -> Outcome:
        """The outcome, with what other holders debited meanwhile."""
        ordered = self._ordered(outcome.debits)
        debited = {**outcome.debited, **dict(zip(ordered, answer["debited"], strict=True))}
        caps = {a: outcome.windows[a[0]].cap + n for a, n in zip(ordered, answer["granted"], strict=True)}
        return replace(outcome, debited=debited, caps={**outcome.caps, **caps})
