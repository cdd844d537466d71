"""Coverage: makes a channel's interceptors, and checks that channels and servers are protected exactly once."""

from __future__ import annotations

from typing import Any

import grpc.aio

from dpmesh.errors import ConfigError
from dpmesh.mesh.mesh import Mesh
from dpmesh_grpc.aio.arities import ARITIES, interceptors
from dpmesh_grpc.aio.internals import interceptor_list, server_interceptors
from dpmesh_grpc.protection.client import Sender, protects
from dpmesh_grpc.protection.server import ServerInterceptor


def aio_client_interceptors(mesh: Mesh, *, consumer: str = "") -> tuple[Any, ...]:
    """What protects the requests of a grpc.aio channel.

    Interceptors that read or log messages belong after these (they then see what leaves), and so do those that retry
    (a retry sends the same bytes again, for one charge). OpenTelemetry's belong before them, so that the span of a
    release lies under that of its RPC.

    Args:
        mesh: Releases the requests.
        consumer: Who receives the requests: the name under which quotas count them. Pseudonyms for different names
            can't be joined, so name each receiver where several get ids.

    Returns:
        Four objects, one for each arity, to be passed whole:
        `grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))`.

    Raises:
        ConfigError: `mesh` is no Mesh, or the consumer is no text that UTF-8 can encode.
    """
    return interceptors(Sender(mesh, consumer))


def check_channel(channel: grpc.aio.Channel) -> None:
    """Asserts that all arities of a channel are protected, each by exactly one of dpmesh's interceptors.

    Call it once where the channel is made.

    Raises:
        ConfigError: An arity has none, or more than one, or the channel does not say.
    """
    for name in ARITIES:
        arity = name.replace("_", "-")
        found = getattr(channel, interceptor_list(name), None)
        if found is None:
            raise ConfigError(
                f"not a grpc.aio channel: it does not say which interceptors its {arity} RPCs have"
            )
        count = sum(protects(each) and each.arity.name == name for each in found)
        if count != 1:
            raise ConfigError(
                f"{arity} RPCs of this channel have {count} of dpmesh's interceptors instead of 1; "
                "pass interceptors=[*aio_client_interceptors(mesh), ...] once"
            )


def check_server(server: grpc.aio.Server) -> None:
    """Asserts that a server has dpmesh's interceptor, exactly once.

    Call it once where the server is made. A second one would charge for each response twice.

    Raises:
        ConfigError: It has none, or more than one, or it is no grpc.aio server.
    """
    count = count_interceptors(server)
    if count != 1:
        raise ConfigError(
            f"this server has {count} of dpmesh's interceptors instead of 1; "
            "pass interceptors=[..., *aio_server_interceptors(mesh)] once"
        )


def count_interceptors(server: Any) -> int:
    """How many of dpmesh's interceptors a server has.

    Raises:
        ConfigError: It is no grpc.aio server.
    """
    if not isinstance(server, grpc.aio.Server):
        raise ConfigError("not a grpc.aio server: it does not say which interceptors it has")
    return sum(isinstance(each, ServerInterceptor) for each in server_interceptors(server))
