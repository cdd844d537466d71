"""What tracing, proxies and correlation put into metadata does not leave a rotating channel, whoever put it there."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc.aio
import pytest

from dpmesh.identity import LocalSource, Root, RotatingIdentity
from dpmesh_grpc import peer_interceptor, rotating_channel, rotating_server_credentials
from dpmesh_grpc.rotation.linkable_metadata import LINKING

LINKS = (
    ("traceparent", "00-1-2-01"),
    ("baggage", "device=7"),
    ("x-request-id", "7"),
    ("grpc-trace-bin", b"7"),
)
KEPT = ("x-tenant", "acme")
ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Adding(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds metadata as instrumentation does: after the call was made, before it leaves."""

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), *LINKS)
        return await continuation(client_call_details._replace(metadata=metadata), request)


async def seen_by_server(arity, metadata, **options):
    """The keys of the metadata that arrive."""
    authority = Root.create("mesh.example", now=0, life=1e10).sign_intermediate(now=0, life=1e10)
    seen = []

    async def one(request, context):
        seen.extend(key for key, _ in context.invocation_metadata())
        return b""

    async def many(request, context):
        seen.extend(key for key, _ in context.invocation_metadata())
        yield b""

    make = getattr(grpc, f"{arity}_rpc_method_handler")
    handler = make(many if arity.endswith("stream") else one)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(RotatingIdentity(LocalSource(authority, server=True)))
        device = await stack.enter_async_context(RotatingIdentity(LocalSource(authority)))
        server = grpc.aio.server(interceptors=[peer_interceptor(own)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
        port = server.add_secure_port("127.0.0.1:0", rotating_server_credentials(own))
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = rotating_channel(f"127.0.0.1:{port}", device, **options)
        await stack.enter_async_context(channel)
        requests = iter([b""]) if arity.startswith("stream") else b""
        call = getattr(channel, arity)("/a.B/C")(requests, metadata=metadata)
        if arity.endswith("stream"):
            assert [response async for response in call] == [b""]
        else:
            assert await call == b""
    return set(seen)


@pytest.mark.parametrize("arity", ARITIES)
async def test_what_links_does_not_leave(arity):
    seen = await seen_by_server(arity, (*LINKS, KEPT))
    assert "x-tenant" in seen
    assert not seen & LINKING


async def test_nor_does_what_interceptors_add():
    seen = await seen_by_server("unary_unary", (KEPT,), interceptors=[Adding()])
    assert "x-tenant" in seen
    assert not seen & LINKING


async def test_what_is_to_be_kept_is():
    for interceptors in (None, [Adding()]):
        seen = await seen_by_server("unary_unary", LINKS, keep=("Traceparent",), interceptors=interceptors)
        assert seen & LINKING == {"traceparent"}
