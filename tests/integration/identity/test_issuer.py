"""The issuing service: real TLS, real records; devices that are honest, late, broken or lying."""

import asyncio
import logging
import socket
import sqlite3
import ssl
import time
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.ca import enrolment, proof
from dpmesh.identity.ca import issuer as deciding
from dpmesh.identity.ca.authority import LocalSource, Root, issuer_name
from dpmesh.identity.ca.enrolment import Enrolments
from dpmesh.identity.ca.issuer import Issuer
from dpmesh.identity.ca.proof import RENEW, SIGN_TOKENS, prove
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.identity.tokens import TokenChallenge, TokenKeys, TokenRequestState
from dpmesh.v1 import identity_pb2_grpc as rpc
from dpmesh.v1.identity_pb2 import EnrolRequest, GetTokenKeysRequest, RenewRequest, SignTokensRequest
from dpmesh_grpc.issuer import server as serving_module
from dpmesh_grpc.issuer.channel import issuer_channel
from dpmesh_grpc.issuer.server import issuer_server
from dpmesh_grpc.issuer.source import IssuerSource
from tests.support.issuing import rogue_leaf

DOMAIN = "fleet.example.org"
Code = grpc.StatusCode


def shifted(seconds):
    return lambda: time.time() + seconds


class Place:
    """An issuer, its records and its address."""

    def __init__(self, issuer: Issuer, enrolments: Enrolments, path: Path, port: int) -> None:
        self.issuer, self.enrolments, self.path, self.port = issuer, enrolments, path, port
        self.target = f"127.0.0.1:{port}"
        self.bundle = issuer.authority.trust_bundle

    def token(self, **arguments) -> str:
        return self.enrolments.invite(now=time.time(), **arguments).token

    def source(self, **arguments) -> IssuerSource:
        if not {"identity", "enrolment_token"} & arguments.keys():
            arguments["enrolment_token"] = self.token()
        return IssuerSource(self.target, self.bundle, **arguments)

    async def identity(self) -> Identity:
        return await self.source().fetch()

    def channel(self) -> grpc.aio.Channel:
        return issuer_channel(self.target, self.bundle)


@pytest.fixture
def authority():
    now = time.time()
    return Root.create(DOMAIN, now=now).sign_intermediate(now=now)


@pytest.fixture(scope="module")
def keys():
    """An issuer's, for all tests: it made them once, and they are the same before and after midnight."""
    return TokenKeys(epoch=100 * 365 * 86_400)


@asynccontextmanager
async def serving(authority, path, **arguments):
    enrolments = Enrolments.create(path) if not path.exists() else Enrolments(path)
    issuer = Issuer(authority, enrolments, **arguments)
    try:
        async with issuer_server(issuer, "127.0.0.1:0") as port:
            yield Place(issuer, enrolments, path, port)
    finally:
        issuer.close()
        enrolments.close()


@pytest.fixture
async def place(authority, tmp_path, keys):
    async with serving(authority, tmp_path / "issuer.db", token_keys=keys, allowance=8) as found:
        yield found


@pytest.fixture
async def stub(place):
    async with place.channel() as channel:
        yield rpc.IssuerServiceStub(channel)


def leaf_of(identity):
    return x509.load_pem_x509_certificate(identity.certificates)


SHA256 = hashes.SHA256()


def request_for(key, algorithm=SHA256):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def renewal(identity, now=None, method=RENEW):
    request = RenewRequest(certificate_request=request_for(new_key()))
    prove(method, request, identity, time.time() if now is None else now)
    return request


async def refused(awaitable) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        await awaitable
    return caught.value


async def status(call):
    """How an RPC ends; whatever it says is one of the texts that say nothing of the request."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.details() in deciding.TEXTS
    return caught.value.code(), caught.value.details()


# What a device gets.


async def test_a_device_enrols_and_then_renews(place):
    source = place.source()
    identities = [await source.fetch() for _ in range(3)]
    assert source.follows is False
    leaves = [leaf_of(identity) for identity in identities]
    assert len({identity.key for identity in identities}) == 3
    assert len({leaf.serial_number for leaf in leaves}) == 3
    assert {identity.trust_domain for identity in identities} == {DOMAIN}
    assert all(place.issuer.authority.has_issued(leaf) for leaf in leaves)
    assert {identity.not_after - identity.not_before for identity in identities} <= {2100, 2101}
    await source.close()


async def test_nothing_ties_two_fetches_together(place, monkeypatch):
    """Each has a connection of its own, which is gone afterwards, shows no certificate and resumes nothing."""
    seen = []
    answer = serving_module._answer

    async def look(response, context):
        if response.__name__ == "renew":
            seen.append((context.peer(), context.auth_context(), dict(context.invocation_metadata())))
        return await answer(response, context)

    monkeypatch.setattr(serving_module, "_answer", look)
    async with serving(place.issuer.authority, place.path) as other:
        source = other.source()
        for _ in range(6):
            await source.fetch()
        peers = [peer for peer, _, _ in seen]
        assert len(set(peers)) == len(peers) == 5
        assert all("x509_pem_cert" not in context for _, context, _ in seen)
        assert all(context["ssl_session_reused"] == [b"false"] for _, context, _ in seen)
        assert len({tuple(sorted(metadata.items())) for _, _, metadata in seen}) == 1


async def test_devices_that_ask_at_the_same_time_share_no_connection(place, monkeypatch):
    """Even in one process."""
    peers, line = [], asyncio.Barrier(4)
    answer = serving_module._answer

    async def look(response, context):
        peers.append(context.peer())
        await line.wait()
        return await answer(response, context)

    monkeypatch.setattr(serving_module, "_answer", look)
    async with serving(place.issuer.authority, place.path) as other, asyncio.timeout(60):
        await asyncio.gather(*[other.source(timeout=60).fetch() for _ in range(4)])
    assert len(set(peers)) == 4


async def test_fetches_at_the_same_time_use_the_token_once(place):
    source = place.source()
    identities = await asyncio.gather(*[source.fetch() for _ in range(10)])
    assert len({identity.key for identity in identities}) == 10


async def test_a_fetch_that_is_cancelled_leaves_a_source_that_works(place):
    source = place.source()
    await source.fetch()
    for delay in (0, 0.001, 0.002, 0.004):
        fetching = asyncio.ensure_future(source.fetch())
        await asyncio.sleep(delay)
        fetching.cancel()
        await asyncio.wait({fetching})
    assert (await source.fetch()).trust_domain == DOMAIN


async def test_an_identity_can_be_handed_to_another_source(place):
    first = await place.identity()
    second = await place.source(identity=first).fetch()
    assert second.key != first.key


async def test_a_rotating_identity_is_fed_and_outlasts_an_outage(place):
    source = place.source()
    async with RotatingIdentity(source, every=0.05) as rotating, asyncio.timeout(60):
        assert await rotating.wait(3) > 3
        source._target = "127.0.0.1:1"
        while rotating.status().failures == 0:
            await asyncio.sleep(0.01)
        assert rotating.status().last_error == "ISSUER_UNAVAILABLE"
        before = rotating.generation
        assert rotating.current.trust_domain == DOMAIN
        source._target = place.target
        await rotating.renew("test")
        assert rotating.generation > before


# Enrolment tokens.


async def test_an_enrolment_token_serves_once(place):
    token = place.token()
    await place.source(enrolment_token=token).fetch()
    error = await refused(place.source(enrolment_token=token).fetch())
    assert error.reason == "REFUSED"
    assert enrolment.BAD_TOKEN in str(error)
    assert token not in str(error)


async def test_of_a_hundred_devices_with_one_token_one_enrols(place):
    token = place.token()
    sources = [place.source(enrolment_token=token, timeout=60) for _ in range(100)]
    results = await asyncio.gather(*[source.fetch() for source in sources], return_exceptions=True)
    assert sum(isinstance(result, Identity) for result in results) == 1
    assert sorted(result.reason for result in results if not isinstance(result, Identity)) == ["REFUSED"] * 99


async def test_of_two_issuers_with_the_same_records_one_takes_a_token(place):
    async with serving(place.issuer.authority, place.path) as other:
        token = place.token()
        sources = [(place, other)[i % 2].source(enrolment_token=token, timeout=60) for i in range(20)]
        results = await asyncio.gather(*[source.fetch() for source in sources], return_exceptions=True)
        winner = next(result for result in results if isinstance(result, Identity))
        assert sum(isinstance(result, Identity) for result in results) == 1
        # And both know the device afterwards.
        await place.source(identity=winner).fetch()
        await other.source(identity=winner).fetch()


async def test_an_enrolment_token_is_over_after_its_life(place):
    token = place.enrolments.invite(now=time.time() - 3601, life=3600).token
    assert (await refused(place.source(enrolment_token=token).fetch())).reason == "REFUSED"


@pytest.mark.parametrize("token", ["", "x", "é" * 60, "x" * 100_000])
async def test_other_text_is_no_token(place, stub, token):
    request = EnrolRequest(enrolment_token=token, certificate_request=request_for(new_key()))
    assert await status(stub.Enrol(request)) == (Code.UNAUTHENTICATED, enrolment.BAD_TOKEN)


async def test_a_refused_request_does_not_use_a_token_up(place, stub):
    token = place.token()
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Enrol(EnrolRequest(enrolment_token=token, certificate_request=b"garbage"))
    await place.source(enrolment_token=token).fetch()


# Certificate requests.


def with_a_wrong_signature():
    request = request_for(new_key())
    return request[:-1] + bytes([request[-1] ^ 1])  # never the byte that was there


def with_much_to_say():
    """A proper one, with an extension that only takes room."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\0" * 10_000)
    return builder.add_extension(extension, critical=False).sign(new_key(), SHA256).public_bytes(Encoding.DER)


def with_the_key_of_another():
    """Of two requests of the same shape, the first one's key under the second one's signature."""
    mine, other = new_key(), new_key()
    points = [key.public_key().public_numbers() for key in (mine, other)]
    raw = [p.x.to_bytes(32, "big") + p.y.to_bytes(32, "big") for p in points]
    return request_for(mine).replace(raw[0], raw[1])


BAD_REQUESTS = {
    "empty": lambda: b"",
    "garbage": lambda: b"garbage" * 10,
    "cut off": lambda: request_for(new_key())[:-20],
    "with more behind it": lambda: request_for(new_key()) + b"\0",
    "RSA": lambda: request_for(rsa.generate_private_key(65537, 2048)),
    "P-384": lambda: request_for(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": lambda: request_for(ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": lambda: request_for(ed25519.Ed25519PrivateKey.generate(), None),
    "wrong signature": with_a_wrong_signature,
    "the key of another": with_the_key_of_another,
    "large": with_much_to_say,
    "huge": lambda: request_for(new_key()) + b"\0" * 100_000,
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
async def test_bad_certificate_requests(place, stub, kind):
    der = BAD_REQUESTS[kind]()
    first = EnrolRequest(enrolment_token=place.token(), certificate_request=der)
    assert await status(stub.Enrol(first)) == (Code.INVALID_ARGUMENT, deciding.BAD_REQUEST)
    next_one = RenewRequest(certificate_request=der)
    prove(RENEW, next_one, await place.identity(), time.time())
    assert await status(stub.Renew(next_one)) == (Code.INVALID_ARGUMENT, deciding.BAD_REQUEST)


async def test_of_a_request_only_the_key_counts(place, stub):
    """Names, and whatever else it asks for, are the device's wish, and would tell it from others."""
    key = new_key()
    names = [x509.DNSName(issuer_name(DOMAIN)), x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/admin")]
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device 7")])
    )
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    answer = await stub.Enrol(EnrolRequest(enrolment_token=place.token(), certificate_request=der))
    leaf = x509.load_pem_x509_certificate(answer.certificate.chain)
    assert leaf.public_key() == key.public_key()
    assert list(leaf.subject) == []
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    text = leaf.public_bytes(Encoding.DER)
    assert not any(word in text for word in (b"admin", b"issuer.", b"device 7"))


async def test_a_renewal_needs_a_new_key(place, stub):
    token, key = place.token(), new_key()
    first = EnrolRequest(enrolment_token=token, certificate_request=request_for(key))
    answer = (await stub.Enrol(first)).certificate
    identity = Identity.load(answer.chain, key_pem(key), answer.trust_bundle, time.time())
    request = RenewRequest(certificate_request=request_for(key))
    prove(RENEW, request, identity, time.time())
    assert await status(stub.Renew(request)) == (Code.INVALID_ARGUMENT, deciding.SAME_KEY)


async def test_requests_that_are_too_large_for_anything(place, stub):
    huge = EnrolRequest(enrolment_token="x", certificate_request=b"\0" * 1_000_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Enrol(huge)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    await place.identity()


# Proofs.


def flip(request, _):
    signature = request.proof.signature
    request.proof.signature = signature[:-1] + bytes([signature[-1] ^ 1])


def with_(**fields):
    """Sets fields of the proof; a function of the one there is gives the new one."""

    def change(request, _):
        for name, new in fields.items():
            setattr(request.proof, name, new(getattr(request.proof, name)) if callable(new) else new)

    return change


TAMPERED = {
    "another request": lambda request, _: setattr(request, "certificate_request", request_for(new_key())),
    "another time": with_(time=lambda time: time + 1),
    "another device's certificate": lambda request, other: setattr(
        request.proof, "certificate", leaf_of(other).public_bytes(Encoding.DER)
    ),
    "a bit of the signature": flip,
    "no signature": with_(signature=b""),
    "no certificate": with_(certificate=b""),
    "a certificate with more behind it": with_(certificate=lambda der: der + b"\0"),
    "garbage": with_(certificate=b"x" * 500, signature=b"x" * 70),
    "a huge certificate": with_(certificate=lambda der: der + b"\0" * 100_000),
    "a huge signature": with_(signature=lambda signature: signature + b"\0" * 100_000),
    "an unknown field": lambda request, _: request.MergeFromString(b"\xfa\x07\x01x"),
}


@pytest.mark.parametrize("kind", TAMPERED)
async def test_tampered_proofs(place, stub, kind):
    identity, other = await place.identity(), await place.identity()
    request = renewal(identity)
    TAMPERED[kind](request, other)
    assert await status(stub.Renew(request)) == (Code.UNAUTHENTICATED, proof.BAD_PROOF)
    await stub.Renew(renewal(identity))


async def test_a_request_without_a_proof(place, stub):
    request = RenewRequest(certificate_request=request_for(new_key()))
    assert (await status(stub.Renew(request)))[0] is Code.UNAUTHENTICATED
    request.proof.time = int(time.time())
    assert await status(stub.Renew(request)) == (Code.UNAUTHENTICATED, proof.BAD_PROOF)


async def test_a_proof_for_another_method(place, stub):
    identity = await place.identity()
    assert await status(stub.Renew(renewal(identity, method=SIGN_TOKENS))) == (
        Code.UNAUTHENTICATED,
        proof.BAD_PROOF,
    )
    # The two requests' fields overlap, so that one's bytes can be read as the other's.
    tokens = SignTokensRequest(truncated_token_key_id=1, blinded_messages=[b"x"])
    prove(RENEW, tokens, identity, time.time())
    assert await status(stub.SignTokens(tokens)) == (Code.UNAUTHENTICATED, proof.BAD_PROOF)


async def test_a_replay_is_refused_at_once_and_after_five_minutes(place, stub):
    identity = await place.identity()
    now = time.time()
    fresh, old = renewal(identity, now=now), renewal(identity, now=now - 302)
    place.issuer.clock = lambda: now
    await stub.Renew(fresh)
    assert await status(stub.Renew(fresh)) == (Code.UNAUTHENTICATED, enrolment.REPLAYED)
    assert await status(stub.Renew(old)) == (Code.UNAUTHENTICATED, proof.BAD_CLOCK)
    # A record of what was used is kept until the time itself refuses it, and no longer.
    place.issuer.clock = lambda: now + 300
    assert await status(stub.Renew(fresh)) == (Code.UNAUTHENTICATED, enrolment.REPLAYED)
    place.issuer.clock = lambda: now + 302
    assert await status(stub.Renew(fresh)) == (Code.UNAUTHENTICATED, proof.BAD_CLOCK)


async def test_another_signature_over_the_same_is_a_replay_too(place, stub):
    """Whoever sees an ECDSA signature (r, s) can make (r, n - s), which is as good."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    request = renewal(await place.identity())
    await stub.Renew(request)
    r, s = decode_dss_signature(request.proof.signature)
    request.proof.signature = encode_dss_signature(r, order - s)
    assert await status(stub.Renew(request)) == (Code.UNAUTHENTICATED, enrolment.REPLAYED)


@pytest.mark.parametrize("now", [0, -(2**63), 2**63 - 1, -1])
async def test_times_that_are_none(place, stub, now):
    request = renewal(await place.identity(), now=now)
    assert await status(stub.Renew(request)) == (Code.UNAUTHENTICATED, proof.BAD_CLOCK)


async def test_a_revoked_device_gets_nothing_more(place):
    invitation = place.enrolments.invite(now=time.time())
    source, other = place.source(enrolment_token=invitation.token), place.source()
    await source.fetch()
    await other.fetch()
    place.enrolments.revoke(invitation.device)
    error = await refused(source.fetch())
    assert error.reason == "REFUSED"
    assert enrolment.NOT_ENROLLED in str(error)
    assert invitation.device not in str(error)
    await other.fetch()


async def test_a_certificate_that_is_over_renews_nothing(place):
    past = time.time() - 3600
    identity = await LocalSource(place.issuer.authority, life=1800, clock=lambda: past).fetch()
    error = await refused(place.source(identity=identity).fetch())
    assert error.reason == "REFUSED"
    assert "enrol again" in str(error)


async def test_an_identity_ends_while_the_device_is_away(authority, tmp_path):
    # All clocks but TLS' own are set forward: what is begun is backdated by five minutes, so that TLS takes it.
    async with serving(authority, tmp_path / "issuer.db", life=120.0) as place:
        source = place.source(clock=lambda: place.issuer.clock())
        identity = await source.fetch()
        place.issuer.clock = shifted(122)
        assert identity.not_after <= place.issuer.clock()
        error = await refused(source.fetch())
        assert error.reason == "REFUSED"
        assert "enrol again" in str(error)
        assert (await place.identity()).not_after > place.issuer.clock()


async def test_a_certificate_that_the_issuer_did_not_record(place):
    """Signed by the right authority, for a device that never enrolled; or by another of the same name."""
    unrecorded = await LocalSource(place.issuer.authority).fetch()
    error = await refused(place.source(identity=unrecorded).fetch())
    assert enrolment.NOT_ENROLLED in str(error)
    now = time.time()
    other = Root.create(DOMAIN, now=now).sign_intermediate(now=now)
    error = await refused(place.source(identity=await LocalSource(other).fetch()).fetch())
    assert error.reason == "REFUSED"
    assert proof.BAD_PROOF in str(error)


# Clocks.


@pytest.mark.parametrize("seconds", [-298, 298])
async def test_a_device_whose_clock_is_off_by_five_minutes(place, seconds):
    now = time.time()  # Clocks that stand: how long it takes is not what it is about.
    place.issuer.clock = lambda: now
    source = place.source(clock=lambda: now + seconds)
    await source.fetch()
    identity = await source.fetch()
    assert identity.not_before <= now + seconds < identity.not_after


@pytest.mark.parametrize("seconds", [-303, 303])
async def test_a_device_whose_clock_is_off_by_more(place, seconds):
    now = time.time()
    place.issuer.clock = lambda: now
    source = place.source(clock=lambda: now + seconds)
    await source.fetch()
    error = await refused(source.fetch())
    assert error.reason == "REFUSED"
    assert "clock" in str(error)


@pytest.mark.parametrize("seconds", [-298, 298])
async def test_an_issuer_whose_clock_is_off_by_five_minutes(authority, tmp_path, seconds):
    now = time.time()
    async with serving(authority, tmp_path / "issuer.db", clock=lambda: now + seconds) as place:
        source = place.source(clock=lambda: now)
        await source.fetch()
        identity = await source.fetch()
        assert identity.not_before <= now < identity.not_after


# Issuers that can't be had, or are none.


async def test_an_issuer_that_is_down_and_comes_back(authority, tmp_path):
    path = tmp_path / "issuer.db"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    enrolments = Enrolments.create(path)
    token = enrolments.invite(now=time.time()).token
    source = IssuerSource(f"127.0.0.1:{port}", authority.trust_bundle, enrolment_token=token)
    issuer = Issuer(authority, enrolments)
    address = f"127.0.0.1:{port}"
    assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"
    async with issuer_server(issuer, address):
        await source.fetch()
    assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"
    async with issuer_server(issuer, address):
        await source.fetch()
    issuer.close()
    enrolments.close()


async def test_an_issuer_that_does_not_answer_in_time(authority):
    """It takes the connection, and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        source = IssuerSource(target, authority.trust_bundle, enrolment_token="x", timeout=0.3)
        assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"


async def test_two_issuers_can_not_share_a_port(place):
    with pytest.raises(ConfigError, match="listen"):
        async with issuer_server(place.issuer, place.target):
            pass


async def test_an_issuer_of_another_root_is_not_asked(place):
    """The token stays unused, and so unseen."""
    now, token = time.time(), place.token()
    other = Root.create(DOMAIN, now=now).certificate
    source = IssuerSource(place.target, other, enrolment_token=token)
    assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"
    await place.source(enrolment_token=token).fetch()


@asynccontextmanager
async def pretending(chain, key, service):
    """A server that wants to be the issuer."""
    server = grpc.aio.server()
    rpc.add_IssuerServiceServicer_to_server(service, server)
    credentials = grpc.ssl_server_credentials([(key, chain)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


class Listening(rpc.IssuerServiceServicer):
    """What it is asked, it keeps."""

    def __init__(self, code=Code.PERMISSION_DENIED, text="device 42 of unit 7 is banned"):
        self.heard, self.code, self.text = [], code, text

    async def Enrol(self, request, context):
        self.heard.append(request.enrolment_token)
        await context.abort(self.code, self.text)


async def test_another_server_of_the_trust_domain_is_not_taken_for_the_issuer(place):
    """Receivers of messages have servers' certificates too, and must get to see no enrolment token."""
    identity = await LocalSource(place.issuer.authority, server=True).fetch()
    service = Listening()
    async with pretending(identity.certificates, identity.key, service) as target:
        source = IssuerSource(target, place.bundle, enrolment_token=place.token())
        assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"
    assert service.heard == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.PERMISSION_DENIED, "REFUSED"),
        (Code.UNIMPLEMENTED, "REFUSED"),
        (Code.FAILED_PRECONDITION, "REFUSED"),
        (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        (Code.UNAVAILABLE, "ISSUER_UNAVAILABLE"),
        (Code.INTERNAL, "ISSUER_UNAVAILABLE"),
        (Code.UNKNOWN, "ISSUER_UNAVAILABLE"),
        (Code.CANCELLED, "ISSUER_UNAVAILABLE"),
    ],
)
async def test_what_a_peer_says_is_not_repeated(place, code, reason):
    key, chain, _ = place.issuer.server_certificate()
    service = Listening(code)
    async with pretending(chain, key, service) as target:
        error = await refused(IssuerSource(target, place.bundle, enrolment_token="x").fetch())
    assert service.heard == ["x"]
    assert error.reason == reason
    assert "42" not in str(error)
    assert error.__cause__ is error.__context__ is None


# Failures inside.


async def test_records_that_can_not_be_written_give_nothing_away(place):
    source, token = place.source(), place.token()
    await source.fetch()
    with sqlite3.connect(place.path) as connection:
        connection.execute("ALTER TABLE certificates RENAME TO elsewhere")
    assert (await refused(source.fetch())).reason == "ISSUER_UNAVAILABLE"
    error = await refused(place.source(enrolment_token=token).fetch())
    assert error.reason == "ISSUER_UNAVAILABLE"
    assert enrolment.BROKEN in str(error)
    with sqlite3.connect(place.path) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO certificates")
    await source.fetch()
    await place.source(enrolment_token=token).fetch()


async def test_a_defect_shows_neither_to_the_peer_nor_in_the_log(place, stub, monkeypatch, caplog):
    token = place.token()

    def stumble(*arguments, **_):
        raise RuntimeError(f"cannot cope with {arguments}")

    monkeypatch.setattr(place.enrolments, "enrol", stumble)
    with caplog.at_level(logging.DEBUG), pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Enrol(EnrolRequest(enrolment_token=token, certificate_request=request_for(new_key())))
    assert caught.value.code() is Code.INTERNAL
    assert token not in str(caught.value)
    assert "RuntimeError" in caplog.text
    assert token not in caplog.text


async def test_a_refusal_in_other_words_is_not_passed_on(place, stub, monkeypatch):
    def stumble(*_, **__):
        raise IdentityError("REFUSED", "device 42 is banned")

    monkeypatch.setattr(place.enrolments, "enrol", stumble)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Enrol(EnrolRequest(enrolment_token="x", certificate_request=request_for(new_key())))
    assert caught.value.code() is Code.UNAUTHENTICATED
    assert "42" not in caught.value.details()


async def test_nothing_of_a_device_is_logged(place, caplog):
    with caplog.at_level(logging.DEBUG):
        invitation = place.enrolments.invite(now=time.time())
        source = place.source(enrolment_token=invitation.token)
        identity = await source.fetch()
        await source.fetch()
        await refused(place.source(enrolment_token=invitation.token).fetch())
    uri = leaf_of(identity).extensions.get_extension_for_class(x509.SubjectAlternativeName).value[0].value
    for secret in (invitation.token, invitation.device, uri, f"{leaf_of(identity).serial_number:x}"):
        assert secret not in caplog.text


async def test_an_authority_that_is_over_issues_nothing(authority, tmp_path):
    now = time.time()
    short = Root.create(DOMAIN, now=now).sign_intermediate(now=now, life=0.5)
    async with serving(authority, tmp_path / "issuer.db") as place:
        source = place.source()
        await source.fetch()
        place.issuer.authority = authority.followed_by(short)
        place.issuer.clock = shifted(2)
        error = await refused(source.fetch())
        assert error.reason == "REFUSED"
        assert "authority" in str(error)


# The service's own certificate, and roll-over.


def served_certificate(place):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=place.bundle.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", place.port)) as plain,
        context.wrap_socket(plain, server_hostname=issuer_name(DOMAIN)) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


async def test_the_service_renews_its_own_certificate_at_half_of_its_life(authority, tmp_path):
    async with serving(authority, tmp_path / "issuer.db", life=300.0) as place:
        first = await asyncio.to_thread(served_certificate, place)
        assert await asyncio.to_thread(served_certificate, place) == first
        place.issuer.clock = shifted(140)
        assert await asyncio.to_thread(served_certificate, place) == first
        place.issuer.clock = shifted(160)
        second = await asyncio.to_thread(served_certificate, place)
        assert second != first
        assert await asyncio.to_thread(served_certificate, place) == second
        place.issuer.clock = time.time
        await place.identity()


async def test_the_services_certificate_follows_seconds_of_life(authority, tmp_path):
    """Each lasts for at most two seconds by the issuer's clock; a source that begins anew later meets another one."""
    async with serving(authority, tmp_path / "issuer.db", life=1.0) as place:
        # By TLS' own clock they last for a minute, whatever the machine does meanwhile.
        place.issuer.clock = shifted(60)
        first = await asyncio.to_thread(served_certificate, place)
        over = x509.load_der_x509_certificate(first).not_valid_after_utc.timestamp()
        assert over - place.issuer.clock() <= 2
        place.issuer.clock = lambda: over + 0.01
        assert await asyncio.to_thread(served_certificate, place) != first
        assert (await place.source(clock=lambda: over).fetch()).trust_domain == DOMAIN


async def test_a_roll_over_of_the_root_goes_unnoticed(authority, tmp_path):
    async with serving(authority, tmp_path / "issuer.db") as place:
        source, late = place.source(), place.source()
        await source.fetch()
        old = await late.fetch()
        root = Root.create(DOMAIN, now=time.time())
        place.issuer.authority = place.issuer.authority.trusting(root.certificate)
        told = await source.fetch()
        assert told.trust_bundle == place.issuer.authority.trust_bundle != old.trust_bundle
        place.issuer.authority = place.issuer.authority.followed_by(root.sign_intermediate(now=time.time()))
    # A restart: now the service's own certificate is under the new root too, which the source was told of in time.
    async with serving(place.issuer.authority, tmp_path / "issuer.db") as again:
        source._target = late._target = again.target
        new = await source.fetch()
        assert not authority.has_issued(leaf_of(new))
        # Who was not told does not trust it; but a device that is, renews by a certificate of before.
        assert (await refused(late.fetch())).reason == "ISSUER_UNAVAILABLE"
        informed = IssuerSource(again.target, told.trust_bundle, identity=old)
        assert (await informed.fetch()).trust_bundle == told.trust_bundle


# Anonymous tokens.


async def batch(place, stub, identity, count, now=None):
    """Asks for blind signatures under the current key; returns the tokens."""
    published = place.issuer._token_keys.current(time.time())
    state = TokenRequestState(published, TokenChallenge("issuer.example.org"), count)
    request = SignTokensRequest(
        truncated_token_key_id=published.truncated_key_id, blinded_messages=state.blinded_messages
    )
    prove(SIGN_TOKENS, request, identity, time.time() if now is None else now)
    return state, (await stub.SignTokens(request)).blind_signatures


async def test_the_published_keys_are_those_that_sign(place, stub):
    keys = (await stub.GetTokenKeys(GetTokenKeysRequest())).keys
    published = place.issuer._token_keys.published(time.time())
    assert [(key.public_key, key.not_before, key.not_after) for key in keys] == [tuple(k) for k in published]
    identity = await place.identity()
    state, signatures = await batch(place, stub, identity, 3)
    assert len(state.finalize(signatures)) == 3


async def test_an_allowance_is_the_devices_and_not_the_certificates(place, stub):
    source = place.source()
    first = await source.fetch()
    await batch(place, stub, first, 5)
    second = await source.fetch()
    expected = (Code.RESOURCE_EXHAUSTED, enrolment.USED_UP)
    assert await status(batch(place, stub, second, 4)) == expected
    await batch(place, stub, second, 3)
    assert await status(batch(place, stub, second, 1)) == expected
    await batch(place, stub, await place.identity(), 8)


async def test_an_allowance_outlives_the_issuer(authority, tmp_path, keys):
    arguments = {"token_keys": keys, "allowance": 4}
    async with serving(authority, tmp_path / "issuer.db", **arguments) as place, place.channel() as channel:
        identity = await place.identity()
        await batch(place, rpc.IssuerServiceStub(channel), identity, 4)
    async with serving(authority, tmp_path / "issuer.db", **arguments) as place, place.channel() as channel:
        code, _ = await status(batch(place, rpc.IssuerServiceStub(channel), identity, 1))
        assert code is Code.RESOURCE_EXHAUSTED


async def test_tokens_are_only_for_enrolled_devices(place, stub):
    unrecorded = await LocalSource(place.issuer.authority).fetch()
    assert await status(batch(place, stub, unrecorded, 1)) == (Code.UNAUTHENTICATED, enrolment.NOT_ENROLLED)
    invitation = place.enrolments.invite(now=time.time())
    revoked = await place.source(enrolment_token=invitation.token).fetch()
    place.enrolments.revoke(invitation.device)
    assert await status(batch(place, stub, revoked, 1)) == (Code.UNAUTHENTICATED, enrolment.NOT_ENROLLED)


async def test_token_requests_that_can_not_be_signed(place, stub):
    identity = await place.identity()
    published = place.issuer._token_keys.published(time.time())
    good = published[0].truncated_key_id
    unknown = next(i for i in range(256) if i not in {key.truncated_key_id for key in published})
    for key_id, messages, text in (
        (good, [], deciding.BAD_BLINDED),
        (good, [b""], deciding.BAD_BLINDED),
        (good, [b"x" * 255], deciding.BAD_BLINDED),
        (good, [b"\xff" * 256], deciding.BAD_BLINDED),
        (unknown, [b"\1" * 256], deciding.BAD_EPOCH),
        (2**32 - 1, [b"\1" * 256], deciding.BAD_EPOCH),
    ):
        request = SignTokensRequest(truncated_token_key_id=key_id, blinded_messages=messages)
        prove(SIGN_TOKENS, request, identity, time.time())
        assert await status(stub.SignTokens(request)) == (Code.INVALID_ARGUMENT, text)


async def test_an_issuer_without_token_keys(authority, tmp_path):
    async with serving(authority, tmp_path / "issuer.db") as place, place.channel() as channel:
        stub = rpc.IssuerServiceStub(channel)
        for call in (stub.GetTokenKeys(GetTokenKeysRequest()), stub.SignTokens(SignTokensRequest())):
            assert (await status(call))[0] is Code.UNIMPLEMENTED


async def test_token_keys_that_can_not_be_read_say_nothing_of_the_file(authority, tmp_path):
    (tmp_path / "keys").write_text("secret")
    (tmp_path / "keys").chmod(0o600)
    arguments = {"token_keys": TokenKeys(tmp_path / "keys")}
    async with serving(authority, tmp_path / "issuer.db", **arguments) as place, place.channel() as channel:
        found = await status(rpc.IssuerServiceStub(channel).GetTokenKeys(GetTokenKeysRequest()))
        assert found == (Code.UNAVAILABLE, enrolment.BROKEN)


# What BoringSSL says of certificates outside of the constraints; OpenSSL: tests/unit/identity/ca/test_authority.py.


async def reached(authority, chain, key):
    """Whether a gRPC server that wants certificates of the authority takes a client with this one."""
    own = await LocalSource(authority, server=True).fetch()
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(own.key, own.certificates)], authority.trust_bundle, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    options = (("grpc.ssl_target_name_override", DOMAIN), ("grpc.use_local_subchannel_pool", 1))
    mine = grpc.ssl_channel_credentials(authority.trust_bundle, key, chain)
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", mine, options) as channel:
            await channel.unary_unary("/no/such")(b"", timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code() is Code.UNIMPLEMENTED
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/x"), True),
        (x509.UniformResourceIdentifier("spiffe://other.example.org/x"), False),
        (x509.UniformResourceIdentifier(f"spiffe://sub.{DOMAIN}/x"), False),
        (x509.DNSName("other.example.org"), False),
    ],
    ids=lambda value: getattr(value, "value", value),
)
async def test_grpc_refuses_what_is_outside_of_the_constraints(authority, name, taken):
    chain, key = rogue_leaf(authority, [name], time.time())
    assert await reached(authority, chain, key) is taken


async def test_grpc_takes_the_certificates(authority):
    identity = await LocalSource(authority).fetch()
    assert await reached(authority, identity.certificates, identity.key)


# Clients that hold places.

ENROL = "/dpmesh.v1.IssuerService/Enrol"


def silent(channel, number):
    """So many RPCs that never send a request."""
    return [channel.stream_unary(ENROL)() for _ in range(number)]


async def how(call):
    """How an RPC ends, and what it says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture
def arrivals(monkeypatch):
    """The RPCs that wait for their requests, in every server that starts afterwards; no time limit ends them."""
    made = []

    class Seen(serving_module._Arrivals):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(serving_module, "_Arrivals", Seen)
    monkeypatch.setattr(serving_module, "_ARRIVAL", 3600.0)
    return made


async def test_a_client_that_sends_no_requests_blocks_nobody(arrivals, place):
    async with place.channel() as hostile:
        calls = silent(hostile, 1000)
        await until(lambda: arrivals[0]._timers)
        assert (await place.identity()).trust_domain == DOMAIN
        # Of one connection, sixteen RPCs reach the service at a time.
        assert len(arrivals[0]._timers) <= 16
        for call in calls:
            call.cancel()


async def test_the_rpc_that_waited_longest_gives_way(arrivals, place, monkeypatch):
    monkeypatch.setattr(serving_module, "_WAITING", 12)
    async with place.channel() as hostile, place.channel() as other:
        first = silent(hostile, 12)
        await until(lambda: len(arrivals[0]._timers) == 12)
        more = silent(other, 12)
        assert [await how(call) for call in first] == [(Code.DEADLINE_EXCEEDED, deciding.NO_REQUEST)] * 12
        assert (await place.identity()).trust_domain == DOMAIN
        await until(lambda: sum(call.done() for call in more) == 1)
        for call in more:
            call.cancel()


async def test_a_request_must_come_in_time(place, monkeypatch):
    monkeypatch.setattr(serving_module, "_ARRIVAL", 0.05)
    async with place.channel() as channel:
        (call,) = silent(channel, 1)
        assert await how(call) == (Code.DEADLINE_EXCEEDED, deciding.NO_REQUEST)


async def test_waiting_rpcs_end_when_the_server_stops(arrivals, authority, tmp_path):
    async with serving(authority, tmp_path / "stopped.db") as place:
        channel = place.channel()
        (call,) = silent(channel, 1)
        await until(lambda: arrivals[0]._timers)
    assert await how(call) == (Code.DEADLINE_EXCEEDED, deciding.NO_REQUEST)
    await channel.close()


async def test_no_message_and_messages_that_are_none(place):
    async with place.channel() as channel:
        (call,) = silent(channel, 1)
        await call.done_writing()
        assert await how(call) == (Code.DEADLINE_EXCEEDED, deciding.NO_REQUEST)
        garbage = channel.unary_unary(ENROL)(b"\xff\xff not protobuf")
        assert await how(garbage) == (Code.INVALID_ARGUMENT, deciding.BAD_MESSAGE)
    await place.identity()


async def test_more_requests_than_can_be_worked_on_are_told_to_come_later(place, monkeypatch):
    monkeypatch.setattr(serving_module, "_CONCURRENT", 0)
    error = await refused(place.identity())
    assert (error.reason, deciding.BUSY in str(error)) == ("RATE_LIMITED", True)


async def test_every_method_waits_with_a_limit(place, monkeypatch):
    monkeypatch.setattr(serving_module, "_ARRIVAL", 0.05)
    async with place.channel() as channel:
        for method in ("Enrol", "Renew", "GetTokenKeys", "SignTokens"):
            call = channel.stream_unary(f"/dpmesh.v1.IssuerService/{method}")()
            assert await how(call) == (Code.DEADLINE_EXCEEDED, deciding.NO_REQUEST)


async def test_a_device_renews_only_so_often(place, stub, monkeypatch):
    monkeypatch.setattr(enrolment, "_MOST_CERTIFICATES", 3)
    source = place.source()
    identities = [await source.fetch() for _ in range(3)]
    for identity in identities:  # the device has as many, whichever certificate it proves
        assert await status(stub.Renew(renewal(identity))) == (Code.RESOURCE_EXHAUSTED, enrolment.TOO_MANY)
    assert (await place.identity()).trust_domain == DOMAIN  # other devices are not concerned
