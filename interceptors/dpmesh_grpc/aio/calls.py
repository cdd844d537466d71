"""Calls: what a client holds of an RPC that dpmesh refused, or whose requests are a protected stream.

gRPC polls a stream of requests in a task of its own and answers any exception there by cancelling the RPC, so the
caller would see CancelledError. The guarded calls remember the refusal and end with it. The refused ones are over
before they began: other interceptors expect a call with a status, and lose their spans over an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any

import grpc.aio

from dpmesh_grpc.status import Failure, rpc_error


class Outcome:
    """The refusal of a stream, if there was one; shared by the stream and its call.

    Entered with `with`, it turns the cancellation that gRPC makes of a refusal into the refusal.
    """

    def __init__(self) -> None:
        self.call: Any = None
        self.failure: Failure | None = None

    def refuse(self, failure: Failure) -> None:
        """Notes why the stream ends, unless the RPC already ended by itself."""
        if self.call is None or not self.call.done():
            self.failure = failure

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.failure is None or not isinstance(error, (asyncio.CancelledError, grpc.aio.AioRpcError)):
            return
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            return  # It is the caller that is being cancelled.
        raise rpc_error(self.failure) from None


class _RefusedCall:
    """An RPC that never began, and ends with the status that refused it."""

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


class RefusedUnaryUnaryCall(_RefusedCall, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """A refused call with one response."""

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        raise self._error


class RefusedUnaryStreamCall(_RefusedCall, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A refused call with a stream of responses."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        raise self._error
        yield

    async def read(self) -> Any:
        """There is nothing to read."""
        raise self._error


class _GuardedCall:
    """What both arities share; everything else is the call's that gRPC made."""

    def __init__(self, call: Any, outcome: Outcome) -> None:
        self._call = call
        self._outcome = outcome
        outcome.call = call

    def cancel(self) -> bool:
        return bool(self._call.cancel())

    def cancelled(self) -> bool:
        return self._outcome.failure is None and bool(self._call.cancelled())

    def done(self) -> bool:
        return bool(self._call.done())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda _: callback(self))

    def time_remaining(self) -> Any:
        return self._call.time_remaining()

    async def initial_metadata(self) -> Any:
        return await self._call.initial_metadata()

    async def trailing_metadata(self) -> Any:
        trailing = await self._call.trailing_metadata()
        failure = self._outcome.failure
        return trailing if failure is None else grpc.aio.Metadata(*failure.trailing)

    async def code(self) -> Any:
        code = await self._call.code()
        failure = self._outcome.failure
        return code if failure is None else failure.code

    async def details(self) -> Any:
        details = await self._call.details()
        failure = self._outcome.failure
        return details if failure is None else failure.text

    async def debug_error_string(self) -> Any:
        return await self._call.debug_error_string()

    async def wait_for_connection(self) -> None:
        with self._outcome:
            await self._call.wait_for_connection()

    async def write(self, request: Any) -> None:
        await self._call.write(request)

    async def done_writing(self) -> None:
        await self._call.done_writing()

    @property
    def _done_writing_flag(self) -> bool:
        return bool(self._call._done_writing_flag)  # gRPC's own calls ask for it.

    # What grpc.aio 1.80 looks for when a channel closes; it raises on a call that has neither.

    @property
    def _channel(self) -> Any:
        return self._call._channel

    @property
    def _cython_call(self) -> Any:
        return self._call._cython_call


class _Responses(_GuardedCall):
    """What the arities with a stream of responses share besides."""

    _responses: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._responses is None:
            self._responses = self._iterate()
        return self._responses

    async def _iterate(self) -> AsyncIterator[Any]:
        with self._outcome:
            async for response in self._call:
                yield response

    async def read(self) -> Any:
        """Reads one message, or grpc.aio.EOF."""
        with self._outcome:
            return await self._call.read()


class GuardedStreamUnaryCall(_GuardedCall, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A call whose requests are a protected stream, with one response."""

    def __await__(self) -> Generator[Any, None, Any]:
        with self._outcome:
            return (yield from self._call.__await__())


class GuardedStreamStreamCall(_Responses, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A call whose requests are a protected stream, with a stream of responses."""
