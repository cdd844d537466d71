"""The tables of SQLite ledgers are in users' files: they change only with VERSION and a migration."""

import hashlib
import sqlite3
from contextlib import closing

import pytest

from dpmesh import sqlite_file
from dpmesh.ledger.sqlite import schema

TABLES = "210e298806ab21c7345f8cb0c7097cdcd656c371ea14877cb75c4b5fb99d816f"


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 37), reason="tables are not STRICT before SQLite 3.37")
def test_a_new_ledger_has_the_tables_of_this_version():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        with sqlite_file.transaction(connection):
            schema.create(connection, bytes(32))
        rows = connection.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        ).fetchall()
    digest = hashlib.sha256("\n".join(sql for (sql,) in rows).encode()).hexdigest()
    assert (schema.VERSION, digest) == (5, TABLES)
