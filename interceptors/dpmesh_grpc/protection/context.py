"""Contexts: what handlers get instead of gRPC's context, so that nothing leaves around the protection of responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from dpmesh.errors import BudgetExhaustedError, DpmeshError
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.refusals import HANDLER_FAILED, is_own
from dpmesh.mesh.response_policy import ResponsePolicy
from dpmesh.mesh.stream import ReleaseStream
from dpmesh_grpc.aio.handlers import set_status
from dpmesh_grpc.aio.internals import PEER_GONE, UNIMPLEMENTED
from dpmesh_grpc.status import Failure, refusal
from dpmesh_grpc.status import end as end_rpc

log = logging.getLogger("dpmesh.grpc")

# Exceptions that gRPC must see: it ends the RPC or the process by them, and never sends their texts.
_GRPC_OWN = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, *PEER_GONE)
# Attributes in which libraries keep the code of an exception that is meant as a status.
_CODE_ATTRIBUTES = ("status_code", "grpc_status_code", "code")
_NOT_GIVEN: Final[Any] = object()
# What gRPC calls the names in a client's certificate, in the order of CertificateNames.
_NAMES: Final = ("peer_uri", "peer_dns", "peer_email", "peer_ip", "x509_common_name")
_OK_CODES = (None, grpc.StatusCode.OK, grpc.StatusCode.OK.value[0])


def _consumer(context: Any) -> str:
    """The consumer's id of the authenticated client of an RPC; never log it.

    The client's URIs are read, not gRPC's peer_spiffe_id, which is missing where a certificate has several.
    """
    peer = context.auth_context()
    named = [peer.get(key, ()) for key in _NAMES]
    if not any(named):
        return ""
    # Imported here because it loads what reads certificates, which many servers do not need.
    from dpmesh.mesh.consumers import CertificateNames, consumer_of

    return consumer_of(CertificateNames(*named))


class _Context:
    """The part that both kinds of context share; all other attributes are those of gRPC's context.

    Attributes:
        aborted: The handler, or dpmesh, has ended the RPC.
    """

    __slots__ = ("_abort_error", "_code", "_context", "_flow", "_policy", "_stream", "aborted")

    def __init__(self, context: Any, policy: ResponsePolicy) -> None:
        self.aborted = False
        self._context = context
        self._policy = policy
        # Set by the first message that has to be released.
        self._flow: Flow | None = None
        self._stream: ReleaseStream | None = None
        self._code: Any = None
        self._abort_error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: Any) -> None:
        self._code = code
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        self._context.set_details(self._policy.details(details))

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._context.set_trailing_metadata(self._policy.metadata(trailing_metadata))

    def set_compression(self, compression: Any) -> None:
        if not self._policy.forbids_compression():
            self._context.set_compression(compression)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._context.add_done_callback(self._policy.without_text(lambda _: callback(self)))

    # -- for the interceptor ------------------------------------------------------------------------------------------

    def begin_stream(self) -> None:
        """Turns compression off for all messages to come."""
        if self._policy.forbids_compression():
            self._context.set_compression(grpc.Compression.NoCompression)

    def close(self) -> None:
        """Ends the span of a stream of responses."""
        if self._stream is not None:
            self._stream.close()

    def drops_response(self) -> bool:
        """Whether gRPC drops a unary response because the handler has set an error code; nothing is charged then."""
        return self._code not in _OK_CODES and not self._policy.observing

    async def protect(self, message: Any) -> Any:
        """What may leave instead of a response.

        Raises:
            DpmeshError: Nothing may leave.
            grpc.aio.AbortError: The RPC has ended; nothing is charged.
        """
        if self._abort_error is not None:
            raise self._abort_error
        flow = self._flow
        if flow is None:
            flow = self._flow = self._flow_to_client()
            if self._policy.streams:
                self._stream = flow.stream()
        if self._policy.intercepted_twice:
            flow.refuse_intercepted_twice(message, self._stream)
        # A coroutine that does not wait takes longer than a call.
        protected = flow.protect_now(message) if self._stream is None else None
        if protected is None:
            protected = await flow.protect(message, self._stream)
        if protected is not message:
            self._context.disable_next_message_compression()
        return protected

    def _status(self, code: Any, details: Any, trailing_metadata: Any) -> tuple[Any, ...]:
        """The arguments for `abort`, as the peer may read them: no more of them than the handler gave.

        Contexts of other libraries may take fewer than gRPC's.
        """
        if trailing_metadata is not _NOT_GIVEN:
            text = "" if details is _NOT_GIVEN else self._policy.details(details)
            return code, text, self._policy.metadata(trailing_metadata)
        return (code,) if details is _NOT_GIVEN else (code, self._policy.details(details))

    def _flow_to_client(self) -> Flow:
        """The flow of this RPC. Called once: finding the client's name takes as long as a release."""
        flow = self._policy.flow
        return flow.for_consumer(_consumer(self._context)) if self._policy.by_consumer else flow

    def passes(self, error: BaseException) -> bool:
        """Whether an exception goes on to gRPC as it is."""
        if is_own(error):
            return False
        if not self._policy.masks_errors() or error is self._abort_error:
            return True
        return isinstance(error, _GRPC_OWN) or _is_unimplemented(error)

    def failure(self, error: BaseException) -> Failure:
        """The status with which the RPC ends when its handler raised an exception that does not pass."""
        if is_own(error):
            if not isinstance(error, BudgetExhaustedError):  # Exhausted budgets would fill the log.
                # The text, not the error: it holds the message, which a collector of log records would keep.
                log.warning("%s: a response was refused: %s", self._policy.flow.method, str(error))
            return refusal(error)
        self._policy.log_failure(error)
        return Failure(_code(error) if self._code in _OK_CODES else self._code, HANDLER_FAILED)


def _is_unimplemented(error: BaseException) -> bool:
    """Whether an exception is what generated code raises for an unimplemented method; it quotes nothing."""
    return (
        type(error) is NotImplementedError
        and error.args in ((), (UNIMPLEMENTED,))
        and error.__context__ is error.__cause__ is None
        and not hasattr(error, "__notes__")
    )


def _code(error: BaseException) -> grpc.StatusCode:
    """The code of an exception that is meant as a status; UNKNOWN for all others, as in gRPC."""
    for name in _CODE_ATTRIBUTES:
        try:
            code = getattr(error, name, None)
        except Exception:  # noqa: S112 -- a property of the application's
            continue
        if isinstance(code, grpc.StatusCode) and code not in _OK_CODES:
            return code
    return grpc.StatusCode.UNKNOWN


class AsyncContext(_Context):
    """The context of asynchronous handlers."""

    __slots__ = ()

    async def abort(self, code: Any, details: str = _NOT_GIVEN, trailing_metadata: Any = _NOT_GIVEN) -> None:
        """Ends the RPC with a deliberate status, whose code always reaches the peer."""
        await self._abort(self._context.abort, *self._status(code, details, trailing_metadata))

    async def abort_with_status(self, status: Any) -> None:
        """Ends the RPC with a deliberate grpc.Status, whose code always reaches the peer."""
        await self.abort(status.code, status.details, *filter(None, (status.trailing_metadata,)))

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends initial metadata, as far as the peer may read it."""
        await self._context.send_initial_metadata(self._policy.metadata(initial_metadata))

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
            await self._abort(end_rpc, self._context, failure)

    async def _abort(self, abort: Callable[..., Awaitable[None]], *arguments: Any, **named: Any) -> None:
        try:
            await abort(*arguments, **named)
        except grpc.aio.AbortError as error:
            self.aborted = True
            self._abort_error = error
            raise


class SyncContext(_Context):
    """The context of handlers that gRPC runs in an executor.

    Such an RPC always ends with the status that is set when its handler is done: gRPC writes a generator's messages in
    the background, and an abort that overtakes one of them can hang the RPC.
    """

    __slots__ = ()

    def abort(self, code: Any, details: str = _NOT_GIVEN, trailing_metadata: Any = _NOT_GIVEN) -> None:
        """Ends the RPC with a deliberate status, whose code always reaches the peer."""
        if not self._policy.masks_errors():
            self._context.abort(*self._status(code, details, trailing_metadata))
        if trailing_metadata is not _NOT_GIVEN and trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        if details is not _NOT_GIVEN and details:
            self.set_details(details)
        self.set_code(code)
        self.aborted = True
        raise grpc.aio.AbortError("Locally aborted.")

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Calls back when the handler is done; gRPC answers the RPC with what a callback raises."""
        self._context.add_callback(self._policy.without_text(callback))

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Sends initial metadata, as far as the peer may read it."""
        self._context.send_initial_metadata(self._policy.metadata(initial_metadata))

    def passes(self, error: BaseException) -> bool:
        """Whether an exception goes on to gRPC as it is."""
        return not (self.aborted and isinstance(error, Exception)) and super().passes(error)

    def end(self, error: BaseException) -> None:
        """Ends the RPC with an exception that does not pass, unless the handler has already ended it."""
        if self.aborted:
            return
        set_status(self._context, self.failure(error))
