"""Details of a client's RPC: a copy with another deadline or other metadata."""

from __future__ import annotations

from typing import Any

import grpc.aio


def changed(details: Any, timeout: float | None, metadata: Any) -> grpc.aio.ClientCallDetails:
    """The details that an interceptor passes on instead of those that it was given."""
    return grpc.aio.ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )
