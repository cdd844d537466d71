"""What is PostgreSQL's own: URLs, connections, durability, migrations, administration, and forks."""

import asyncio
import os
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from dpmesh.accounting import AMOUNT, Accounting
from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError, LostChargesError
from dpmesh.ledger import Budget, Ledger, account_hash, inspect, open_store
from dpmesh.ledger.audit.verify import verify
from dpmesh.ledger.budget import Match
from dpmesh.ledger.charge_log import EntryKind, decode
from dpmesh.ledger.postgres import admin as admin_module
from dpmesh.ledger.postgres import rewind
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.postgres.queries import LOCK
from dpmesh.ledger.postgres.schema import VERSION, migration
from dpmesh.ledger.postgres.store import PostgresStore
from tests.support import children
from tests.support.postgres import Server, certificate_files
from tests.support.steady import no_time_passes
from tests.support.virtual_time import in_virtual_time

DAY = 86_400
UNIT = Budget("unit", epsilon=1.0, delta=0.0, accounting=Accounting.PURE)
LIFE = Budget("life", epsilon=5.0, delta=0.0, accounting=Accounting.PURE, window=None)
TENTH = AMOUNT // 10


@pytest.fixture
async def url(database):
    """A ledger that was just made."""
    assert await PostgresAdmin(database).migrate() == (0, VERSION)
    return database


@asynccontextmanager
async def opened(url, budgets=(UNIT, LIFE), **changes):
    """A ledger that waits for a machine that is slow."""
    ledger = Ledger(
        PostgresStore(url, timeout=60.0),
        budgets,
        **{"monotonic": no_time_passes, "timeout": 120.0, **changes},
    )
    await ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def execute(postgres, url, *statements):
    for statement in statements:
        await postgres.sql(url.rpartition("/")[2], statement)


async def set_clock(postgres, url, now):
    """Lets the database's clock show a time: a number for a clock that stands, or SQL."""
    await execute(
        postgres,
        url,
        "CREATE OR REPLACE FUNCTION dpmesh.now() RETURNS double precision LANGUAGE sql VOLATILE AS "
        f"'SELECT ({now})::double precision'",
    )


async def shift_clock(postgres, url, seconds):
    await set_clock(postgres, url, f"extract(epoch FROM clock_timestamp()) + {seconds}")


@asynccontextmanager
async def connected(url):
    """A connection that is not a ledger's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def waiting(connection, count=1):
    """Waits until so many sessions of the database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(60):
        while await connection.fetchval(query) < count:
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)


async def whole(url):
    async with PostgresAdmin(url).view() as view:
        assert await verify(view) == []


@pytest.fixture
async def holders_url(postgres, url):
    """The ledger's URL for a user with the rights that the manual gives to holders, and no others."""
    name = f"holder_{url.rpartition('/')[2]}"
    await execute(
        postgres,
        url,
        f"CREATE ROLE {name} LOGIN",
        f"GRANT USAGE ON SCHEMA dpmesh TO {name}",
        f"GRANT SELECT, UPDATE (lost) ON dpmesh.ledger TO {name}",
        f"GRANT SELECT, INSERT, UPDATE ON dpmesh.budgets, dpmesh.accounts, dpmesh.chains TO {name}",
        f"GRANT SELECT, INSERT ON dpmesh.charges TO {name}",
        f"GRANT SELECT, UPDATE ON dpmesh.clock TO {name}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON dpmesh.spent TO {name}",
        f"GRANT SELECT, INSERT, UPDATE ON dpmesh.epochs TO {name}",
    )
    yield url.replace("postgres@", f"{name}@")
    await execute(postgres, url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


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


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("PGHOST", "postgresql:///budgets"),
        ("PGHOST", "postgresql://app@/budgets"),
        ("PGSERVICE", "postgresql:///budgets"),
        ("PGSERVICE", "postgresql://app@127.0.0.1/budgets"),
        (None, "postgresql:///budgets?service=elsewhere"),
    ],
)
def test_what_the_environment_says_of_the_machine_counts(variable, url, monkeypatch):
    for name in ("PGSSLMODE", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        open_store(url)
        monkeypatch.setenv(variable, "db.example")
    for function in (open_store, PostgresAdmin):
        with pytest.raises(ConfigError, match=r"ledger\.url.*sslmode=verify-full"):
            function(url)
    open_store(url + ("&" if "?" in url else "?") + "sslmode=verify-full")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    open_store(url)


def test_a_socket_s_folder_in_the_environment_is_this_machine(monkeypatch):
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.delenv("PGSERVICE", raising=False)
    monkeypatch.setenv("PGHOST", "/run/postgresql")
    open_store("postgresql:///budgets")


@pytest.mark.parametrize(
    "password", ["hunt/er2", "hunt#er2", "#hunter2", "/hunter2", "hun/t@er2", "12/hunter2"]
)
def test_a_password_that_takes_the_url_apart_is_not_shown(password):
    """What stands behind it is then taken for a path or a fragment, and a path is shown."""
    for query in ("", "?sslmode=verify-full"):
        for function in (open_store, PostgresAdmin):
            with pytest.raises(ConfigError, match=r"ledger\.url") as caught:
                function(f"postgresql://app:{password}@db.example/budgets{query}")
            assert not any(word in str(caught.value) for word in ("hun", "er2", "app", "12"))


@pytest.mark.parametrize("url", ["postgresql://a@host:port/b", "postgresql://[::1/b"])
def test_what_is_no_url(url):
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        open_store(url)


# Connections


@in_virtual_time
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
        await PostgresAdmin(url).migrate()


async def test_tls_and_a_password(tmp_path):
    certificate, key = certificate_files(tmp_path)
    with Server(password="p@ss:word", certificate=certificate, key=key) as server:
        url = (
            server.url(server.create_database())
            + f"?sslmode=verify-full&sslrootcert={quote(str(certificate))}"
        )
        await PostgresAdmin(url).migrate()
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
            await PostgresAdmin(url).migrate()


async def test_commits_are_durable_whatever_the_default(postgres, url):
    name = url.rpartition("/")[2]
    await postgres.sql(name, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    async with opened(url) as ledger:
        mode = await ledger._store._charging.call(lambda c: c.fetchval("SHOW synchronous_commit"))
        assert mode == "on"


async def test_the_same_charge_again_while_the_first_is_in_doubt_is_no_alarm(postgres, url):
    """Within a second its entry has the same bytes, and the first may be written when the second is refused."""
    await set_clock(postgres, url, "1700000000")
    store = PostgresStore(url, timeout=60.0, monotonic=lambda: 0.0)
    cut = Ledger(store, [LIFE], timeout=120.0)
    await cut.open()
    async with opened(url, [LIFE]) as other, connected(url) as locking:
        await other.charge([(0, b"a", TENTH)])
        await cut.charge([(0, b"b", TENTH)])
        async with locking.transaction():
            await locking.execute("SELECT FROM dpmesh.accounts FOR UPDATE")
            first = asyncio.create_task(cut.charge([(0, b"a", TENTH)]))
            await waiting(locking)
            store._charging._connection._transport.abort()
            with pytest.raises(LedgerError, match="closed the connection"):
                await first
            second = asyncio.create_task(cut.charge([(0, b"a", TENTH)]))
            await waiting(locking, 2)
        await second
        assert not await locking.fetchval("SELECT lost FROM dpmesh.ledger")
        await other.charge([(0, b"c", TENTH)])
        assert [a.spent for a in await other.accounts(unit=b"a")] in ([2 * TENTH], [3 * TENTH])
    await cut.close()
    await whole(url)


def open_files():
    """What this process has open: sockets have numbers of their own."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the folder itself
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def test_closed_event_loops_leave_no_connection_open(postgres):
    """As when a script calls asyncio.run again and again."""

    async def charge(ledger, unit):
        await ledger.open()
        await ledger.charge([(0, unit, 1)])
        await ledger.accounts()
        await ledger.check()

    with postgres.database() as url:
        asyncio.run(PostgresAdmin(url).migrate())
        ledger = Ledger(open_store(url), [LIFE])
        before, counts = open_files(), []
        for number in range(8):
            asyncio.run(charge(ledger, bytes([number])))
            counts.append(len(open_files() - before))  # what others had open may be closed meanwhile
        asyncio.run(ledger.close())
    assert len(set(counts)) == 1


async def test_a_lease_is_worthless_when_its_window_has_ended_while_the_machine_slept(url, monkeypatch):
    slept, real = 0, time.clock_gettime

    def clock(which):
        return real(which) + (slept if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", clock)
    async with opened(url) as ledger:
        for _ in range(3):
            await ledger.charge([(0, b"a", TENTH)])  # one more is in hand
        assert ledger.spend([(0, b"a", 1)])
        before = ledger._store.clock()
        slept = DAY
        assert DAY <= ledger._store.clock() - before < DAY + 60
        assert not ledger.spend([(0, b"a", 1)])


async def test_one_name_is_spent_once_while_another_holder_forgets_it(url):
    """The holder that moves the clock on forgets the name; who waits for it goes by the later clock, too."""
    name = b"x" * 32
    spend = "SELECT dpmesh.spend_once($1, $2, $3)"
    async with connected(url) as first, connected(url) as second, connected(url) as looking:
        assert await first.fetchval(spend, 98, [name], [100]) == [name]
        async with first.transaction():
            assert await first.fetchval(spend, 100, [b"y" * 32], [200]) == [b"y" * 32]
            again = asyncio.create_task(second.fetchval(spend, 98, [name], [100]))
            await waiting(looking)
        assert await again == []


async def test_two_orders_of_budgets_don_t_wait_for_each_other_as_windows_begin(postgres, url):
    budgets = [Budget(name, epsilon=1.0, delta=0.0, accounting=Accounting.PURE) for name in "ab"]
    async with opened(url, budgets):
        pass
    await execute(
        postgres,
        url,
        "ANALYZE dpmesh.budgets",
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_sleep(0.3); RETURN new; END$$",
        "CREATE TRIGGER slowly BEFORE UPDATE ON dpmesh.budgets FOR EACH ROW EXECUTE FUNCTION slowly()",
    )
    async with opened(url, budgets) as ledger, opened(url, budgets[::-1]) as reversed_:
        await asyncio.gather(ledger.charge([(0, b"a", 1)]), reversed_.charge([(0, b"b", 1)]))
    async with connected(url) as connection, asyncio.timeout(60):
        # The statistics are complete when the sessions have ended.
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dpmesh' AND datname = $1"
        while await connection.fetchval(sessions, url.rpartition("/")[2]):
            await asyncio.sleep(0.01)
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.fetchval(deadlocks) == 0


async def test_opening_with_what_only_configurations_hold_changes_nothing(url):
    """Which releases a budget pays for, and whom a quota is for: nothing of it is stored, so nobody is waited for."""
    budgets = [
        Budget("unit", match=Match(methods=("/a.*",), labels=("x",))),
        Budget("quota", key="unit/consumer", under="unit", consumers=("spiffe://mesh.example/*",)),
    ]
    async with opened(url, budgets):
        pass
    async with connected(url) as administrator:
        await administrator.execute("SELECT pg_advisory_lock($1)", LOCK)
        ledger = Ledger(PostgresStore(url, timeout=20.0), budgets, timeout=20.0)
        await ledger.open()
        await ledger.charge([(0, b"a", 1)])
        await ledger.close()


# Whether it could take a charge


async def test_a_holder_that_may_not_write_says_so(postgres, url, holders_url):
    user = urlsplit(holders_url).username
    async with opened(holders_url) as ledger:
        await ledger.charge([(0, b"a", 1)])
        await execute(postgres, url, f"REVOKE INSERT ON dpmesh.charges FROM {user}")
        for number in range(20):
            with pytest.raises(LedgerError, match="grant this user the rights"):
                await ledger.charge([(0, b"%d" % number, 1)])
        # The server said that nothing was written, so there is nothing to remember.
        assert not ledger._store._chain.doubtful
        with pytest.raises(LedgerError, match="grant this user the rights"):
            await ledger.check()
        await execute(postgres, url, f"GRANT INSERT ON dpmesh.charges TO {user}")
        await ledger.check()
        await ledger.charge([(0, b"b", 1)])
        await ledger.check()
        assert len(await ledger.accounts("unit")) == 2  # a probe leaves nothing behind
    await whole(url)
    async with PostgresAdmin(url).view() as view:
        assert len(await view.chains()) == 1


async def test_a_holder_whose_charges_wait_for_a_lock_says_so(url):
    store = PostgresStore(url, timeout=60.0)
    ledger = Ledger(store, [UNIT, LIFE], timeout=60.0)
    await ledger.open()
    await ledger.charge([(0, b"a", 1)])
    async with connected(url) as locking:
        async with locking.transaction():
            await locking.execute("LOCK TABLE dpmesh.accounts")
            for line in (store._charging, store._reading):
                line._timeout = 0.5
            with pytest.raises(LedgerError, match="did not answer"):
                await ledger.charge([(0, b"b", 1)])
            with pytest.raises(LedgerError, match="did not answer"):
                await ledger.check()
        for line in (store._charging, store._reading):
            line._timeout = 60.0
        await ledger.check()
    await ledger.charge([(0, b"b", 1)])
    await ledger.check()
    await ledger.close()


async def test_two_holders_who_need_a_new_part_of_the_log_at_once(url):
    """The second has seen that it is not there, waits for the first, and finds it."""
    day = int(time.time()) // DAY + 10
    async with connected(url) as first, connected(url) as second, connected(url) as looking:
        async with first.transaction():
            await first.execute(f"SELECT dpmesh.prepare({day})")
            waits = asyncio.create_task(second.execute(f"SELECT dpmesh.prepare({day})"))
            await waiting(looking)
        await waits
        parts = await looking.fetch("SELECT FROM pg_inherits WHERE inhparent = 'dpmesh.charges'::regclass")
    assert len(parts) == 4


async def test_a_part_of_the_log_that_is_there_is_good_whatever_the_clock_shows(postgres, url):
    """Its holder's times don't go back, and the mesh may be left and entered again."""
    await shift_clock(postgres, url, 100 * DAY)
    ledger = Ledger(open_store(url), [LIFE])
    await ledger.open()
    await ledger.charge([(0, b"a", 1)])
    await shift_clock(postgres, url, 0)
    await ledger.close()
    await ledger.open()
    await ledger.charge([(0, b"b", 1)])
    await ledger.close()
    await whole(url)


async def test_a_holder_gets_the_keys_of_epochs_with_the_rights_of_the_manual(holders_url):
    async with opened(holders_url) as ledger:
        await ledger.hold_keys([1.0, 86_400.0])
        assert ledger.epoch_key(1.0).key != ledger.epoch_key(86_400.0).key


OF_VERSION_2 = [
    "DROP FUNCTION dpmesh.debit, dpmesh.state, dpmesh.ends",
    "DROP TYPE dpmesh.answer",
    "DROP FUNCTION dpmesh.append",
    *[text for text in migration(0) if "dpmesh.answer" in text],
    "ALTER TABLE dpmesh.budgets DROP COLUMN cap",
    "UPDATE dpmesh.ledger SET version = 2",
]


async def test_a_ledger_of_version_2_keeps_its_caps_in_the_window_in_force(postgres, url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
        cap = ledger.budgets[0].cap
    await execute(postgres, url, *OF_VERSION_2)
    assert await PostgresAdmin(url).migrate() == (2, VERSION)
    higher = Ledger(PostgresStore(url), [replace(ledger.budgets[0], epsilon=2 * ledger.budgets[0].epsilon)])
    await higher.open()
    with pytest.raises(BudgetExhaustedError):
        await higher.charge([(0, b"a", cap)])
    await higher.charge([(0, b"a", cap - 1)])
    await higher.close()
    await whole(url)


async def test_a_ledger_of_version_1_gets_keys_of_epochs_and_keeps_what_is_spent(postgres, url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
    await execute(
        postgres,
        url,
        "DROP FUNCTION dpmesh.epoch_keys",
        "DROP TABLE dpmesh.epochs",
        *OF_VERSION_2,
        "UPDATE dpmesh.ledger SET version = 1",
    )
    with pytest.raises(LedgerError, match="dpmesh ledger migrate"):
        async with opened(url):
            pass
    assert await PostgresAdmin(url).migrate() == (1, VERSION)
    async with opened(url) as ledger:
        await ledger.hold_keys([86_400.0])
        assert len(await ledger.accounts(unit=b"a")) == 1
    await whole(url)


async def test_a_holder_records_policies_with_the_rights_of_the_manual(url, holders_url):
    async with opened(holders_url) as ledger:
        await ledger.record("policy epoch 2")
        await ledger.charge([(0, b"a", TENTH)])
        await ledger.record("policy epoch 3")
    await whole(url)


async def test_a_ledger_that_lost_charges_records_nothing(postgres, url):
    async with opened(url) as ledger:
        await execute(postgres, url, "UPDATE dpmesh.ledger SET lost = true")
        with pytest.raises(LedgerError, match="lost charges"):
            await ledger.record("policy epoch 2")
        await PostgresAdmin(url).accept("the disk died", unnoticed=True)
        await ledger.record("policy epoch 3")
    async with PostgresAdmin(url).view() as view:
        notes = [decode(entry.body).note async for entry in view.entries()]
    assert set(notes) == {"the disk died", "policy epoch 3"}
    await whole(url)


async def test_an_entry_whose_commit_nobody_acknowledged_is_followed_by_the_next(url, monkeypatch):
    async with opened(url) as ledger:
        store, send = ledger._store, ledger._store._send

        async def cut(statement):
            await statement
            raise ConnectionResetError

        monkeypatch.setattr(store, "_send", cut)
        with pytest.raises(LedgerError):
            await ledger.record("policy epoch 2")
        monkeypatch.setattr(store, "_send", send)
        await ledger.charge([(0, b"a", TENTH)])
        await ledger.record("policy epoch 2, again")
    await whole(url)


async def test_a_holder_can_not_have_parts_made_of_days_that_nobody_charges(holders_url):
    today = int(time.time()) // DAY
    async with connected(holders_url) as holder:
        for day in (today + 50, today - 5000, 2_000_000):
            with pytest.raises(asyncpg.PostgresError, match="no day that is charged"):
                await holder.execute(f"SELECT dpmesh.prepare({day})")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await holder.execute(f"SELECT dpmesh.add_part({day})")
        for _ in range(9):
            latest = await holder.fetchval(
                "SELECT coalesce(max(substr(inhrelid::regclass::text, 16)::int), 0) FROM pg_inherits "
                "WHERE inhparent = 'dpmesh.charges'::regclass"
            )
            with suppress(asyncpg.PostgresError):
                await holder.execute(f"SELECT dpmesh.prepare({max(latest, today + 40)})")
        assert latest == today + 43


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
    async with PostgresAdmin(url).view() as view:
        assert len(await view.chains()) == 2
        assert await verify(view) == []


# Administration


async def test_migrating_again_changes_nothing(url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
    assert await PostgresAdmin(url).migrate() == (VERSION, VERSION)
    assert len(inspect(url).accounts) == 1


async def test_several_who_migrate_at_once(database):
    versions = await asyncio.gather(*[PostgresAdmin(database).migrate() for _ in range(5)])
    assert sorted(versions) == [(0, VERSION)] + [(VERSION, VERSION)] * 4


async def test_a_grant_raises_one_account_in_one_window(postgres, url):
    admin = PostgresAdmin(url)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", AMOUNT), (1, b"a", 1)])
        with pytest.raises(BudgetExhaustedError):
            await ledger.charge([(0, b"a", 1)])
        account = account_hash(ledger.secret, b"a")
        granted = await admin.grant("unit", account, 2 * TENTH, "ticket 7, by an auditor")
        assert (granted.spent, granted.cap, granted.granted, granted.lifetime) == (
            AMOUNT,
            AMOUNT,
            2 * TENTH,
            AMOUNT,
        )
        await ledger.charge([(0, b"a", TENTH)])
        assert ledger.usage(0, b"a") == (AMOUNT + TENTH, AMOUNT + 2 * TENTH)
        for known in (0, TENTH):
            with pytest.raises(LedgerError, match="changed meanwhile"):
                await admin.grant("unit", account, TENTH, "again", has=known)
        await admin.grant("unit", account, TENTH, "again", has=2 * TENTH)
        await ledger.charge([(0, b"a", 2 * TENTH)])
        for charge in [(0, b"a", 1), (0, b"b", AMOUNT + 1)]:
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([charge])
        await admin.grant("unit", account_hash(ledger.secret, b"new"), TENTH, "before it was ever charged")
        await ledger.charge([(0, b"new", AMOUNT + TENTH)])
        await admin.grant("life", account, 5 * AMOUNT, "for ever")
        await ledger.charge([(1, b"a", 10 * AMOUNT - 1)])
    for raised in (0, -1, 0.5, True):
        with pytest.raises(LedgerError, match="positive integer"):
            await admin.grant("unit", account, raised, "why")
    with pytest.raises(LedgerError, match="16 bytes"):
        await admin.grant("unit", b"a", 1, "why")
    with pytest.raises(LedgerError, match="beyond what a ledger can count"):
        await admin.grant("unit", account, 2**63 - 1 - AMOUNT, "why", has=3 * TENTH)
    with pytest.raises(ConfigError, match="'other' is not in the ledger; there are unit, life"):
        await admin.grant("other", account, 1, "why")
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
    async with admin.view() as view:
        assert await verify(view) == []
        entries = [decode(entry.body) async for entry in view.entries()]
    notes = {entry.note for entry in entries if entry.kind is EntryKind.GRANT}
    assert notes == {"ticket 7, by an auditor", "again", "before it was ever charged", "for ever"}


async def test_pruning_drops_old_days_and_keeps_accounts(postgres, url):
    admin = PostgresAdmin(url)
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
    assert await admin.prune(int(old)) == 0
    assert await admin.prune(int(old) + 10 * DAY) == 1
    with pytest.raises(LedgerError, match="longest window"):
        await admin.prune(int(time.time()))
    async with admin.view() as view:
        assert view.pruned_before > 0
        assert await verify(view) == []
        assert [a.lifetime async for a in view.accounts()] == [3 * TENTH, 3 * TENTH]
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
    async with admin.view() as view:
        assert await verify(view) == []


async def test_pruning_knows_windows_that_were_ahead_of_the_clock(postgres, url):
    """Their entries are as old as the clock's time, and their accounts still show the sum."""
    for days in (-10, -20):  # the clock was ten days ahead, and was set right
        await shift_clock(postgres, url, days * DAY)
        async with opened(url) as ledger:
            await ledger.charge([(0, b"a", TENTH), (1, b"a", TENTH)])
    await shift_clock(postgres, url, -15 * DAY)
    assert await PostgresAdmin(url).prune(int(time.time()) - 18 * DAY) == 1
    await whole(url)


async def test_pruning_knows_windows_that_were_moved_on_several_times(postgres, url):
    admin = PostgresAdmin(url)
    await shift_clock(postgres, url, -20 * DAY)
    async with opened(url):
        pass
    for _ in range(4):
        await execute(postgres, url, "UPDATE dpmesh.ledger SET lost = true")
        await admin.accept("once more")
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH), (1, b"a", TENTH)])
    await shift_clock(postgres, url, -18 * DAY)
    assert await admin.prune(int(time.time()) - 19 * DAY) == 5
    await whole(url)


async def test_pruning_goes_by_the_database_s_clock_also_for_administrators(url, monkeypatch):
    admin = PostgresAdmin(url)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 30 * DAY)  # on the administrator's machine
        await admin.grant("unit", account_hash(ledger.secret, b"a"), TENTH, "an audit")
        monkeypatch.undo()
    assert await admin.prune(int(time.time()) - 10 * DAY) == 0
    await whole(url)


async def test_what_is_handed_back_after_its_day_was_pruned_comes_back(postgres, url):
    """The database's clock has moved on by days at once, and the holder has heard nothing of that."""
    async with opened(url, [LIFE]) as other:
        async with opened(url, [LIFE]) as ledger:
            for _ in range(3):
                await ledger.charge([(0, b"a", TENTH)])  # one more is in hand
            await shift_clock(postgres, url, 20 * DAY)
            assert await PostgresAdmin(url).prune(int(time.time()) + 10 * DAY) == 3
        (account,) = await other.accounts()
        assert (account.spent, account.lifetime) == (3 * TENTH, 3 * TENTH)
    await whole(url)
    assert await PostgresAdmin(url).prune(int(time.time()) + 10 * DAY) == 1
    await whole(url)


async def test_who_reads_the_log_stops_no_charges_when_a_new_part_is_made(url):
    async with opened(url) as ledger, connected(url) as another:
        await ledger.charge([(0, b"a", 1)])
        async with PostgresAdmin(url).view() as view:
            assert [decode(e.body).kind async for e in view.entries()] == [EntryKind.DEBIT]
            day = int(time.time()) // DAY + 5
            making = asyncio.create_task(another.execute(f"SELECT dpmesh.prepare({day})"))
            await asyncio.sleep(0.2)
            await ledger.charge([(0, b"b", 1)])
            await asyncio.wait_for(making, 60)  # not even this waits for the reader
            await ledger.charge([(0, b"c", 1)])


@pytest.mark.parametrize("patient", [True, False])
async def test_who_reads_the_log_stops_no_charges_when_a_part_is_dropped(postgres, url, monkeypatch, patient):
    """Pruning tries again until nobody reads; whoever charges meanwhile waits for a second at most."""
    if not patient:
        monkeypatch.setattr(admin_module, "_DROPS", 2, raising=False)
    admin, change, failed = PostgresAdmin(url), PostgresAdmin.change, []

    async def counted(*args, **more):
        try:
            return await change(*args, **more)
        except LedgerError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(PostgresAdmin, "change", counted)
    await shift_clock(postgres, url, -10 * DAY)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", 1), (1, b"a", 1)])
    await shift_clock(postgres, url, 0)
    async with opened(url, timeout=10.0) as ledger:
        async with admin.view() as view:
            assert [decode(e.body).kind async for e in view.entries()] == [EntryKind.DEBIT]
            pruning = asyncio.create_task(admin.prune(int(time.time()) - 5 * DAY))
            number = 0
            async with asyncio.timeout(60):
                # The first charge may itself wait until pruning gives up its lock, so one more shows that charges go on.
                while not (failed if patient else pruning.done()) or number < 2:
                    number += 1
                    await ledger.charge([(0, b"%d" % number, 1)])
                    await asyncio.sleep(0.02)
            assert pruning.done() != patient
            assert failed if patient else len(failed) == 2
            assert await verify(view) == []
        if patient:
            assert await pruning == 1
        else:
            with pytest.raises(LedgerError, match="locked by somebody else"):
                await pruning
            await whole(url)
            assert await admin.prune(int(time.time()) - 5 * DAY) == 1
    await whole(url)


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
    admin = PostgresAdmin(url)
    async with admin.view() as view:
        assert await verify(view) == []
    await execute(
        postgres,
        url,
        "ALTER TABLE dpmesh.charges DISABLE TRIGGER append_only",
        *TAMPERINGS[tampering].split("; "),
    )
    async with admin.view() as view:
        assert await verify(view) != []


async def test_there_is_nothing_to_accept(url):
    with pytest.raises(LedgerError, match="nothing to accept"):
        await PostgresAdmin(url).accept("why not")


async def test_an_older_copy_that_nobody_noticed_is_accepted_by_who_knows(url):
    admin = PostgresAdmin(url)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", AMOUNT), (1, b"a", 1)])
    with pytest.raises(LedgerError, match="--unnoticed"):
        await admin.accept("a checkpoint says so")
    assert await admin.accept("a checkpoint says so", unnoticed=True) == ("life",)
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", AMOUNT)])
        with pytest.raises(BudgetExhaustedError) as caught:
            await ledger.charge([(0, b"a", 1)])
        assert DAY < caught.value.retry_after <= 2 * DAY
    async with admin.view() as view:
        assert await verify(view) == []
        notes = [e.note for e in [decode(e.body) async for e in view.entries()] if e.kind is EntryKind.ACCEPT]
    assert notes == ["a checkpoint says so"]


async def test_a_holder_goes_on_after_accept_when_it_is_opened_again(postgres, url):
    """The chain that it had is not in the copy; that was accepted, and is no new loss."""
    async with opened(url) as other, opened(url) as ledger:
        await ledger.charge([(0, b"a", 1)])
        chain = ledger._store._chain.name.hex()
        await execute(
            postgres,
            url,
            "ALTER TABLE dpmesh.charges DISABLE TRIGGER ALL",
            f"DELETE FROM dpmesh.charges WHERE chain = '\\x{chain}'",
            f"DELETE FROM dpmesh.chains WHERE name = '\\x{chain}'",
            "DELETE FROM dpmesh.accounts",
            "ALTER TABLE dpmesh.charges ENABLE TRIGGER ALL",
        )
        with pytest.raises(LedgerError, match="lost charges"):
            await ledger.charge([(0, b"b", 1)])
        with pytest.raises(LostChargesError):
            await ledger.check()
        await PostgresAdmin(url).accept("the disk died")
        await ledger.close()
        await ledger.open()
        await ledger.check()
        await ledger.charge([(0, b"c", 1)])
        await other.charge([(0, b"d", 1)])
        await ledger.check()
    await whole(url)


@pytest.mark.parametrize("noticed", [True, False])
async def test_what_is_charged_during_accept_is_charged_to_the_windows_that_it_moved(
    postgres, url, monkeypatch, noticed
):
    """Just then a window begins, so that the charge waits for the budgets that accept is moving on."""
    await set_clock(postgres, url, str(20_000.5 * DAY))
    passed = 0.0
    store = PostgresStore(url, timeout=60.0, monotonic=lambda: passed)
    ledger = Ledger(store, [UNIT], timeout=60.0)
    await ledger.open()
    await ledger.charge([(0, b"a", 1)])
    await execute(postgres, url, f"UPDATE dpmesh.ledger SET lost = {noticed}")
    passed = 1.0 * DAY
    await set_clock(postgres, url, str(20_001.5 * DAY))
    append, charging = rewind.append, None

    async def slowly(*args):
        nonlocal charging
        charging = asyncio.create_task(ledger.charge([(0, b"b", 1)]))
        async with connected(url) as looking:
            if noticed:
                await asyncio.wait({charging}, timeout=60)
            else:
                await waiting(looking)
        assert charging.done() == noticed
        await append(*args)

    monkeypatch.setattr(rewind, "append", slowly)
    await PostgresAdmin(url).accept("the disk died", **({} if noticed else {"unnoticed": True}))
    if noticed:  # it asked before that was accepted
        with pytest.raises(LedgerError, match="lost charges"):
            await charging
        assert await ledger.accounts(unit=b"b") == []
        await ledger.charge([(0, b"b", 1)])
    else:
        await charging
    (account,) = await ledger.accounts(unit=b"b")
    assert account.window_start == 20_002 * DAY
    await ledger.close()
    await whole(url)


async def test_a_view_is_of_one_moment(url):
    async with opened(url) as ledger:
        await ledger.charge([(0, b"a", TENTH)])
        async with PostgresAdmin(url).view() as view:
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
