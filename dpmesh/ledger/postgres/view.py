"""PostgresView: a PostgreSQL ledger as it was at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
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


class PostgresView(LedgerView):
    """See LedgerView.

    Args:
        connection: In a transaction that sees one moment.
        address: What to call the database in errors.
        secret: The ledger's.
        pruned_before: Entries before this may be gone.
        budgets: By number.
        windows: Those in force, by budget.
    """

    def __init__(
        self,
        connection: Any,
        address: str,
        secret: bytes,
        pruned_before: int,
        budgets: Mapping[int, Budget],
        windows: Mapping[int, int],
    ) -> None:
        self._connection = connection
        self._address = address
        self.secret = secret
        self.pruned_before = pruned_before
        self.budgets = budgets
        self.windows = windows
        self.remark = ""
        self.ahead: tuple[str, ...] = ()
        self.older = False

    @override
    async def accounts(
        self, budget: str | None = None, account: bytes | None = None
    ) -> AsyncIterator[Account]:
        caps = {each.name: each.cap for each in self.budgets.values()}
        async for row in self._rows(queries.ACCOUNTS, budget, account):
            yield queries.read_account(row, caps[row["name"]])

    @override
    async def chains(self) -> list[Chain]:
        query = "SELECT name, seq, hash, pruned_seq, pruned_hash FROM dpmesh.chains ORDER BY name"
        return [
            Chain(
                bytes(row["name"]),
                Head(row["pruned_seq"], bytes(row["pruned_hash"])),
                Head(row["seq"], bytes(row["hash"])),
            )
            async for row in self._rows(query)
        ]

    @override
    async def entries(self) -> AsyncIterator[StoredEntry]:
        query = "SELECT chain, seq, body, hash FROM dpmesh.charges ORDER BY chain, seq"
        async for row in self._rows(query):
            yield StoredEntry(bytes(row["chain"]), row["seq"], bytes(row["body"]), bytes(row["hash"]))

    async def _rows(self, query: str, *args: Any) -> AsyncIterator[Any]:
        """What a query finds, page by page."""
        try:
            cursor = await (await self._connection.prepare(query)).cursor(*args)
            while rows := await cursor.fetch(_PAGE):
                for row in rows:
                    yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise explain(error, self._address) from error
