"""SQLite files that several processes share: connections, write transactions, and commits that survive a power cut."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


def connect(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    """Connects to an SQLite file. Transactions are explicit, and any thread may use the connection.

    Args:
        path: The file.
        mode: SQLite's URI parameters: "mode=ro", "mode=rw" or "mode=rwc", perhaps more.
        timeout: How long to wait for another process's lock, in seconds.

    Raises:
        sqlite3.Error: SQLite can't open the file.
    """
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: locked from the start, then committed or rolled back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def empty_log(connection: sqlite3.Connection) -> bool:
    """Moves the write-ahead log into the file and cuts it to nothing, without waiting for others.

    Returns:
        Whether it is empty. It is not where others read or write just now.

    Raises:
        sqlite3.Error: The file can't be written.
    """
    (wait,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {wait}")  # a number
    return not busy


def make_durable(connection: sqlite3.Connection) -> bool:
    """Makes each commit survive a power cut: a write-ahead log, and synchronous=FULL.

    Returns:
        Whether the file has a write-ahead log now. Some network file systems can't have one.

    Raises:
        sqlite3.Error: The file can't be written.
    """
    connection.execute("PRAGMA synchronous = FULL")
    # The mode is in the file; asking again costs nothing, and repairs a mode that somebody changed.
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    return bool(mode == "wal")
