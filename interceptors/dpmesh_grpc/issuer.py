"""Issuer: dpmesh.v1.IssuerService over TLS, and the source of identities that asks it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.ca.authority import issuer_name
from dpmesh.identity.ca.issuer import BAD_MESSAGE, BUSY, NO_REQUEST, NO_TOKENS, TEXTS, Issuer
from dpmesh.identity.ca.proof import RENEW, prove
from dpmesh.identity.identity import Identity, trust_domain
from dpmesh.identity.keys import key_pem, new_key
from dpmesh.v1 import identity_pb2
from dpmesh.v1 import identity_pb2_grpc as rpc
from dpmesh.v1.identity_pb2 import (
    Certificate,
    EnrolRequest,
    EnrolResponse,
    GetTokenKeysRequest,
    GetTokenKeysResponse,
    RenewRequest,
    RenewResponse,
    SignTokensRequest,
    SignTokensResponse,
)

log = logging.getLogger("dpmesh.grpc")

TIMEOUT = 10.0
"""Seconds that a client waits for the issuer."""

_LARGEST = 512 * 1024  # bytes of a request; a thousand blinded messages are half of it
_CONCURRENT = 1000  # requests that the server works on at once; more are told to come later
_WAITING = 1000  # RPCs whose requests are still to come; the oldest gives way to a new one
_ARRIVAL = 5.0  # seconds that a request may take to come
_GRACE = 2.0  # seconds that RPCs under way get when the server stops
# A stranger can open connections and RPCs: what each of them holds is bounded in number and in time.
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
_REASON = {
    grpc.StatusCode.UNAUTHENTICATED: "REFUSED",
    grpc.StatusCode.PERMISSION_DENIED: "REFUSED",
    grpc.StatusCode.INVALID_ARGUMENT: "REFUSED",
    grpc.StatusCode.FAILED_PRECONDITION: "REFUSED",
    grpc.StatusCode.UNIMPLEMENTED: "REFUSED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
}
_WORDS = {
    "REFUSED": "the issuer refused",
    "RATE_LIMITED": "the issuer has no more to give now",
    "ISSUER_UNAVAILABLE": "the issuer can't be reached, or is not the one that is trusted",
}

_T = TypeVar("_T")


class IssuerService(rpc.IssuerServiceServicer):
    """The issuer's decisions as statuses; every text is fixed, and none quotes a request.

    Args:
        issuer: Who decides.
    """

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def Enrol(self, request: EnrolRequest, context: Any) -> EnrolResponse:
        """See the proto."""
        return await _answer(self._issuer.enrol(request), context)

    async def Renew(self, request: RenewRequest, context: Any) -> RenewResponse:
        """See the proto."""
        return await _answer(self._issuer.renew(request), context)

    async def GetTokenKeys(self, request: GetTokenKeysRequest, context: Any) -> GetTokenKeysResponse:
        """See the proto."""
        return await _answer(self._issuer.token_key_list(), context)

    async def SignTokens(self, request: SignTokensRequest, context: Any) -> SignTokensResponse:
        """See the proto."""
        return await _answer(self._issuer.sign_tokens(request), context)


class _Arrivals:
    """RPCs whose requests are still to come.

    gRPC counts an RPC as soon as its headers are there, and waits for its request without a limit. A client that sends
    no request would hold a place for ever. So handlers take requests as streams of one message, and wait here. A new
    RPC is never refused: it takes the place of the one that has waited longest.
    """

    def __init__(self) -> None:
        self._timers: dict[asyncio.Timeout, None] = {}  # in the order of their ends

    async def request(self, context: Any) -> bytes | None:
        """The one message of an RPC, or None if it did not come."""
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
        """Ends all that wait."""
        for timer in list(self._timers):
            self._end(timer)

    def _end(self, timer: asyncio.Timeout) -> None:
        del self._timers[timer]
        if not timer.expired():
            timer.reschedule(asyncio.get_running_loop().time())


class _Handlers:
    """The methods of the service, each with limits for how long a request may take to come, and how many there are.

    Args:
        service: Answers requests.
    """

    def __init__(self, service: IssuerService) -> None:
        self._service = service
        self._busy = 0
        self.arrivals = _Arrivals()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers all methods."""
        service = identity_pb2.DESCRIPTOR.services_by_name["IssuerService"]
        methods = {method.name: self._handler(method) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, methods),))

    def _handler(self, method: Any) -> Any:
        request_type = message_factory.GetMessageClass(method.input_type)
        answer = getattr(self._service, method.name)

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
                return await answer(request, context)
            finally:
                self._busy -= 1

        serializer = message_factory.GetMessageClass(method.output_type).SerializeToString
        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=serializer)


async def _answer(response: Awaitable[_T], context: Any) -> _T:
    try:
        return await response
    except IdentityError as error:
        code, text = _STATUS.get(error.reason, grpc.StatusCode.INTERNAL), _text(error)
    except NotImplementedError:
        code, text = grpc.StatusCode.UNIMPLEMENTED, NO_TOKENS
    except Exception as error:
        # Without its text and trace, which could quote the request.
        log.error("the issuer failed: %s", type(error).__name__)  # noqa: TRY400
        code, text = grpc.StatusCode.INTERNAL, _FAILED
    # Outside of the handler of the exception, which would otherwise be the context of what abort raises.
    return await context.abort(code, text)  # type: ignore[no-any-return]


def _text(error: IdentityError) -> str:
    """What a client is told: one of the issuer's texts, without the reason, which the status says."""
    text = str(error).removesuffix(f" [{error.reason}]")
    return text if text in TEXTS else _FAILED


@asynccontextmanager
async def issuer_server(issuer: Issuer, address: str) -> AsyncIterator[int]:
    """Serves an issuer over TLS, under a certificate of its own authority that it renews at half of its life.

    Args:
        issuer: Who decides.
        address: Where to listen, as "127.0.0.1:0".

    Yields:
        The port.

    Raises:
        ConfigError: It can't listen there.
        IdentityError: EXPIRED: the authority is over.
    """
    server = grpc.aio.server(options=_OPTIONS)
    handlers = _Handlers(IssuerService(issuer))
    handlers.add_to(server)
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
        handlers.arrivals.close()
        await server.stop(_GRACE)


class _ServerCertificates:
    """The service's own certificate.

    Args:
        issuer: Issues it.

    Attributes:
        first: What gRPC starts with.
    """

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self.first = self._next()

    def __call__(self) -> Any:
        """What replaces the configuration, or None; gRPC asks at every handshake, in another thread."""
        if self._issuer.clock() < self._renew_at:
            return None
        try:
            return self._next()
        except IdentityError as error:
            # gRPC would go on with the old one without a word.
            log.error("the issuer's own certificate can't be renewed: %s", error.reason)  # noqa: TRY400
            return None

    def _next(self) -> Any:
        key, chain, self._renew_at = self._issuer.server_certificate()
        return grpc.ssl_server_certificate_configuration([(key, chain)])


class IssuerSource:
    """Asks an issuer: enrols once, then renews by the certificate in force. Every fetch has a key of its own.

    Nothing outlives a fetch but the identity it gave: each opens a connection of its own, presents no certificate, and
    closes it. The first identity that is over ends the source: the device has to enrol again, with a new token.

    Args:
        target: Where the issuer is, "host:port".
        trust_bundle: The roots in PEM, got by a trusted way together with the token. The issuer may replace them later.
        enrolment_token: A one-time token.
        identity: Instead of a token: one to renew, which is in force.
        timeout: How long to wait for the issuer, in seconds.
        clock: Seconds since 1970.

    Attributes:
        follows: False: every `fetch` makes a key and a certificate.

    Raises:
        ConfigError: There is neither a token nor an identity, or both.
        IdentityError: MALFORMED: the trust bundle is not in PEM, or not an authority's.
    """

    follows = False

    def __init__(
        self,
        target: str,
        trust_bundle: bytes,
        *,
        enrolment_token: str | None = None,
        identity: Identity | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (enrolment_token is None) == (identity is None):
            raise ConfigError("an issuer is asked either with a token or with an identity to renew")
        self._target = target
        self._trust_bundle = trust_bundle
        self._domain = _domain(trust_bundle)
        self._token = enrolment_token
        self._identity = identity
        self._timeout = timeout
        self._clock = clock
        self._turn = asyncio.Lock()

    async def fetch(self) -> Identity:
        """See Source.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE, RATE_LIMITED, or REFUSED: the text says what to do. MALFORMED,
                EXPIRED or UNTRUSTED: what the issuer gave is no identity of this trust domain.
        """
        # One after the other: a token serves once.
        async with self._turn:
            key = new_key()
            certificate = await self._ask(_certificate_request(key))
            identity = Identity.load(certificate.chain, key_pem(key), certificate.trust_bundle, self._clock())
            if identity.trust_domain != self._domain or _domain(identity.trust_bundle) != self._domain:
                raise IdentityError("UNTRUSTED", "the issuer gave an identity of another trust domain")
            self._identity, self._token = identity, None
            self._trust_bundle = identity.trust_bundle
            return identity

    async def close(self) -> None:
        """There is nothing to let go of: every fetch closes what it opened."""

    async def _ask(self, certificate_request: bytes) -> Certificate:
        try:
            async with issuer_channel(self._target, self._trust_bundle) as channel:
                stub: Any = rpc.IssuerServiceStub(channel)  # type: ignore[no-untyped-call]
                if self._identity is None:
                    first = EnrolRequest(enrolment_token=self._token, certificate_request=certificate_request)
                    response = await stub.Enrol(first, timeout=self._timeout)
                else:
                    request = RenewRequest(certificate_request=certificate_request)
                    prove(RENEW, request, self._identity, self._clock())
                    response = await stub.Renew(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            refusal = issuer_error(error)
        else:
            certificate: Certificate = response.certificate
            return certificate
        # Outside of the handler: the cause would bring the peer's own text along.
        raise refusal


def issuer_channel(target: str, trust_bundle: bytes) -> grpc.aio.Channel:
    """A channel to an issuer: encrypted, with nothing in it that another one has; the issuer's certificate is checked.

    Args:
        target: Where the issuer is, "host:port".
        trust_bundle: The roots in PEM.

    Raises:
        IdentityError: MALFORMED: the trust bundle is not in PEM, or not an authority's.
    """
    options = (
        # Channels that share a connection tie what is asked on them together.
        ("grpc.use_local_subchannel_pool", 1),
        # The name that no other server of the trust domain has, wherever the issuer is.
        ("grpc.ssl_target_name_override", issuer_name(_domain(trust_bundle))),
    )
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust_bundle), options)


def issuer_error(error: grpc.aio.AioRpcError) -> IdentityError:
    """Why an issuer gave nothing. What it said is repeated only if it is a text that dpmesh has itself."""
    reason = _REASON.get(error.code(), "ISSUER_UNAVAILABLE")
    details = error.details()
    return IdentityError(reason, details if details in TEXTS else _WORDS[reason])


def _certificate_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _domain(trust_bundle: bytes) -> str:
    """The trust domain that all roots of a bundle name."""
    try:
        domains = {trust_domain(root) for root in x509.load_pem_x509_certificates(trust_bundle)}
    except ValueError:
        domains = set()
    if len(domains) != 1:
        raise IdentityError("MALFORMED", "the trust bundle is not in PEM, or not of one trust domain")
    return domains.pop()
