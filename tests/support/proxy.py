"""A loopback TCP proxy that fails as networks do: stalls without a word, resets, refuses, delays, loses an answer.

It runs an event loop in a thread of its own, so that it goes on while the test's loop is busy or blocked. Its methods
can be called from anywhere, and have taken effect when they return.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

RESET = struct.pack("ii", 1, 0)
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
GSS_REQUEST = struct.pack("!ii", 8, 80877104)
# What PostgreSQL answers when only a `hostssl` line would match.
NO_TLS = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for host, no encryption\0\0"


class Proxy:
    """A proxy from a port of its own to a target; as a context manager it starts and closes itself.

    Args:
        host: The target's address.
        port: The target's port.
        postgres_tls: With it, clients have to begin with PostgreSQL's request for TLS, and the proxy ends the TLS: the
            target gets plain TCP.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        connections: How many connections it has taken.
        open: How many of them are open.
        bytes_up: Bytes forwarded to the target.
        bytes_down: Bytes forwarded from it.
        tripped: Set when what `trip` has laid has happened.
    """

    def __init__(self, host: str, port: int, *, postgres_tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.tripped = threading.Event()
        self._target = (host, port)
        self._url: str | None = None
        self._tls = postgres_tls
        self._delay = 0.0
        self._trip: tuple[bytes, str, bool] | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._up.set()
        self._down.set()
        self._accepting: asyncio.Task[None] | None = None
        self._listener = socket.socket()

    @classmethod
    def before(cls, url: str) -> Proxy:
        """A proxy to the address of a URL; its own `url` is then the same with the proxy's port."""
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        proxy = cls(parts.hostname, parts.port)
        proxy._url = url
        return proxy

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def url(self) -> str:
        assert self._url, "only a proxy made with `before` has a URL"
        parts = urlsplit(self._url)
        account = parts.netloc.rpartition("@")[0]
        netloc = f"{account}@127.0.0.1:{self.port}" if account else f"127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=netloc))

    def start(self) -> Proxy:
        self._bind()
        self._thread.start()
        self.accept()
        return self

    def close(self) -> None:
        """Closes everything. The object can't be used again."""
        if not self._thread.is_alive():
            return
        self._call(self._refuse)
        self._call(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
        self._listener.close()

    def stall(self, *, up: bool = True, down: bool = True) -> None:
        """Forwards nothing more, in both directions or in one, and keeps all connections: a partition without RST.

        New connections are taken and kept too. What comes, also the end of a connection, is forwarded after `resume`.
        """

        async def change() -> None:
            if up:
                self._up.clear()
            if down:
                self._down.clear()

        self._call(change)

    def resume(self) -> None:
        """Ends a stall."""

        async def change() -> None:
            self._up.set()
            self._down.set()

        self._call(change)

    def cut(self) -> None:
        """Closes all connections with RST on both sides. New ones are taken as before."""
        self._call(self._cut)

    def refuse(self) -> None:
        """Takes no new connections: the port answers with RST. The open ones go on."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Takes connections again after `refuse`."""

        async def change() -> None:
            if self._accepting is None:
                self._listener.listen(128)
                self._accepting = self._loop.create_task(self._accept())

        self._call(change)

    def delay(self, seconds: float) -> None:
        """Delays all that comes from now on, in each direction; 0 ends it. It costs time, not throughput."""
        self._delay = seconds

    def trip(self, pattern: bytes, action: Literal["cut", "stall"] = "cut", *, forward: bool = True) -> None:
        """Waits for bytes from a client, and fails at that moment, once.

        With PostgreSQL the pattern can be `COMMIT`, or a value in a statement. The text of a prepared statement is
        sent once and answered before it runs.

        Args:
            pattern: What a client sends, in one piece.
            action: "cut" resets this connection, "stall" stalls the proxy.
            forward: Whether the target gets it. It then fails when the target's answer has come, which the client
                does not get: the target has done it, and the client doesn't know.
        """
        self.tripped.clear()
        self._trip = (pattern, action, forward)

    def _call(self, function: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    def _bind(self) -> None:
        """Takes the port without listening on it: connections are refused, and it stays ours."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]

    async def _refuse(self) -> None:
        if self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._accepting = None
        self._listener.close()
        self._bind()

    async def _cut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            self.connections += 1
            task = self._loop.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        connection = _Connection(client)
        self._open.add(connection)
        try:
            if self._tls and not await self._negotiate(client):
                connection.polite = True
                return
            await self._up.wait()
            await connection.connect(self._target, self._tls)
            pumps = [self._loop.create_task(self._pump(connection, upward)) for upward in (True, False)]
            try:
                # One pump that fails ends both; one that comes to its end is half of a connection.
                await asyncio.gather(*pumps)
                connection.polite = True
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, EOFError, _TrippedError):
            pass
        finally:
            connection.close()
            self._open.discard(connection)

    async def _negotiate(self, client: socket.socket) -> bool:
        """Answers PostgreSQL's request for TLS, which comes in plain text before the TLS handshake."""
        while True:
            request = b""
            while len(request) < 8:
                part = await self._loop.sock_recv(client, 8 - len(request))
                if not part:
                    return False
                request += part
            if request == SSL_REQUEST:
                await self._loop.sock_sendall(client, b"S")
                return True
            if request != GSS_REQUEST:
                await self._loop.sock_sendall(client, b"E" + struct.pack("!i", len(NO_TLS) + 4) + NO_TLS)
                # Closing on unread bytes would be a reset, which could overtake the message.
                client.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(client, 4096):
                    pass
                return False
            await self._loop.sock_sendall(client, b"N")

    async def _pump(self, connection: _Connection, upward: bool) -> None:
        """Forwards one direction. Reading runs ahead of writing, so that a delay is one of time only."""
        queue: asyncio.Queue[tuple[float, bytes | BaseException]] = asyncio.Queue(16)
        reader = connection.client_reader if upward else connection.target_reader

        async def read() -> None:
            while True:
                data: bytes | BaseException
                try:
                    data = await reader.read(65536)
                except OSError as error:
                    data = error
                await queue.put((self._loop.time() + self._delay, data))
                if not data or isinstance(data, BaseException):
                    return

        reading = self._loop.create_task(read())
        try:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await (self._up if upward else self._down).wait()
                if isinstance(data, BaseException):
                    raise data
                if data:
                    await self._check_trip(connection, data, upward)
                if not data:
                    connection.end(upward)
                    return
                await connection.write(data, upward)
                if upward:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _check_trip(self, connection: _Connection, data: bytes, upward: bool) -> None:
        if upward and self._trip and self._trip[0] in data:
            _, action, forward = self._trip
            self._trip = None
            if forward:
                connection.trip = action
                return
        elif not upward and connection.trip:
            action, connection.trip = connection.trip, None
        else:
            return
        if action == "cut":
            connection.close()
            self.tripped.set()
            raise _TrippedError
        self._up.clear()
        self._down.clear()
        self.tripped.set()
        await (self._up if upward else self._down).wait()


class _TrippedError(Exception):
    """This connection is to be reset."""


class _Connection:
    """The two halves of a forwarded connection."""

    client_reader: asyncio.StreamReader
    target_reader: asyncio.StreamReader

    def __init__(self, client: socket.socket) -> None:
        self.trip: str | None = None
        self.polite = False
        self._client = client
        self._client_writer: asyncio.StreamWriter | None = None
        self._target_writer: asyncio.StreamWriter | None = None

    async def connect(self, target: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        self.target_reader, self._target_writer = await asyncio.open_connection(*target)
        self.client_reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self.client_reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, self._client, ssl=tls)
        self._client_writer = asyncio.StreamWriter(transport, protocol, self.client_reader, loop)

    async def write(self, data: bytes, upward: bool) -> None:
        writer = self._target_writer if upward else self._client_writer
        assert writer is not None
        writer.write(data)
        await writer.drain()

    def end(self, upward: bool) -> None:
        """Passes on that one side sends nothing more. TLS can't say it for one direction: it ends both."""
        writer = self._target_writer if upward else self._client_writer
        assert writer is not None
        if writer.can_write_eof():
            with suppress(OSError):
                writer.write_eof()
        else:
            writer.close()

    def close(self) -> None:
        """Closes both sides: with RST, unless the connection has come to its own end."""
        for writer in (self._client_writer, self._target_writer):
            if writer is None:
                continue
            if self.polite:
                writer.close()
                continue
            sock: Any = writer.get_extra_info("socket")
            # The socket of a transport that has closed itself is gone.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        if self._client_writer is None:
            if not self.polite:
                with suppress(OSError):
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._client.close()
