"""Issuer server: serves dpmesh.v1.IssuerService over TLS, and bounds what strangers can make it hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.issuer import BAD_MESSAGE, BUSY, NO_REQUEST, NO_TOKENS, TEXTS, Issuer
from dpmesh.v1 import identity_pb2

log = logging.getLogger("dpmesh.grpc")

_LARGEST = 512 * 1024  # bytes of a request; a thousand blinded messages are half of it
_CONCURRENT = 1000  # requests that the server works on at once; it refuses more
_WAITING = 1000  # RPCs whose requests have not arrived; a new one ends the oldest
_ARRIVAL = 5.0  # seconds in which a request must arrive
_GRACE = 2.0  # seconds that RPCs under way get when the server stops
# Anybody can open connections and RPCs, so the number and the time of both are bounded.
_OPTIONS = (
    ("grpc.max_receive_message_length", _LARGEST),
    ("grpc.so_reuseport", 0),  # Two issuers on one port would be a mistake.
    ("grpc.max_concurrent_streams", 16),  # of one connection; a device needs one
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.max_connection_age_ms", 60_000),  # A connection would outlive the certificate otherwise.
    ("grpc.max_connection_age_grace_ms", 10_000),
)

_FAILED = "the issuer failed"
_STATUS = {
    "REFUSED": grpc.StatusCode.UNAUTHENTICATED,
    "MALFORMED": grpc.StatusCode.INVALID_ARGUMENT,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "EXPIRED": grpc.StatusCode.FAILED_PRECONDITION,
    "ISSUER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
}


class _IssuerService:
    """Answers RPCs with the issuer's decisions. All texts are fixed, and none quotes a request.

    It bounds how long requests take to arrive, and how many there are.
    """

    def __init__(self, issuer: Issuer) -> None:
        self._decisions: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "Enrol": issuer.enrol,
            "Renew": issuer.renew,
            "GetTokenKeys": issuer.token_key_list,
            "SignTokens": issuer.sign_tokens,
        }
        self._busy = 0
        self.arrivals = _Arrivals()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the handlers of all methods."""
        service = identity_pb2.DESCRIPTOR.services_by_name["IssuerService"]
        methods = {method.name: self._handler(method) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, methods),))

    def _handler(self, method: Any) -> Any:
        request_type = message_factory.GetMessageClass(method.input_type)
        decide = self._decisions[method.name]

        async def handle(_: Any, context: Any) -> Any:
            received = await self.arrivals.request(context)
            if received is None:
                return await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, NO_REQUEST)
            if self._busy >= _CONCURRENT:
                return await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
            try:
                request = request_type.FromString(received)
            except DecodeError:
                request = None
            if request is None:
                return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, BAD_MESSAGE)
            self._busy += 1
            try:
                return await _answer(decide(request), context)
            finally:
                self._busy -= 1

        serializer = message_factory.GetMessageClass(method.output_type).SerializeToString
        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=serializer)


class _Arrivals:
    """RPCs whose requests have not arrived.

    gRPC counts an RPC as soon as its headers arrive, and waits for its request without a limit. A client that sends no
    request would occupy the server for ever. So handlers take requests as streams of one message, and wait here with a
    limit. A new RPC is never refused: it ends the one that has waited longest.
    """

    def __init__(self) -> None:
        self._timers: dict[asyncio.Timeout, None] = {}  # in the order of their ends

    async def request(self, context: Any) -> bytes | None:
        """The one message of an RPC, or None if it did not arrive in time."""
        if len(self._timers) >= _WAITING:
            self._end(next(iter(self._timers)))
        try:
            async with asyncio.timeout(_ARRIVAL) as timer:
                self._timers[timer] = None
                message = await context.read()
        except TimeoutError:
            return None
        finally:
            self._timers.pop(timer, None)
        return None if message is grpc.aio.EOF else message

    def close(self) -> None:
        """Ends all RPCs that wait."""
        for timer in list(self._timers):
            self._end(timer)

    def _end(self, timer: asyncio.Timeout) -> None:
        del self._timers[timer]
        if not timer.expired():
            timer.reschedule(asyncio.get_running_loop().time())


async def _answer(response: Awaitable[Any], context: Any) -> Any:
    try:
        return await response
    except IdentityError as error:
        code = _STATUS.get(error.reason, grpc.StatusCode.INTERNAL)
        text = str(error).removesuffix(f" [{error.reason}]")  # The reason is in the status.
    except NotImplementedError:
        code, text = grpc.StatusCode.UNIMPLEMENTED, NO_TOKENS
    except Exception as error:
        # Without its text and trace, which could quote the request.
        log.error("the issuer failed: %s", type(error).__name__)  # noqa: TRY400
        code, text = grpc.StatusCode.INTERNAL, _FAILED
    # Outside of the handler of the exception, which would otherwise be the context of what abort raises.
    return await context.abort(code, text if text in TEXTS else _FAILED)


@asynccontextmanager
async def issuer_server(issuer: Issuer, address: str) -> AsyncIterator[int]:
    """Serves an issuer over TLS. Its own authority gives it a certificate, which it renews after half of its life.

    Args:
        issuer: Decides about requests.
        address: Where to listen, such as "127.0.0.1:0".

    Yields:
        The port.

    Raises:
        ConfigError: It can't listen there.
        IdentityError: EXPIRED: the authority's certificate has ended.
    """
    server = grpc.aio.server(options=_OPTIONS)
    service = _IssuerService(issuer)
    service.add_to(server)
    certificates = _ServerCertificates(issuer)
    credentials = grpc.dynamic_ssl_server_credentials(certificates.first, certificates)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        raise ConfigError(f"the issuer can't listen on {address!r}") from None
    await server.start()
    try:
        yield port
    finally:
        service.arrivals.close()
        await server.stop(_GRACE)


class _ServerCertificates:
    """Gives gRPC the service's own certificate: `first`, which it starts with, and then each new one."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self.first = self._next()

    def __call__(self) -> Any:
        """A new configuration, or None to keep the one before. gRPC asks at every handshake, in another thread."""
        if self._issuer.clock() < self._renew_at:
            return None
        try:
            return self._next()
        except IdentityError as error:
            # gRPC keeps the old one and does not log it.
            log.error("the issuer's own certificate can't be renewed: %s", error.reason)  # noqa: TRY400
            return None

    def _next(self) -> Any:
        key, chain, self._renew_at = self._issuer.server_certificate()
        return grpc.ssl_server_certificate_configuration([(key, chain)])
