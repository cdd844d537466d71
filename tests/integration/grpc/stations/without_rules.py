"""A process without any rule, in which one is imported late: run as a program; prints what happened, as JSON.

Its methods are declared by no proto, and its messages are bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

import dpmesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

NAME = "/acme.Any/"
PAYLOAD = bytes(20_000)


class Handlers(grpc.GenericRpcHandler):
    """Echoes, fails, and imports the first rule in the middle of a stream."""

    def service(self, details: Any) -> Any:
        async def chat(requests: Any, context: Any) -> Any:
            context.set_compression(grpc.Compression.Gzip)
            async for request in requests:
                yield request

        async def fail(request: Any, context: Any) -> bytes:
            raise ValueError("temperature was 41.77777777")

        async def one(request: Any, context: Any) -> bytes:
            return bytes(request)

        async def during(request: Any, context: Any) -> Any:
            yield b"before"
            import stations.stations_pb2  # noqa: F401

            yield b"after"

        return {
            NAME + "Chat": grpc.stream_stream_rpc_method_handler(chat),
            NAME + "Fail": grpc.unary_unary_rpc_method_handler(fail),
            NAME + "One": grpc.unary_unary_rpc_method_handler(one),
            NAME + "During": grpc.unary_stream_rpc_method_handler(during),
        }.get(details.method)


class Relay:
    """Counts the bytes between a client and a server."""

    def __init__(self, port: int) -> None:
        self.sent = self.received = 0
        self._port = port

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._pump(reader, behind_writer, "sent"), self._pump(behind_reader, writer, "received")
        )

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counter: str) -> None:
        while chunk := await source.read(65536):
            setattr(self, counter, getattr(self, counter) + len(chunk))
            sink.write(chunk)
        sink.close()


async def outcome(call: Any) -> str:
    """The refusal's reason, or the status details."""
    try:
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        details = str(error.details())
        return "NOT_JUDGED" if "NOT_JUDGED" in details else details
    return "OK"


async def serve(mesh: Any) -> tuple[Any, int]:
    server = grpc.aio.server(interceptors=aio_server_interceptors(mesh) if mesh else ())
    server.add_generic_rpc_handlers([Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


def connect(target: str, mesh: Any) -> Any:
    ours = aio_client_interceptors(mesh) if mesh else ()
    return grpc.aio.insecure_channel(target, compression=grpc.Compression.Gzip, interceptors=ours)


async def measured(mesh: Any) -> dict[str, Any]:
    """What leaves, with a mesh on both sides or without."""
    server, port = await serve(mesh)
    relay = Relay(port)
    async with connect(await relay.start(), mesh) as channel:
        call = channel.stream_stream(NAME + "Chat")(iter([PAYLOAD] * 3))
        assert [response async for response in call] == [PAYLOAD] * 3
        words = await outcome(channel.unary_unary(NAME + "Fail")(b""))
    await server.stop(None)
    # The number of bytes differs by a few from run to run.
    return {"sent": relay.sent // 1000 * 1000, "received": relay.received // 1000 * 1000, "words": words}


async def main() -> None:
    async with dpmesh.open({"ledger": {"url": "memory:"}}) as mesh:
        found: dict[str, Any] = {"bare": await measured(None), "before": await measured(mesh)}
        server, port = await serve(mesh)
        target = f"127.0.0.1:{port}"
        async with connect(target, mesh) as guarded, connect(target, None) as bare:
            assert await outcome(guarded.unary_unary(NAME + "One")(b"")) == "OK"
            during = await outcome(bare.unary_stream(NAME + "During")(b""))
            found["after"] = {
                "request": await outcome(guarded.unary_unary(NAME + "One")(b"")),
                "response": await outcome(bare.unary_unary(NAME + "One")(b"")),
                "words": await outcome(bare.unary_unary(NAME + "Fail")(b"")),
                "during": during,
            }
        await server.stop(None)
    print(json.dumps(found))


asyncio.run(main())
