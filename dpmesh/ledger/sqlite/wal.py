"""The write-ahead log beside an SQLite ledger: whether it continues the file that it stands beside.

A process that dies leaves the log there, and SQLite applies it to the file when that is opened next. If only the file
was replaced by an older copy meanwhile, SQLite would mix the two. What was debited between the copy and the log's
beginning would be gone, and the count of commits, which is in the log, would not show it. So the count is read from the
file and from the log's first commit before SQLite opens either. The formats: https://www.sqlite.org/fileformat2.html,
sections 1.6, 2.1 and 4.1.
"""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

from dpmesh import sqlite_file
from dpmesh.errors import LostChargesError

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, sequence number, two salts, two checksums
_FRAME = struct.Struct(">IIIIII")  # page number, size of the database, two salts, two checksums
_MAGIC = (0x377F0682, 0x377F0683)
_LEAF = 0x0D
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type: length


def check(path: Path) -> None:
    """Checks a ledger's file against the log beside it, if there is one.

    Raises:
        LostChargesError: The file is older than the log's beginning.
        OSError: One of them can't be read.
    """
    if missing := gap(path):
        raise LostChargesError(
            f"{path} is an older copy than the log beside it: {missing} commits between the two are missing, and what "
            "they charged would be spent again. Put the newest one back with its log, or see "
            "`dpmesh ledger accept --help`"
        )


def discard(path: Path) -> None:
    """Removes the log beside a ledger's file. Nobody may have the ledger open.

    Raises:
        OSError: The log can't be removed.
    """
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def gap(path: Path) -> int:
    """How many commits are missing between a ledger's file and the log beside it.

    Raises:
        OSError: One of them can't be read.
    """
    log = path.with_name(path.name + "-wal")
    found = _in_file(path) if log.exists() else None
    if found is None:
        return 0  # No log, no ledger, or one without a count (version 2 or older): SQLite and the schema will tell.
    first = _in_log(log, found[0])
    # Read again after the log: others may be at work, and the file must not seem older than it is.
    found = _in_file(path)
    return max(0, first - 1 - found[1]) if first is not None and found is not None else 0


def count(path: Path) -> int | None:
    """How many commits a ledger's file has without the log, or None if it can't be read. It never decreases."""
    found = _in_file(path)
    return None if found is None else found[1]


def _in_file(path: Path) -> tuple[int, int] | None:
    """The page that holds the count of commits, and the count, without the log."""
    try:
        with closing(sqlite_file.connect(path, "mode=ro&immutable=1", 0.0)) as connection:
            page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger'").fetchone()
            count = page and connection.execute("SELECT commits FROM ledger").fetchone()
            return (page[0], count[0]) if count else None
    except sqlite3.Error:
        return None


def _in_log(log: Path, page: int) -> int | None:
    """The count of commits in the log's first version of a page; None if the log has none, or is torn there."""
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return None  # the last holder has just closed the ledger
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        magic, _, size, _, *salts, _, _ = _HEADER.unpack(header)
        size = 65_536 if size == 1 else size
        if magic not in _MAGIC or not 512 <= size <= 65_536:
            return None
        while len(frame := file.read(_FRAME.size)) == _FRAME.size:
            number, _, *frame_salts, _, _ = _FRAME.unpack(frame)
            if frame_salts != salts:
                return None  # what follows is of an earlier round
            if number == page:
                return _count(file.read(size))
            file.seek(size, 1)
    return None


def _count(page: bytes) -> int | None:
    """The count of commits in the page that holds the one row of table `ledger` (id, witness, commits, ...)."""
    try:
        if page[0] != _LEAF or page[3:5] != b"\0\1":
            return None
        at = int.from_bytes(page[8:10], "big")
        for _ in range(2):  # the row's length, and its number
            _, at = _varint(page, at)
        length, body = _varint(page, at)
        end = at + length
        kinds = []
        while body < end:
            kind, body = _varint(page, body)
            kinds.append(kind)
        at = end + sum(_length(kind) for kind in kinds[:2])
        if kinds[2] >= 8:
            return kinds[2] - 8  # the types 8 and 9 are the numbers 0 and 1
        return int.from_bytes(page[at : at + _length(kinds[2])], "big", signed=True)
    except (IndexError, KeyError):
        return None


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = page[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | page[at], at + 1


def _length(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    return 0 if kind in (0, 8, 9) else _INTEGERS[kind]
