"""`dpmesh budget export`: every account, exact, and never half a file."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.cli.commands import export_writers
from dpmesh.errors import LedgerError
from dpmesh.ledger import Budget, Ledger, open_store
from dpmesh.report import export_rows

URL = "sqlite:///ledger.db"
CENTURY = 36_500 * 86_400.0
BUDGETS = [
    Budget("century", "unit", 8.0, 1e-6, Accounting.ZCDP, CENTURY),
    Budget("lifetime", "unit", 9e9, 0.0, Accounting.PURE, None),
]
# So many that a float could not tell it from its neighbours.
MUCH = 8_999_999_999 * AMOUNT + 123_456_789
COLUMNS = [
    *("budget", "key", "accounting", "delta", "account"),
    *("window_start", "window_start_seconds", "window_end", "window_end_seconds"),
    *("spent", "cap", "granted", "remaining", "lifetime"),
]


@pytest.fixture
async def ledger(workplace: Path) -> None:
    """Three units; one spent nearly all that a ledger can hold."""
    ledger = Ledger(open_store(URL), BUDGETS)
    await ledger.open()
    for number in range(3):
        await ledger.charge([(0, b"unit-%d" % number, AMOUNT // 100)])
    await ledger.charge([(1, b"unit-1", MUCH)])
    await ledger.close()


def test_csv(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "export", "--ledger", URL)
    assert (ran.code, ran.err) == (0, "")
    head, *rows = csv.reader(io.StringIO(ran.out))
    assert head == COLUMNS
    assert len(rows) == 4
    one, last = (dict(zip(head, row, strict=True)) for row in (rows[0], rows[-1]))
    assert (one["budget"], one["key"], one["accounting"], one["delta"]) == (
        "century",
        "unit",
        "zcdp",
        "1e-06",
    )
    assert (one["window_start"], one["window_start_seconds"]) == ("1970-01-01T00:00:00Z", "0")
    assert (one["window_end"], one["window_end_seconds"]) == ("2069-12-07T00:00:00Z", "3153600000")
    assert (one["spent"], one["lifetime"], one["granted"]) == ("0.010000000", "0.010000000", "0.000000000")
    assert Decimal(one["remaining"]) == Decimal(one["cap"]) - Decimal(one["spent"])
    assert (last["window_end"], last["window_end_seconds"]) == ("", "")
    assert last["spent"] == "8999999999.123456789"
    assert last["remaining"] == "0.876543211"


def test_json_lines(dpmesh, ledger: None) -> None:
    ran = dpmesh("budget", "export", "--format", "jsonl", "--ledger", URL)
    rows = [json.loads(line, parse_float=Decimal) for line in ran.out.splitlines()]
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert rows[0]["window_end"] == "2069-12-07T00:00:00Z"
    assert rows[-1]["window_end"] is None
    assert rows[-1]["spent"] == Decimal("8999999999.123456789")


def test_parquet(dpmesh, ledger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr(export_writers, "_GROUP", 3)
    ran = dpmesh("budget", "export", "--format", "parquet", "--output", "out.parquet", "--ledger", URL)
    assert (ran.code, ran.out, ran.err) == (0, "out.parquet: 4 accounts\n", "")
    table = parquet.read_table("out.parquet")
    assert table.column_names == COLUMNS
    assert parquet.ParquetFile("out.parquet").num_row_groups == 2
    assert str(table.schema.field("spent").type) == "decimal128(38, 9)"
    rows = table.to_pylist()
    assert rows[-1]["spent"] == Decimal("8999999999.123456789")
    assert rows[-1]["window_end"] is None
    assert rows[0]["window_end"].isoformat() == "2069-12-07T00:00:00+00:00"
    assert rows[0]["window_end_seconds"] == 3_153_600_000
    assert rows[0]["spent"] == Decimal("0.01")
    lines = dpmesh("budget", "export", "--format", "jsonl", "--ledger", URL).out.splitlines()
    assert [row["account"] for row in rows] == [json.loads(line)["account"] for line in lines]


def test_parquet_of_nothing(dpmesh, workplace: Path) -> None:
    import asyncio

    from pyarrow import parquet

    async def make() -> None:
        ledger = Ledger(open_store(URL), BUDGETS)
        await ledger.open()
        await ledger.close()

    asyncio.run(make())
    assert dpmesh("budget", "export", "--format", "parquet", "--output", "o", "--ledger", URL).code == 0
    assert parquet.read_table("o").num_rows == 0
    assert dpmesh("budget", "export", "--ledger", URL).out == ",".join(COLUMNS) + "\n"


def test_one_budget(dpmesh, ledger: None) -> None:
    out = dpmesh("budget", "export", "--budget", "lifetime", "--format", "jsonl", "--ledger", URL).out
    assert [json.loads(line)["budget"] for line in out.splitlines()] == ["lifetime"]


def test_no_unit_is_named(dpmesh, ledger: None) -> None:
    for form in ("csv", "jsonl"):
        assert "unit-" not in dpmesh("budget", "export", "--format", form, "--ledger", URL).out
    assert "The ledger holds no unit's id" in " ".join(dpmesh("budget", "export", "--help").out.split())


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_is_replaced_as_a_whole(dpmesh, ledger: None, write, form: str) -> None:
    write("out", "old")
    ran = dpmesh("budget", "export", "--format", form, "--output", "out", "--ledger", URL)
    assert (ran.code, ran.out) == (0, "out: 4 accounts\n")
    assert Path("out").read_text() == dpmesh("budget", "export", "--format", form, "--ledger", URL).out
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o600
    assert sorted(os.listdir()) == sorted(["ledger.db", "ledger.db-witness", "out"])


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    "error", [LedgerError("gone"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_what_fails_half_way_leaves_the_old_file(
    dpmesh, ledger: None, write, monkeypatch: pytest.MonkeyPatch, form: str, error: BaseException
) -> None:
    write("out", "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(export_rows, "row", fail)
    ran = dpmesh("budget", "export", "--format", form, "--output", "out", "--ledger", URL)
    assert ran.code in (2, 130)
    assert len(ran.err.splitlines()) == 1
    assert Path("out").read_text() == "old"
    assert sorted(os.listdir()) == sorted(["ledger.db", "ledger.db-witness", "out"])


def test_a_link_is_followed(dpmesh, ledger: None, write) -> None:
    write("folder/out", "old")
    Path("link").symlink_to("folder/out")
    assert dpmesh("budget", "export", "--output", "link", "--ledger", URL).code == 0
    assert Path("link").is_symlink()
    assert Path("folder/out").read_text().startswith("budget,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "parquet"], "--format parquet needs --output"),
        (["--format", "xml"], "xml"),
        (["--budget", "nope"], "no budget 'nope'; there are century, lifetime"),
        (["--output", "folder"], "is not a plain file"),
        (["--output", "/dev/null"], "is not a plain file"),
        (["--output", "no/such/folder"], "can't be written"),
    ],
)
def test_wrong_input(dpmesh, ledger: None, arguments: list[str], words: str) -> None:
    Path("folder").mkdir()
    ran = dpmesh("budget", "export", *arguments, "--ledger", URL)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


def test_parquet_without_pyarrow(dpmesh, ledger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = dpmesh("budget", "export", "--format", "parquet", "--output", "out", "--ledger", URL)
    assert ran.code == 2
    assert "pip install pyarrow" in ran.err
    assert not Path("out").exists()


def test_no_ledger_no_file(dpmesh) -> None:
    ran = dpmesh("budget", "export", "--output", "out", "--ledger", URL)
    assert ran.code == 2
    assert os.listdir() == []
