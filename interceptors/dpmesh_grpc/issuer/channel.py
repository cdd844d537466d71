"""Issuer channel: how a client connects to an issuer, and which errors it makes of the issuer's refusals."""

from __future__ import annotations

import grpc.aio
from cryptography import x509

from dpmesh.errors import IdentityError
from dpmesh.identity.ca.authority import issuer_name
from dpmesh.identity.ca.issuer import TEXTS
from dpmesh.identity.identity import trust_domain

TIMEOUT = 10.0
"""Seconds that a client waits for the issuer."""

_REASON = {
    grpc.StatusCode.UNAUTHENTICATED: "REFUSED",
    grpc.StatusCode.PERMISSION_DENIED: "REFUSED",
    grpc.StatusCode.INVALID_ARGUMENT: "REFUSED",
    grpc.StatusCode.FAILED_PRECONDITION: "REFUSED",
    grpc.StatusCode.UNIMPLEMENTED: "REFUSED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
}
_WORDS = {
    "REFUSED": "the issuer refused",
    "RATE_LIMITED": "the issuer has no more to give now",
    "ISSUER_UNAVAILABLE": "the issuer can't be reached, or is not the one that is trusted",
}


def issuer_channel(target: str, trust_bundle: bytes) -> grpc.aio.Channel:
    """An encrypted channel to an issuer that shares nothing with other channels. It checks the issuer's certificate.

    Args:
        target: The issuer's address, "host:port".
        trust_bundle: The roots in PEM.

    Raises:
        IdentityError: MALFORMED: the trust bundle is not in PEM, or not an authority's.
    """
    options = (
        # A connection that channels share would link their requests.
        ("grpc.use_local_subchannel_pool", 1),
        # No other server of the trust domain has this name.
        ("grpc.ssl_target_name_override", issuer_name(domain_of(trust_bundle))),
    )
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust_bundle), options)


def issuer_error(error: grpc.aio.AioRpcError) -> IdentityError:
    """The error for an issuer's refusal. It repeats the issuer's text only if that is one of dpmesh's own."""
    reason = _REASON.get(error.code(), "ISSUER_UNAVAILABLE")
    details = error.details()
    return IdentityError(reason, details if details in TEXTS else _WORDS[reason])


def domain_of(trust_bundle: bytes) -> str:
    """The trust domain that all roots of a bundle name."""
    try:
        domains = {trust_domain(root) for root in x509.load_pem_x509_certificates(trust_bundle)}
    except ValueError:
        domains = set()
    if len(domains) != 1:
        raise IdentityError("MALFORMED", "the trust bundle is not in PEM, or not of one trust domain")
    return domains.pop()
