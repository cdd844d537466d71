"""Root and Authority: an embedded CA. The root stays offline; its intermediate issues short-lived certificates."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from typing_extensions import override

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca import profile
from dpmesh.identity.identity import Identity, Source, signed_by, trust_domain
from dpmesh.identity.keys import is_p256, key_pem, new_key, read_key

DAY = 86_400.0
ROOT_LIFE = 3650 * DAY
INTERMEDIATE_LIFE = 365 * DAY
LEAF_LIFE = 1800.0

AUTHORITY_OVER = "the certificate of the authority is over: replace it"

_DOMAIN = re.compile(r"(?!.*\.[0-9]+$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")


class Root:
    """A self-signed root with its key. It only signs intermediates, and is otherwise kept offline.

    Args:
        certificate: The root.
        key: Its key.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        if key.public_key() != certificate.public_key():
            raise IdentityError("MALFORMED", "the root's key is not its certificate's")
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, trust_domain: str, *, now: float, life: float = ROOT_LIFE) -> Self:
        """Makes a root.

        Args:
            trust_domain: A host name in lower case, which follows "spiffe://" in all its certificates.
            now: Seconds since 1970.
            life: How long it is valid, in seconds.

        Raises:
            ConfigError: The trust domain is no host name, or the life is not positive.
        """
        if len(trust_domain) > 255 or not _DOMAIN.fullmatch(trust_domain):
            raise ConfigError("the trust domain must be a host name in lower case, such as fleet.example.org")
        key = new_key()
        name = profile.ca_name("root")
        builder = profile.valid_until(now + checked_life(life), now).subject_name(name).issuer_name(name)
        builder = profile.with_ca_extensions(builder, key.public_key(), trust_domain, path_length=1)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes, password: bytes | None = None) -> Self:
        """Reads a root from PEM.

        Raises:
            IdentityError: MALFORMED.
        """
        return cls(_read(certificate)[0], read_key(key, password))

    @property
    def certificate(self) -> bytes:
        """The certificate in PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    def key(self, password: bytes | None = None) -> bytes:
        """The private key in PEM, encrypted if there is a password."""
        return key_pem(self._key, password)

    def sign_intermediate(self, *, now: float, life: float = INTERMEDIATE_LIFE) -> Authority:
        """Makes an intermediate that can issue leaves for this trust domain only (RFC 5280, 4.2.1.10).

        Args:
            now: Seconds since 1970.
            life: How long it is valid, in seconds; never longer than the root.

        Raises:
            IdentityError: EXPIRED: the root has expired.
            ConfigError: The life is not positive.
        """
        key = new_key()
        domain = trust_domain(self._certificate)
        builder = profile.valid_until(_end(self._certificate, now, life), now)
        builder = builder.subject_name(profile.ca_name("intermediate")).issuer_name(self._certificate.subject)
        builder = profile.with_ca_extensions(builder, key.public_key(), domain, path_length=0)
        builder = builder.add_extension(profile.issuer_key_id(self._certificate), critical=False)
        builder = builder.add_extension(profile.name_constraints(domain), critical=True)
        return Authority(builder.sign(self._key, hashes.SHA256()), key, [self._certificate])


class Authority:
    """An intermediate with its key: it issues the certificates of devices and servers.

    Args:
        certificate: The intermediate.
        key: Its key.
        roots: The trust bundle of peers; one of the roots signed the intermediate.
        earlier: Previous intermediates, whose leaves are still recognised.

    Attributes:
        trust_domain: The trust domain of all its certificates.
        not_after: When the intermediate expires, in seconds since 1970.
        trust_bundle: The roots in PEM.
        chain: The intermediate in PEM, which follows each leaf.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        roots: Sequence[x509.Certificate],
        earlier: Sequence[x509.Certificate] = (),
    ) -> None:
        if key.public_key() != certificate.public_key():
            raise IdentityError("MALFORMED", "the intermediate's key is not its certificate's")
        if not any(signed_by(certificate, root) for root in roots):
            raise IdentityError("UNTRUSTED", "no root of the trust bundle has signed the intermediate")
        self._certificate = certificate
        self._key = key
        self._roots = tuple(roots)
        self._issuers = (certificate, *earlier)
        self.trust_domain = trust_domain(certificate)
        if any(trust_domain(other) != self.trust_domain for other in (*roots, *earlier)):
            raise IdentityError("UNTRUSTED", "the trust bundle is not all of one trust domain")
        self.not_after = certificate.not_valid_after_utc.timestamp()
        self.trust_bundle = _pem(self._roots)
        self.chain = _pem([certificate])
        self._leaf = profile.leaf_extensions(certificate)

    @classmethod
    def load(cls, certificates: bytes, key: bytes, trust_bundle: bytes) -> Self:
        """Reads an authority from PEM.

        Args:
            certificates: The intermediate, then the previous ones.
            key: The intermediate's key.
            trust_bundle: The roots.

        Raises:
            IdentityError: MALFORMED, or UNTRUSTED: the parts don't belong together.
        """
        first, *earlier = _read(certificates)
        return cls(first, read_key(key), _read(trust_bundle), earlier)

    @property
    def certificates(self) -> bytes:
        """The intermediate in PEM, then the previous ones."""
        return _pem(self._issuers)

    def key(self, password: bytes | None = None) -> bytes:
        """The intermediate's private key in PEM, encrypted if there is a password."""
        return key_pem(self._key, password)

    def issue(
        self, public_key: ec.EllipticCurvePublicKey, *, now: float, life: float, server: bool = False
    ) -> bytes:
        """Issues an X.509-SVID that identifies no device: its name and its serial are random, its subject is empty.

        Args:
            public_key: On P-256; never used for another certificate.
            now: Seconds since 1970.
            life: Seconds until it expires; less where the intermediate expires before that.
            server: It is for a server; the DNS name of every server is the trust domain.

        Returns:
            PEM: the leaf, then the intermediate.

        Raises:
            IdentityError: EXPIRED: the intermediate has expired. MALFORMED: the key is not on P-256.
            ConfigError: The life is not positive.
        """
        return self._issue(public_key, now, life, self.trust_domain if server else None)

    def issue_issuer(self, public_key: ec.EllipticCurvePublicKey, *, now: float, life: float) -> bytes:
        """Issues the certificate of the issuing service, under a DNS name that no other server has: `issuer_name`.

        Receivers of messages are servers of the trust domain too, and must not be mistaken for the issuer.
        The arguments are those of `issue`.
        """
        return self._issue(public_key, now, life, issuer_name(self.trust_domain))

    def _issue(self, key: ec.EllipticCurvePublicKey, now: float, life: float, host: str | None) -> bytes:
        if not is_p256(key):
            raise IdentityError("MALFORMED", "the key to be certified is not on the curve P-256")
        builder = profile.valid_until(_end(self._certificate, now, life), now).public_key(key)
        builder = builder.subject_name(x509.Name([])).issuer_name(self._certificate.subject)
        for extension, critical in self._leaf:
            builder = builder.add_extension(extension, critical)
        uri = x509.UniformResourceIdentifier(profile.rotating_id(self.trust_domain))
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        names: list[x509.GeneralName] = [uri]
        if host is not None:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names.append(x509.DNSName(host))
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        # Critical because the subject is empty (RFC 5280, 4.2.1.6).
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM) + self.chain

    def has_issued(self, leaf: x509.Certificate) -> bool:
        """Whether this intermediate or a previous one signed a leaf, which may have expired or be revoked."""
        return any(signed_by(leaf, issuer) for issuer in self._issuers)

    def trusting(self, root: bytes) -> Authority:
        """Adds a root to the trust bundle: the first half of a roll-over. The intermediate stays.

        Wait one life of a leaf before the second half, so that every peer knows the root.

        Args:
            root: In PEM.

        Raises:
            IdentityError: MALFORMED, or UNTRUSTED: the root is of another trust domain.
        """
        roots = dict.fromkeys((*self._roots, *_read(root)))
        return Authority(self._certificate, self._key, tuple(roots), self._issuers[1:])

    def followed_by(self, successor: Authority) -> Authority:
        """Replaces the intermediate: the second half of a roll-over. Leaves issued until now are still recognised.

        Args:
            successor: The authority with the new intermediate.

        Raises:
            IdentityError: UNTRUSTED: the successor is of another trust domain.
        """
        roots = dict.fromkeys((*self._roots, *successor._roots))
        earlier = dict.fromkeys((*successor._issuers[1:], *self._issuers))
        return Authority(successor._certificate, successor._key, tuple(roots), tuple(earlier))


def issuer_name(trust_domain: str) -> str:
    """The DNS name of a trust domain's issuing service."""
    return f"issuer.{trust_domain}"


class LocalSource(Source):
    """A source with the authority in its own process: for servers beside the CA, for tests and examples.

    Args:
        authority: The issuing authority.
        life: The life of each certificate, in seconds.
        server: Whether the certificates are for a server.
        clock: Seconds since 1970.
    """

    follows = False

    def __init__(
        self,
        authority: Authority,
        *,
        life: float = LEAF_LIFE,
        server: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._life = life
        self._server = server
        self._clock = clock

    @override
    async def fetch(self) -> Identity:
        key, now = new_key(), self._clock()
        chain = self._authority.issue(key.public_key(), now=now, life=self._life, server=self._server)
        return Identity.load(chain, key_pem(key), self._authority.trust_bundle, now)

    @override
    async def close(self) -> None:
        pass


def checked_life(life: float) -> float:
    """A life of certificates in seconds, or ConfigError if it is not positive."""
    if not 0 < life < math.inf:
        raise ConfigError("a certificate's life must be a positive number of seconds")
    return life


def _end(issuer: x509.Certificate, now: float, life: float) -> float:
    """When a certificate expires that an issuer signs now; EXPIRED if the issuer itself has expired."""
    wanted, last = now + checked_life(life), issuer.not_valid_after_utc.timestamp()
    if not now < last:
        raise IdentityError("EXPIRED", AUTHORITY_OVER)
    return min(wanted, last)


def _read(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise IdentityError("MALFORMED", "a certificate is not in PEM") from None


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
