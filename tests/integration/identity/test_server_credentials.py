"""A server's certificate follows rotation, and its peers are checked at the handshake and at every RPC."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import ssl
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from dpmesh.errors import IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.ca.authority import LocalSource
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.rotation import server_credentials
from dpmesh_grpc.rotation.channel import rotating_channel
from dpmesh_grpc.rotation.peer_expiry import _PeerInterceptor
from dpmesh_grpc.rotation.server_credentials import _Fetcher, rotating_server_credentials, server_options
from tests.support.mutual_tls import (
    ANSWERS,
    ARITIES,
    DOMAIN,
    Issuer,
    Service,
    authority,
    call,
    method,
    plain_channel,
    serving,
    silence,
    until,
)

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
async def stack():
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
def fleet():
    return authority()


@pytest.fixture
async def issuer(fleet):
    return Issuer(LocalSource(fleet, server=True))


@pytest.fixture
async def server(stack, issuer):
    return await stack.enter_async_context(RotatingIdentity(issuer))


@pytest.fixture
def service():
    return Service()


async def one(target: str, identity: Identity, arity: str = "unary_unary", **options) -> bytes:
    """One RPC over a connection of its own."""
    async with plain_channel(target, identity, **options) as channel:
        return await call(channel, arity, timeout=60)


async def refused(
    target: str, identity: Identity, arity: str = "unary_unary", **options
) -> grpc.aio.AioRpcError:
    """How one fails."""
    async with plain_channel(target, identity, **options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, arity, timeout=60, silent=True)
    return caught.value


def leaf(issuer_name, issuer_key, uris, *, key=None, begins=-300.0, life=1800.0) -> tuple[bytes, bytes]:
    """A certificate such as no dpmesh authority issues, and its key; both in PEM."""
    key, now = key or new_key(), datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(seconds=begins))
        .not_valid_after(now + timedelta(seconds=life))
        .add_extension(names, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM), key_pem(key)


class Careless:
    """A CA without name constraints, which signs anything."""

    def __init__(self) -> None:
        self.key, now = new_key(), datetime.now(UTC)
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(8))])
        root = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = root.public_bytes(Encoding.PEM)

    def leaf(self, *uris: str, **options) -> tuple[bytes, bytes]:
        return leaf(self.name, self.key, uris, **options)


# -- the certificate ---------------------------------------------------------------------------------------------------


async def test_new_handshakes_get_the_new_certificate(stack, fleet, server, service):
    target = await stack.enter_async_context(serving(server, service.handlers()))
    device = await LocalSource(fleet).fetch()
    old = server.current
    async with plain_channel(target, device) as channel:
        assert await call(channel, "unary_unary") == b"ab"
        await server.renew("test")
        assert await call(channel, "unary_unary") == b"ab"  # The connection stays.
    assert len(service.connections) == 1
    assert await one(target, device) == b"ab"
    seen = await served_certificate(target, device)
    assert server.current.certificates.startswith(seen)
    assert not old.certificates.startswith(seen)


async def served_certificate(target, device) -> bytes:
    """The certificate that a new handshake is given, in PEM."""
    with tempfile.TemporaryDirectory() as folder:
        chain, key = Path(folder, "chain"), Path(folder, "key")
        chain.write_bytes(device.certificates)
        key.write_bytes(device.key)
        context = ssl.create_default_context(cadata=device.trust_bundle.decode())
        context.load_cert_chain(chain, key)
        context.set_alpn_protocols(["h2"])
        host, port = target.split(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=DOMAIN)
        seen = ssl.DER_cert_to_PEM_cert(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.close()
    return seen.encode().strip()


async def test_grpc_is_given_a_configuration_only_when_it_changed(server):
    fetcher = _Fetcher(server, server.current)
    assert fetcher() is None
    await server.renew("test")
    assert fetcher() is not None
    assert fetcher() is None


def with_another_key(identity: Identity) -> Identity:
    return dataclasses.replace(identity, key=key_pem(new_key()))


async def test_a_bad_key_is_said_once_and_the_one_before_serves_until_it_is_over(
    stack, fleet, server, issuer, service, caplog
):
    target = await stack.enter_async_context(serving(server, service.handlers()))
    device = await LocalSource(fleet).fetch()
    assert await one(target, device) == b"ab"
    issuer.change = with_another_key
    await server.renew("test")
    for _ in range(3):
        assert await one(target, device) == b"ab"
    # Of ours: asyncio logs what others left behind whenever it is collected.
    errors = [
        record
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name.startswith("dpmesh")
    ]
    assert [record.name for record in errors] == ["dpmesh.grpc"]
    assert "MALFORMED" in errors[0].getMessage()
    issuer.change = lambda identity: identity
    await server.renew("test")
    assert await one(target, device) == b"ab"


async def test_when_the_last_good_certificate_is_over_handshakes_fail(
    stack, fleet, server, issuer, service, caplog, monkeypatch
):
    target = await stack.enter_async_context(serving(server, service.handlers(), checked=False))
    ends = server.current.not_after
    issuer.change = with_another_key
    await server.renew("test")
    device = await LocalSource(fleet).fetch()
    with monkeypatch.context() as later:
        # By the clock that decides what gRPC is given. TLS would still take it: that it is not offered is what counts.
        later.setattr(server_credentials, "time", SimpleNamespace(time=lambda: ends - 1))
        assert await one(target, device) == b"ab"
        later.setattr(server_credentials, "time", SimpleNamespace(time=lambda: ends))
        assert (await refused(target, device)).code() is UNAVAILABLE
    issuer.change = lambda identity: identity
    await server.renew("test")
    assert await one(target, device) == b"ab"
    assert not [record for record in caplog.records if "-----BEGIN" in record.getMessage()]


async def test_without_an_identity_handshakes_and_rpcs_fail_and_both_come_back(stack, fleet, issuer, service):
    ahead = 0.0  # seconds, of the server's clock
    server = await stack.enter_async_context(RotatingIdentity(issuer, clock=lambda: time.time() + ahead))
    target = await stack.enter_async_context(serving(server, service.handlers()))
    device = await LocalSource(fleet).fetch()
    async with plain_channel(target, device) as channel:
        assert await call(channel, "unary_unary") == b"ab"
        issuer.down = True
        ahead = server.current.not_after - time.time()
        assert (await refused(target, device)).code() is UNAVAILABLE
        for arity in ARITIES:  # The old connection stands, and its RPCs are refused all the same.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, arity, silent=True)
            assert caught.value.details() == "the server has no identity that is valid now"
            assert caught.value.code() is UNAVAILABLE
        issuer.down = False
        ahead = 0.0
        await server.renew("test")
        assert await one(target, device) == b"ab"
        assert await call(channel, "unary_unary") == b"ab"


async def test_the_failure_of_a_bad_certificate_is_counted(server, issuer, monkeypatch):
    counted = []
    monkeypatch.setattr(
        "dpmesh.telemetry.identity.IdentityTelemetry.failed", lambda _, reason: counted.append(reason)
    )
    fetcher = _Fetcher(server, server.current)
    issuer.change = with_another_key
    await server.renew("test")
    assert [fetcher(), fetcher()] == [None, None]
    assert counted == ["MALFORMED"]


async def test_the_ca_is_rolled_over_without_a_refused_handshake(stack, fleet, issuer, server, service):
    successor = authority()
    target = await stack.enter_async_context(serving(server, service.handlers()))
    devices = Issuer(LocalSource(fleet))
    device = await stack.enter_async_context(RotatingIdentity(devices))
    channel = await stack.enter_async_context(rotating_channel(target, device))
    # First all learn to trust the new root, then servers and devices get certificates from it, in any order.
    both = fleet.trusting(successor.trust_bundle)
    for step in ((both, both), (fleet.followed_by(successor), both), (fleet.followed_by(successor),) * 2):
        for source, who, of_server in ((issuer, server, True), (devices, device, False)):
            source.source = LocalSource(step[0 if of_server else 1], server=of_server)
            before = channel._in_force
            await who.renew("test")
            if not of_server:
                await until(lambda before=before: channel._in_force is not before)
            assert await one(target, device.current) == b"ab"
            assert await call(channel, "unary_unary") == b"ab"
    # Who trusts only the new root by now is at home.
    newest = dataclasses.replace(await LocalSource(successor).fetch())
    assert await one(target, newest) == b"ab"


def test_a_connection_is_not_to_outlive_its_certificate():
    class Held:
        current = Identity(b"", b"", b"", DOMAIN, 0.0, not_after=1800.0, obtained=0.0)

    options = dict(server_options(Held()))
    assert options == {"grpc.max_connection_age_ms": 900_000, "grpc.max_connection_age_grace_ms": 450_000}


# -- the peers, at the handshake ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "which", ["none", "other root", "expired", "not yet", "self-signed", "constraint", "key"]
)
async def test_handshakes_that_fail(stack, fleet, server, service, which):
    target = await stack.enter_async_context(serving(server, service.handlers()))
    now, key = time.time(), new_key()
    device = await LocalSource(fleet).fetch()
    assert await one(target, device) == b"ab"
    name = fleet._certificate.subject
    uri = f"spiffe://{DOMAIN}/{secrets.token_hex(16)}"
    if which == "none":
        found = await refused(target, device, certificates=None, key=None)
    elif which == "other root":
        stranger = await LocalSource(authority()).fetch()
        found = await refused(target, dataclasses.replace(stranger, trust_bundle=device.trust_bundle))
    elif which == "expired":
        chain = fleet.issue(key.public_key(), now=now - 1000, life=990)
        found = await refused(target, device, certificates=chain, key=key_pem(key))
    elif which == "not yet":
        chain = fleet.issue(key.public_key(), now=now + 1000, life=1000)
        found = await refused(target, device, certificates=chain, key=key_pem(key))
    elif which == "self-signed":
        chain, pem = leaf(x509.Name([]), key, [uri], key=key)
        found = await refused(target, device, certificates=chain, key=pem)
    elif which == "constraint":
        inside, pem = leaf(name, fleet._key, [uri])
        assert await one(target, device, certificates=inside + fleet.chain, key=pem) == b"ab"
        outside, pem = leaf(name, fleet._key, ["spiffe://other.test/x"])
        found = await refused(target, device, certificates=outside + fleet.chain, key=pem)
    else:
        other = await LocalSource(fleet).fetch()
        found = await refused(target, device, certificates=other.certificates)
    assert found.code() is UNAVAILABLE
    assert len(service.names) == (2 if which == "constraint" else 1)


# -- the peers, at every RPC -------------------------------------------------------------------------------------------


class Bundled:
    """Identities of the fleet whose trust bundle has a careless CA in it too."""

    follows = False

    def __init__(self, fleet, careless: Careless) -> None:
        self.source, self.pem = LocalSource(fleet, server=True), careless.pem

    async def fetch(self) -> Identity:
        identity = await self.source.fetch()
        return dataclasses.replace(identity, trust_bundle=identity.trust_bundle + self.pem)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize(
    "uris",
    [["spiffe://other.test/x"], [f"spiffe://{DOMAIN}/a", f"spiffe://{DOMAIN}/b"], ["https://fleet.test/"]],
)
async def test_who_is_not_of_the_trust_domain_is_unauthenticated(stack, fleet, service, arity, uris):
    careless = Careless()
    server = await stack.enter_async_context(RotatingIdentity(Bundled(fleet, careless)))
    target = await stack.enter_async_context(serving(server, service.handlers()))
    device = await LocalSource(fleet).fetch()
    chain, key = careless.leaf(f"spiffe://{DOMAIN}/good")
    assert await one(target, device, arity, certificates=chain, key=key) == ANSWERS[arity]
    chain, key = careless.leaf(*uris)
    found = await refused(target, device, arity, certificates=chain, key=key)
    assert found.code() is UNAUTHENTICATED
    assert "other" not in found.details()
    assert len(service.names) == 1


async def test_what_is_known_of_certificates_is_bounded(fleet, server, monkeypatch):
    monkeypatch.setattr("dpmesh_grpc.rotation.peer_expiry._KEPT", 10)
    peers = _PeerInterceptor(server)

    class Context:
        def __init__(self, device: Identity) -> None:
            self.pem = device.certificates.partition(b"-----END CERTIFICATE-----\n")

        def auth_context(self):
            return {"x509_pem_cert": [b"".join(self.pem[:2])]}

    for _ in range(30):
        peer = peers.check(Context(await LocalSource(fleet).fetch()))
        assert await peer.hold(asyncio.sleep(0, "held")) == "held"
        peers.tidy()
    assert len(peers._parsed) <= 10
    timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
    assert len(timers) <= 20


async def test_without_tls_nobody_is_authenticated(stack, server, service):
    target = await stack.enter_async_context(
        serving(
            server,
            service.handlers(),
            credentials=grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP),
        )
    )
    channel = grpc.aio.secure_channel(
        target, grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    )
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "unary_unary")
    assert caught.value.code() is UNAUTHENTICATED


class Kinds:
    """Handlers of every kind that gRPC knows; each ticks until somebody stops it."""

    def __init__(self, over: float) -> None:
        self.over = over  # When the client's certificate is.
        self.ended: list[str] = []

    async def coroutine(self, request, context):
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.append("coroutine")

    async def generator(self, request, context):
        try:
            while True:
                yield request
                await asyncio.sleep(0.05)
        finally:
            self.ended.append("generator")

    async def writer(self, request, context):
        try:
            while True:
                await context.write(request)
                await asyncio.sleep(0.05)
        finally:
            self.ended.append("writer")

    async def reader(self, requests, context):
        try:
            async for _ in requests:
                pass
        finally:
            self.ended.append("reader")
        return b""

    async def echo(self, requests, context):
        try:
            async for request in requests:
                yield request
        finally:
            self.ended.append("echo")

    def sync_generator(self, request, context):
        try:
            while True:
                yield request
                time.sleep(0.05)
        finally:
            self.ended.append("sync_generator")

    def sync_slow(self, request, context):
        time.sleep(max(0.0, self.over - time.time()) + 0.1)
        self.ended.append("sync_slow")
        return request

    def sync_reader(self, requests, context):
        for _ in requests:
            pass
        self.ended.append("sync_reader")
        return b""


ENDLESS = {
    "coroutine": "unary_unary",
    "generator": "unary_stream",
    "writer": "unary_stream",
    "reader": "stream_unary",
    "echo": "stream_stream",
    "sync_generator": "unary_stream",
    "sync_reader": "stream_unary",
    "sync_slow": "unary_unary",
}


async def requests_of(kind):
    """Some requests, and then none; but a handler in an executor ends only with its next request."""
    for _ in range(8):
        yield b"r"
        await asyncio.sleep(0.02)
    while kind == "sync_reader":
        yield b"r"
        await asyncio.sleep(0.2)
    await asyncio.Event().wait()


async def ending(channel, kind, arity):
    """How an endless RPC ends, and after how many responses."""
    count, requests = 0, requests_of(kind) if arity.startswith("stream") else b"r"
    answer = method(channel, kind, arity)(requests, timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if arity.endswith("stream"):
            async for _ in answer:
                count += 1
        else:
            await answer
    return caught.value, count


async def test_rpcs_end_with_their_clients_certificate(stack, fleet, server):
    """All kinds at once, because each takes a certificate's life."""
    device, pool = await LocalSource(fleet, life=3.0).fetch(), ThreadPoolExecutor(len(ENDLESS))
    kinds = Kinds(device.not_after)
    handlers = {
        kind: getattr(grpc, f"{arity}_rpc_method_handler")(getattr(kinds, kind))
        for kind, arity in ENDLESS.items()
    }
    target = await stack.enter_async_context(serving(server, handlers, pool=pool))

    async def check(channel, kind, arity) -> None:
        found, count = await ending(channel, kind, arity)
        late = time.time() - device.not_after
        if 'Failed "execute_batch"' in found.debug_error_string():
            assert kind == "sync_reader"  # What gRPC makes of it when the end meets a request.
        else:
            assert found.code() is UNAUTHENTICATED, kind
            assert found.details() == "the client certificate is not valid now"
        assert 0 <= late < 10, kind
        assert count > 5 or not arity.endswith("stream"), kind
        # The connection outlives the certificate; RPCs don't.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            silent = method(channel, kind, arity)(
                silence() if arity.startswith("stream") else b"r", timeout=60
            )
            await (silent.read() if arity.endswith("stream") else silent)
        assert caught.value.code() is UNAUTHENTICATED, kind

    async with plain_channel(target, device) as channel:
        await asyncio.gather(*(check(channel, kind, arity) for kind, arity in ENDLESS.items()))
    await until(lambda: set(kinds.ended) == set(ENDLESS))
    await asyncio.to_thread(pool.shutdown)


async def test_handlers_own_errors_stay_what_they_are(stack, fleet, server):
    async def times_out(request, context):
        raise TimeoutError("its own")

    async def aborts(request, context):
        yield b"1"
        await context.abort(grpc.StatusCode.NOT_FOUND, "its own")

    def sync(request, context):
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("its own")
        return b""

    handlers = {
        "times_out": grpc.unary_unary_rpc_method_handler(times_out),
        "aborts": grpc.unary_stream_rpc_method_handler(aborts),
        "sync": grpc.unary_unary_rpc_method_handler(sync),
    }
    pool = ThreadPoolExecutor(1)
    target = await stack.enter_async_context(serving(server, handlers, pool=pool))
    device = await LocalSource(fleet).fetch()
    expected = {
        "times_out": ("unary_unary", grpc.StatusCode.UNKNOWN),
        "aborts": ("unary_stream", grpc.StatusCode.NOT_FOUND),
        "sync": ("unary_unary", grpc.StatusCode.DATA_LOSS),
    }
    async with plain_channel(target, device) as channel:
        for name, (arity, code) in expected.items():
            answer = method(channel, name, arity)(b"")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [part async for part in answer] if arity.endswith("stream") else await answer
            assert caught.value.code() is code
            assert "its own" in caught.value.details()
    await asyncio.to_thread(pool.shutdown)


async def test_credentials_need_a_good_identity(fleet, server, issuer):
    with pytest.raises(IdentityError) as caught:
        rotating_server_credentials(RotatingIdentity(LocalSource(fleet)))
    assert caught.value.reason == "EXPIRED"
    issuer.change = with_another_key
    await server.renew("test")
    with pytest.raises(IdentityError) as caught:
        rotating_server_credentials(server)
    assert caught.value.reason == "MALFORMED"
