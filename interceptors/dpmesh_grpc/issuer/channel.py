"""Issuer channel: how a client connects to an issuer, and which errors it makes of the issuer's refusals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio
from cryptography import x509

from dpmesh.errors import IdentityError
from dpmesh.identity.ca.authority import issuer_name
from dpmesh.identity.ca.issuer import TEXTS
from dpmesh.identity.identity import trust_domain
from dpmesh.v1 import identity_pb2_grpc as rpc

_T = TypeVar("_T")

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


async def ask(target: str, trust_bundle: bytes, question: Callable[[Any], Awaitable[_T]]) -> _T:
    """The issuer's answer to one question, which calls a method of a stub, on a connection of its own.

    Raises:
        IdentityError: The issuer did not answer, or refused; or the trust bundle is MALFORMED.
    """
    try:
        async with issuer_channel(target, trust_bundle) as channel:
            return await question(rpc.IssuerServiceStub(channel))  # type: ignore[no-untyped-call]
    except grpc.aio.AioRpcError as error:
        reason, details = _REASON.get(error.code(), "ISSUER_UNAVAILABLE"), error.details()
    # Outside of `except`, and only with texts of dpmesh's own: the exception's context would quote the peer's.
    raise IdentityError(reason, details if details in TEXTS else _WORDS[reason])


def domain_of(trust_bundle: bytes) -> str:
    """The trust domain that all roots of a bundle name."""
    try:
        domains = {trust_domain(root) for root in x509.load_pem_x509_certificates(trust_bundle)}
    except ValueError:
        domains = set()
    if len(domains) != 1:
        raise IdentityError("MALFORMED", "the trust bundle is not in PEM, or not of one trust domain")
    return domains.pop()
