"""Linkable metadata: the keys that would link the identities of one device, and the interceptors that remove them."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any

import grpc.aio
from typing_extensions import override

from dpmesh_grpc.aio.arities import Arity, ClientInterception, changed, interceptors

# The keys of tracing, proxies and correlation. A trace or a request id that outlives an identity names the device, and
# baggage may carry anything. In lower case, as gRPC's keys are.
LINKING = frozenset(
    {
        *("traceparent", "tracestate", "baggage"),  # W3C
        *("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
        *("uber-trace-id", "x-cloud-trace-context", "x-amzn-trace-id", "x-ot-span-context"),
        *("grpc-trace-bin", "grpc-tags-bin"),
        *("x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-tags"),
        *("x-request-id", "x-correlation-id", "x-client-trace-id"),
        *("x-forwarded-for", "x-real-ip", "forwarded"),
    }
)


def stripped(metadata: Any, keys: Collection[str] = LINKING) -> Any:
    """Metadata without linkable keys; the object itself if there is nothing to remove.

    Args:
        metadata: Key and value pairs, or None.
        keys: The keys to remove, in lower case.
    """
    if not metadata or not any(pair[0].lower() in keys for pair in metadata):
        return metadata
    return grpc.aio.Metadata(*(pair for pair in metadata if pair[0].lower() not in keys))


class _Stripping(ClientInterception):
    """Removes metadata from RPCs by its keys, which are in lower case."""

    only_once = ""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = keys

    @override
    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        metadata = stripped(details.metadata, self._keys)
        if metadata is not details.metadata:
            details = changed(details, details.timeout, metadata)
        sent: Awaitable[Any] = continuation(details, request)
        return sent

    @override
    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        return self.send_one(continuation, details, requests, arity)


def stripping_interceptors(keys: Collection[str] = LINKING) -> tuple[Any, ...]:
    """Interceptors that remove linkable metadata, one for each arity. They belong after all others.

    Args:
        keys: The keys to remove, in lower case.
    """
    return interceptors(_Stripping(keys))
