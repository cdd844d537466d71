"""WorkloadSource: identities from the SPIFFE Workload API, which SPIRE's agent serves on a local socket."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typing_extensions import override

from dpmesh import extras
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.identity import Identity, Source

if TYPE_CHECKING:
    from spiffe.workloadapi.x509_context import X509Context

# All in seconds.
ANSWER = 8.0  # for an agent's first answer on a connection; RotatingIdentity waits for 10
SHORTEST, LONGEST = 0.1, 5.0  # between two connections
HOUR = 3600.0
CLOSING = 5.0

_logger = logging.getLogger("dpmesh")


class _Failure(NamedTuple):
    """The parts of an IdentityError. The text quotes neither the agent nor the package `spiffe`."""

    reason: str
    text: str


_ABSENT = _Failure("ISSUER_UNAVAILABLE", "there is no SPIFFE Workload API at its address")
_SILENT = _Failure("ISSUER_UNAVAILABLE", "the SPIFFE Workload API did not answer in time")
_STALE = _Failure(
    "ISSUER_UNAVAILABLE", "the last certificate is over, and the SPIFFE Workload API gave no newer one"
)
_BROKEN = _Failure("ISSUER_UNAVAILABLE", "following the SPIFFE Workload API failed")
_CLOSED = _Failure("ISSUER_UNAVAILABLE", "this source of identities is closed, or is a parent process's")
_UNUSABLE = "what the SPIFFE Workload API gave is no usable X.509-SVID with its key and bundle"

_Inbox = queue.SimpleQueue["X509Context | _Failure | None"]


class WorkloadSource(Source):
    """The default X.509-SVID that an agent gives this process (SPIFFE Workload API, sections 5.2 and 5.3).

    The agent decides when there is a new identity, and pushes it. A thread follows the agent, and reconnects after any
    failure or refusal. Until then `fetch` returns the last good identity, for as long as its certificate lives. Peers
    are checked by the roots of the identity's own trust domain; federated trust domains are not trusted.

    Only the key rotates. All SVIDs of a workload have one SPIFFE ID, and SPIRE's have one subject, for as long as their
    entry exists: peers recognise the workload. A server's SVID also needs a DNS name (`spire-server entry create
    -dns`), because gRPC for Python checks no other name; a client's does not.

    The source belongs to the event loop of its first `fetch`, and runs until it is closed. It gives a forked child no
    identity: an agent may know the child under another name.

    Args:
        address: The agent's socket, such as "unix:///run/spire/agent/public/api.sock"; SPIFFE_ENDPOINT_SOCKET by
            default.
        clock: Seconds since 1970.

    Raises:
        ConfigError: The address is missing or wrong, or the package `spiffe` is not installed.
    """

    follows = True

    def __init__(self, address: str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._endpoint = _endpoint(address)
        self._clock = clock
        self._process = os.getpid()
        self._follower: _Follower | None = None
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()
        self._closed = False
        self._identity: Identity | None = None
        self._failure = _SILENT

    @override
    async def fetch(self) -> Identity:
        """Returns the identity in force. Waits for a few seconds at most, and only for the agent's first answer.

        Raises:
            IdentityError: ISSUER_UNAVAILABLE: the agent is not there, does not answer, refuses, or let the last
                certificate expire. MALFORMED or EXPIRED: the agent's answer is not usable.
        """
        if self._process != os.getpid():
            raise IdentityError(*_CLOSED)
        if self._follower is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._follower = _Follower(
                self._endpoint,
                self._clock,
                on_outcome=lambda outcome: loop.call_soon_threadsafe(self._receive, outcome),
                on_end=lambda: loop.call_soon_threadsafe(self._ended.set),
            )
            self._follower.start()
        # The thread's own limit comes first. This one is for a machine that does not let it run.
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER + LONGEST):
                await self._answered.wait()
        identity = self._identity
        if identity is not None and self._clock() < identity.not_after:
            return identity
        raise IdentityError(*self._failure)

    @override
    async def close(self) -> None:
        """Ends the thread and its connection, and forgets the identity; waiting calls of `fetch` fail."""
        self._closed = True
        self._identity, self._failure = None, _CLOSED
        self._answered.set()
        if self._follower is not None and self._process == os.getpid():
            self._follower.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await self._ended.wait()

    def _receive(self, outcome: Identity | _Failure) -> None:
        """Runs in the event loop, as all that touches this object does."""
        if self._closed:
            return
        if isinstance(outcome, Identity):
            old = self._identity
            if old is None or (old.certificates, old.trust_bundle) != (
                outcome.certificates,
                outcome.trust_bundle,
            ):
                self._identity = outcome
            self._failure = _STALE
        else:
            if outcome != self._failure:
                _logger.warning("%s [%s]; asking again", outcome.text, outcome.reason)
            self._failure = outcome
        self._answered.set()


class _Follower(threading.Thread):
    """Follows the agent on one connection after the other, off the event loop: every call here may block.

    The package's X509Source is not used: it blocks while it is made, and ends for good on some failures. So does the
    package's own reconnection; hence every stream here has a client of its own, and ends with it.
    """

    def __init__(
        self,
        endpoint: str,
        clock: Callable[[], float],
        on_outcome: Callable[[Identity | _Failure], object],
        on_end: Callable[[], object],
    ) -> None:
        super().__init__(name="dpmesh-workload-api", daemon=True)
        self._endpoint = endpoint
        self._clock = clock
        self._on_outcome = on_outcome
        self._on_end = on_end
        self._stopped = threading.Event()
        self._inbox: _Inbox = queue.SimpleQueue()

    def stop(self) -> None:
        """Tells the thread to end, without waiting for it."""
        self._stopped.set()
        self._inbox.put(None)

    def run(self) -> None:
        """Connects again and again, with growing pauses while connections don't last."""
        pause = SHORTEST
        with suppress(RuntimeError):  # the event loop is closed
            while not self._stopped.is_set():
                began = time.monotonic()
                try:
                    failure = self._connect()
                except Exception:  # It is not expected, and its text could quote a name.
                    failure = _BROKEN
                if failure is not None:
                    self._on_outcome(failure)
                pause = SHORTEST if time.monotonic() - began > LONGEST else min(2 * pause, LONGEST)
                # Not in step with the other processes that lost the same agent.
                self._stopped.wait(pause * secrets.SystemRandom().uniform(0.5, 1.0))
            self._on_end()

    def _connect(self) -> _Failure | None:
        """Opens a stream and follows it to its end.

        Returns:
            Why the stream gave no identity, or ended; None if that was not the agent's fault.
        """
        from spiffe import WorkloadApiClient
        from spiffe.errors import PySpiffeError

        inbox = self._inbox = queue.SimpleQueue()
        if self._stopped.is_set():  # before `stop` could see this inbox
            return None
        try:
            client = WorkloadApiClient(self._endpoint)
        except PySpiffeError:
            return _ABSENT
        with client:
            stream = client.stream_x509_contexts(
                inbox.put,
                # The argument has only a text; the cause is the exception that is being handled.
                lambda _: inbox.put(_stream_failure(sys.exception())),
                retry_connect=False,
            )
            try:
                return self._listen(inbox)
            finally:
                stream.cancel()

    def _listen(self, inbox: _Inbox) -> _Failure | None:
        patience = ANSWER
        silence: _Failure | None = _SILENT
        while True:
            try:
                received = inbox.get(timeout=patience)
            except queue.Empty:
                return silence
            if received is None or isinstance(received, _Failure):
                return received
            try:
                identity = _read(received, self._clock())
            except IdentityError as error:
                return _Failure(error.reason, _UNUSABLE)
            self._on_outcome(identity)
            # A stream may fall silent without ending. So connect again before the certificate expires.
            left = identity.not_after - self._clock()
            patience, silence = min(max(left / 2, LONGEST), HOUR), None


def _endpoint(address: str | None) -> str:
    try:
        from spiffe.config import ConfigSetter
        from spiffe.errors import ArgumentError
    except ImportError:
        text = f"identities from the SPIFFE Workload API need one more package: {extras.install('spiffe')}"
        raise ConfigError(text) from None
    allowed = "it must be a unix socket, such as unix:///run/spire/agent/public/api.sock"
    try:
        endpoint = str(ConfigSetter(address).get_config().spiffe_endpoint_socket)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"SPIFFE_ENDPOINT_SOCKET or the given address: {error}; {allowed}") from None
    if not endpoint.startswith("unix:"):
        raise ConfigError(f"SPIFFE_ENDPOINT_SOCKET or the given address: {endpoint!r}; {allowed}")
    return endpoint


def _stream_failure(cause: BaseException | None) -> _Failure:
    """Why a stream ended: by this exception, or by the agent without an error."""
    from spiffe.errors import PySpiffeError

    if isinstance(cause, PySpiffeError):
        return _Failure("MALFORMED", _UNUSABLE)
    code = getattr(cause, "code", None)  # a grpc.RpcError's; its details are the peer's words
    status = code().name if callable(code) else "OK"
    return _Failure("ISSUER_UNAVAILABLE", f"the SPIFFE Workload API ended its stream with {status}")


def _read(context: X509Context, now: float) -> Identity:
    """The default SVID, which is the first, with the roots of its trust domain."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    roots = bundle.x509_authorities if bundle is not None else ()
    return Identity.load(
        certificates=b"".join(each.public_bytes(Encoding.PEM) for each in svid.cert_chain),
        key=svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        # The roots are a set. Sorted, equal sets are equal bytes.
        trust_bundle=b"".join(sorted(each.public_bytes(Encoding.PEM) for each in roots)),
        now=now,
    )
