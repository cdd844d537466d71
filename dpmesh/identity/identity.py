"""Identity: a short-lived certificate, its key and the roots by which peers are checked; in memory only. Source."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from dpmesh.errors import IdentityError

# SPIFFE-ID, section 2: a trust domain is a lower-case host name; a path, if there is one, is made of these segments.
_SPIFFE_ID = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)*)")

# What looking for an extension raises. The texts could quote a certificate.
_UNREADABLE = (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError)


@dataclass(frozen=True, slots=True)
class Identity:
    """An X.509-SVID (SPIFFE, X509-SVID section 2) with its private key. Nothing of it shows in its repr.

    Attributes:
        certificates: The chain in PEM, leaf first, without the root.
        key: The leaf's private key in PEM (PKCS #8).
        trust_bundle: The roots in PEM by which peers are checked.
        trust_domain: What follows "spiffe://" in the leaf's one URI.
        not_before: When the leaf begins to be valid, in seconds since 1970.
        not_after: When the leaf expires, in seconds since 1970.
        obtained: When this process got the identity, in seconds since 1970 by its own clock.
    """

    certificates: bytes = field(repr=False)
    key: bytes = field(repr=False)
    trust_bundle: bytes = field(repr=False)
    # The begin and end of a life, to the second, identify a certificate almost as well as its serial.
    trust_domain: str = field(repr=False)
    not_before: float = field(repr=False)
    not_after: float = field(repr=False)
    obtained: float = field(repr=False)

    @classmethod
    def load(cls, certificates: bytes, key: bytes, trust_bundle: bytes, now: float) -> Self:
        """Reads an identity, and checks that its parts belong together and that it has not expired.

        Args:
            certificates: The chain in PEM, leaf first.
            key: The leaf's private key in PEM.
            trust_bundle: At least one root in PEM.
            now: Seconds since 1970.

        Raises:
            IdentityError: MALFORMED, or EXPIRED. The text quotes nothing of what was read.
        """
        try:
            leaf = x509.load_pem_x509_certificates(certificates)[0]
            private_key = serialization.load_pem_private_key(key, password=None)
            roots = x509.load_pem_x509_certificates(trust_bundle)
            is_pair = private_key.public_key() == leaf.public_key()
        except (ValueError, TypeError, IndexError, AttributeError, UnsupportedAlgorithm):
            # The parser's own text could quote what it read.
            roots = []
        if not roots:
            raise IdentityError("MALFORMED", "a certificate chain, key or trust bundle can't be read as PEM")
        if not is_pair:
            raise IdentityError("MALFORMED", "the private key is not the certificate's")
        if _is_authority(leaf):
            raise IdentityError("MALFORMED", "the certificate is an authority's, which nobody may present")
        not_after = leaf.not_valid_after_utc.timestamp()
        if not now < not_after:
            raise IdentityError("EXPIRED", "the certificate is over")
        return cls(
            certificates=certificates,
            key=key,
            trust_bundle=trust_bundle,
            trust_domain=trust_domain(leaf),
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=not_after,
            obtained=now,
        )


def trust_domain(leaf: x509.Certificate) -> str:
    """The trust domain of an X.509-SVID.

    Raises:
        IdentityError: MALFORMED: it does not have exactly one URI, or that is not a SPIFFE ID.
    """
    match = _SPIFFE_ID.fullmatch(spiffe_id(leaf))
    if match is None or any(part in (".", "..") for part in match[2].split("/")):
        raise IdentityError("MALFORMED", "the certificate's URI is no SPIFFE ID")
    return match[1]


def spiffe_id(leaf: x509.Certificate) -> str:
    """The URI of a certificate. It identifies a device for as long as the certificate lives: never log it.

    Raises:
        IdentityError: MALFORMED: there is none, or more than one.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNREADABLE:
        uris = []
    if len(uris) != 1:
        raise IdentityError("MALFORMED", "the certificate has not exactly one URI, as an X.509-SVID must")
    return uris[0]


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether a certificate is named and signed by an issuer, which may have expired."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(leaf: x509.Certificate) -> bool:
    """Whether a certificate may issue others. An identity's leaf must not (X509-SVID, section 4.1)."""
    try:
        return leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _UNREADABLE:
        return False


class Source(Protocol):
    """Where identities come from.

    Attributes:
        follows: True: somebody else decides when there is a new identity (files, an agent), and `fetch` returns the one
            in force. False: every call of `fetch` makes a new one, with a key that was never used before.
    """

    follows: bool

    async def fetch(self) -> Identity:
        """Returns an identity, checked by `Identity.load`.

        Raises:
            IdentityError: There is none now. The caller may try again.
        """

    async def close(self) -> None:
        """Closes connections and files."""
