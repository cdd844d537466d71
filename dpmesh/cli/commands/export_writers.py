"""The writers of `dpmesh budget export`: CSV, JSON Lines or Parquet, written row by row."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Protocol

from typing_extensions import override

from dpmesh import files
from dpmesh.cli.console import InputError, ascii_json
from dpmesh.report.export_rows import AMOUNTS, Row, decimal

# Rows of one of Parquet's row groups: large enough to be read fast, and a few megabytes while they are made.
_GROUP = 50_000
# 38 digits are the most that Parquet's readers agree on; amounts have nine behind the point.
_DIGITS, _SCALE = 38, 9
_FIRST_AMOUNT = len(Row._fields) - len(AMOUNTS)


class Writer(Protocol):
    """Writes rows, one after the other."""

    def write(self, row: Row) -> None:
        """Writes a row, at once or later."""

    def close(self) -> None:
        """Writes what is left. A file that was handed in stays open."""


class Csv(Writer):
    """RFC 4180, with a line of names first and line feeds only."""

    def __init__(self, file: IO[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(Row._fields)

    @override
    def write(self, row: Row) -> None:
        amounts = (row.spent, row.cap, row.granted, row.remaining, row.lifetime)
        self._writer.writerow((*row[:_FIRST_AMOUNT], *map(decimal, amounts)))

    @override
    def close(self) -> None:
        pass


class JsonLines(Writer):
    """One object a line; amounts are numbers with nine digits behind the point (read them as decimals to be exact)."""

    def __init__(self, file: IO[str]) -> None:
        import msgspec

        self._file = file
        self._raw = msgspec.Raw
        self._encode = msgspec.json.Encoder().encode

    @override
    def write(self, row: Row) -> None:
        document: dict[str, Any] = row._asdict()
        for name in AMOUNTS:
            document[name] = self._raw(decimal(document[name]).encode())
        self._file.write(ascii_json(self._encode(document).decode()) + "\n")

    @override
    def close(self) -> None:
        pass


class Parquet(Writer):
    """Amounts are decimal128(38, 9); times are timestamps in UTC, and seconds beside them.

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

    @override
    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= _GROUP:
            self._flush()

    @override
    def close(self) -> None:
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
    """Replaces a file as a whole: a new one, readable by its owner only, takes its place at the end.

    Yields:
        The new file, empty. After an error, the old one stays as it was.

    Raises:
        InputError: It can't be written, or `path` is something else than a plain file.
    """
    try:
        path = path.resolve()  # what a link points to is replaced, not the link
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
    if is_other:
        raise InputError(f"{path} is not a plain file")
    try:
        with files.replacing(path) as new:
            yield new
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror or error}") from None
