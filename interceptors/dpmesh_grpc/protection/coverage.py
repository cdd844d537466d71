"""Coverage: all arities of a channel are protected once, and so is a server, or no RPC should be made."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc.aio

from dpmesh.errors import ConfigError
from dpmesh.mesh.mesh import Mesh
from dpmesh_grpc.protection.client import (
    TWICE,
    Sender,
    StreamStreamInterceptor,
    StreamUnaryInterceptor,
    UnaryStreamInterceptor,
    UnaryUnaryInterceptor,
)
from dpmesh_grpc.protection.server import ServerInterceptor

# Where grpc.aio.Channel keeps the interceptors of each arity, and ours for it.
_LISTS = (
    ("_unary_unary_interceptors", UnaryUnaryInterceptor),
    ("_unary_stream_interceptors", UnaryStreamInterceptor),
    ("_stream_unary_interceptors", StreamUnaryInterceptor),
    ("_stream_stream_interceptors", StreamStreamInterceptor),
)


class InterceptorSet(tuple[Any, ...]):
    """A tuple that can't be taken apart by index or slice: one interceptor alone leaves three arities bare."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> NoReturn:
        """Refuses.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "take all of dpmesh's interceptors: interceptors=[*aio_client_interceptors(mesh), ...]"
        )


def aio_client_interceptors(mesh: Mesh, *, consumer: str = "") -> tuple[Any, ...]:
    """What protects the requests of a grpc.aio channel.

    Interceptors that read or log messages belong after these (they then see what leaves), and so do those that retry
    (a retry sends the same bytes again, for one charge). OpenTelemetry's belong before them, so that the span of a
    release lies under that of its RPC.

    Args:
        mesh: Who releases.
        consumer: Who receives the requests, under which name quotas count them; the sender knows whom it connects to.

    Returns:
        Four objects, one for each arity, to be passed whole:
        `grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh))`.

    Raises:
        ConfigError: `mesh` is no mesh, or the consumer is no text, or none that UTF-8 can write.
    """
    sender = Sender(mesh, consumer)
    return InterceptorSet(interceptor(sender) for _, interceptor in _LISTS)


def check_channel(channel: grpc.aio.Channel) -> None:
    """Asserts that all arities of a channel are protected, each by exactly one of dpmesh's interceptors.

    Call it once where the channel is made.

    Raises:
        ConfigError: An arity has none, or more than one, or the channel does not say.
    """
    for name, ours in _LISTS:
        arity = name.removeprefix("_").removesuffix("_interceptors").replace("_", "-")
        found = getattr(channel, name, None)
        if found is None:
            raise ConfigError(
                f"not a grpc.aio channel: it does not say which interceptors its {arity} RPCs have"
            )
        count = sum(isinstance(interceptor, ours) for interceptor in found)
        if count != 1:
            raise ConfigError(
                f"{arity} RPCs of this channel have {count} of dpmesh's interceptors instead of 1; "
                "pass interceptors=[*aio_client_interceptors(mesh), ...] once"
            )


def refuse_twice(interceptors: Iterable[Any]) -> None:
    """Refuses interceptors for a channel among which dpmesh's are more than once.

    Raises:
        ConfigError: They are.
    """
    found = [type(interceptor) for interceptor in interceptors]
    if any(found.count(ours) > 1 for _, ours in _LISTS):
        raise ConfigError(TWICE)


def check_server(server: grpc.aio.Server) -> None:
    """Asserts that a server has dpmesh's interceptor, exactly once.

    Call it once where the server is made. A second one would charge for each response twice.

    Raises:
        ConfigError: It has none, or more than one, or it is no grpc.aio server.
    """
    count = count_on(server)
    if count != 1:
        raise ConfigError(
            f"this server has {count} of dpmesh's interceptors instead of 1; "
            "pass interceptors=[..., *aio_server_interceptors(mesh)] once"
        )


def count_on(server: Any) -> int:
    """How many of dpmesh's interceptors a server has.

    Raises:
        ConfigError: It is no grpc.aio server.
    """
    if not isinstance(server, grpc.aio.Server):
        raise ConfigError("not a grpc.aio server: it does not say which interceptors it has")
    # gRPC keeps them in its compiled part, which tells nobody but the garbage collector what it holds.
    held = [found for found in gc.get_referents(server._server) if isinstance(found, (tuple, list))]
    return sum(isinstance(each, ServerInterceptor) for found in held for each in found)
