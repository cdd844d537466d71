"""PostgresView: a PostgreSQL ledger as it was at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from typing_extensions import override

from dpmesh.ledger.admin import Chain, LedgerView, StoredEntry
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import Head
from dpmesh.ledger.postgres import queries
from dpmesh.ledger.postgres.connection import explain
from dpmesh.ledger.store import Account

_PAGE = 100  # entries may have thousands of lines


@dataclass
class PostgresView(LedgerView):
    """A PostgreSQL ledger as a transaction sees it.

    Attributes:
        connection: In a transaction that sees one moment.
        address: What to call the database in errors.
    """

    connection: Any
    address: str
    secret: bytes = field(repr=False)
    pruned_before: int
    budgets: Mapping[int, Budget]
    windows: Mapping[int, int]
    remark: str = ""
    ahead: tuple[str, ...] = ()
    older: bool = False

    @override
    async def accounts(
        self, budget: str | None = None, account: bytes | None = None
    ) -> AsyncIterator[Account]:
        async for row in self._rows(queries.ACCOUNTS, budget, account):
            yield queries.read_account(row)

    @override
    async def chains(self) -> list[Chain]:
        query = "SELECT name, pruned_seq, pruned_hash, seq, hash FROM dpmesh.chains ORDER BY name"
        return [Chain(row[0], Head(row[1], row[2]), Head(row[3], row[4])) async for row in self._rows(query)]

    @override
    async def entries(self) -> AsyncIterator[StoredEntry]:
        query = "SELECT chain, seq, body, hash FROM dpmesh.charges ORDER BY chain, seq"
        async for row in self._rows(query):
            yield StoredEntry(*row)

    async def _rows(self, query: str, *args: Any) -> AsyncIterator[Any]:
        """The rows of a query, page by page."""
        try:
            cursor = await (await self.connection.prepare(query)).cursor(*args)
            while rows := await cursor.fetch(_PAGE):
                for row in rows:
                    yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explain(error, self.address) from error
