"""A grpc.aio service and a client under load, while the identities of both change every two seconds.

    python examples/rotation/rotation.py [--seconds 20]

The service and what calls it know nothing of dpmesh. Only the lines that make a server and a channel do: `main`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from dpmesh.identity.ca.authority import LocalSource, Root
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc import peer_interceptor, rotating_server_credentials, server_options
from dpmesh_grpc.rotation.channel import rotating_channel

WORKERS = 32
EVERY = 2.0


class Weather:
    """An ordinary service: one answer to one question, and a conversation."""

    async def ask(self, request: bytes, context: Any) -> bytes:
        """Answers."""
        return b"sunny in " + request

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers each question of a stream."""
        async for request in requests:
            yield b"sunny in " + request


class Witness(Weather):
    """The same service, looking at who calls: all that a server can tell its clients apart by.

    Attributes:
        identities: The names in the clients' certificates, by the connection that they came over.
        resumed: How many RPCs came over a TLS session that another connection had begun.
    """

    def __init__(self) -> None:
        self.identities: dict[str, set[bytes]] = defaultdict(set)
        self.resumed = 0

    def look(self, context: Any) -> None:
        """Notes the caller."""
        seen = context.auth_context()
        self.identities[context.peer()].update(seen["peer_spiffe_id"])
        self.resumed += list(seen["ssl_session_reused"]) != [b"false"]

    async def ask(self, request: bytes, context: Any) -> bytes:
        """Answers."""
        self.look(context)
        return await super().ask(request, context)

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers each question of a stream."""
        self.look(context)
        async for answer in super().chat(requests, context):
            yield answer


class Load:
    """Workers that call as fast as they can.

    Attributes:
        count: RPCs that ended well.
        failures: How the others ended.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.count = 0
        self.failures: list[Exception] = []
        self._ask = channel.unary_unary("/example.Weather/Ask")
        self._chat = channel.stream_stream("/example.Weather/Chat")

    async def run(self, seconds: float) -> None:
        """Calls for so long."""
        ends = time.monotonic() + seconds
        await asyncio.gather(*(self._work(number, ends) for number in range(WORKERS)))

    async def _work(self, number: int, ends: float) -> None:
        while time.monotonic() < ends:
            try:
                await (self._talk() if number % 4 == 0 else self._ask(b"Hilo"))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                self.failures.append(error)
            else:
                self.count += 1

    async def _talk(self) -> None:
        call = self._chat()
        for place in (b"Hilo", b"Kona"):
            await call.write(place)
            await call.read()
        await call.done_writing()
        await call.read()


async def main(seconds: float) -> bool:
    """Runs the load; prints what happened, and returns whether it went well."""
    now = time.time()
    authority = Root.create("fleet.example", now=now).sign_intermediate(now=now)
    service = Witness()
    handlers = {
        "Ask": grpc.unary_unary_rpc_method_handler(service.ask),
        "Chat": grpc.stream_stream_rpc_method_handler(service.chat),
    }
    async with (
        RotatingIdentity(LocalSource(authority, server=True), every=EVERY) as of_server,
        RotatingIdentity(LocalSource(authority), every=EVERY) as of_client,
    ):
        server = grpc.aio.server(
            interceptors=[peer_interceptor(of_server)], options=server_options(of_server)
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.Weather", handlers),))
        port = server.add_secure_port("127.0.0.1:0", rotating_server_credentials(of_server))
        await server.start()
        async with rotating_channel(f"127.0.0.1:{port}", of_client) as channel:
            load = Load(channel)
            await load.run(seconds)
        rotations = of_client.generation - 1, of_server.generation - 1
        await server.stop(None)
    return show(load, service, rotations)


def show(load: Load, service: Witness, rotations: tuple[int, int]) -> bool:
    """Prints what happened, and returns whether it went well."""
    names = [name for seen in service.identities.values() for name in seen]
    shared = sum(len(seen) > 1 for seen in service.identities.values())
    print(f"rotations           {rotations[0]} of the client, {rotations[1]} of the server")
    print(f"RPCs                {load.count}")
    print(f"failures            {len(load.failures)}")
    print(
        f"client identities   {len(set(names))} seen by the server, over {len(service.identities)} connections"
    )
    print(
        f"shared              {shared} connections by two identities, {service.resumed} RPCs over resumed sessions"
    )
    return not load.failures and not shared and not service.resumed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to call")
    raise SystemExit(not asyncio.run(main(parser.parse_args().seconds)))
