"""Several hosts, servers that become read-only, and PgBouncer in between."""

import contextlib
import time

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import ConfigError, LedgerError
from dpmesh.ledger import Budget, Ledger, open_admin, open_store
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.store import PostgresStore
from tests.support import pgbouncer
from tests.support.postgres import USER

UNIT = Budget("unit", epsilon=1.0, delta=0.0, accounting=Accounting.PURE)
TENTH = AMOUNT // 10
bouncing = pytest.mark.skipif(pgbouncer.binary() is None, reason=pgbouncer.WHY_NOT)


@pytest.fixture
async def database(postgres):
    name = postgres.lend_database()
    await PostgresAdmin(postgres.url(name)).migrate()
    yield name
    postgres.take_back_database(name)


def ledger(url, timeout=60.0):
    return Ledger(PostgresStore(url, timeout=timeout), [UNIT], timeout=timeout)


@contextlib.asynccontextmanager
async def opened(url):
    found = ledger(url)
    await found.open()
    try:
        yield found
    finally:
        await found.close()


# URLs


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (
            "postgresql://u:hunter2@127.0.0.1:5432,localhost:5433/db",
            "postgresql://127.0.0.1:5432,localhost:5433/db",
        ),
        ("postgresql://u:hunt,er2@localhost,127.0.0.1/db", "postgresql://localhost,127.0.0.1/db"),
        ("postgresql://u@[::1]:5432,localhost/db", "postgresql://::1:5432,localhost/db"),
    ],
)
def test_several_hosts_of_this_machine(url, place, monkeypatch):
    for name in ("PGSSLMODE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert open_store(url).address == open_admin(url).address == place


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@db1.example:5432,db2.example:5433/d",
        "postgresql://u:hunter2@localhost,db2.example/d",
        "postgresql://u:hunter2@/d?host=localhost,db2.example",
    ],
)
def test_several_hosts_need_a_word_on_how_they_are_protected(url, monkeypatch):
    monkeypatch.delenv("PGSSLMODE", raising=False)
    with pytest.raises(ConfigError, match="sslmode=verify-full") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    open_store(url + ("&" if "?" in url else "?") + "sslmode=verify-full")


@pytest.mark.parametrize(
    "hosts", ["a:5432,b:port", "a:1,", ",b", "a:5432:6,b", "[::1,b", "a:0,b", "a:99999,b", "[::1]x,b"]
)
def test_what_is_no_list_of_hosts(hosts):
    with pytest.raises(ConfigError, match="not a URL") as caught:
        open_store(f"postgresql://u:hunter2@{hosts}/d?sslmode=verify-full")
    assert "hunter2" not in str(caught.value)


# Primaries


async def test_a_host_that_does_not_answer_is_passed_over(postgres, database):
    path = postgres.url(database).partition("@")[2]
    async with opened(f"postgresql://{USER}:hunter2@127.0.0.1:1,{path}") as found:
        await found.charge([(0, b"a", TENTH)])
    with pytest.raises(LedgerError) as caught:
        await ledger(f"postgresql://{USER}:hunter2@127.0.0.1:1,127.0.0.1:2/{database}", timeout=0.5).open()
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:1,127.0.0.1:2" in str(caught.value)


async def test_a_server_that_becomes_read_only_is_left(postgres, database):
    """As a primary that was demoted while it kept its connections: they are given up, and made anew."""
    url = postgres.url(database)
    async with opened(url) as found:
        await found.charge([(0, b"a", TENTH)])
        store = found._store
        before = store._charging._connection
        await before.execute("SET default_transaction_read_only = on")
        await postgres.sql(database, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
        for _ in range(2):
            with pytest.raises(LedgerError, match="is read-only: set ledger.url to the primary"):
                await found.charge([(0, b"b", TENTH)])
        assert before.is_closed()
        await postgres.sql("postgres", f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        await found.charge([(0, b"b", TENTH)])
        await found.check()
        async with PostgresAdmin(url).view() as view:
            assert sorted([a.spent async for a in view.accounts()]) == [TENTH, TENTH]


@bouncing
async def test_a_host_that_takes_no_writes_is_passed_over(postgres, database):
    """Whoever comes by the first host has a user who may only read, as on a primary that was demoted."""
    reader = f"reader_{database}"
    await postgres.sql("postgres", f"CREATE ROLE {reader} SUPERUSER LOGIN")
    await postgres.sql("postgres", f"ALTER ROLE {reader} SET default_transaction_read_only = on")
    try:
        with pgbouncer.running(postgres.port, reader, pool_mode="session") as port:
            with pytest.raises(LedgerError, match="is read-only: set ledger.url to the primary"):
                await ledger(through(port, database)).open()
            hosts = f"127.0.0.1:{port},127.0.0.1:{postgres.port}"
            async with opened(f"postgresql://{USER}@{hosts}/{database}") as found:
                await found.charge([(0, b"a", TENTH)])
                await found.check()
    finally:
        await postgres.sql("postgres", f"DROP ROLE {reader}")


# PgBouncer


def through(port, database, parameters=""):
    return f"postgresql://{USER}@127.0.0.1:{port}/{database}{parameters}"


@bouncing
async def test_session_mode(postgres, database):
    """It needs no setting of PgBouncer's, and dpmesh's own settings hold."""
    with pgbouncer.running(postgres.port, USER, pool_mode="session") as port:
        url = through(port, database)
        async with opened(url) as first, opened(url) as second:
            for found in (first, second):
                for _ in range(4):
                    await found.charge([(0, b"a", TENTH)])
            assert await first._store._charging._connection.fetchval("SHOW statement_timeout") == "2min"
            await first.check()
        async with PostgresAdmin(url).view() as view:
            assert [a.spent async for a in view.accounts()] == [8 * TENTH]


@bouncing
async def test_transaction_mode_is_named_at_once(postgres, database):
    # Versions that can follow prepared statements from connection to connection are told not to.
    settings = {"max_prepared_statements": "0"} if pgbouncer.version() >= (1, 21) else {}
    with pgbouncer.running(postgres.port, USER, pool_mode="transaction", **settings) as port:
        began = time.monotonic()
        for url in (through(port, database), through(port, database, "?user=" + USER)):
            with pytest.raises(LedgerError, match="set pool_mode = session"):
                await ledger(url).open()
        with pytest.raises(LedgerError, match="set pool_mode = session"):
            await PostgresAdmin(through(port, database)).migrate()
        assert time.monotonic() - began < 30  # and not after two minutes of retries


@bouncing
async def test_session_mode_with_no_connection_to_spare(postgres, database):
    """Nothing else can be had through the pooler, and that is no reason to refuse."""
    with pgbouncer.running(postgres.port, USER, pool_mode="session", default_pool_size="2") as port:
        url = through(port, database)
        async with opened(url) as found:
            await found.check()  # Takes the second one.
            await found.charge([(0, b"a", TENTH)])


@bouncing
async def test_a_setting_that_pgbouncer_refuses_is_named_at_once(postgres, database):
    with pgbouncer.running(postgres.port, USER, pool_mode="session") as port:
        began = time.monotonic()
        url = through(port, database, "?lock_timeout=5s")
        with pytest.raises(
            LedgerError, match="refuses the setting lock_timeout: .*ignore_startup_parameters"
        ):
            await ledger(url).open()
        assert time.monotonic() - began < 30
    with pgbouncer.running(postgres.port, USER, ignore_startup_parameters="lock_timeout") as port:
        async with opened(through(port, database, "?lock_timeout=5s")) as found:
            await found.charge([(0, b"a", TENTH)])


@bouncing
async def test_a_pooler_does_not_hide_that_commits_can_be_lost(postgres, database):
    """A setting of the session may be another session's behind a pooler, so the database has to have it."""
    await postgres.sql("postgres", f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    async with opened(postgres.url(database)) as found:
        await found.charge([(0, b"a", TENTH)])
    with (
        pgbouncer.running(postgres.port, USER, pool_mode="session") as port,
        pytest.raises(LedgerError, match="through a pooler, and runs with synchronous_commit = off"),
    ):
        await ledger(through(port, database)).open()
