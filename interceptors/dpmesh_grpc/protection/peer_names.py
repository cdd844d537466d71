"""Consumers: who receives a server's responses, as far as quotas are concerned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from dpmesh.identity.ca.profile import stable_name

# SPIFFE IDs, section 2: neither the case of the scheme nor that of the trust domain matters, and that of the path does.
_SPIFFE: Final = re.compile(r"(spiffe://[^/]*)(.*)", re.IGNORECASE | re.DOTALL)


def consumer(context: Any) -> str:
    """The authenticated client of an RPC, by the best name in its certificate.

    A SPIFFE ID is taken as it is, and only from where authorities put them, the certificate's URIs. All other names
    say of which kind they are, so that none poses as another: "uri:", "dns:", "email:", "ip:" or "cn:" comes first.
    Where case means nothing, letters are small, so that a name has one quota however it is written.

    Rotating identities of dpmesh's own authority count as their trust domain: each has a random path, which would give
    its owner a new quota every few minutes.

    Args:
        context: The handler's.

    Returns:
        The consumer's id; never log it. "" for a client that is not authenticated: all of them are one consumer.
    """
    return next(_names(context.auth_context()), "")


def _names(peer: Any) -> Iterator[str]:
    """What a certificate calls its owner, the best first."""
    uris = list(_decoded(peer, "peer_uri"))
    # Also of a certificate with several, for which gRPC gives no peer_spiffe_id: the first one counts.
    for uri in uris:
        found = _SPIFFE.fullmatch(uri)
        if found is not None:
            yield stable_name(found[1].lower() + found[2])
    yield from (f"uri:{uri}" for uri in uris)
    yield from (f"dns:{name.lower()}" for name in _decoded(peer, "peer_dns"))
    for address in _decoded(peer, "peer_email"):
        mailbox, at, host = address.rpartition("@")
        yield f"email:{mailbox}{at}{host.lower()}"
    yield from (f"ip:{address}" for address in _decoded(peer, "peer_ip"))
    yield from (f"cn:{name}" for name in _decoded(peer, "x509_common_name"))


def _decoded(peer: Any, key: str) -> Iterator[str]:
    for value in peer.get(key, ()):
        name = value.decode(errors="backslashreplace")
        if name:
            yield name
