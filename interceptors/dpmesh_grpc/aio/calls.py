"""Calls of grpc.aio: what a client holds of an RPC that dpmesh refused, or that dpmesh may end.

Each kind exists for the four arities, because gRPC and other interceptors check a call's type.

- A refused call is over before it began. Other interceptors expect a call with a status, and would lose their spans
  over an exception.
- A guarded call wraps a call of gRPC. When dpmesh ends the RPC, gRPC reports a cancellation; the guarded call reports
  dpmesh's own status instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from operator import attrgetter
from typing import Any, Protocol

import grpc.aio
from typing_extensions import override

from dpmesh_grpc.status import Failure, rpc_error


class CallEnd(Protocol):
    """Knows which calls dpmesh has ended."""

    def failure(self, call: Any) -> Failure | None:
        """The status with which dpmesh ended a call of gRPC; None if it did not."""


class StreamRefusal(CallEnd):
    """The refusal of one message of a stream of requests, shared by the stream and its call.

    gRPC polls a stream of requests in a task of its own, and answers any exception there by cancelling the RPC.

    Attributes:
        call: gRPC's call, once it has begun.
    """

    def __init__(self) -> None:
        self.call: Any = None
        self._failure: Failure | None = None

    def refuse(self, failure: Failure) -> None:
        """Notes why the stream ends, unless the RPC has already ended by itself."""
        if self.call is None or not self.call.done():
            self._failure = failure

    @override
    def failure(self, call: Any) -> Failure | None:
        return self._failure


def translate(error: BaseException, failure: Failure | None) -> None:
    """Raises dpmesh's status instead of the exception with which gRPC reports that dpmesh ended the RPC.

    Args:
        error: The exception. Where it is something else, or the caller's own cancellation, nothing is raised.
        failure: dpmesh's status, or None if dpmesh has not ended the RPC.

    Raises:
        grpc.aio.AioRpcError: With dpmesh's status.
    """
    if failure is None or not isinstance(error, (asyncio.CancelledError, grpc.aio.AioRpcError)):
        return
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        return  # The caller itself is being cancelled.
    raise rpc_error(failure) from None


class _RefusedCall:
    """An RPC that never began, and ends with the status that refused it."""

    _done_writing_flag = True  # See internals.DONE_WRITING.

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    def time_remaining(self) -> Any:
        return None

    async def initial_metadata(self) -> Any:
        return self._error.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return self._error.trailing_metadata()

    async def code(self) -> Any:
        return self._error.code()

    async def details(self) -> Any:
        return self._error.details()

    async def debug_error_string(self) -> Any:
        return self._error.debug_error_string()

    async def wait_for_connection(self) -> None:
        raise self._error

    async def write(self, request: Any) -> None:
        raise self._error

    async def done_writing(self) -> None:
        pass


class _RefusedResponse(_RefusedCall):
    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        raise self._error


class _RefusedResponses(_RefusedCall):
    async def __aiter__(self) -> AsyncIterator[Any]:
        raise self._error
        yield

    async def read(self) -> Any:
        raise self._error


class RefusedUnaryUnaryCall(_RefusedResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """A refused call with one request and one response."""


class RefusedUnaryStreamCall(_RefusedResponses, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A refused call with one request and a stream of responses."""


class RefusedStreamUnaryCall(_RefusedResponse, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A refused call with a stream of requests and one response."""


class RefusedStreamStreamCall(_RefusedResponses, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A refused call with streams both ways."""


class _GuardedCall:
    """A call of gRPC that reports dpmesh's status where `end` says that dpmesh has ended the RPC."""

    def __init__(self, call: Any, end: CallEnd) -> None:
        self._call = call
        self._end = end

    def _failure(self) -> Failure | None:
        return self._end.failure(self._call)

    def cancelled(self) -> bool:
        return self._failure() is None and bool(self._call.cancelled())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda _: callback(self))

    async def trailing_metadata(self) -> Any:
        trailing = await self._call.trailing_metadata()
        failure = self._failure()
        return trailing if failure is None else grpc.aio.Metadata(*failure.trailing)

    async def code(self) -> Any:
        code = await self._call.code()
        failure = self._failure()
        return code if failure is None else failure.code

    async def details(self) -> Any:
        details = await self._call.details()
        failure = self._failure()
        return details if failure is None else failure.text

    async def wait_for_connection(self) -> None:
        try:
            await self._call.wait_for_connection()
        except BaseException as error:
            translate(error, self._failure())
            raise

    # The call's own methods, as they are.

    cancel = property(attrgetter("_call.cancel"))
    done = property(attrgetter("_call.done"))
    time_remaining = property(attrgetter("_call.time_remaining"))
    initial_metadata = property(attrgetter("_call.initial_metadata"))
    debug_error_string = property(attrgetter("_call.debug_error_string"))
    write = property(attrgetter("_call.write"))
    done_writing = property(attrgetter("_call.done_writing"))

    # See internals.DONE_WRITING and internals.CLOSING for what gRPC looks for in a call.

    _done_writing_flag = property(attrgetter("_call._done_writing_flag"))
    _channel = property(attrgetter("_call._channel"))
    _cython_call = property(attrgetter("_call._cython_call"))


class _GuardedResponse(_GuardedCall):
    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except BaseException as error:
            translate(error, self._failure())
            raise


class _GuardedResponses(_GuardedCall):
    _responses: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._iterate()
        return self._responses

    async def _iterate(self) -> AsyncIterator[Any]:
        try:
            async for response in self._call:
                yield response
        except BaseException as error:
            translate(error, self._failure())
            raise

    async def read(self) -> Any:
        """Reads one message, or grpc.aio.EOF."""
        try:
            return await self._call.read()
        except BaseException as error:
            translate(error, self._failure())
            raise


class GuardedUnaryUnaryCall(_GuardedResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """A guarded call with one request and one response."""


class GuardedUnaryStreamCall(_GuardedResponses, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A guarded call with one request and a stream of responses."""


class GuardedStreamUnaryCall(_GuardedResponse, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A guarded call with a stream of requests and one response."""


class GuardedStreamStreamCall(_GuardedResponses, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A guarded call with streams both ways."""
