"""ledger.url, and reading a ledger at rest."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger import Budget, Ledger, MemoryStore, inspect, open_admin, open_store
from tests.contract.suite import AMOUNT, BUDGETS, TENTH
from tests.support import children


def test_memory():
    assert isinstance(open_store("memory:"), MemoryStore)
    for function in (open_admin, inspect):
        with pytest.raises(ConfigError, match=r"ledger\.url: 'memory:'"):
            function("memory:")


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = open_store("sqlite:///.dpmesh/ledger.db")
    monkeypatch.chdir("/")
    assert relative.path == tmp_path / ".dpmesh/ledger.db"  # where it was when it was named
    assert str(open_store("sqlite:////var/lib/a b?#%.db").path) == "/var/lib/a b?#%.db"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory:x",
        "sqlite:",
        "sqlite://ledger.db",
        "sqlite:///",
        "sqlite:///dir/",
        "sqlite:///:memory:",
        "sqlite://///x",
        "sqlite:///a\0b",
        "SQLITE:///x.db",
        "postgresql:db/x",
        "mysql://db/x",
        "/var/lib/ledger.db",
        None,
        7,
    ],
)
def test_anything_else_is_refused_by_key_and_value(url):
    for function in (open_store, open_admin, inspect):
        with pytest.raises(ConfigError, match=r"ledger\.url: .*memory:.*sqlite:///relative") as caught:
            function(url)
        assert repr(str(url)) in str(caught.value)


@pytest.mark.parametrize("rest", ["x.db\n", "x.db ", "x.db\r", "x.db?timeout=5", "a\x1b[31m.db"])
def test_a_path_that_something_clings_to_is_no_other_ledger(rest):
    """A line that was read with its end, or parameters of other tools: all budgets would begin anew."""
    for function in (open_store, open_admin, inspect):
        with pytest.raises(ConfigError, match="It would be another file, of which nothing is spent"):
            function(f"sqlite:////var/lib/{rest}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://app:hunter2@db/x", "mysql://***@db/x"),
        ("mysql://app:hun@ter2/hunter2@db/x", "mysql://***@db/x"),
        ("mysql://app:hun?ter2@db/x", "mysql://***"),
        ("postgresql:app:hunter2@db/x", "***@db/x"),
        ("mysql://db/x?password=hunter2", "mysql://db/x?***"),
        ("mysql://app:secret@db/x?password=hunter2", "mysql://***@db/x?***"),
        ("mysql://db/x?password=hunt@er2", "mysql://***"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    for function in (open_store, open_admin, inspect):
        with pytest.raises(ConfigError) as caught:
            function(url)
        assert repr(shown) in str(caught.value)
        assert not any(word in str(caught.value) for word in ("hun", "er2", "app"))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_database(scheme):
    url = f"{scheme}://app:hunter2@db/x?sslmode=verify-full"
    assert type(open_store(url)).__name__ == "PostgresStore"
    assert type(open_admin(url)).__name__ == "PostgresAdmin"


@pytest.mark.parametrize("function", [open_store, open_admin])
def test_a_database_without_its_driver(function, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("dpmesh.ledger.postgres")]:
        monkeypatch.delitem(sys.modules, module)
        # An import would find it there.
        monkeypatch.delattr(sys.modules["dpmesh.ledger"], module.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[postgres\]'") as caught:
        function("postgresql://app:hunter2@db/x?sslmode=verify-full")
    assert "hunter2" not in str(caught.value)


def test_sqlite_is_loaded_by_those_who_use_it():
    code = "import sys, dpmesh.ledger.backends; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
async def used(tmp_path):
    """A ledger's URL and the ledger, which is still open."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(open_store(url), BUDGETS)
    await ledger.open()
    await ledger.charge([(0, b"a", AMOUNT), (1, b"", 3)])
    await ledger.charge([(0, b"b", TENTH)])
    yield url, ledger
    await ledger.close()


def check(url, ledger):
    snapshot = inspect(url)
    assert snapshot.budgets == tuple(BUDGETS)
    assert [b.cap for b in snapshot.budgets] == [b.cap for b in BUDGETS]
    assert sorted((a.budget, a.spent) for a in snapshot.accounts) == [
        ("all", 3),
        ("unit", TENTH),
        ("unit", AMOUNT),
    ]
    assert ledger.secret.hex() not in repr(snapshot)
    assert repr(ledger.secret) not in repr(snapshot)
    mine = inspect(url, unit=b"a")
    assert [(a.account, a.spent) for a in mine.accounts] == [(snapshot.account(b"a"), AMOUNT)]
    assert len(inspect(url, budget="unit").accounts) == 2
    assert inspect(url, budget="all", unit=b"a").accounts == ()
    assert len(inspect(url, unit=b"").accounts) == 1


async def test_a_ledger_in_use_can_be_read(used):
    check(*used)


async def test_a_ledger_that_another_process_is_writing_can_be_read(used):
    url, ledger = used
    writer = ledger._store._connection
    writer.execute("BEGIN IMMEDIATE")
    try:
        check(url, ledger)
    finally:
        writer.execute("ROLLBACK")


async def test_a_ledger_at_rest_can_be_read_and_nothing_is_left_beside_it(used, tmp_path):
    url, ledger = used
    await ledger.close()
    before = (tmp_path / "ledger.db").read_bytes()
    check(url, ledger)
    assert sorted(os.listdir(tmp_path)) == ["ledger.db", "ledger.db-witness"]
    assert (tmp_path / "ledger.db").read_bytes() == before


async def test_a_ledger_in_a_directory_that_can_not_be_written_can_be_read(used, tmp_path, anyones):
    _, ledger = used
    await ledger.close()
    copy = shutil.copy(tmp_path / "ledger.db", anyones / "ledger.db")
    os.chmod(copy, 0o444)
    anyones.chmod(0o555)
    children.as_ordinary_user(lambda: check(f"sqlite:///{copy}", ledger))


async def test_what_is_no_ledger_is_not_created_or_read(tmp_path):
    with pytest.raises(LedgerError, match=r"there is no ledger at .*missing\.db"):
        inspect(f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(LedgerError, match=r"there is no ledger"):
        inspect(f"sqlite:///{tmp_path}/no/such/dir.db")
    assert os.listdir(tmp_path) == []
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(LedgerError, match=r"garbage\.db is not an SQLite database"):
        inspect(f"sqlite:///{tmp_path}/garbage.db")
    (tmp_path / "dir.db").mkdir()
    with pytest.raises(LedgerError, match=r"dir\.db is not a plain file"):
        inspect(f"sqlite:///{tmp_path}/dir.db")


async def test_the_definitions_are_those_of_the_window_in_force(used):
    url, ledger = used
    await ledger.close()
    raised = Budget("unit", epsilon=2.0, delta=0.0, accounting="pure", on_exhausted="suppress")
    again = Ledger(open_store(url), [raised])
    await again.open()
    await again.close()
    assert inspect(url).budgets == (replace(raised, epsilon=1.0), *BUDGETS[1:])
    assert {a.cap for a in inspect(url, budget="unit").accounts} == {AMOUNT}
