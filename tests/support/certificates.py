"""Certificates for tests: a self-signed P-256 root, and leaves with a SPIFFE URI. Not the product's own authority."""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DOMAIN = "fleet.example"


@dataclass(frozen=True)
class Leaf:
    """A chain, a key and the roots in PEM: what Identity.load takes."""

    certificates: bytes
    key: bytes
    trust_bundle: bytes


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Root:
    """Issues certificates, also such as no authority should."""

    def __init__(self, name: str = "test root") -> None:
        self.key = new_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, -86400, 10 * 365 * 86400, [], authority=True)
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def leaf(
        self,
        uris: tuple[str, ...] | None = None,
        *,
        now: float,
        life: float = 1800,
        backdated: float = 300,
        key=None,
        authority: bool | None = False,
    ) -> Leaf:
        """A leaf that is valid from now - backdated to now + life, with a random SPIFFE ID by default."""
        key = key or new_key()
        if uris is None:
            uris = (f"spiffe://{DOMAIN}/{secrets.token_hex(16)}",)
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        certificate = self._sign(x509.Name([]), key, now - backdated, now + life, names, authority=authority)
        return Leaf(certificate.public_bytes(Encoding.PEM), private_pem(key), self.pem)

    def intermediate(self, name: str = "test intermediate") -> Root:
        """An authority below this one; its `pem` is its own certificate."""
        below = Root(name)
        below.certificate = self._sign(below.name, below.key, -86400, 10 * 365 * 86400, [], authority=True)
        below.pem = below.certificate.public_bytes(Encoding.PEM)
        return below

    def _sign(self, subject, key, start, end, names, *, authority):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(max(0, start)))
            .not_valid_after(_time(end))
        )
        if authority is not None:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=authority, path_length=None), critical=True
            )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self.key, hashes.SHA256())


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
