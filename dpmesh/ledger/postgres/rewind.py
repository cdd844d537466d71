"""Brings back windows of a PostgreSQL ledger that a wrong clock began; clock_rewind says where to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from dpmesh.accounting import MAX_SECONDS
from dpmesh.errors import LedgerError
from dpmesh.ledger import clock_rewind
from dpmesh.ledger.charge_log import CHAIN_BYTES, EntryKind, Posting, begin, decode, encode, link
from dpmesh.ledger.postgres import queries

# A window is charged on its first day at the earliest, and a holder's guess of the time may be late.
_EARLY_DAYS = 2
_PAGE = 100  # entries may have thousands of lines
_DAY = 86_400
_LATER = """
SELECT a.budget, a.account, a.window_start, a.debited
FROM dpmesh.accounts a JOIN unnest($1::int[], $2::bigint[]) AS t (budget, start) USING (budget)
WHERE a.window_start > t.start
"""
_CARRY = """
UPDATE dpmesh.accounts a SET
    window_start = w.start, debited = w.debited, granted = w.granted, cap = w.cap,
    lifetime = least(a.lifetime, 9223372036854775807 - w.more) + w.more
FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
    AS w (budget, account, start, debited, granted, cap, more)
WHERE a.budget = w.budget AND a.account = w.account
"""
_BACK = """
UPDATE dpmesh.budgets b SET window_start = t.start
FROM unnest($1::int[], $2::bigint[]) AS t (id, start) WHERE b.id = t.id
"""


async def ahead(connection: Any) -> dict[int, int]:
    """The budgets whose windows began by a wrong clock, and the windows in which they have to continue."""
    now = await connection.fetchval("SELECT dpmesh.now()")
    if not 0 <= now <= MAX_SECONDS:
        raise LedgerError("the ledger's clock is broken: the database shows no time")
    budgets = await queries.read_budgets(connection)
    windows = dict(await connection.fetch("SELECT id, window_start FROM dpmesh.budgets"))
    if not clock_rewind.ahead(budgets, windows, now, 0):
        return {}
    accepted = await connection.fetchval("SELECT accepted FROM dpmesh.ledger")
    return clock_rewind.ahead(budgets, windows, now, accepted)


async def rewind(connection: Any, note: str) -> bool:
    """Brings back all windows that began by a wrong clock, in the open transaction; returns whether there were any."""
    if not await ahead(connection):
        return False
    # Nobody debits or credits meanwhile. A later debit finds the windows that this leaves, because it reads them first,
    # and locks them until it is done.
    await connection.execute("SET LOCAL lock_timeout = '30s'")
    await connection.execute("LOCK TABLE dpmesh.budgets IN ACCESS EXCLUSIVE MODE")
    await connection.execute("LOCK TABLE dpmesh.accounts IN SHARE ROW EXCLUSIVE MODE")
    targets = await ahead(connection)
    if not targets:
        return False
    budgets = await queries.read_budgets(connection)
    numbers, starts = list(targets), list(targets.values())
    later = await connection.fetch(_LATER, numbers, starts)
    rows = {(number, account): (start, debited) for number, account, start, debited in later}
    pruned = await connection.fetchval("SELECT pruned_before FROM dpmesh.ledger")
    charged: clock_rewind.Charged = {key: {} for key in rows}
    day = min(starts) // _DAY - _EARLY_DAYS
    entries = connection.cursor("SELECT body FROM dpmesh.charges WHERE day >= $1", day, prefetch=_PAGE)
    async for (body,) in entries:
        clock_rewind.count(decode(bytes(body)), charged, targets)
    carried, moved = [], []
    for key, row in rows.items():
        at, cap = targets[key[0]], budgets[key[0]].cap
        one = clock_rewind.carry(key, row, charged[key], at, cap=cap, complete=pruned <= at)
        carried.append(one)
        moved.append((*key, at, one.debited, one.granted, max(cap, one.debited - one.granted), one.more))
    if moved:
        await connection.execute(_CARRY, *zip(*moved, strict=True))
    await connection.execute(_BACK, numbers, starts)
    for kind, postings in clock_rewind.entries(carried):
        await append(connection, kind, postings, note)
    return True


async def append(connection: Any, kind: EntryKind, postings: Sequence[Posting], note: str) -> None:
    """Writes an administrator's entry in a new chain."""
    at = await connection.fetchval("SELECT greatest(0, floor(dpmesh.now()))::bigint")
    await connection.execute("SELECT dpmesh.prepare($1)", at // _DAY)
    chain = secrets.token_bytes(CHAIN_BYTES)
    head = begin(chain)
    body = encode(kind, at, postings, note)
    if not await connection.fetchval(
        "SELECT dpmesh.append($1, 0, $2, $3, $4, $5)", chain, head.hash, at, body, link(head, body).hash
    ):
        raise LedgerError("the charge log did not take the entry")
