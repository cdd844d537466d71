"""dpmesh for grpc.aio: client interceptors protect requests, server interceptors protect responses.

channel = grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))
server  = grpc.aio.server(interceptors=aio_server_interceptors(mesh))

Channels and servers whose identity rotates, and health, are imported when they are first used: applications that only
add noise do not load what reads certificates.
"""

from typing import TYPE_CHECKING, Any

from dpmesh_grpc.protection.coverage import aio_client_interceptors, check_channel, check_server
from dpmesh_grpc.protection.peer_policy import peer_policy
from dpmesh_grpc.protection.server import aio_server_interceptors

if TYPE_CHECKING:
    from dpmesh_grpc.health import report_health, serve
    from dpmesh_grpc.issuer.source import IssuerSource
    from dpmesh_grpc.protection.slots import PacedSender, slot_cover
    from dpmesh_grpc.rollout.client import rollout_client
    from dpmesh_grpc.rotation.channel import rotating_channel
    from dpmesh_grpc.rotation.peer_expiry import peer_interceptor
    from dpmesh_grpc.rotation.server_credentials import rotating_server_credentials, server_options
    from dpmesh_grpc.tokens import issuer_keys, token_interceptor, token_interceptors, token_request

__all__ = [
    "IssuerSource",
    "PacedSender",
    "aio_client_interceptors",
    "aio_server_interceptors",
    "check_channel",
    "check_server",
    "issuer_keys",
    "peer_interceptor",
    "peer_policy",
    "report_health",
    "rollout_client",
    "rotating_channel",
    "rotating_server_credentials",
    "serve",
    "server_options",
    "slot_cover",
    "token_interceptor",
    "token_interceptors",
    "token_request",
]

_HOMES = {
    "IssuerSource": "issuer.source",
    "PacedSender": "protection.slots",
    "issuer_keys": "tokens",
    "peer_interceptor": "rotation.peer_expiry",
    "report_health": "health",
    "rollout_client": "rollout.client",
    "rotating_channel": "rotation.channel",
    "rotating_server_credentials": "rotation.server_credentials",
    "serve": "health",
    "server_options": "rotation.server_credentials",
    "slot_cover": "protection.slots",
    "token_interceptor": "tokens",
    "token_interceptors": "tokens",
    "token_request": "tokens",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
