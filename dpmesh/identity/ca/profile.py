"""Profile: the fields and extensions of the embedded CA's certificates, by RFC 5280 and SPIFFE's X509-SVID."""

from __future__ import annotations

import math
import re
import secrets
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE = 300.0
"""Seconds by which certificates are backdated, so that peers whose clock is behind accept them."""

# A leaf's path: 128 random bits, which no other leaf has.
_PATH_BYTES = 16
_ROTATING = re.compile(rf"(spiffe://[^/]+)/[0-9a-f]{{{2 * _PATH_BYTES}}}")

_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def rotating_id(trust_domain: str) -> str:
    """A SPIFFE ID for one leaf. It says nothing but the trust domain."""
    return f"spiffe://{trust_domain}/{secrets.token_hex(_PATH_BYTES)}"


def stable_name(name: str) -> str:
    """The part of a name that rotation does not change: the trust domain of a rotating ID, or else the whole name."""
    match = _ROTATING.fullmatch(name)
    return name if match is None else match[1]


def valid_until(end: float, now: float) -> x509.CertificateBuilder:
    """A certificate that is valid from a little before now. Times are rounded outwards to X.509's whole seconds."""
    begin = datetime.fromtimestamp(math.floor(now - BACKDATE), UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(datetime.fromtimestamp(math.ceil(end), UTC))
    )


def ca_name(role: str) -> x509.Name:
    """A CA's name. Its random part distinguishes the CA from the previous and the next one."""
    common = f"dpmesh {role} {secrets.token_hex(8)}"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def with_ca_extensions(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, trust_domain: str, path_length: int
) -> x509.CertificateBuilder:
    """Makes a certificate an authority's: it may sign others, and names the trust domain (X509-SVID, section 4)."""
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        builder.public_key(key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    )


def name_constraints(trust_domain: str) -> x509.NameConstraints:
    """Name constraints that permit the trust domain, as a URI's host and as a DNS name, and no IP address."""
    permitted = [x509.UniformResourceIdentifier(trust_domain), x509.DNSName(trust_domain)]
    excluded = [x509.IPAddress(IPv4Network("0.0.0.0/0")), x509.IPAddress(IPv6Network("::/0"))]
    return x509.NameConstraints(permitted, excluded)


def leaf_extensions(issuer: x509.Certificate) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """The extensions that all leaves have, each with whether it is critical."""
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage("digital_signature"), True),
        (issuer_key_id(issuer), False),
    )


def issuer_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Identifies the key that signed a certificate, because several issuers may share a name."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def is_server(leaf: x509.Certificate) -> bool:
    """Whether a leaf of this authority is a server's."""
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return ExtendedKeyUsageOID.SERVER_AUTH in usages


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in _USAGES})
