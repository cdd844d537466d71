"""Metadata that would tie RPCs of one device together across its identities, and what keeps it from leaving."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any

import grpc.aio

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


def _bare(details: Any, keys: Collection[str]) -> Any:
    metadata = stripped(details.metadata, keys)
    if metadata is details.metadata:
        return details
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


class _Stripping:
    """Args: keys: What is taken out, in lower case."""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = keys


class _UnaryUnary(_Stripping, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Awaitable[Any]:
        sent: Awaitable[Any] = continuation(_bare(client_call_details, self._keys), request)
        return sent


class _UnaryStream(_Stripping, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Awaitable[Any]:
        sent: Awaitable[Any] = continuation(_bare(client_call_details, self._keys), request)
        return sent


class _StreamUnary(_Stripping, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Awaitable[Any]:
        sent: Awaitable[Any] = continuation(_bare(client_call_details, self._keys), request_iterator)
        return sent


class _StreamStream(_Stripping, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Awaitable[Any]:
        sent: Awaitable[Any] = continuation(_bare(client_call_details, self._keys), request_iterator)
        return sent


def stripping_interceptors(keys: Collection[str] = LINKING) -> tuple[Any, ...]:
    """Takes out what links, after all other interceptors: they stand last, one for each arity.

    Args:
        keys: What is taken out, in lower case.
    """
    return tuple(kind(keys) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream))
