"""A real PgBouncer in front of a test's PostgreSQL, if there is one on this machine (Debian: package pgbouncer)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.children import NOBODY

WHY_NOT = "there is no pgbouncer on this machine (Debian: apt-get install pgbouncer)"


def binary() -> str | None:
    """The program, or None if there is none."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def version() -> tuple[int, ...]:
    """Its version's numbers."""
    program = binary()
    assert program is not None, WHY_NOT
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.split()[1].split(".")[:2])


@contextmanager
def running(server_port: int, user: str, **settings: str) -> Iterator[int]:
    """Runs one that lets everybody in; yields its port.

    Args:
        server_port: PostgreSQL's, on 127.0.0.1.
        user: As whom it connects there.
        settings: For the section [pgbouncer].
    """
    program = binary()
    assert program is not None, WHY_NOT
    with tempfile.TemporaryDirectory(prefix="bouncer-", dir="/tmp") as place:
        folder = Path(place)
        account: dict[str, Any] = {}
        if os.geteuid() == 0:  # PgBouncer refuses root
            os.chown(folder, NOBODY, NOBODY)
            account = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        for _ in range(20):
            port = _free_port()
            process = _start(program, folder, port, server_port, user, settings, account)
            try:
                if _answers(process, port):
                    yield port
                    return
            finally:
                process.kill()
                process.wait()
        raise AssertionError((folder / "log").read_text(errors="replace"))


def _start(
    program: str,
    folder: Path,
    port: int,
    server_port: int,
    user: str,
    settings: dict[str, str],
    account: dict[str, Any],
) -> subprocess.Popen[bytes]:
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "any",
        **settings,
    }
    configured = "".join(f"{name} = {value}\n" for name, value in lines.items())
    ini = folder / "pgbouncer.ini"
    ini.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server_port} user={user}\n[pgbouncer]\n{configured}"
    )
    ini.chmod(0o644)
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [program, str(ini)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **account
        )


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until it takes connections; says if it does, or has ended because somebody else has the port."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return process.poll() is None
        time.sleep(0.01)
    return False


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
