"""PostgresAdmin: what administrators read of a PostgreSQL ledger and change in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from typing_extensions import override

from dpmesh.errors import LedgerError
from dpmesh.ledger.admin import LedgerAdmin, ahead_of_the_clock, check_grant, check_granted, find_budget
from dpmesh.ledger.charge_log import EntryKind, Posting, decode
from dpmesh.ledger.postgres import queries, rewind, schema
from dpmesh.ledger.postgres.connection import Connection, address, check_url
from dpmesh.ledger.postgres.view import PostgresView
from dpmesh.ledger.store import Account

_T = TypeVar("_T")

_TIMEOUT = 600.0  # seconds: whole ledgers are read, and old partitions dropped
_CONNECTING = 4.0  # seconds

_PAGE = 100  # entries may have thousands of lines
_DAY = 86_400
_DROPS = 60  # tries to drop a partition of the log that is being read
_LOCKED = "55P03"


class PostgresAdmin(LedgerAdmin):
    """Administration of a ledger in PostgreSQL, whose URL is as for PostgresStore.

    Raises:
        ConfigError: The URL does not say how the connection is protected, or is invalid.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self._url = url
        self.address = address(url)

    @override
    @asynccontextmanager
    async def view(self) -> AsyncIterator[PostgresView]:
        # One snapshot (REPEATABLE READ) for everything that is read.
        connection = Connection(self._url, _TIMEOUT, _CONNECTING)
        try:
            yield await connection.call(self._begin_view)
        finally:
            await connection.close()

    async def _begin_view(self, connection: Any) -> PostgresView:
        # Readers may take their time: they lock nobody out.
        await connection.execute("SET idle_in_transaction_session_timeout = '10min'")
        # A transaction of asyncpg's: before 0.32 its cursors accept no other.
        await connection.transaction(isolation="repeatable_read", readonly=True).start()
        await _check_version(connection, self.address)
        secret, pruned, lost = await connection.fetchrow(
            "SELECT secret, pruned_before, lost FROM dpmesh.ledger"
        )
        windows = await connection.fetch(
            "SELECT id, dpmesh.in_force(dpmesh.now(), length, window_start) FROM dpmesh.budgets"
        )
        budgets = await queries.read_budgets(connection)
        view = PostgresView(connection, self.address, bytes(secret), pruned, budgets, dict(windows))
        view.ahead = tuple(budgets[number].name for number in await rewind.ahead(connection))
        if view.ahead:
            now = await connection.fetchval("SELECT dpmesh.now()")
            view.remark = ahead_of_the_clock(self.address, view.ahead, now)
        if lost:
            view.older = True
            view.remark = (
                f"{self.address} is an older copy of itself, as a holder noticed: nobody may charge it"
            )
        return view

    @override
    async def migrate(self) -> tuple[int, int]:
        async def work(connection: Any) -> tuple[int, int]:
            before = await _version(connection)
            if before > schema.VERSION:
                raise LedgerError(
                    f"{self.address} holds tables of a newer version of dpmesh ({before}, this one knows "
                    f"{schema.VERSION}): use that"
                )
            for number in range(before, schema.VERSION):
                for statements in schema.migration(number):
                    await connection.execute(statements)
                if number == 0:
                    await connection.execute(_FIRST)
                if number == 2:
                    await queries.write_caps(connection)
                await connection.execute("UPDATE dpmesh.ledger SET version = $1", number + 1)
            return before, schema.VERSION

        return await self.change(work, migrating=True)

    @override
    async def grant(self, budget: str, account: bytes, raised: int, note: str, *, has: int = 0) -> Account:
        check_grant(account, raised)

        async def work(connection: Any) -> Account:
            row, definition = find_budget(await queries.read_budgets(connection), budget)
            start = await connection.fetchval(
                "SELECT dpmesh.in_force(dpmesh.now(), length, window_start) FROM dpmesh.budgets WHERE id = $1 "
                "FOR UPDATE",
                row,
            )
            await connection.execute("UPDATE dpmesh.budgets SET window_start = $2 WHERE id = $1", row, start)
            granted = await connection.fetchval(_GRANTED, row, account, start)
            check_granted(definition.cap, granted, has, raised)
            written = await connection.fetchrow(_GRANT, row, account, start, definition.cap, raised, budget)
            await rewind.append(connection, EntryKind.GRANT, (Posting(row, account, start, raised),), note)
            return queries.read_account(written)

        return await self.change(work)

    @override
    async def prune(self, before: int) -> int:
        # The log goes by whole days, from its beginning.
        day, parts = await self.change(lambda connection: self._to_prune(connection, before))
        return sum([await self._drop(name, number) for number, name in parts if number < day])

    async def _to_prune(self, connection: Any, before: int) -> tuple[int, list[tuple[int, str]]]:
        """The first day that stays, and all partitions of the log with their days, oldest first."""
        longest = await connection.fetchval("SELECT coalesce(max(length), 0) FROM dpmesh.budgets")
        now = await connection.fetchval("SELECT floor(dpmesh.now())::bigint")
        if before > now - longest:
            raise LedgerError(
                f"the charge log can't be pruned within the longest window, which is {longest} s: keep more"
            )
        day = before // _DAY
        # Windows can be ahead of the clock, after `accept` or a wrong clock. Verification has to know up to which
        # window entries may be missing, before any is removed.
        latest = day * _DAY
        async for (body,) in connection.cursor(
            "SELECT body FROM dpmesh.charges WHERE day < $1", day, prefetch=_PAGE
        ):
            latest = max([latest, *[posting.window + 1 for posting in decode(bytes(body)).postings]])
        await connection.execute(
            "UPDATE dpmesh.ledger SET pruned_before = greatest(pruned_before, $1)", latest
        )
        return day, [(row["day"], row["relname"]) for row in await connection.fetch(_PARTS)]

    async def _drop(self, name: str, day: int) -> int:
        """Drops a partition of the log once nobody reads it, without blocking others for long; returns its entries."""

        async def work(connection: Any) -> int:
            await connection.execute("SET LOCAL lock_timeout = '1s'")
            await connection.execute("LOCK TABLE dpmesh.charges IN ACCESS EXCLUSIVE MODE")
            count = await connection.fetchval("SELECT count(*) FROM dpmesh.charges WHERE day = $1", day)
            await connection.execute(_PRUNE_CHAINS, day)
            await connection.execute(f"DROP TABLE dpmesh.{name}")  # a fixed word and a number
            return int(count)

        for _ in range(_DROPS - 1):
            try:
                return await self.change(work)
            except LedgerError as error:
                if getattr(error.__cause__, "sqlstate", "") != _LOCKED:
                    raise
            await asyncio.sleep(1.0)
        return await self.change(work)

    @override
    async def accept(self, note: str, *, unnoticed: bool = False) -> tuple[str, ...]:
        async def work(connection: Any) -> tuple[str, ...]:
            lost = await connection.fetchval("SELECT lost FROM dpmesh.ledger FOR UPDATE")
            rewound = await rewind.rewind(connection, note)
            if not lost and not unnoticed:
                if rewound:
                    return ()
                raise LedgerError(
                    f"{self.address} has lost nothing that anybody noticed, and none of its windows is ahead of the "
                    "clock: there is nothing to accept, unless you know better (--unnoticed)"
                )
            await connection.execute(
                "UPDATE dpmesh.budgets SET window_start = dpmesh.in_force(dpmesh.now(), length, window_start) + length "
                "WHERE length IS NOT NULL"
            )
            await connection.execute("UPDATE dpmesh.ledger SET lost = false, accepted = accepted + 1")
            await rewind.append(connection, EntryKind.ACCEPT, (), note)
            rows = await connection.fetch("SELECT name FROM dpmesh.budgets WHERE length IS NULL ORDER BY id")
            return tuple(row["name"] for row in rows)

        return await self.change(work)

    async def change(self, work: Callable[[Any], Awaitable[_T]], *, migrating: bool = False) -> _T:
        """Does work in one transaction, one administrator at a time."""
        connection = Connection(self._url, _TIMEOUT, _CONNECTING)

        async def locked(session: Any) -> _T:
            async with session.transaction():
                await session.execute("SELECT pg_advisory_xact_lock($1)", queries.LOCK)
                if not migrating:
                    await _check_version(session, self.address)
                return await work(session)

        try:
            return await connection.call(locked)
        finally:
            await connection.close()


# The server makes the secret, so that no log of statements has it: 366 bits of its strong random source.
_FIRST = """
INSERT INTO dpmesh.ledger (id, version, secret)
SELECT 1, 0, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
"""
_GRANTED = """
SELECT coalesce(max(granted), 0) FROM dpmesh.accounts WHERE budget = $1 AND account = $2 AND window_start = $3
"""
_GRANT = """
WITH written AS (
    INSERT INTO dpmesh.accounts AS a (budget, account, window_start, debited, cap, granted, lifetime)
    VALUES ($1, $2, $3, 0, $4, $5, 0)
    ON CONFLICT (budget, account) DO UPDATE SET
        debited = CASE a.window_start WHEN excluded.window_start THEN a.debited ELSE 0 END,
        granted = CASE a.window_start WHEN excluded.window_start THEN a.granted ELSE 0 END + excluded.granted,
        cap = CASE a.window_start WHEN excluded.window_start THEN a.cap ELSE excluded.cap END,
        window_start = excluded.window_start
    WHERE a.window_start <= excluded.window_start
    RETURNING *
)
SELECT $6::text, b.length, b.window_start, b.cap, w.account, w.window_start, w.debited, w.granted, w.lifetime
FROM written w JOIN dpmesh.budgets b ON b.id = w.budget
"""


_PRUNE_CHAINS = """
UPDATE dpmesh.chains c SET pruned_seq = old.seq, pruned_hash = old.hash
FROM (
    SELECT DISTINCT ON (chain) chain, seq, hash FROM dpmesh.charges WHERE day = $1 ORDER BY chain, seq DESC
) AS old
WHERE old.chain = c.name AND old.seq > c.pruned_seq
"""
_PARTS = r"""
SELECT c.relname, substr(c.relname, 9)::integer AS day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'dpmesh.charges'::regclass AND c.relname ~ '^charges_\d+$' ORDER BY 2
"""


async def _version(connection: Any) -> int:
    """The version of the tables, 0 if there are none."""
    if await connection.fetchval("SELECT to_regclass('dpmesh.ledger')") is None:
        return 0
    return int(await connection.fetchval("SELECT version FROM dpmesh.ledger"))


async def _check_version(connection: Any, where: str) -> None:
    version = await _version(connection)
    if version != schema.VERSION:
        state = f"holds tables of version {version}" if version else "has no dpmesh ledger"
        raise LedgerError(f"{where} {state}: run `dpmesh ledger migrate` with the newest dpmesh")
