"""The tests' own PostgreSQL, proxy and small disk do what other tests rely on."""

import asyncio
import errno
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from tests.support import disk
from tests.support.mutual_tls import until
from tests.support.postgres import PostgresError, Server, certificate_files
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def own():
    """A server that these tests may kill."""
    with Server(max_connections=20) as server:
        yield server


async def test_a_database_is_fresh_and_the_server_durable(database, postgres):
    connection = await asyncpg.connect(database)
    try:
        assert await connection.fetch("SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await connection.fetchval(f"SHOW {name}") == "on"
    finally:
        await connection.close()
    assert "postgres" in postgres.execute("SELECT datname FROM pg_database").splitlines()


async def test_a_database_that_held_only_a_ledger_is_emptied_and_lent_again(postgres):
    name = postgres.lend_database()
    connection = await asyncpg.connect(postgres.url(name))
    await connection.execute("CREATE SCHEMA dpmesh; CREATE TABLE dpmesh.ledger (n int)")
    postgres.take_back_database(name)
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.execute("SELECT 1")
    assert postgres.lend_database() == name
    assert postgres.execute("SELECT to_regnamespace('dpmesh') IS NULL", name) == "t"
    postgres.take_back_database(name)


@pytest.mark.parametrize(
    "left",
    [
        "CREATE TABLE spent (n int)",
        "CREATE SCHEMA other",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER DATABASE {} SET work_mem = '1MB'",
        "ALTER DATABASE {} SET default_transaction_read_only = on",
    ],
)
def test_a_database_with_anything_else_is_not_lent_again(postgres, left):
    name = postgres.lend_database()
    postgres.execute(left.format(name), name)
    postgres.take_back_database(name)
    assert name not in postgres.execute("SELECT datname FROM pg_database").splitlines()
    assert name not in postgres._empty


@pytest.mark.parametrize("version", [16, 18])
async def test_a_killed_server_keeps_what_was_committed(version):
    with Server(version=version) as server:
        assert server.execute("SHOW server_version").startswith(f"{version}.")
        name = server.create_database()
        url = server.url(name)
        await server.sql(name, "CREATE TABLE spent (n int); INSERT INTO spent VALUES (1)")
        open_one = await asyncpg.connect(url)
        transaction = open_one.transaction()
        await transaction.start()
        await open_one.execute("INSERT INTO spent VALUES (2)")
        backend = open_one.get_server_pid()

        server.kill()

        assert not server.running
        assert not Path(f"/proc/{backend}").exists()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await open_one.execute("SELECT 1")
        with pytest.raises(OSError):
            await asyncpg.connect(url)
        server.start()
        assert server.url(name) == url
        assert [row["n"] for row in await server.sql(name, "SELECT n FROM spent")] == [1]
        assert "automatic recovery" in server.log.read_text()


async def test_settings_hold_from_the_next_start(own):
    assert own.execute("SHOW max_connections") == "20"
    own.settings["max_connections"] = 21
    own.restart()
    assert own.execute("SHOW max_connections") == "21"


def test_a_server_that_can_not_start_says_why():
    server = Server(no_such_setting="on")
    try:
        with pytest.raises(PostgresError, match="no_such_setting"):
            server.start()
        assert not server.running
    finally:
        server.close()


async def test_a_port_that_is_taken_on_the_first_start_is_replaced():
    server = Server()
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        taken = server.port
        with server:
            assert server.port != taken
            assert await server.sql("postgres", "SELECT 1")


async def test_a_server_with_password_and_tls_takes_nothing_less(tmp_path):
    certificate, key = certificate_files(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    with Server(password="s/3@cret", certificate=certificate, key=key) as server:
        connection = await asyncpg.connect(server.url(), ssl=context)
        assert await connection.fetchval("SELECT length(repeat('x', 1000000))") == 1000000
        assert len(await connection.fetchval("SELECT repeat('x', 1000000)")) == 1000000
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url(), password="wrong", ssl=context)
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
            await asyncpg.connect(server.url(), ssl=False)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(server.url(), ssl=ssl.create_default_context())
        server.kill()
        server.start()
        verified = f"{server.url()}?sslmode=verify-full&sslrootcert={certificate}"
        connection = await asyncpg.connect(verified)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


def test_a_server_ends_with_the_process_that_started_it():
    script = """
import os, signal, sys, types
tests = types.ModuleType("tests")  # a package of that name may be installed
tests.__path__ = [sys.argv[1]]
sys.modules["tests"] = tests
from tests.support.postgres import Server
server = Server()
server.start()
print(server.pid, server.log.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, left = done.stdout.split()
    deadline = time.monotonic() + 60
    while (Path("/proc", pid).exists() or Path(left).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path("/proc", pid).exists()
    assert not Path(left).exists()


def test_a_child_leaves_the_garbage_of_its_parent_alone():
    """gRPC's last object waits for gRPC's own thread before it goes, and a forked child has no such thread."""
    script = """
import asyncio, gc, signal, sys, types
tests = types.ModuleType("tests")  # a package of that name may be installed
tests.__path__ = [sys.argv[1]]
sys.modules["tests"] = tests
import grpc
from tests.support import children

async def leave():
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    await channel.close()
    cycle = [channel]
    cycle.append(cycle)

def collect():
    signal.alarm(30)  # ends a child that waits for ever
    gc.collect()
    return "collected"

gc.disable()
asyncio.run(leave())
print(children.run(collect), gc.get_freeze_count())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, Path(__file__).parents[1]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["collected", "0"], done.stderr


PATIENCE = 30  # seconds until what is to come has come


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self):
        self.got = b""
        self.lost = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        try:
            while data := await reader.read(65536):
                self.got += data
                writer.write(data)
        except ConnectionResetError:
            self.lost += 1
        finally:
            writer.close()


async def ask(client, data):
    reader, writer = client
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE)


async def silent(reader):
    """Nothing comes: no data, no end, no reset."""
    try:
        await asyncio.wait_for(reader.read(1), 0.15)
    except TimeoutError:
        return True
    return False


async def test_the_proxy_forwards_stalls_and_resumes():
    async with Echo() as echo:
        with Proxy("127.0.0.1", echo.port) as proxy:
            client = await asyncio.open_connection("127.0.0.1", proxy.port)
            large = os.urandom(3_000_000)
            client[1].write(large)
            assert await asyncio.wait_for(client[0].readexactly(len(large)), PATIENCE) == large
            # What was written is counted afterwards, in the proxy's thread.
            await until(lambda: proxy.bytes_up >= 3_000_000 and proxy.bytes_down >= 3_000_000)
            assert (proxy.connections, proxy.open, proxy.bytes_up, proxy.bytes_down) == (
                1,
                1,
                3_000_000,
                3_000_000,
            )

            proxy.stall()
            client[1].write(b"held")
            late = await asyncio.open_connection("127.0.0.1", proxy.port)
            late[1].write(b"late")
            assert await silent(client[0])
            assert await silent(late[0])
            assert len(echo.got) == 3_000_000

            proxy.resume()
            assert await asyncio.wait_for(client[0].readexactly(4), PATIENCE) == b"held"
            assert await asyncio.wait_for(late[0].readexactly(4), PATIENCE) == b"late"

            proxy.stall(up=False)
            client[1].write(b"done")
            await until(lambda: echo.got.endswith(b"done"))
            assert await silent(client[0])
            proxy.resume()
            assert await asyncio.wait_for(client[0].readexactly(4), PATIENCE) == b"done"

            late[1].close()
            client[1].write_eof()
            assert await asyncio.wait_for(client[0].read(), PATIENCE) == b""
            client[1].close()


async def test_the_proxy_cuts_refuses_and_accepts():
    async with Echo() as echo:
        with Proxy("127.0.0.1", echo.port) as proxy:
            client = await asyncio.open_connection("127.0.0.1", proxy.port)
            await ask(client, b"x")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(client[0].read(1), PATIENCE)
            assert proxy.open == 0
            await until(lambda: echo.lost == 1)

            client = await asyncio.open_connection("127.0.0.1", proxy.port)
            await ask(client, b"x")
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await ask(client, b"y") == b"y"
            proxy.accept()
            other = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await ask(other, b"z") == b"z"

            proxy.stall()
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(other[0].read(1), PATIENCE)
            client[1].close()
            other[1].close()


async def test_the_proxy_delays_each_direction():
    async with Echo() as echo:
        with Proxy("127.0.0.1", echo.port) as proxy:
            client = await asyncio.open_connection("127.0.0.1", proxy.port)
            proxy.delay(0.1)
            begun = time.monotonic()
            await ask(client, b"x")
            assert time.monotonic() - begun >= 0.2
            client[1].close()


async def test_the_proxy_resets_where_the_target_is_gone():
    # The reset may come so soon that asyncio tells of it while it still connects.
    with Proxy("127.0.0.1", 9) as proxy, pytest.raises(ConnectionResetError):
        client = await asyncio.open_connection("127.0.0.1", proxy.port)
        await asyncio.wait_for(client[0].read(1), PATIENCE)


@pytest.mark.parametrize("forward", [True, False])
async def test_a_trip_loses_the_answer_of_a_commit(database, forward):
    with Proxy.before(database) as proxy:
        connection = await asyncpg.connect(proxy.url)
        await connection.execute("CREATE TABLE spent (n int)")
        proxy.trip(b"COMMIT", forward=forward)
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            async with connection.transaction():
                await connection.execute("INSERT INTO spent VALUES (1)")
        assert proxy.tripped.is_set()
        connection = await asyncpg.connect(proxy.url)
        assert await connection.fetchval("SELECT count(*) FROM spent") == int(forward)
        await connection.close()


def test_a_full_disk_says_so_and_is_freed():
    with disk.small_disk(2) as folder:
        assert (os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize) == 2 << 20
        disk.fill(folder)
        with pytest.raises(OSError) as caught:
            (folder / "more").write_bytes(b"x")
        assert caught.value.errno == errno.ENOSPC
        disk.free(folder)
        (folder / "more").write_bytes(bytes(1 << 20))
        (folder / "more").unlink()
        disk.fill(folder, leave=64 << 10)
        (folder / "more").write_bytes(bytes(32 << 10))
    assert not folder.exists()


def test_sqlite_on_a_full_disk():
    with disk.small_disk(4) as folder:
        connection = sqlite3.connect(folder / "ledger", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE spent (x BLOB)")
        disk.fill(folder)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            connection.execute("INSERT INTO spent VALUES (zeroblob(500000))")
        disk.free(folder)
        connection.execute("INSERT INTO spent VALUES (zeroblob(500000))")
        connection.close()


def test_a_child_has_a_small_disk_of_its_own():
    def full(folder):
        disk.fill(folder)
        try:
            (folder / "more").write_bytes(b"x")
        except OSError as error:
            return error.errno, str(folder)
        return None, str(folder)

    number, folder = disk.run(1, full)
    assert number == errno.ENOSPC
    assert not (Path(folder) / disk.BALLAST).exists()


async def test_postgres_on_a_full_disk():
    with disk.small_disk(64) as folder, Server(folder=folder) as server:
        await server.sql("postgres", "CREATE TABLE spent (x text)")
        disk.fill(folder)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            for _ in range(200):
                await server.sql(
                    "postgres", "INSERT INTO spent SELECT repeat('x', 500) FROM generate_series(1, 1000)"
                )
        assert "No space left on device" in server.log.read_text()
        disk.free(folder)
        async with asyncio.timeout(60):
            while True:  # It may be recovering, or about to end.
                if not server.running:
                    server.start()
                try:
                    await server.sql("postgres", "INSERT INTO spent VALUES ('after')")
                    break
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await asyncio.sleep(0.05)
