"""Connection: one connection to PostgreSQL that reconnects by itself, has a time limit, and explains errors."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg

from dpmesh.errors import ConfigError, LedgerError

_T = TypeVar("_T")

# These may pass within a call's time limit: the server starts or stops, or has no connection free.
_TRANSIENT = ("57P", "53300", "08")
# asyncpg's errors of a connection that it can't use. It raises the second if the server has ended an open connection.
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError)
# After these a session is of no use: the server stops or takes no more writes, or the protocol is broken.
_OTHER_SESSION = ("26000", "42P05")
_ENDING = ("57P", "08P", "25006", *_OTHER_SESSION)
# PgBouncer refuses a setting that came with the connection. Its sqlstate is that of any protocol violation.
_REFUSED_SETTING = re.compile(r"unsupported startup parameter(?: in options)?: ([A-Za-z0-9_.]+)")
_POOLER_SECONDS = 1.0  # for a second connection through a pooler
# Sent once connected, because PgBouncer refuses settings that come with the connection.
_SETTINGS = """
SELECT set_config('idle_in_transaction_session_timeout', '5s', false), set_config('statement_timeout', $1, false),
    set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('default_transaction_isolation', 'read committed', false)
"""
_DURABLE = """
SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS mode,
    pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only, pg_backend_pid() AS pid
"""
_LOCAL = {"127.0.0.1", "::1", "localhost", ""}
_INHERITED: list[Any] = []
"""Connections of the parent in a forked child. They are kept, because collecting one could end the parent's."""


class Connection:
    """One connection. Calls wait for each other; one that takes too long ends the connection.

    Args:
        url: "postgresql://user@host:port/database?sslmode=...", or with several hosts, "host1:port1,host2:port2": the
            first that is a primary is used.
        timeout: The longest that a call takes, connecting included, in seconds.
        connecting: The longest that connecting takes, if less, in seconds.

    Attributes:
        address: What to call the database in texts.
    """

    def __init__(self, url: str, timeout: float, connecting: float = math.inf) -> None:
        self._urls = _by_host(url)
        self._timeout = timeout
        self._connecting = connecting
        self.address = address(url)
        self._connection: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()

    async def call(self, work: Callable[[Any], Awaitable[_T]]) -> _T:
        """Does work on the connection.

        Raises:
            LedgerError: The work failed or took too long. It may have taken effect.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # A connection belongs to the event loop that made it.
            self._forget()
            self._loop, self._turn = loop, asyncio.Lock()
        deadline = loop.time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise LedgerError(f"{self.address} did not answer within {self._timeout:g} s") from None
        try:
            task = loop.create_task(self._work(work, deadline))
            try:
                done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - loop.time()))
            except asyncio.CancelledError:
                self._break(task)
                raise
            if not done:
                self._break(task)
                raise LedgerError(f"{self.address} did not answer within {self._timeout:g} s")
            return task.result()
        finally:
            self._turn.release()

    async def close(self) -> None:
        """Ends the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None and self._loop is asyncio.get_running_loop():
            try:
                await connection.close(timeout=1.0)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    def after_fork_in_child(self) -> None:
        """Forgets the connection: it is the parent's."""
        _INHERITED.append(self._connection)
        self._connection = self._loop = None

    async def _work(self, work: Callable[[Any], Awaitable[_T]], deadline: float) -> _T:
        connection = None
        try:
            connection = await self._connected(deadline)
            return await work(connection)
        except (asyncpg.PostgresError, *_BROKEN, OSError, TimeoutError) as error:
            # A transaction that failed leaves the connection usable. Any other error ends it.
            if not isinstance(error, asyncpg.PostgresError) or error.sqlstate.startswith(_ENDING):
                self._drop(connection)
            raise explain(error, self.address) from error

    async def _connected(self, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        deadline = min(deadline, loop.time() + self._connecting)
        pause = 0.02
        while self._connection is None or self._connection.is_closed():
            self._connection = None
            try:
                self._connection = await self._connect(max(0.01, deadline - loop.time()))
            except (asyncpg.PostgresError, OSError) as error:
                state = getattr(error, "sqlstate", None) or "08000"
                pause *= random.uniform(1.2, 2.5)  # noqa: S311 - so that holders don't reconnect at once
                transient = state.startswith(_TRANSIENT) and not _REFUSED_SETTING.search(str(error))
                if not transient or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
        return self._connection

    async def _connect(self, seconds: float) -> Any:
        """A connection to the first host that is a primary. Each host gets an equal part of the time that is left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        for number, url in enumerate(self._urls, 1):
            share = max(0.01, deadline - loop.time()) / (len(self._urls) - number + 1)
            try:
                connection = await self._connect_to(url, share)
            except (asyncpg.PostgresError, *_BROKEN, OSError, LedgerError):
                if number == len(self._urls):
                    raise
            else:
                self._urls.insert(0, self._urls.pop(number - 1))  # asked first the next time
                return connection
        raise AssertionError("the last host connects or raises")

    async def _connect_to(self, url: str, seconds: float) -> Any:
        several = "," in (parse_qs(urlsplit(url).query).get("host") or [os.environ.get("PGHOST", "")])[-1]
        more = {"target_session_attrs": "read-write"} if several and "target_session_attrs" not in url else {}
        connection = await asyncpg.connect(
            url, timeout=seconds, server_settings={"application_name": "dpmesh"}, **more
        )
        try:
            # The timeouts end sessions that hold rows and have gone silent: others don't wait for a dead peer.
            await connection.execute(_SETTINGS.replace("$1", f"'{int(2000 * self._timeout)}ms'"))
            pid = await self._check_durable(connection)
            if connection.get_server_pid() != pid:
                await self._check_pooler(url, pid)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _check_pooler(self, url: str, pid: int) -> None:
        """Checks that a pooler keeps a session on one connection, and does not give it to the next client."""
        found = None
        try:
            other = await asyncpg.connect(url, timeout=_POOLER_SECONDS)
            try:
                found = await other.fetchval("SELECT pg_backend_pid()", timeout=_POOLER_SECONDS)
            finally:
                other.terminate()
        except (asyncpg.PostgresError, *_BROKEN, OSError) as error:
            # The pooler may have no connection left for this check.
            if getattr(error, "sqlstate", None) in _OTHER_SESSION:
                raise
        if found == pid:
            raise LedgerError(f"{self.address} {_POOLED}")

    async def _check_durable(self, connection: Any) -> int:
        """Checks that commits survive a crash; returns the process of the server that answers."""
        row = await connection.fetchrow(_DURABLE)
        if row["standby"]:
            raise LedgerError(f"{self.address} is a standby: set ledger.url to the primary")
        if row["read_only"] == "on":
            raise LedgerError(f"{self.address} is read-only: set ledger.url to the primary")
        if row["fsync"] != "on":
            raise LedgerError(
                f"{self.address} runs with fsync = off and would forget charges in a crash: turn it on"
            )
        if row["mode"] in ("off", "local", "remote_write"):
            if connection.get_server_pid() != row["pid"]:
                # A pooler may give each transaction another connection, on which the setting would be missing.
                raise LedgerError(
                    f"{self.address} is reached through a pooler, and runs with synchronous_commit = {row['mode']}: "
                    "set it to on for this database or user"
                )
            await connection.execute("SET synchronous_commit = on")
        return int(row["pid"])

    def _break(self, task: asyncio.Task[Any]) -> None:
        """Gives up on a call, and ends its connection.

        The task is cancelled only while it has no connection. Later, asyncpg would open another connection to cancel
        the statement.
        """
        if self._connection is None:
            task.cancel()
        self._drop(self._connection)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _drop(self, connection: Any) -> None:
        """Ends a connection. The next call makes another."""
        if connection is not None:
            connection.terminate()
            if connection is self._connection:
                self._connection = None

    def _forget(self) -> None:
        """Ends a connection that another event loop made."""
        connection, self._connection = self._connection, None
        if connection is None or self._loop is None:
            return
        if self._loop.is_closed():
            # Only its socket is left, which would stay open.
            with suppress(AttributeError):
                connection._transport.get_extra_info("socket")._sock.close()
        else:
            self._loop.call_soon_threadsafe(connection.terminate)


def check_url(url: str) -> None:
    """Checks that the URL of a database on another machine says how the connection is protected.

    Raises:
        ConfigError: It does not, or it is not the URL of a database.
    """
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        named = [host for host, _ in _hosts(parts.netloc)]
    except ValueError:
        raise ConfigError("ledger.url: not a URL; write postgresql://user@host:port/database") from None
    if "@" in parts.path or parts.fragment:
        raise ConfigError(
            "ledger.url: a name or password with '/', '#', '?' or '@' in it has to be percent-encoded; better, leave "
            "it to PGPASSFILE"
        )
    listed = [host for value in query.get("host", []) for host in value.split(",")]
    hosts = {*named, *listed} - {""} or set(os.environ.get("PGHOST", "").split(","))
    remote = [host for host in hosts if host not in _LOCAL and not host.startswith("/")]
    service = "service" in query or "PGSERVICE" in os.environ
    if (remote or service) and "sslmode" not in query and not os.environ.get("PGSSLMODE"):
        where = address(url) if not service else "a service file"
        raise ConfigError(
            f"ledger.url: {where} may mean another machine, and the URL does not say how the connection is protected: "
            "add ?sslmode=verify-full (or, on purpose, another of libpq's modes)"
        )


def _hosts(netloc: str) -> list[tuple[str, str]]:
    """The hosts and ports of a URL in libpq's form, host1:port1,host2:port2; ValueError if it has another."""
    found = []
    for part in netloc.rpartition("@")[2].split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:]*)(?::([0-9]{1,5})?)?", part)
        if match is None or int(match[2] or 1) not in range(1, 65_536):
            raise ValueError("host")
        found.append((match[1].strip("[]").lower(), match[2] or ""))
    if len(found) > 1 and any(not host for host, _ in found):
        raise ValueError("host")
    return found


def _by_host(url: str) -> list[str]:
    """A URL for each host of a URL."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [url]
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


def address(url: str) -> str:
    """What to call a database in texts: its hosts, ports and name, without user and password."""
    parts = urlsplit(url)
    try:
        hosts = _hosts(parts.netloc)
    except ValueError:
        return f"postgresql://{parts.path}"
    if hosts == [("", "")]:
        hosts = [((parse_qs(parts.query).get("host") or ["local socket"])[0], "")]
    return f"postgresql://{','.join(host + (port and f':{port}') for host, port in hosts)}{parts.path}"


def explain(error: Exception, where: str) -> LedgerError:
    """What an error of PostgreSQL or the system means, and what to do. It repeats nothing that the error quotes."""
    if isinstance(error, LedgerError):
        return error
    if isinstance(error, TimeoutError):
        return LedgerError(f"{where} did not answer in time")
    state = getattr(error, "sqlstate", None)
    if isinstance(error, asyncpg.ClientConfigurationError | FileNotFoundError):
        return LedgerError(
            f"{where} can't be connected to like this: check the socket's folder, sslmode and sslrootcert"
        )
    if type(error) is ConnectionError and "SSL" in str(error):
        return LedgerError(f"{where} offers no TLS, which sslmode asks for")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return LedgerError(f"{where} has no host that is a primary and takes writes")
    if refused := _REFUSED_SETTING.search(str(error)):
        return LedgerError(
            f"{where} is PgBouncer, which refuses the setting {refused[1]}: take it out of ledger.url, or add it to "
            "ignore_startup_parameters in pgbouncer.ini"
        )
    if isinstance(error, asyncpg.InternalClientError):
        return LedgerError(f"{where} closed the connection")
    if state is None:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return LedgerError(f"{where} can't be reached: {reason}")
    for prefix, text in _MEANINGS.items():
        if state.startswith(prefix):
            return LedgerError(f"{where} {text} [{state}]")
    return LedgerError(f"{where} failed: {type(error).__name__} [{state}]")


_POOLED = (
    "is reached through a pooler that gives each transaction another connection: set pool_mode = session for it in "
    "pgbouncer.ini, because dpmesh's statements and settings belong to a session"
)
_MEANINGS = {
    "3F000": "has no dpmesh ledger: run `dpmesh ledger migrate`",
    "42P01": "has no dpmesh ledger: run `dpmesh ledger migrate`",
    "42883": "has no dpmesh ledger of this version: run `dpmesh ledger migrate`",
    "42703": "has a dpmesh ledger of another version: use the newest dpmesh",
    "42804": "has a dpmesh ledger of another version: use the newest dpmesh",
    "3D000": "is not there: create the database first",
    "28": "does not let this user in: check the user, the password and pg_hba.conf",
    "42501": "does not allow that: grant this user the rights on schema dpmesh, or come as the owner of the tables",
    "42704": "does not know a parameter of the URL: check its spelling",
    "25006": "is read-only: set ledger.url to the primary",
    "26000": _POOLED,
    "42P05": _POOLED,
    "53100": "can't grow, the disk is full: free some space",
    "53200": "is out of memory",
    "53300": "has no connection free: raise max_connections, or run fewer holders",
    "57P": "is shutting down or starting",
    "57014": "took too long",
    "55P03": "is locked by somebody else",
    "08": "closed the connection",
    "XX001": "is damaged: restore it from a backup",
    "XX002": "is damaged: restore it from a backup",
}
