"""Peer names: the consumer of a server's responses, as gRPC's authentication context names it."""

from __future__ import annotations

from typing import Any

from dpmesh.mesh.consumers import CertificateNames, consumer_of


def consumer(context: Any) -> str:
    """The consumer's id of the authenticated client of an RPC; never log it.

    The client's URIs are read, not gRPC's peer_spiffe_id, which is missing where a certificate has several.

    Args:
        context: The handler's.
    """
    peer = context.auth_context()
    return consumer_of(
        CertificateNames(
            uris=peer.get("peer_uri", ()),
            dns=peer.get("peer_dns", ()),
            emails=peer.get("peer_email", ()),
            ips=peer.get("peer_ip", ()),
            common_names=peer.get("x509_common_name", ()),
        )
    )
