"""Metadata that would tie RPCs of one device together across its identities, and what keeps it from leaving."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any

import grpc.aio

from dpmesh_grpc.aio.arities import Arity, interceptors
from dpmesh_grpc.aio.details import changed

# What tracing, proxies and correlation put into metadata: a trace or a request id that outlives an identity names the
# device, and baggage carries whatever somebody put there. In lower case, as gRPC's keys are.
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
    """Metadata without what links; the same object where there is nothing to take out.

    Args:
        metadata: Key and value pairs, or None.
        keys: What is taken out, in lower case.
    """
    if not metadata or not any(pair[0].lower() in keys for pair in metadata):
        return metadata
    return grpc.aio.Metadata(*(pair for pair in metadata if pair[0].lower() not in keys))


class _Stripping:
    """Takes out what links.

    Args:
        keys: What is taken out, in lower case.
    """

    only_once = ""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = keys

    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        """See ClientInterception."""
        metadata = stripped(details.metadata, self._keys)
        if metadata is not details.metadata:
            details = changed(details, details.timeout, metadata)
        sent: Awaitable[Any] = continuation(details, request)
        return sent

    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        """See ClientInterception."""
        return self.send_one(continuation, details, requests, arity)


def stripping_interceptors(keys: Collection[str] = LINKING) -> tuple[Any, ...]:
    """Takes out what links, after all other interceptors: they stand last, one for each arity.

    Args:
        keys: What is taken out, in lower case.
    """
    return interceptors(_Stripping(keys))
