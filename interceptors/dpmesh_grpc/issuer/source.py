"""IssuerSource: a source of identities that asks an issuer for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.proof import RENEW, prove
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.v1.identity_pb2 import Certificate, EnrolRequest, RenewRequest
from dpmesh_grpc.issuer.channel import TIMEOUT, ask, domain_of


class IssuerSource(Source):
    """A source of identities that asks an issuer: it enrols once, then renews with the certificate in force.

    Every fetch makes a new key. It opens a connection of its own, presents no certificate, and closes the connection;
    only the identity that it got is kept. Once an identity has ended, the source can't renew: the device must enrol
    again with a new token.

    Args:
        target: The issuer's address, "host:port".
        trust_bundle: The roots in PEM, which come together with the token by a trusted way. The issuer may replace
            them later.
        enrolment_token: A one-time token.
        identity: A valid identity to renew, instead of a token.
        timeout: How long to wait for the issuer, in seconds.
        clock: Seconds since 1970.

    Raises:
        ConfigError: There is neither a token nor an identity, or both.
        IdentityError: MALFORMED: the trust bundle is not in PEM, or not an authority's.
    """

    follows = False

    def __init__(
        self,
        target: str,
        trust_bundle: bytes,
        *,
        enrolment_token: str | None = None,
        identity: Identity | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (enrolment_token is None) == (identity is None):
            raise ConfigError("an issuer is asked either with a token or with an identity to renew")
        self._target = target
        self._trust_bundle = trust_bundle
        self._domain = domain_of(trust_bundle)
        self._token = enrolment_token
        self._identity = identity
        self._timeout = timeout
        self._clock = clock
        self._turn = asyncio.Lock()

    @override
    async def fetch(self) -> Identity:
        """Asks the issuer for an identity with a new key.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE, RATE_LIMITED, or REFUSED: the text says what to do. MALFORMED,
                EXPIRED or UNTRUSTED: the issuer's answer is no identity of this trust domain.
        """
        # One fetch at a time, because a token can be used only once.
        async with self._turn:
            key = new_key()
            certificate = await ask(self._target, self._trust_bundle, partial(self._question, key))
            identity = Identity.load(certificate.chain, key_pem(key), certificate.trust_bundle, self._clock())
            if identity.trust_domain != self._domain or domain_of(identity.trust_bundle) != self._domain:
                raise IdentityError("UNTRUSTED", "the issuer gave an identity of another trust domain")
            self._identity, self._token = identity, None
            self._trust_bundle = identity.trust_bundle
            return identity

    @override
    async def close(self) -> None:
        pass  # Every fetch closes its connection.

    async def _question(self, key: ec.EllipticCurvePrivateKey, stub: Any) -> Certificate:
        """Enrols or renews; returns a certificate for the key."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        certificate_request = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        if self._identity is None:
            first = EnrolRequest(enrolment_token=self._token, certificate_request=certificate_request)
            response = await stub.Enrol(first, timeout=self._timeout)
        else:
            request = RenewRequest(certificate_request=certificate_request)
            prove(RENEW, request, self._identity, self._clock())
            response = await stub.Renew(request, timeout=self._timeout)
        certificate: Certificate = response.certificate
        return certificate
