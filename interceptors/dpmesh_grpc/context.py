"""Contexts: what a handler holds of its RPC, so that nothing goes around the protection of its responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc._cython import cygrpc

from dpmesh.errors import BudgetExhaustedError, DpmeshError
from dpmesh.mesh import Mesh
from dpmesh_grpc.lanes import Lane, Method, Release
from dpmesh_grpc.status import DETAILS_KEY, HANDLER_FAILED, WITHHELD, Failure, refusal

log = logging.getLogger("dpmesh.grpc")

# What gRPC raises through handlers, and handles itself; their texts are its own. Answering a stopped server's RPC
# would touch what is no longer there, so that error has to reach gRPC too, and it has no public name.
_GRPC_OWN = (
    asyncio.CancelledError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    grpc.aio.InternalError,
    cygrpc._ServerStoppedError,
)
_FINE = (None, grpc.StatusCode.OK, grpc.StatusCode.OK.value[0])


@dataclass(frozen=True)
class Guard:
    """What is the same for all RPCs of one method on a server.

    Attributes:
        lane: What the method sends.
        consumer: Tells who the client is, by the handler's context; None where no quota asks.
        masks: Exceptions keep their text: it could quote a protected message.
        withholds: So do status details and metadata.
        plain: The handler has no say in the compression of its responses.
        pass_metadata: The metadata keys that leave all the same, in lower case.
        pass_details: Status details leave all the same.
    """

    lane: Lane
    consumer: Callable[[Any], str] | None
    masks: bool
    withholds: bool
    plain: bool
    pass_metadata: frozenset[str]
    pass_details: bool

    @classmethod
    def of(cls, method: Method, streams: bool, mesh: Mesh) -> Guard:
        """Derives the guard of a method whose responses are a stream, or are not."""
        lane = method.response
        active = not mesh.observing  # The observe mode changes nothing.
        allowed = mesh.config.grpc
        return cls(
            lane=lane,
            consumer=_consumer() if mesh.has_quotas else None,
            masks=active and bool(method.request.protected or lane.protected),
            withholds=active and bool(lane.protected),
            # A stream's compression is settled before its first message shows whether it is protected.
            plain=active and bool(lane.protected or (streams and lane.protected is None)),
            pass_metadata=frozenset(key.lower() for key in allowed.pass_metadata)
            | ({DETAILS_KEY} if allowed.pass_status_details else set()),
            pass_details=allowed.pass_status_details,
        )

    def lane_to(self, context: Any) -> Lane:
        """The lane of one RPC. To be asked once: finding the client's name takes as long as a release."""
        return self.lane if self.consumer is None else self.lane.to(self.consumer(context))

    def details(self, text: str) -> str:
        """The status details as the peer may read them."""
        return WITHHELD if text and self.withholds and not self.pass_details else text

    def metadata(self, pairs: Any) -> Any:
        """The metadata as the peer may read it."""
        if not self.withholds:
            return pairs
        return tuple(pair for pair in pairs or () if pair[0].lower() in self.pass_metadata)


def _consumer() -> Callable[[Any], str]:
    # Not at the top: it loads what reads certificates, which who only wants noise does without.
    from dpmesh_grpc.consumers import consumer

    return consumer


class _Context:
    """What the contexts of asynchronous handlers and of those in an executor share; the rest is gRPC's own.

    Attributes:
        aborted: The handler, or dpmesh, has ended the RPC.
    """

    __slots__ = ("_code", "_context", "_guard", "_lane", "_release", "aborted")

    def __init__(self, context: Any, guard: Guard, lane: Lane, release: Release) -> None:
        self.aborted = False
        self._context = context
        self._guard = guard
        self._lane = lane
        self._release = release
        self._code: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: Any) -> None:
        self._code = code
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        self._context.set_details(self._guard.details(details))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata(self._guard.metadata(trailing_metadata))

    def set_compression(self, compression: Any) -> None:
        if not self._guard.plain:
            self._context.set_compression(compression)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._context.add_done_callback(lambda _: callback(self))

    # -- for the wrapped handlers --------------------------------------------------------------------------------------

    def begin_stream(self) -> None:
        """Turns compression off for all messages to come."""
        if self._guard.plain:
            self._context.set_compression(grpc.Compression.NoCompression)

    def drops(self) -> bool:
        """Whether gRPC drops a unary response, because the handler has set an error; it is then not paid for."""
        return self._guard.withholds and self._code not in _FINE

    async def protect(self, message: Any) -> Any:
        """What may leave instead of a response.

        Raises:
            DpmeshError: Nothing may.
        """
        lane = self._lane
        protected = lane.protect_now(message) if self._release is lane.release else None
        if protected is None:
            protected = await lane.protect(message, self._release)
        if protected is not message:
            self._context.disable_next_message_compression()
        return protected

    def passes(self, error: BaseException) -> bool:
        """Whether an exception goes on to gRPC as it is."""
        if isinstance(error, DpmeshError):
            return False
        if isinstance(error, grpc.aio.AbortError):
            return self.aborted or not self._guard.masks
        return not self._guard.masks or isinstance(error, _GRPC_OWN)

    def failure(self, error: BaseException) -> Failure:
        """How the RPC ends when its handler raised something that does not pass."""
        if isinstance(error, DpmeshError):
            if not isinstance(error, BudgetExhaustedError):  # Those are everyday, and there can be many.
                # Its text, because it holds the message, and who collects records would hold it in turn.
                log.warning("%s: a response was refused: %s", self._guard.lane.method, str(error))
            return refusal(error)
        log.error(
            "%s: the handler failed with %s %s; the text is left out, it could quote a protected message",
            self._guard.lane.method,
            type(error).__qualname__,
            _place(error),
        )
        return Failure(grpc.StatusCode.UNKNOWN if self._code in _FINE else self._code, HANDLER_FAILED)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


class AsyncContext(_Context):
    """The context of asynchronous handlers."""

    __slots__ = ()

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """Ends the RPC with a deliberate status, whose code always reaches the peer."""
        await self._abort(code, self._guard.details(details), self._guard.metadata(trailing_metadata))

    async def abort_with_status(self, status: Any) -> None:
        """Does the same with a grpc.Status."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends initial metadata, as far as the peer may read it."""
        await self._context.send_initial_metadata(self._guard.metadata(initial_metadata))

    async def write(self, message: Any) -> None:
        """Sends one response, protected; a refusal ends the RPC."""
        try:
            protected = await self.protect(message)
        except DpmeshError as error:
            failure = self.failure(error)
        else:
            await self._context.write(protected)
            return
        await self.end(failure)

    async def end(self, failure: Failure) -> None:
        """Ends the RPC, unless the handler already has."""
        if not self.aborted:
            await self._abort(*failure)

    async def _abort(self, code: Any, text: str, trailing: Any) -> None:
        try:
            await self._context.abort(code, text, trailing)
        except grpc.aio.AbortError:
            self.aborted = True
            raise


class SyncContext(_Context):
    """The context of handlers that gRPC runs in an executor.

    gRPC writes a generator's messages behind its back, and an abort that overtakes one of them can hang the RPC.
    So here the RPC ends by the status that its handler leaves behind when it is done, in all cases.
    """

    __slots__ = ()

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """Ends the RPC with a deliberate status, whose code always reaches the peer."""
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        if details:
            self.set_details(details)
        self.set_code(code)
        self.aborted = True
        raise grpc.aio.AbortError("Locally aborted.")

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends initial metadata, as far as the peer may read it."""
        self._context.send_initial_metadata(self._guard.metadata(initial_metadata))

    def passes(self, error: BaseException) -> bool:
        """Whether an exception goes on to gRPC as it is."""
        return not (self.aborted and isinstance(error, Exception)) and super().passes(error)

    def end(self, error: BaseException) -> None:
        """Ends the RPC with an exception that does not pass, unless the handler has already ended it."""
        if self.aborted:
            return
        failure = self.failure(error)
        self._context.set_code(failure.code)
        self._context.set_details(failure.text)
        if failure.trailing:
            self._context.set_trailing_metadata(failure.trailing)
