"""A service in all four arities behind mutual TLS, the identities of a fleet, and what the server sees of its peers."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from dpmesh.errors import IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.ca.authority import Authority, LocalSource, Root
from dpmesh_grpc import peer_interceptor, rotating_server_credentials, server_options

DOMAIN = "fleet.test"
ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def authority(domain: str = DOMAIN) -> Authority:
    now = time.time()
    return Root.create(domain, now=now).sign_intermediate(now=now)


class Issuer:
    """A source that can be changed and switched off under way."""

    follows = False

    def __init__(self, source: LocalSource) -> None:
        self.source = source
        self.down = False
        self.change: Callable[[Identity], Identity] = lambda identity: identity

    async def fetch(self) -> Identity:
        if self.down:
            raise IdentityError("ISSUER_UNAVAILABLE", "the test has switched it off")
        return self.change(await self.source.fetch())

    async def close(self) -> None:
        pass


class Service:
    """Echoes in all four arities, ticks for ever, and notes who called.

    Attributes:
        connections: Fingerprints of the client certificates seen on each connection, by the peer's address.
        names: SPIFFE IDs seen.
        resumed: How many RPCs came over a resumed TLS session.
    """

    def __init__(self) -> None:
        self.connections: dict[str, set[str]] = defaultdict(set)
        self.names: set[str] = set()
        self.resumed = 0
        self.metadata: list[tuple[str, Any]] = []

    def note(self, context: Any) -> None:
        peer = {name: next(iter(values)) for name, values in context.auth_context().items()}
        self.connections[context.peer()].add(hashlib.sha256(peer["x509_pem_cert"]).hexdigest())
        self.names.add(peer["peer_spiffe_id"].decode())
        self.resumed += peer["ssl_session_reused"] != b"false"
        self.metadata = list(context.invocation_metadata())

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        self.note(context)
        return request

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.note(context)
        for _ in range(3):
            yield request

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.note(context)
        return b"".join([request async for request in requests])

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.note(context)
        async for request in requests:
            yield request

    async def ticks(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.note(context)
        while True:
            yield request
            await asyncio.sleep(0.02)

    async def never(self, request: bytes, context: Any) -> bytes:
        self.note(context)
        await asyncio.Event().wait()
        return request

    def handlers(self) -> dict[str, Any]:
        made = {name: getattr(grpc, f"{name}_rpc_method_handler")(getattr(self, name)) for name in ARITIES}
        made["never"] = grpc.unary_unary_rpc_method_handler(self.never)
        return {**made, "ticks": grpc.unary_stream_rpc_method_handler(self.ticks)}


@asynccontextmanager
async def serving(
    identity: Any,
    handlers: dict[str, Any],
    *,
    port: int = 0,
    credentials: Any = None,
    checked: bool = True,
    aged: bool = False,
    pool: Any = None,
) -> AsyncIterator[str]:
    """A server under a rotating identity; gives its address.

    Args:
        identity: The server's.
        handlers: By method name.
        port: A free one by default.
        credentials: Others than the identity's.
        checked: Whether clients are checked at every RPC.
        aged: Whether connections end before their certificates do.
        pool: For handlers that are no coroutines.
    """
    interceptors = [peer_interceptor(identity)] if checked else []
    server = grpc.aio.server(
        pool, interceptors=interceptors, options=server_options(identity) if aged else ()
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_secure_port(f"127.0.0.1:{port}", credentials or rotating_server_credentials(identity))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def plain_channel(target: str, identity: Identity, name: str = DOMAIN, **options: Any) -> grpc.aio.Channel:
    """gRPC's own channel, with one identity for ever."""
    credentials = grpc.ssl_channel_credentials(
        identity.trust_bundle,
        options.pop("key", identity.key),
        options.pop("certificates", identity.certificates),
    )
    arguments = (("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(target, credentials, options=arguments, **options)


async def stream(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def method(channel: grpc.aio.Channel, name: str, arity: str | None = None) -> Any:
    return getattr(channel, arity or name)(f"/test.Echo/{name}")


async def silence() -> AsyncIterator[bytes]:
    """A stream of requests that never come."""
    await asyncio.Event().wait()
    yield b""


async def call(channel: grpc.aio.Channel, arity: str, *, silent: bool = False, **options: Any) -> Any:
    """One RPC of an arity, and what came back, joined.

    A stream can be silent: gRPC makes INTERNAL of the status with which a server ends an RPC during a write.
    """
    stream_of = silence() if silent else stream(b"a", b"b")
    requests = stream_of if arity.startswith("stream") else b"ab"
    answer = method(channel, arity)(requests, **options)
    return b"".join([part async for part in answer]) if arity.endswith("stream") else await answer


ANSWERS = {"unary_unary": b"ab", "unary_stream": b"ababab", "stream_unary": b"ab", "stream_stream": b"ab"}


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for something that is about to happen."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
