"""SQLite files that several processes share."""

import sqlite3
from contextlib import closing

import pytest

from dpmesh import sqlite_file


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file?with=signs#%41.db"
    path.touch()
    with closing(sqlite_file.connect(path, "mode=rw", 0.0)) as connection:
        connection.execute("CREATE TABLE t (n)")
    return path


def rows(path):
    with closing(sqlite_file.connect(path, "mode=ro", 0.0)) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM t")]


def test_a_transaction_is_committed_or_rolled_back(file):
    with closing(sqlite_file.connect(file, "mode=rw", 0.0)) as connection:
        with sqlite_file.transaction(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            assert rows(file) == []
        with pytest.raises(KeyError), sqlite_file.transaction(connection):
            connection.execute("INSERT INTO t VALUES (2)")
            raise KeyError
        assert not connection.in_transaction
    assert rows(file) == [1]


def test_a_transaction_locks_the_file_from_its_start(file):
    with (
        closing(sqlite_file.connect(file, "mode=rw", 0.0)) as first,
        closing(sqlite_file.connect(file, "mode=rw", 0.0)) as second,
        sqlite_file.transaction(first),
        pytest.raises(sqlite3.OperationalError, match="locked"),
        sqlite_file.transaction(second),
    ):
        raise AssertionError("two transactions at once")


def test_a_durable_file_has_a_write_ahead_log_and_synchronizes_each_commit(file):
    with closing(sqlite_file.connect(file, "mode=rw", 0.0)) as connection:
        assert sqlite_file.make_durable(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert sqlite_file.make_durable(connection)
    with closing(sqlite_file.connect(file, "mode=ro", 0.0)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_file_is_made_where_none_is_asked_for(tmp_path):
    with pytest.raises(sqlite3.OperationalError):
        sqlite_file.connect(tmp_path / "none.db", "mode=rw", 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_memory_can_not_be_made_durable(tmp_path):
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        assert not sqlite_file.make_durable(connection)
