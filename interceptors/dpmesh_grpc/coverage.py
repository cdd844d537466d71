"""Coverage: all arities of a channel are protected, or none of its RPCs should be made."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc.aio

from dpmesh.errors import ConfigError
from dpmesh.mesh import Mesh
from dpmesh_grpc.client import (
    Sender,
    StreamStreamInterceptor,
    StreamUnaryInterceptor,
    UnaryStreamInterceptor,
    UnaryUnaryInterceptor,
)

# Where grpc.aio.Channel keeps the interceptors of each arity, and ours for it.
_LISTS = (
    ("_unary_unary_interceptors", UnaryUnaryInterceptor),
    ("_unary_stream_interceptors", UnaryStreamInterceptor),
    ("_stream_unary_interceptors", StreamUnaryInterceptor),
    ("_stream_stream_interceptors", StreamStreamInterceptor),
)


class Whole(tuple[Any, ...]):
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
        ConfigError: The consumer is no text, or none that UTF-8 can write.
    """
    if not isinstance(consumer, str):
        raise ConfigError(f"consumer: a {type(consumer).__name__} is no name; allowed: text")
    try:
        consumer.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "consumer: a name that UTF-8 can't write; allowed: text without surrogates"
        ) from None
    sender = Sender(mesh, consumer)
    return Whole(interceptor(sender) for _, interceptor in _LISTS)


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
