"""Authorities for tests, and certificates that an honest authority would never sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dpmesh.identity.ca.authority import Authority
from dpmesh.identity.keys import key_pem, new_key, read_key


def rogue_leaf(
    authority: Authority, names: Sequence[x509.GeneralName], now: float, *, below: bool = False
) -> tuple[bytes, bytes]:
    """What somebody makes who has stolen an intermediate's key: a certificate with any names.

    Args:
        authority: Whose key was stolen.
        names: What the certificate is for.
        now: Seconds since 1970.
        below: Signed by another authority, which the stolen key signs first.

    Returns:
        The chain and the key in PEM.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificates)
    signer, chain = read_key(authority.key()), authority.chain
    if below:
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "below")])
        builder = _builder(key, subject, issuer, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        issuer = _with_ids(builder, key, issuer, signs=True).sign(signer, hashes.SHA256())
        signer, chain = key, issuer.public_bytes(Encoding.PEM) + chain
    key = new_key()
    builder = _builder(key, x509.Name([]), issuer, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    leaf = _with_ids(builder, key, issuer).sign(signer, hashes.SHA256())
    return leaf.public_bytes(Encoding.PEM) + chain, key_pem(key)


def _builder(key, subject, issuer, now):
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now - 300, UTC))
        .not_valid_after(datetime.fromtimestamp(now + 600, UTC))
    )


def _with_ids(builder, key, issuer, *, signs=False):
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*unused, "crl_sign", "encipher_only", "decipher_only"), False)
    usage = x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **never)
    return (
        builder.add_extension(authority, critical=False)
        .add_extension(own, critical=False)
        .add_extension(usage, critical=True)
    )
