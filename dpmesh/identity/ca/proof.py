"""Proof of possession: a request to the issuer is signed with the key of the device's certificate (dpmesh.v1.Proof)."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from dpmesh.errors import IdentityError
from dpmesh.identity.identity import Identity
from dpmesh.identity.keys import is_p256, read_key
from dpmesh.v1.identity_pb2 import RenewRequest, SignTokensRequest

RENEW = "/dpmesh.v1.IssuerService/Renew"
SIGN_TOKENS = "/dpmesh.v1.IssuerService/SignTokens"
TOLERANCE = 300
"""Seconds that the prover's clock may differ from the issuer's, either way."""

BAD_PROOF = "the request's proof is not by a certificate of this issuer"
BAD_CLOCK = f"the clocks of device and issuer differ by more than {TOLERANCE} s: set the device's clock"
OVER = "the certificate is over and can't prove anything any more: enrol again with a new token"

_LARGEST = 4096  # bytes of a certificate; those of this issuer have about 500
_SHA256 = ec.ECDSA(hashes.SHA256())

Provable = RenewRequest | SignTokensRequest


@dataclass(frozen=True, slots=True)
class Proven:
    """The result of a valid proof, which must not be used twice. Its repr shows nothing.

    Attributes:
        certificate: The certificate whose key signed.
        fingerprint: SHA-256 of that certificate, 32 bytes.
        digest: SHA-256 of what was signed, 32 bytes. A replay has an equal digest, whatever its signature.
        not_after: When a replay is refused for its age anyway, in seconds since 1970.
    """

    certificate: x509.Certificate = field(repr=False)
    fingerprint: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    not_after: float = field(repr=False)


def prove(method: str, request: Provable, identity: Identity, now: float) -> None:
    """Adds a proof to a request that is otherwise complete, for the method `RENEW` or `SIGN_TOKENS`."""
    leaf = x509.load_pem_x509_certificates(identity.certificates)[0]
    request.proof.certificate = leaf.public_bytes(Encoding.DER)
    request.proof.time = int(now)
    request.proof.signature = read_key(identity.key).sign(_signed(method, request), _SHA256)


def check(method: str, request: Provable, now: float) -> Proven:
    """Checks a request's proof, but not whether this issuer issued its certificate.

    Raises:
        IdentityError: REFUSED: the time is off, the certificate is not in force, or the signature is not by its key
            for this method and request.
    """
    proof = request.proof
    if not abs(proof.time - int(now)) <= TOLERANCE:
        raise IdentityError("REFUSED", BAD_CLOCK)
    certificate = _certificate(proof.certificate)
    key = certificate.public_key()
    if not is_p256(key):
        raise IdentityError("REFUSED", BAD_PROOF)
    signed = _signed(method, request)
    try:
        key.verify(proof.signature, signed, _SHA256)
    except InvalidSignature:
        raise IdentityError("REFUSED", BAD_PROOF) from None
    if not now < certificate.not_valid_after_utc.timestamp():
        raise IdentityError("REFUSED", OVER)
    if not certificate.not_valid_before_utc.timestamp() <= now:
        raise IdentityError("REFUSED", BAD_PROOF)
    fingerprint, digest = certificate.fingerprint(hashes.SHA256()), hashlib.sha256(signed).digest()
    return Proven(certificate, fingerprint, digest, proof.time + TOLERANCE + 1)


def _certificate(der: bytes) -> x509.Certificate:
    try:
        if len(der) <= _LARGEST:
            certificate = x509.load_der_x509_certificate(der)
            certificate.public_key()
            return certificate
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass  # The parser's own text could quote what it read.
    raise IdentityError("REFUSED", BAD_PROOF)


def _signed(method: str, request: Provable) -> bytes:
    """The octets under the signature, as dpmesh.v1.Proof defines them."""
    unsigned = copy.deepcopy(request)
    unsigned.proof.signature = b""
    digest = hashlib.sha256(unsigned.SerializeToString(deterministic=True)).digest()
    return method.encode() + b"\0" + request.proof.time.to_bytes(8, "big", signed=True) + digest
