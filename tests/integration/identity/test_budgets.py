"""Budgets belong to the stable unit inside the sender's trust domain: no new identity refills one."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc.aio
import pytest

import dpmesh
from dpmesh.identity import RotatingIdentity
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.issuer import Issuer
from dpmesh_grpc import (
    IssuerSource,
    aio_client_interceptors,
    peer_interceptor,
    rotating_channel,
    rotating_server_credentials,
)
from dpmesh_grpc.issuer.server import issuer_server
from tests.support import mutual_tls
from tests.support.protos import compiled

TYPES = compiled(
    """message Ping { string device = 1 [(dpmesh.v1.field).unit = {form: SUPPRESSED}];
    bool busy = 2 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
    message Pong { bool ok = 1; }"""
)
# For ever: a day's could end in the middle of the test, and begin anew.
BUDGET = {"name": "device", "epsilon": 6, "accounting": "pure", "window": "lifetime"}


async def test_rotating_enrolling_again_and_restarting_never_refill_a_budget(tmp_path):
    config = {"ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"}, "budget": [BUDGET]}
    received, authority = [], mutual_tls.authority()

    async def handle(request, context):
        received.append(request)
        return TYPES.Pong(ok=True)

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        enrolments = Enrolments.create(tmp_path / "issuer.db")
        stack.callback(enrolments.close)
        issuer = Issuer(authority, enrolments)
        stack.callback(issuer.close)
        issuing = await enter(issuer_server(issuer, "127.0.0.1:0"))

        def source(**invitation):
            made = enrolments.invite(now=issuer.clock(), **invitation)
            target, bundle = f"127.0.0.1:{issuing}", authority.trust_bundle
            return IssuerSource(target, bundle, enrolment_token=made.token), made.device

        own = await enter(RotatingIdentity(source(server=True)[0]))
        server = grpc.aio.server(interceptors=[peer_interceptor(own)])
        handler = grpc.unary_unary_rpc_method_handler(
            handle, TYPES.Ping.FromString, TYPES.Pong.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Pings", {"Send": handler}),))
        port = server.add_secure_port("127.0.0.1:0", rotating_server_credentials(own))
        await server.start()
        stack.push_async_callback(server.stop, None)

        async def life(identity, mesh, releases):
            """A device's process under one identity that rotates after each of its messages."""
            interceptors = aio_client_interceptors(mesh)
            async with rotating_channel(f"127.0.0.1:{port}", identity, interceptors=interceptors) as channel:
                send = channel.unary_unary(
                    "/a.Pings/Send", TYPES.Ping.SerializeToString, TYPES.Pong.FromString
                )
                for _ in range(releases):
                    await send(TYPES.Ping(device="device-7", busy=True))
                    await identity.renew("test")

        first, device = source()
        async with dpmesh.open(config) as mesh, RotatingIdentity(first) as identity:
            await life(identity, mesh, 2)
        async with dpmesh.open(config) as mesh, RotatingIdentity(source(device=device)[0]) as identity:
            await life(identity, mesh, 2)
        async with dpmesh.open(config) as mesh, RotatingIdentity(source()[0]) as identity:
            await life(identity, mesh, 2)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await life(identity, mesh, 1)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            other = TYPES.Ping(device="device-8")
            assert (await mesh.release(other)).decision == "released"
    assert len(received) == 6, "a budget of 6 covers 6 messages, whatever the device calls itself"
