"""Rows of `dpmesh budget export`: one for each account, as CSV, JSON Lines or Parquet, written as they come."""

from __future__ import annotations

import csv
import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from dpmesh.accounting import AMOUNT
from dpmesh.cli.console import InputError, ascii_json

if TYPE_CHECKING:
    from dpmesh.ledger import Account, Budget

# Of Parquet's row groups: large enough to be read fast, and a few megabytes while they are made.
_GROUP = 50_000
# 38 digits are the most that Parquet's readers agree on; amounts have nine behind the point.
_DIGITS, _SCALE = 38, 9


class Row(NamedTuple):
    """One account. Amounts are ledger amounts, integers of 1e-9 of the accounting's own loss (epsilon, or rho)."""

    budget: str
    key: str
    accounting: str
    delta: float
    account: str
    window_start: str | None
    window_start_seconds: int
    window_end: str | None
    window_end_seconds: int | None
    spent: int
    cap: int
    granted: int
    remaining: int
    lifetime: int


AMOUNTS = Row._fields[-5:]
_FIRST_AMOUNT = len(Row._fields) - len(AMOUNTS)


def row(budget: Budget, account: Account) -> Row:
    """An account in the last window in which it was charged."""
    return Row(
        budget.name,
        budget.key,
        str(budget.accounting),
        float(budget.delta),
        account.account,
        _iso(account.window_start),
        account.window_start,
        _iso(account.window_end),
        account.window_end,
        account.spent,
        account.cap,
        account.granted,
        max(0, account.cap + account.granted - account.spent),
        account.lifetime,
    )


@functools.lru_cache(maxsize=1024)
def _iso(at: int | None) -> str | None:
    """A time in ISO 8601, UTC; None beyond the year 9999, which it can't name."""
    try:
        return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        return None


def decimal(amount: int) -> str:
    """A ledger amount as the decimal that it is, to the last digit."""
    whole, part = divmod(abs(amount), AMOUNT)
    return f"{'-' if amount < 0 else ''}{whole}.{part:09d}"


class Writer(Protocol):
    """Takes rows, one after the other."""

    def write(self, row: Row) -> None:
        """Takes a row."""

    def close(self) -> None:
        """Writes what is left; the file itself stays open."""


class Csv:
    """RFC 4180, with a line of names first and line feeds only."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(Row._fields)

    def write(self, row: Row) -> None:
        """See Writer."""
        amounts = (row.spent, row.cap, row.granted, row.remaining, row.lifetime)
        self._writer.writerow((*row[:_FIRST_AMOUNT], *map(decimal, amounts)))

    def close(self) -> None:
        """See Writer."""


class JsonLines:
    """One object a line; amounts are numbers with nine digits behind the point (read them as decimals to be exact)."""

    def __init__(self, file: IO[str]) -> None:
        import msgspec

        self._file = file
        self._raw = msgspec.Raw
        self._encode = msgspec.json.Encoder().encode

    def write(self, row: Row) -> None:
        """See Writer."""
        document: dict[str, Any] = row._asdict()
        for name in AMOUNTS:
            document[name] = self._raw(decimal(document[name]).encode())
        self._file.write(ascii_json(self._encode(document).decode()) + "\n")

    def close(self) -> None:
        """See Writer."""


class Parquet:
    """Amounts are decimal128(38, 9); times are timestamps in UTC, beside the same in seconds.

    Raises:
        InputError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise InputError("--format parquet needs another package: pip install pyarrow") from None
        self._schema = self._arrow.schema([(name, self._type(name)) for name in Row._fields])
        self._rows: list[Row] = []
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def _type(self, name: str) -> Any:
        arrow = self._arrow
        if name in AMOUNTS:
            return arrow.decimal128(_DIGITS, _SCALE)
        if name.endswith("_seconds"):
            return arrow.int64()
        if name.startswith("window_"):
            return arrow.timestamp("ms", tz="UTC")
        return arrow.float64() if name == "delta" else arrow.string()

    def write(self, row: Row) -> None:
        """See Writer."""
        self._rows.append(row)
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self) -> None:
        """See Writer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = dict(zip(Row._fields, zip(*self._rows, strict=True), strict=True))
        arrays = [self._array(name, columns) for name in Row._fields]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        self._rows.clear()

    def _array(self, name: str, columns: dict[str, Any]) -> Any:
        values = columns[name]
        if name in AMOUNTS:
            values = [Decimal(value).scaleb(-_SCALE) for value in values]
        elif name in ("window_start", "window_end"):
            # Seconds where there is a year for them, as in the other formats.
            seconds = columns[f"{name}_seconds"]
            values = [None if text is None else at * 1000 for text, at in zip(values, seconds, strict=True)]
        return self._arrow.array(values, type=self._schema.field(name).type)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file for its owner only, which takes the place of `path` once it is whole; until then that stays as it was.

    Yields:
        The new file, empty.

    Raises:
        InputError: It can't be written, or there is something at `path` that is no plain file.
    """
    try:
        path = path.resolve()  # what a link points to is replaced, not the link
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
    if is_other:
        raise InputError(f"{path} is not a plain file")
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield new
        descriptor = os.open(new, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
    finally:
        new.unlink(missing_ok=True)
