"""`dpmesh ledger` and `dpmesh budget` on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, LedgerError
from dpmesh.ledger import Budget, Ledger, open_store

pytest.importorskip("asyncpg")

URL = "sqlite:///ledger.db"
BUDGETS = [
    Budget("daily", "unit", 8.0, 1e-6, Accounting.ZCDP, 36_500 * 86_400.0),
    Budget("lifetime", "unit", 10.0, 0.0, Accounting.PURE, None),
]


async def charge(url: str, unit: bytes, amount: int) -> None:
    ledger = Ledger(open_store(url), BUDGETS)
    await ledger.open()
    try:
        await ledger.charge([(1, unit, amount)])
    finally:
        await ledger.close()


def test_before_and_after_migrate(dpmesh, database: str) -> None:
    for command in (["budget", "list"], ["budget", "export"], ["ledger", "verify"], ["ledger", "log"]):
        ran = dpmesh(*command, "--ledger", database)
        assert (ran.code, ran.out) == (2, "")
        assert "dpmesh ledger migrate" in ran.err
    assert dpmesh("ledger", "migrate", "--ledger", database).out.startswith("tables: made, version ")
    assert dpmesh("ledger", "migrate", "--ledger", database).out.endswith("up to date\n")
    assert dpmesh("ledger", "verify", "--ledger", database).code == 0


def test_a_ledger_moves_and_goes_on(dpmesh, database: str, workplace: Path) -> None:
    asyncio.run(charge(URL, b"unit-1", 9 * AMOUNT))
    text = ["--reason", "ticket 7", "--by", "alice"]
    assert (
        dpmesh("budget", "grant", "unit-1", "--budget", "lifetime", "--to", "12", *text, "--ledger", URL).code
        == 0
    )
    asyncio.run(charge(URL, b"unit-1", AMOUNT))
    before = dpmesh("budget", "export", "--ledger", URL).out
    dpmesh("ledger", "migrate", "--ledger", database)
    ran = dpmesh("ledger", "import", URL, "--ledger", database)
    assert ran == (0, "imported: 2 budgets, 1 account, 3 entries\n", "")
    ran = dpmesh("ledger", "import", URL, "--ledger", database, "--json")
    assert json.loads(ran.out) == {"budgets": 2, "accounts": 1, "entries": 3, "again": True}
    assert dpmesh("budget", "export", "--ledger", database).out == before
    with pytest.raises(LedgerError, match="imported into"):
        asyncio.run(charge(URL, b"unit-1", 1))
    asyncio.run(charge(database, b"unit-1", 2 * AMOUNT))
    with pytest.raises(BudgetExhaustedError):
        asyncio.run(charge(database, b"unit-1", 1))
    ran = dpmesh(
        "budget", "grant", "unit-1", "--budget", "lifetime", "--to", "13", *text, "--ledger", database
    )
    assert (ran.code, ran.err) == (0, "")
    asyncio.run(charge(database, b"unit-1", AMOUNT))
    rows = dpmesh("ledger", "log", "--grants", "--json", "--ledger", database).out.splitlines()
    assert sorted(json.loads(row)["amounts"]["lifetime"] for row in rows) == [1.0, 2.0]
    made = ["--key", "a.key", "--new-key", "--output", "c.json", "--ledger", database]
    assert dpmesh("ledger", "checkpoint", *made).code == 0
    asyncio.run(charge(database, b"unit-2", AMOUNT))
    signed = ["--checkpoint", "c.json", "--public-key", "a.key.pub", "--ledger", database]
    assert dpmesh("ledger", "verify", *signed).code == 0
    (_, lifetime) = json.loads(dpmesh("budget", "show", "unit-1", "--ledger", database, "--json").out)
    assert (lifetime["spent"]["value"], lifetime["lifetime"]["value"], lifetime["granted"]["value"]) == (
        13,
        13,
        3,
    )


def test_a_target_that_is_not_migrated_leaves_the_source_open(dpmesh, database: str, workplace: Path) -> None:
    asyncio.run(charge(URL, b"unit-1", AMOUNT))
    assert dpmesh("ledger", "import", URL, "--ledger", database).code == 2
    asyncio.run(charge(URL, b"unit-1", AMOUNT))


def test_what_the_output_breaks_is_not_blamed_on_the_database(
    dpmesh, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpmesh.report import export_rows

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    dpmesh("ledger", "migrate", "--ledger", database)
    asyncio.run(charge(database, b"unit-1", AMOUNT))
    monkeypatch.setattr(export_rows, "row", full)
    ran = dpmesh("budget", "export", "--output", "out", "--ledger", database)
    assert (ran.code, ran.out) == (2, "")
    assert "out can't be written: No space left on device" in ran.err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:secret@db.example/d", "sslmode=verify-full"),
        ("postgresql://u:secret@127.0.0.1:port/d", "ledger.url"),
    ],
)
def test_urls_that_say_too_little(dpmesh, url: str, words: str) -> None:
    for command in (["budget", "list"], ["ledger", "migrate"], ["ledger", "verify"]):
        ran = dpmesh(*command, "--ledger", url)
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.err
        assert "secret" not in ran.err
