"""Identities from a real SPIRE: a server, and agents on two nodes, each with a workload of this user."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import spiffe_id
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.identity.sources.workload import WorkloadSource
from dpmesh_grpc import peer_interceptor, rotating_server_credentials, server_options
from dpmesh_grpc.rotation.channel import rotating_channel
from tests.support import spire as support
from tests.support.spire import DOMAIN, Spire

BINARIES = support.find()
pytestmark = [
    pytest.mark.spire,
    pytest.mark.skipif(
        BINARIES is None,
        reason="no spire-server and spire-agent: `make spire` finds them, or builds them where there is Go",
    ),
]

PATIENCE = 30.0
# Seconds. SPIRE adds 10 before, and renews at half of the sum, so 2 seconds after it issued.
TTL = 14


@pytest.fixture
def spire(tmp_path):
    with Spire(BINARIES, tmp_path) as running:
        yield running


@asynccontextmanager
async def opened(agent):
    """A rotating identity, once its entry has reached the agent, which takes a second or two."""
    source = WorkloadSource(agent.address)
    async with asyncio.timeout(PATIENCE):
        while not await has_one(source):
            await asyncio.sleep(0.05)
    async with RotatingIdentity(source) as identity:
        yield identity


async def has_one(source) -> bool:
    try:
        await source.fetch()
    except IdentityError:
        return False
    return True


@asynccontextmanager
async def workloads(spire):
    """A server's and a client's identity, each on a node of its own."""
    nodes = {name: spire.agent(f"node/{name}") for name in ("server", "client")}
    spire.register("node/server", "collector", TTL, dns=DOMAIN)
    spire.register("node/client", "aircraft", TTL)
    async with opened(nodes["server"]) as server, opened(nodes["client"]) as client:
        yield server, client


async def _who(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Answers with the client's name, as its certificate has it."""
    (pem,) = context.auth_context()["x509_pem_cert"]
    return spiffe_id(x509.load_pem_x509_certificate(pem)).encode()


@asynccontextmanager
async def calls(server_identity, client_identity):
    """What a client calls a server with."""
    server = grpc.aio.server(
        interceptors=[peer_interceptor(server_identity)], options=server_options(server_identity)
    )
    handler = grpc.unary_unary_rpc_method_handler(_who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", {"Who": handler}),))
    port = server.add_secure_port("127.0.0.1:0", rotating_server_credentials(server_identity))
    await server.start()
    try:
        async with rotating_channel(f"127.0.0.1:{port}", client_identity) as channel:
            method = channel.unary_unary("/Test/Who")

            async def call() -> str:
                return (await method(b"", timeout=PATIENCE, wait_for_ready=True)).decode()

            yield call
    finally:
        await server.stop(grace=None)


def roots(identity) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(identity.current.trust_bundle)


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.05)


async def test_an_identity_comes_once_there_is_an_entry(spire):
    agent = spire.agent("node")
    source = WorkloadSource(agent.address)
    try:
        with pytest.raises(IdentityError, match="PERMISSION_DENIED") as caught:
            await source.fetch()
        assert caught.value.reason == "ISSUER_UNAVAILABLE"
    finally:
        await source.close()
    spire.register("node", "aircraft", TTL)
    async with opened(agent) as identity:
        current = identity.current
    assert current.trust_domain == DOMAIN
    (leaf,) = x509.load_pem_x509_certificates(current.certificates)
    assert spiffe_id(leaf) == f"spiffe://{DOMAIN}/aircraft"
    assert current.not_after - current.not_before == TTL + 10
    (shown,) = x509.load_pem_x509_certificates(spire.ask("bundle", "show").encode())
    assert x509.load_pem_x509_certificates(current.trust_bundle) == [shown]
    leaf.verify_directly_issued_by(shown)


async def test_it_follows_what_spire_rotates(spire):
    agent = spire.agent("node")
    spire.register("node", "aircraft", TTL)
    keys = set()
    async with opened(agent) as identity, asyncio.timeout(PATIENCE):
        for generation in range(1, 4):
            await identity.wait(generation - 1)
            keys.add(identity.current.key)
            assert identity.status().failures == 0
    assert len(keys) == 3


async def test_two_workloads_call_each_other_while_both_rotate(spire):
    async with workloads(spire) as (server, client), calls(server, client) as call:
        async with asyncio.timeout(PATIENCE):
            count = 0
            while min(server.generation, client.generation) < 3:
                assert await call() == f"spiffe://{DOMAIN}/aircraft"
                count += 1
                await asyncio.sleep(0.01)
    assert count > 50


async def test_an_agent_is_killed_and_comes_back(spire):
    agent = spire.agent("node")
    spire.register("node", "aircraft", TTL)
    async with opened(agent) as identity:
        agent.kill()
        before = identity.generation
        assert identity.current
        agent.start()
        async with asyncio.timeout(PATIENCE):
            await identity.wait(before)
        # Nothing of it was noticed.
        assert identity.status().failures == 0


async def test_the_authority_rolls_over(spire):
    """A new root is added, signs, and replaces the old one, while workloads go on calling each other."""

    def authority(command: str, *words: str) -> None:
        spire.ask("localauthority", "x509", command, *words)

    async with workloads(spire) as both, calls(*both) as call:
        (old,) = roots(both[0])
        calling = asyncio.create_task(_call_on(call))
        authority("prepare")
        await until(lambda: all(len(roots(each)) == 2 for each in both))
        (new,) = [root for root in roots(both[0]) if root != old]
        authority("activate", "-authorityID", _key_id(new))
        await until(lambda: all(_issued(each, new) for each in both))
        authority("taint", "-authorityID", _key_id(old))
        authority("revoke", "-authorityID", _key_id(old))
        await until(lambda: all(roots(each) == [new] for each in both))
        assert await call()
        assert not calling.done(), "a call failed"
        calling.cancel()


async def _call_on(call) -> None:
    """Ends only if a call fails."""
    while True:
        await call()
        await asyncio.sleep(0.01)


def _key_id(root: x509.Certificate) -> str:
    """What SPIRE calls an authority."""
    return root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _issued(identity: RotatingIdentity, root: x509.Certificate) -> bool:
    try:
        x509.load_pem_x509_certificates(identity.current.certificates)[0].verify_directly_issued_by(root)
    except (ValueError, InvalidSignature):
        return False
    return True
