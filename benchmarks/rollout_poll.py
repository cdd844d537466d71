"""What following a signed repository of policies costs a device: over HTTPS, with the server in another process.

CPU time is that of the whole process of the device. Bytes are all that passes on the connection, in both directions,
TLS included; those of TCP and IP are not counted.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.table import Row
from dpmesh.rollout.tuf_source import TufSource
from tests.support.tls_server import Authority, serving
from tests.support.tuf_repositories import Repository, policy

POLLS = 200
POLICIES = 50


def _relay(listener: socket.socket, port: int, total: list[int]) -> None:
    """Passes connections on to a port, and counts their bytes."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                total[0] += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("localhost", port))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


def _serve(folder: Path, pipe: Connection) -> None:
    """Serves a repository; tells the port first, and then the bytes that have passed whenever it is asked.

    Each question says whether to end all connections first, as servers do with idle ones.
    """
    with (
        serving(folder, Authority(folder / "tls")) as server,
        socket.create_server(("localhost", 0)) as listener,
    ):
        total = [0]
        args = (listener, server.server_port, total)
        threading.Thread(target=_relay, args=args, daemon=True).start()
        pipe.send(listener.getsockname()[1])
        with suppress(EOFError):
            while True:
                if pipe.recv():
                    server.hang_up()
                pipe.send(total[0])


def _ask(pipe: Connection, hang_up: bool) -> int:
    pipe.send(hang_up)
    total: int = pipe.recv()
    return total


async def _polls(source: TufSource, pipe: Connection, hang_up: bool) -> tuple[float, float]:
    """CPU time (ms) and bytes of a poll that finds nothing new.

    Args:
        source: It has the newest policy.
        pipe: To the server.
        hang_up: Whether the server has ended the connection before each poll.
    """
    spent, before = 0.0, _ask(pipe, hang_up)
    for _ in range(POLLS):
        start = time.process_time()
        if await source.fetch() is not None:
            raise AssertionError("something has changed")
        spent += time.process_time() - start
        last = _ask(pipe, hang_up)
    return spent * 1000 / POLLS, (last - before) / POLLS


async def _takes(source: TufSource, repository: Repository) -> float:
    """CPU time (ms) of a fetch that finds a new policy, without the swap."""
    spent = 0.0
    for epoch in range(2, 2 + POLICIES):
        repository.add(policy(epoch))
        repository.publish()
        start = time.process_time()
        offer = await source.fetch()
        spent += time.process_time() - start
        if offer is None or offer.document.epoch != epoch:
            raise AssertionError("the new policy is not offered")
    return spent * 1000 / POLICIES


def rows() -> Iterator[Row]:
    """Polls on an open connection and on new ones, and new policies."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        repository = Repository(folder)
        repository.add(policy(1))
        repository.publish()
        context = multiprocessing.get_context("spawn")
        pipe, other = context.Pipe()
        server = context.Process(target=_serve, args=(folder, other), daemon=True)
        server.start()
        port = pipe.recv()
        os.environ["SSL_CERT_FILE"] = str(folder / "tls" / "ca.pem")
        url, cache = f"https://localhost:{port}", Path(temporary) / "cache"
        source = TufSource(url, root=repository.image, cache=cache)
        asyncio.run(source.fetch())
        for name, hang_up in (("on an open connection", False), ("on a new connection", True)):
            cpu, size = asyncio.run(_polls(source, pipe, hang_up))
            yield Row(f"poll of an unchanged repository, {name}", cpu, "ms CPU", "at most 5")
            yield Row(f"poll of an unchanged repository, {name}", size, "bytes", "at most 4,000")
        yield Row(
            "fetch of a new policy, verified and on disk",
            asyncio.run(_takes(source, repository)),
            "ms CPU",
            "",
        )
        server.terminate()
