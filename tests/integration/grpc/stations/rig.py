"""Servers, channels and messages that the gRPC tests share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors, check_channel
from stations import stations_pb2 as pb
from stations import stations_pb2_grpc

RAW = 41.77777777
SECRET = "only the sender may know this"
PREFIX = "/dpmesh.test.stations.v1.Stations/"


def reading(station: str = "s1", **fields: Any) -> pb.Reading:
    """A message whose raw values are easy to recognize."""
    values = {
        "temperature": RAW,
        "state": pb.STATE_RUNNING,
        "levels": [1, 2],
        "note": SECRET,
        "exact": 0.5,
        **fields,
    }
    return pb.Reading(station=station, **values)


# Without its unit nothing can be charged.
BAD = reading("")


def is_protected(message: pb.Reading) -> bool:
    """Whether a message went through a release: the note is gone, and the temperature lies on the grid."""
    return not message.note and message.temperature == int(message.temperature) and len(message.levels) == 4


class Seen(list):
    """What a handler has received; the handlers here answer with how much that was."""

    async def one(self, request: Any, context: Any) -> pb.Plain:
        self.append(request)
        return pb.Plain(text="1")

    async def one_watch(self, request: Any, context: Any) -> AsyncIterator[pb.Plain]:
        self.append(request)
        for number in range(3):
            yield pb.Plain(text=str(number))

    async def all(self, requests: AsyncIterator[Any], context: Any) -> pb.Plain:
        async for request in requests:
            self.append(request)
        return pb.Plain(text=str(len(self)))

    async def chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[pb.Plain]:
        async for request in requests:
            self.append(request)
            yield pb.Plain(text=str(len(self)))

    def handlers(self) -> dict[str, Any]:
        """For all methods with protected requests."""
        names = {
            "Report": self.one,
            "ReportWatch": self.one_watch,
            "ReportAll": self.all,
            "ReportChat": self.chat,
        }
        return {**names, "Strict": self.one, "StrictChat": self.chat}


def add_handlers(server: grpc.aio.Server, handlers: dict[str, Any]) -> None:
    """Serves functions by method name; the other methods answer UNIMPLEMENTED."""
    servicer = stations_pb2_grpc.StationsServicer()
    for name, function in handlers.items():
        setattr(servicer, name, function)
    stations_pb2_grpc.add_StationsServicer_to_server(servicer, server)


@asynccontextmanager
async def serving(
    mesh: Any = None,
    handlers: dict[str, Any] | None = None,
    *,
    before: Any = (),
    add: Any = (),
    credentials: Any = None,
    stations: bool = True,
    **options: Any,
) -> AsyncIterator[str]:
    """A server on a free port.

    Args:
        mesh: Protects it, if given.
        handlers: Functions by method name; the others answer UNIMPLEMENTED.
        before: Interceptors that stand before dpmesh's.
        add: Functions that add other services to the server.
        credentials: The server's, if it is to be a secure one.
        stations: Serves the tests' own service, which answers before services of the same name.
        options: For grpc.aio.server.
    """
    ours = aio_server_interceptors(mesh) if mesh else ()
    pool = ThreadPoolExecutor(4)
    server = grpc.aio.server(pool, interceptors=[*before, *ours], **options)
    if stations:
        add_handlers(server, handlers or {})
    for function in add:
        function(server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        # Not here: the threads wait for this loop.
        await asyncio.to_thread(pool.shutdown)


@asynccontextmanager
async def connected(
    target: str,
    mesh: Any = None,
    *,
    before: Any = (),
    after: Any = (),
    credentials: Any = None,
    consumer: str = "",
    **options: Any,
) -> AsyncIterator[Any]:
    """The stub of a channel, with `channel` as an attribute.

    Args:
        target: The server's address.
        mesh: Protects the channel, if given.
        before: Interceptors that stand before dpmesh's.
        after: Interceptors that stand after them.
        credentials: The channel's, if it is to be a secure one.
        consumer: Who receives what it sends.
        options: For the channel.
    """
    ours = aio_client_interceptors(mesh, consumer=consumer) if mesh else ()
    options["interceptors"] = [*before, *ours, *after]
    secured = grpc.aio.secure_channel(target, credentials, **options) if credentials else None
    async with secured or grpc.aio.insecure_channel(target, **options) as channel:
        if mesh:
            check_channel(channel)
        stub = stations_pb2_grpc.StationsStub(channel)
        stub.channel = channel
        yield stub


async def stream(*messages: Any, error: BaseException | None = None) -> AsyncIterator[Any]:
    """An asynchronous iterator of messages, which may end with an exception."""
    for message in messages:
        yield message
    if error is not None:
        raise error


def status(error: grpc.aio.AioRpcError) -> SimpleNamespace:
    """An RPC's status with its details taken apart."""
    found = SimpleNamespace(code=error.code(), text=error.details(), info=None, retry=None)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            rich = status_pb2.Status.FromString(value)
            assert (rich.code, rich.message) == (found.code.value[0], found.text)
            for detail in rich.details:
                for name, kind in (
                    ("info", error_details_pb2.ErrorInfo),
                    ("retry", error_details_pb2.RetryInfo),
                ):
                    if detail.Is(kind.DESCRIPTOR):
                        setattr(found, name, kind())
                        detail.Unpack(getattr(found, name))
    return found


@contextmanager
def stalled(mesh: Any) -> Iterator[None]:
    """The ledger's file is locked by someone else: what needs a commit waits."""
    other = sqlite3.connect(mesh.ledger._store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


def is_waited_for(mesh: Any) -> bool:
    """Whether some charge waits for the ledger now."""
    return mesh.ledger._queue._flusher is not None


class Wire:
    """A relay that counts the bytes between a client and a server.

    Attributes:
        sent: Bytes from the client to the server.
        received: Bytes from the server to the client.
    """

    def __init__(self, target: str) -> None:
        self.sent = self.received = 0
        self.target = ""
        self._behind = target
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(*self._behind.split(":"))
        for source, sink, counter in ((reader, behind_writer, "sent"), (behind_reader, writer, "received")):
            self._tasks.add(asyncio.create_task(self._pump(source, sink, counter)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counter: str) -> None:
        while chunk := await source.read(65536):
            setattr(self, counter, getattr(self, counter) + len(chunk))
            sink.write(chunk)
            await sink.drain()
        sink.close()
