"""SQL of a PostgreSQL ledger, and what its rows mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpmesh.ledger.budget import Budget, stored_terms
from dpmesh.ledger.store import Account, Window, account_end

LOCK = 0x64706D657368  # "dpmesh": an advisory lock for all changes but charges
REDEEMED = "SELECT name FROM dpmesh.spent WHERE name = ANY ($1::bytea[])"
EPOCH_KEYS = "SELECT number, key FROM dpmesh.epoch_keys($1, $2)"
HEAD = "SELECT seq, hash FROM dpmesh.chains WHERE name = $1"
DEBIT = "SELECT * FROM dpmesh.debit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
STATE = "SELECT * FROM dpmesh.state($1, $2, $3, $4, $5, $6, $7)"
CREDIT = "SELECT dpmesh.credit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
RECORD = """
SELECT CASE WHEN lost THEN 'lost' WHEN dpmesh.append($1, $2, $3, $4, $5, $6) THEN 'done' ELSE 'chain' END
FROM dpmesh.ledger
"""
LOSE = "UPDATE dpmesh.ledger SET lost = true WHERE accepted <= $1 RETURNING true"
ACCOUNTS = """
SELECT b.name, b.length, b.window_start, b.cap, a.account, a.window_start, a.debited, a.granted, a.lifetime
FROM dpmesh.accounts a JOIN dpmesh.budgets b ON b.id = a.budget
WHERE ($1::text IS NULL OR b.name = $1) AND ($2::bytea IS NULL OR a.account = $2)
ORDER BY a.budget, a.account
"""
CREDITABLE = """
SELECT w.amount > 0 AND coalesce(a.lifetime >= w.amount, false)
    AND coalesce(a.window_start > w.start OR (a.window_start = w.start AND a.debited >= w.amount), false) AS valid
FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::bigint[]) WITH ORDINALITY
    AS w (budget, account, start, amount, place)
LEFT JOIN dpmesh.accounts a USING (budget, account)
ORDER BY w.place
"""
OTHERS = """
SELECT b.id, b.window_start FROM dpmesh.budgets b
WHERE b.name <> ALL ($1::text[]) AND EXISTS (
    SELECT FROM dpmesh.accounts a WHERE a.budget = b.id AND a.window_start = b.window_start AND a.debited > 0
)
ORDER BY b.id
"""
_BUDGETS = (
    "SELECT id, name, key, epsilon, delta, accounting, length, on_exhausted FROM dpmesh.budgets ORDER BY id"
)
# Replicas with different configurations could deadlock. The lock comes first, because the sort needs all rows.
_WRITE_BUDGETS = """
WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock($1))
INSERT INTO dpmesh.budgets AS b (name, key, epsilon, delta, accounting, length, on_exhausted, cap)
SELECT w.name, w.key, w.epsilon, w.delta, w.accounting, w.length, w.on_exhausted, w.cap
FROM locked, unnest(
    $2::text[], $3::text[], $4::float8[], $5::float8[], $6::text[], $7::bigint[], $8::text[], $9::bigint[]
) WITH ORDINALITY AS w (name, key, epsilon, delta, accounting, length, on_exhausted, cap, place)
ORDER BY w.place
-- As store.window_at_opening says. Where nothing was charged yet, all terms are the holder's.
ON CONFLICT (name) DO UPDATE SET
    on_exhausted = excluded.on_exhausted,
    length = CASE WHEN b.window_start = 0 THEN excluded.length ELSE b.length END,
    epsilon = CASE WHEN fresh(b) OR excluded.cap < b.cap THEN excluded.epsilon ELSE b.epsilon END,
    delta = CASE WHEN fresh(b) OR excluded.cap < b.cap THEN excluded.delta ELSE b.delta END,
    cap = CASE WHEN fresh(b) OR excluded.cap < b.cap THEN excluded.cap ELSE b.cap END
WHERE b.on_exhausted <> excluded.on_exhausted OR excluded.cap < b.cap
    OR (fresh(b) AND (b.length, b.epsilon, b.delta) <> (excluded.length, excluded.epsilon, excluded.delta))
""".replace("fresh(b)", "(b.window_start = 0 AND b.length IS NOT NULL)")


async def read_budgets(connection: Any) -> dict[int, Budget]:
    """The budgets that the database holds, by number, in order of creation."""
    return {number: Budget(*terms) for number, *terms in await connection.fetch(_BUDGETS)}


async def write_budgets(connection: Any, budgets: Sequence[Budget]) -> None:
    """Stores the definitions of budgets, one at least, in one statement."""
    columns = zip(*[(*stored_terms(budget), budget.cap) for budget in budgets], strict=True)
    await connection.execute(_WRITE_BUDGETS, LOCK, *columns)


async def write_caps(connection: Any) -> None:
    """Fills in the caps of budgets that were stored before there was a column for them."""
    caps = {number: budget.cap for number, budget in (await read_budgets(connection)).items()}
    await connection.execute(
        "UPDATE dpmesh.budgets b SET cap = w.cap FROM unnest($1::int[], $2::bigint[]) AS w (id, cap) "
        "WHERE b.id = w.id",
        list(caps),
        list(caps.values()),
    )


def read_account(row: Any) -> Account:
    """An account from a row with the columns of ACCOUNTS."""
    name, length, latest, cap, account, start, debited, granted, lifetime = row
    end = account_end(start, Window(latest, length, cap))
    return Account(name, bytes(account).hex(), start, end, debited, cap, granted, lifetime)
