"""What is PostgreSQL's own: URLs, connections, durability, migrations, administration, and forks."""

import asyncio
import time
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Budget, Ledger, account_hash, inspect, open_store
from dpmesh.ledger.chain import Kind, decode
from dpmesh.ledger.postgres import PostgresStore
from dpmesh.ledger.postgres_books import PostgresBooks
from dpmesh.ledger.postgres_schema import VERSION
from dpmesh.ledger.verify import verify
from tests.support import children
from tests.support.postgres import Server, certificate_files

DAY = 86_400
UNIT = Budget("unit", epsilon=1.0, delta=0.0, accounting=Accounting.PURE)
LIFE = Budget("life", epsilon=5.0, delta=0.0, accounting=Accounting.PURE, window=None)
TENTH = AMOUNT // 10


@pytest.fixture
async def url(database):
    """A ledger that was just made."""
    assert await PostgresBooks(database).migrate() == (0, VERSION)
    return database


@asynccontextmanager
async def opened(url, budgets=(UNIT, LIFE), **changes):
    ledger = Ledger(open_store(url), budgets, **changes)
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def execute(postgres, url, *statements):
    for statement in statements:
        await postgres.sql(url.rpartition("/")[2], statement)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ledger:hunter2@db.example/budgets",
        "postgresql://ledger@10.1.2.3:5433/budgets",
        "postgresql://ledger@/budgets?host=db.example",
    ],
)
def test_another_machine_needs_a_word_on_how_it_is_protected(url, monkeypatch):
    monkeypatch.delenv("PGSSLMODE", raising=False)
    with pytest.raises(ConfigError, match=r"ledger\.url.*sslmode=verify-full") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "ledger@" not in str(caught.value)
    open_store(url + ("&" if "?" in url else "?") + "sslmode=verify-full")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    open_store(url)


@pytest.mark.parametrize(
    "url",
    ["postgresql://a@127.0.0.1/b", "postgres://a@localhost:5433/b", "postgresql://a@/b?host=/run/postgresql"],
)
def test_this_machine_needs_none(url, monkeypatch):
    monkeypatch.delenv("PGSSLMODE", raising=False)
    open_store(url)


@pytest.mark.parametrize("url", ["postgresql://a@host:port/b", "postgresql://[::1/b"])
def test_what_is_no_url(url):
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        open_store(url)


# Connections


async def test_nothing_listens():
    with pytest.raises(LedgerError, match="can't be reached"):
        await Ledger(PostgresStore("postgresql://a:hunter2@127.0.0.1:1/b", timeout=0.5), [UNIT]).open()


async def test_a_database_without_a_ledger(database):
    with pytest.raises(LedgerError, match="dpmesh ledger migrate"):
        await Ledger(open_store(database), [UNIT]).open()
    with pytest.raises(LedgerError, match="dpmesh ledger migrate"):
        inspect(database)


async def test_a_database_that_is_not_there(postgres):
    with pytest.raises(LedgerError, match="create the database"):
        await Ledger(open_store(postgres.url("nowhere")), [UNIT]).open()


async def test_tables_of_another_version(postgres, url):
    await execute(postgres, url, f"UPDATE dpmesh.ledger SET version = {VERSION + 1}")
    with pytest.raises(LedgerError, match="another version"):
        await Ledger(open_store(url), [UNIT]).open()
    with pytest.raises(LedgerError, match="newer version"):
        await PostgresBooks(url).migrate()


async def test_tls_and_a_password(tmp_path):
    certificate, key = certificate_files(tmp_path)
    with Server(password="p@ss:word", certificate=certificate, key=key) as server:
        url = (
            server.url(server.create_database())
            + f"?sslmode=verify-full&sslrootcert={quote(str(certificate))}"
        )
        await PostgresBooks(url).migrate()
        async with opened(url) as ledger:
            await ledger.charge([(0, b"a", 1)])
        wrong = url.replace(quote("p@ss:word", safe=""), "hunter2")
        with pytest.raises(LedgerError, match="password") as caught:
            await Ledger(open_store(wrong), [UNIT]).open()
        assert "hunter2" not in str(caught.value)
        plain = url.partition("?")[0] + "?sslmode=disable"
        with pytest.raises(LedgerError):
            await Ledger(open_store(plain), [UNIT]).open()
        other = tmp_path / "other"
        other.mkdir()
        strange, _ = certificate_files(other)
        with pytest.raises(LedgerError):
            await Ledger(open_store(url.replace(quote(str(certificate)), quote(str(strange)))), [UNIT]).open()


async def test_a_root_certificate_that_is_not_there(postgres, tmp_path):
    url = postgres.url("postgres") + f"?sslmode=verify-full&sslrootcert={tmp_path}/none.pem"
    with pytest.raises(LedgerError, match="sslrootcert"):
        await Ledger(open_store(url), [UNIT]).open()


async def test_a_server_that_would_forget_is_refused():
    with Server(fsync="off") as server:
        url = server.url(server.create_database())
        with pytest.raises(LedgerError, match="fsync"):
            await PostgresBooks(url).migrate()


async def test_commits_are_durable_whatever_the_default(postgres, url):
    name = url.rpartition("/")[2]
    await postgres.sql(name, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    async with opened(url) as ledger:
        mode = await ledger._store._charging.call(lambda c: c.fetchval("SHOW synchronous_commit"))
        assert mode == "on"


async def test_a_forked_child_has_leases_and_a_chain_of_its_own(url):
    async with opened(url) as ledger:
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])  # one more is in hand

        def child():
            assert not ledger.spend([(0, b"a", 1)])

            async def spend():
                await ledger.charge([(0, b"a", TENTH)])
                await ledger.close()

            asyncio.run(spend())

        await asyncio.to_thread(children.run, child)
        assert ledger.spend([(0, b"a", TENTH)])
        await ledger.charge([(0, b"a", 5 * TENTH)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
    async with PostgresBooks(url).view() as view:
        assert len(await view.chains()) == 2
        assert await verify(view) == []


# Administration


async def test_migrating_again_changes_nothing(url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
    assert await PostgresBooks(url).migrate() == (VERSION, VERSION)
    assert len(inspect(url).accounts) == 1


async def test_several_who_migrate_at_once(database):
    versions = await asyncio.gather(*[PostgresBooks(database).migrate() for _ in range(5)])
    assert sorted(versions) == [(0, VERSION)] + [(VERSION, VERSION)] * 4


async def test_a_grant_raises_one_account_in_one_window(postgres, url):
    books = PostgresBooks(url)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", AMOUNT), (1, b"a", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
        account = account_hash(ledger.secret, b"a")
        granted = await books.grant("unit", account, 2 * TENTH, "ticket 7, by an auditor")
        assert (granted.spent, granted.cap, granted.granted, granted.lifetime) == (
            AMOUNT,
            AMOUNT,
            2 * TENTH,
            AMOUNT,
        )
        await ledger.charge([(0, b"a", TENTH)])
        assert ledger.standing(0, b"a") == (AMOUNT + TENTH, AMOUNT + 2 * TENTH)
        for known in (0, TENTH):
            with pytest.raises(LedgerError, match="changed meanwhile"):
                await books.grant("unit", account, TENTH, "again", has=known)
        await books.grant("unit", account, TENTH, "again", has=2 * TENTH)
        await ledger.charge([(0, b"a", 2 * TENTH)])
        for charge in [(0, b"a", 1), (0, b"b", AMOUNT + 1)]:
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([charge])
        await books.grant("unit", account_hash(ledger.secret, b"new"), TENTH, "before it was ever charged")
        await ledger.charge([(0, b"new", AMOUNT + TENTH)])
        await books.grant("life", account, 5 * AMOUNT, "for ever")
        await ledger.charge([(1, b"a", 10 * AMOUNT - 1)])
    for raised in (0, -1, 0.5, True):
        with pytest.raises(LedgerError, match="positive integer"):
            await books.grant("unit", account, raised, "why")
    with pytest.raises(LedgerError, match="16 bytes"):
        await books.grant("unit", b"a", 1, "why")
    with pytest.raises(LedgerError, match="beyond what a ledger can count"):
        await books.grant("unit", account, 2**63 - 1 - AMOUNT, "why", has=3 * TENTH)
    with pytest.raises(ConfigError, match="'other' is not in the ledger; there are unit, life"):
        await books.grant("other", account, 1, "why")
    await execute(
        postgres,
        url,
        "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
        f"'SELECT extract(epoch FROM clock_timestamp())::double precision + {DAY}'",
    )
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(1, b"a", 1)])
    async with books.view() as view:
        assert await verify(view) == []
        entries = [decode(entry.body) async for entry in view.entries()]
    notes = {entry.note for entry in entries if entry.kind is Kind.GRANT}
    assert notes == {"ticket 7, by an auditor", "again", "before it was ever charged", "for ever"}


async def test_pruning_drops_old_days_and_keeps_accounts(postgres, url):
    books = PostgresBooks(url)
    old = time.time() - 50 * DAY
    shifted = "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
    for days in (50, 30, 0):
        await execute(
            postgres,
            url,
            shifted + f"'SELECT extract(epoch FROM clock_timestamp())::double precision - {days * DAY}'",
        )
        async with opened(url) as ledger:
            await ledger.charge([(0, b"a", TENTH), (1, b"a", TENTH)])
    assert await books.prune(int(old)) == 0
    assert await books.prune(int(old) + 10 * DAY) == 1
    with pytest.raises(LedgerError, match="longest window"):
        await books.prune(int(time.time()))
    async with books.view() as view:
        assert view.pruned_before > 0
        assert await verify(view) == []
        assert [a.lifetime async for a in view.accounts()] == [3 * TENTH, 3 * TENTH]
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
    async with books.view() as view:
        assert await verify(view) == []


async def test_the_log_is_append_only(postgres, url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
    for statement in ("UPDATE dpmesh.charges SET body = ''", "DELETE FROM dpmesh.charges"):
        with pytest.raises(Exception, match="append-only"):
            await execute(postgres, url, statement)


TAMPERINGS = {
    "less debited": "UPDATE dpmesh.accounts SET debited = debited - 1",
    "less on the odometer": "UPDATE dpmesh.accounts SET lifetime = lifetime - 1",
    "another window": "UPDATE dpmesh.accounts SET window_start = window_start + 86400 WHERE budget = 1",
    "granted behind the log": "UPDATE dpmesh.accounts SET granted = granted + 1",
    "an account dropped": "DELETE FROM dpmesh.accounts WHERE budget = 1",
    "an account added": "INSERT INTO dpmesh.accounts VALUES (1, decode(repeat('ab', 16), 'hex'), 0, 1, 5, 0, 1)",
    "an entry altered": "UPDATE dpmesh.charges SET body = overlay(body placing '\\x01' from 50) WHERE seq = 2",
    "an entry dropped": "DELETE FROM dpmesh.charges WHERE seq = 2",
    "the last entry dropped": "DELETE FROM dpmesh.charges WHERE seq = (SELECT max(seq) FROM dpmesh.charges)",
    "entries exchanged": (
        "UPDATE dpmesh.charges SET seq = 99 WHERE seq = 2; UPDATE dpmesh.charges SET seq = 2 WHERE seq = 3; "
        "UPDATE dpmesh.charges SET seq = 3 WHERE seq = 99"
    ),
    "a chain dropped": "DELETE FROM dpmesh.charges; DELETE FROM dpmesh.chains",
    "a head put back": "UPDATE dpmesh.chains SET seq = seq - 1",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_verification_finds(postgres, url, tampering):
    async with opened(url) as ledger:
        for i in range(5):
            await ledger.charge([(0, b"%d" % i, TENTH), (1, b"%d" % i, TENTH)])
    books = PostgresBooks(url)
    async with books.view() as view:
        assert await verify(view) == []
    await execute(
        postgres,
        url,
        "ALTER TABLE dpmesh.charges DISABLE TRIGGER append_only",
        *TAMPERINGS[tampering].split("; "),
    )
    async with books.view() as view:
        assert await verify(view) != []


async def test_there_is_nothing_to_accept(url):
    with pytest.raises(LedgerError, match="nothing to accept"):
        await PostgresBooks(url).accept("why not")


async def test_a_view_is_of_one_moment(url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
        async with PostgresBooks(url).view() as view:
            await ledger.charge([(0, b"a", 5 * TENTH)])
            assert [a.spent async for a in view.accounts()] == [TENTH]
            assert await verify(view) == []
            assert len(await view.chains()) == 1


async def test_no_unit_is_in_the_database(postgres, url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"tail-N14228", TENTH)])
    dump = ""
    for table in ("accounts", "chains", "charges", "budgets"):
        dump += str(await postgres.sql(url.rpartition("/")[2], f"SELECT * FROM dpmesh.{table}"))
    assert "N14228" not in dump
    assert "N14228" not in postgres.log_tail()
