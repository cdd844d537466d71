"""Lets OpenTelemetry's client span of a refused RPC end.

dpmesh refuses a unary RPC by raising its status from the interceptor, as grpc.aio allows. The interceptor of
opentelemetry-instrumentation-grpc (0.66b2) then never ends its span, which is lost. Between the two stands this one,
which hands the status on as a call that has failed: what an RPC that failed on the way looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import grpc


class FailedCall(grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """A unary call that is over, and ends with an error.

    Args:
        error: The status it ends with.
    """

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        raise self._error

    def cancel(self) -> bool:
        """It is over."""
        return False

    def cancelled(self) -> bool:
        """It was not."""
        return False

    def done(self) -> bool:
        """It is over."""
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called at once."""
        callback(self)

    def time_remaining(self) -> float | None:
        """No deadline is left to keep."""
        return None

    async def initial_metadata(self) -> Any:
        """What the status brought."""
        return self._error.initial_metadata()

    async def trailing_metadata(self) -> Any:
        """What the status brought."""
        return self._error.trailing_metadata()

    async def code(self) -> Any:
        """The status code."""
        return self._error.code()

    async def details(self) -> Any:
        """The status' text."""
        return self._error.details()

    async def debug_error_string(self) -> str | None:
        """Nothing was sent that could be debugged."""
        return str(self._error.debug_error_string())

    async def wait_for_connection(self) -> None:
        """There is none."""
        raise self._error


class EndedInterceptor(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Turns a status that is raised further in into a call that has failed."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See grpc.aio.UnaryUnaryClientInterceptor."""
        try:
            return await continuation(client_call_details, request)
        except grpc.aio.AioRpcError as error:
            return FailedCall(error)
