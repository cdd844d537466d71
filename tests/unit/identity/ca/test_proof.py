"""Proofs of possession: the octets that are signed are those that the proto defines, so that others can write clients."""

import hashlib
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from dpmesh.errors import IdentityError
from dpmesh.identity.ca import proof
from dpmesh.identity.ca.authority import LocalSource, Root
from dpmesh.identity.ca.proof import RENEW, SIGN_TOKENS, check, prove
from dpmesh.v1.identity_pb2 import Proof, RenewRequest, SignTokensRequest
from dpmesh.v1.identity_pb2_grpc import IssuerServiceStub

NOW = 1_800_000_000.0
SHA256 = ec.ECDSA(hashes.SHA256())


@pytest.fixture
async def identity():
    authority = Root.create("fleet.example.org", now=NOW).sign_intermediate(now=NOW)
    return await LocalSource(authority, clock=lambda: NOW).fetch()


def field(number, data):
    """A field of bytes in protobuf's wire format, written by hand."""
    length, size = len(data), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def varint(number, value):
    encoded = b""
    while value > 127:
        encoded, value = encoded + bytes([value & 127 | 128]), value >> 7
    return bytes([number << 3]) + encoded + bytes([value])


def reason(text, *arguments):
    with pytest.raises(IdentityError) as caught:
        check(*arguments)
    assert caught.value.reason == "REFUSED"
    assert text in str(caught.value)


def test_the_methods_are_those_of_the_service():
    names = []

    class Channel:
        def unary_unary(self, name, **_):
            names.append(name)

    IssuerServiceStub(Channel())
    assert {RENEW, SIGN_TOKENS} <= set(names)


async def test_the_signed_octets_of_a_renewal(identity):
    leaf = x509.load_pem_x509_certificate(identity.certificates)
    der = leaf.public_bytes(Encoding.DER)
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW + 0.9)
    body = field(1, b"request") + field(2, field(1, der) + varint(2, int(NOW)))
    octets = b"/dpmesh.v1.IssuerService/Renew\0" + struct.pack(">q", int(NOW)) + hashlib.sha256(body).digest()
    leaf.public_key().verify(request.proof.signature, octets, SHA256)
    proven = check(RENEW, request, NOW)
    assert proven.certificate == leaf
    assert proven.fingerprint == hashlib.sha256(der).digest()
    assert proven.digest == hashlib.sha256(octets).digest()
    assert proven.not_after == int(NOW) + 301
    assert "dpmesh" not in repr(proven)


async def test_the_signed_octets_of_a_token_request(identity):
    leaf = x509.load_pem_x509_certificate(identity.certificates)
    messages = [b"x" * 256, b"y" * 256]
    request = SignTokensRequest(truncated_token_key_id=200, blinded_messages=messages)
    prove(SIGN_TOKENS, request, identity, NOW)
    body = varint(1, 200) + b"".join(field(2, message) for message in messages)
    body += field(3, field(1, leaf.public_bytes(Encoding.DER)) + varint(2, int(NOW)))
    octets = SIGN_TOKENS.encode() + b"\0" + struct.pack(">q", int(NOW)) + hashlib.sha256(body).digest()
    leaf.public_key().verify(request.proof.signature, octets, SHA256)
    check(SIGN_TOKENS, request, NOW)


async def test_a_proof_is_never_the_same_twice_but_its_digest_is(identity):
    requests = [RenewRequest(certificate_request=b"request") for _ in range(2)]
    for request in requests:
        prove(RENEW, request, identity, NOW)
    one, two = (check(RENEW, request, NOW) for request in requests)
    assert requests[0].proof.signature != requests[1].proof.signature
    assert one.digest == two.digest


async def test_proving_anew_replaces_the_proof(identity):
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW - 1000)
    prove(RENEW, request, identity, NOW)
    check(RENEW, request, NOW)


@pytest.mark.parametrize("seconds", [-300, 0, 300])
async def test_five_minutes_either_way_are_tolerated(identity, seconds):
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW + seconds)
    check(RENEW, request, NOW)


@pytest.mark.parametrize("seconds", [-301, 301])
async def test_more_is_not(identity, seconds):
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW + seconds)
    reason(proof.BAD_CLOCK, RENEW, request, NOW)


@pytest.mark.parametrize(
    ("when", "text"), [(1800, proof.OVER), (1799, None), (-300, None), (-301, proof.BAD_PROOF)]
)
async def test_a_certificate_proves_while_it_is_in_force(identity, when, text):
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW + when)
    if text is None:
        check(RENEW, request, NOW + when)
    else:
        reason(text, RENEW, request, NOW + when)


async def test_whether_a_certificate_is_over_is_told_only_to_its_owner(identity):
    request = RenewRequest(certificate_request=b"request")
    prove(RENEW, request, identity, NOW + 5000)
    request.proof.signature = b"x" * 70
    reason(proof.BAD_PROOF, RENEW, request, NOW + 5000)


def test_an_empty_proof():
    reason(proof.BAD_CLOCK, RENEW, RenewRequest(), NOW)
    reason(proof.BAD_PROOF, RENEW, RenewRequest(proof=Proof(time=int(NOW))), NOW)
