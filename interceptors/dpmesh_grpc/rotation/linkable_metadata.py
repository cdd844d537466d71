"""Linkable metadata: the keys that would link the identities of one device, and the interception that removes them."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any

import grpc.aio
from typing_extensions import override

from dpmesh.config.model import BAGGAGE_KEYS
from dpmesh.mesh.request_metadata import TRACE_KEYS
from dpmesh_grpc.aio.arities import Arity, ClientInterception, changed

# The keys of tracing, proxies and correlation. A trace or a request id that outlives an identity names the device, and
# baggage may carry anything. In lower case, as gRPC's keys are.
LINKING = (
    TRACE_KEYS
    | BAGGAGE_KEYS
    | {
        *("x-request-id", "x-correlation-id", "x-client-trace-id"),
        *("x-forwarded-for", "x-real-ip", "forwarded"),
    }
)


def stripped(metadata: Any, keys: Collection[str]) -> Any:
    """Metadata without some keys, which are in lower case; the object itself if there is nothing to remove."""
    if not metadata or not any(pair[0].lower() in keys for pair in metadata):
        return metadata
    return grpc.aio.Metadata(*(pair for pair in metadata if pair[0].lower() not in keys))


class Stripping(ClientInterception):
    """Removes metadata from RPCs by its keys, which are in lower case. It belongs after all other interceptions."""

    only_once = ""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = keys

    @override
    def send_one(self, continuation: Any, details: Any, request: Any, arity: Arity) -> Awaitable[Any]:
        metadata = stripped(details.metadata, self._keys)
        if metadata is not details.metadata:
            details = changed(details, details.timeout, metadata)
        return continuation(details, request)  # type: ignore[no-any-return]

    @override
    def send_many(self, continuation: Any, details: Any, requests: Any, arity: Arity) -> Awaitable[Any]:
        return self.send_one(continuation, details, requests, arity)
