"""Consumers: who receives a server's responses, as far as quotas are concerned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dpmesh.identity.profile import lasting

_SPIFFE: Final = "spiffe://"


def consumer(context: Any) -> str:
    """The authenticated client of an RPC, by its SPIFFE ID, or else another name of its certificate.

    Rotating identities of dpmesh's own authority count as their trust domain: each has a random path, which would give
    its owner a new quota every few minutes.

    Args:
        context: The handler's.

    Returns:
        The consumer's id; never log it. "" for a client that is not authenticated: all of them are one consumer.
    """
    return lasting(next(_names(context.auth_context()), ""))


def _names(peer: Any) -> Iterator[str]:
    """What a certificate calls its owner, the best first."""
    # gRPC has checked this one: it is the certificate's only URI.
    yield from _decoded(peer, "peer_spiffe_id")
    yield from (uri for uri in _decoded(peer, "peer_uri") if uri.startswith(_SPIFFE))
    yield from _decoded(peer, "x509_subject_alternative_name")
    yield from _decoded(peer, "x509_common_name")


def _decoded(peer: Any, key: str) -> Iterator[str]:
    for value in peer.get(key, ()):
        name = value.decode(errors="backslashreplace")
        if name:
            yield name
