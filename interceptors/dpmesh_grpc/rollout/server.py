"""Rollout server: tells devices when to look for a policy, and counts what they report. It has no policy to give."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio

from dpmesh.errors import ConfigError, DpmeshError, RolloutStoreError
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.rollout.push import halting, published
from dpmesh.rollout.push.counts import Answer, EpochCounts
from dpmesh.rollout.push.published import Published
from dpmesh.rollout.push.reports import DIGEST_BYTES, PSEUDONYM_BYTES, OutcomeReport, RefusalReport, scrubbed
from dpmesh.rollout.push.store import RolloutStore
from dpmesh.v1 import rollout_pb2_grpc as rpc
from dpmesh.v1.rollout_pb2 import (
    ReportOutcomeRequest,
    ReportOutcomeResponse,
    ReportRefusalsRequest,
    ReportRefusalsResponse,
    WatchRequest,
    WatchResponse,
)
from dpmesh_grpc.rollout.batches import Batches, FullError
from dpmesh_grpc.rotation.peer_expiry import peer_interceptor
from dpmesh_grpc.rotation.server_credentials import rotating_server_credentials, server_options

log = logging.getLogger("dpmesh.grpc")

HEARTBEAT: Final = 60.0
"""Seconds after which a watching device hears that nothing has changed."""

REFUSALS_WITHIN: Final = 300.0
"""Seconds in which devices look whether messages are refused, while a part of the fleet has a new policy."""

_LARGEST: Final = 4096  # bytes of a request
_CONCURRENT: Final = 100  # RPCs of one connection
_LOOKS: Final = 0.25  # seconds between two looks at the repository, and at the counts
_AFTER_FAILURE: Final = 1.0  # seconds until the next look where one failed
_FETCHES: Final = 2000  # devices that look at the repository in a second, at most about
_LONGEST_SPREAD: Final = 600_000  # milliseconds
_GRACE: Final = 1.0  # seconds that RPCs under way get when the server stops
_LAST_NUMBER: Final = 2**63  # what databases hold

_BAD: Final = "the report is malformed"
_UNKNOWN: Final = "nobody published this epoch here"
_LATE: Final = "the round is over"
_FULL: Final = "too many reports"
_UNAVAILABLE: Final = "the report could not be stored"

Halt = Callable[[int], Awaitable[None]]
"""Stops the roll-out of an epoch in the repository."""


class RolloutService(rpc.RolloutServiceServicer):
    """Answers RPCs. All texts are fixed, and none quotes a report.

    Args:
        store: Where reports are kept, opened.
        heartbeat: Seconds after which a watching device hears that nothing has changed.
        refusals_within: Seconds in which devices look whether messages are refused.
    """

    def __init__(
        self, store: RolloutStore, *, heartbeat: float = HEARTBEAT, refusals_within: float = REFUSALS_WITHIN
    ) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._within = refusals_within
        self._published = Published(0)
        self._changed = asyncio.Event()
        self._watching = 0
        self._outcomes: Batches[OutcomeReport, Answer] = Batches(store.count_outcomes)
        self._refusals: Batches[RefusalReport, None] = Batches(self._count_refusals)
        self.reports = 0

    async def announce(self, found: Published) -> None:
        """Counts reports about what is published now, and tells all devices that watch.

        Raises:
            RolloutStoreError: The store can't be written. Devices are still told, and report later.
        """
        try:
            await self._store.publish(found)
        finally:
            self._published = found
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def Watch(self, request: WatchRequest, context: Any) -> AsyncIterator[WatchResponse]:
        """Streams the version of the timestamp."""
        self._watching += 1
        try:
            while True:
                changed = self._changed
                yield self._notice()
                try:
                    async with asyncio.timeout(self._heartbeat):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._watching -= 1

    async def ReportOutcome(self, request: ReportOutcomeRequest, context: Any) -> ReportOutcomeResponse:
        """Counts whether a device took a policy."""
        report = OutcomeReport(
            request.epoch, request.digest, request.pseudonym, request.taken, scrubbed(request.reason)
        )
        if (
            not 0 < report.epoch < _LAST_NUMBER
            or len(report.digest) != DIGEST_BYTES
            or len(report.pseudonym) != PSEUDONYM_BYTES
        ):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _BAD)
        answer = await _stored(self._outcomes.add(report), context)
        if answer is Answer.UNKNOWN_EPOCH and report.epoch == self._published.epoch:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _UNAVAILABLE)  # The store does not know it yet.
        if answer is Answer.UNKNOWN_EPOCH:
            await context.abort(grpc.StatusCode.NOT_FOUND, _UNKNOWN)
        if answer is Answer.TOO_MANY:
            await context.abort(grpc.StatusCode.NOT_FOUND, _FULL)
        self.reports += 1
        return ReportOutcomeResponse()

    async def ReportRefusals(self, request: ReportRefusalsRequest, context: Any) -> ReportRefusalsResponse:
        """Counts whether a device refused messages."""
        if len(request.pseudonym) != PSEUDONYM_BYTES or request.epoch > self._published.epoch:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _BAD)
        if not self._asks() or request.round != self._published.version:
            await context.abort(grpc.StatusCode.NOT_FOUND, _LATE)
        report = RefusalReport(request.round, request.epoch, request.pseudonym, request.noisy_refused)
        await _stored(self._refusals.add(report), context)
        self.reports += 1
        return ReportRefusalsResponse()

    def _notice(self) -> WatchResponse:
        return WatchResponse(
            timestamp_version=self._published.version,
            spread_ms=min(self._watching * 1000 // _FETCHES, _LONGEST_SPREAD),
            refusals_within_ms=int(self._within * 1000) if self._asks() else 0,
        )

    def _asks(self) -> bool:
        """Whether a part of the fleet has a new policy, so that it can be compared with the rest."""
        return 0 < self._published.share < 1

    async def _count_refusals(self, reports: Sequence[RefusalReport]) -> Sequence[None]:
        # A report may have waited until another policy was published.
        current = [each for each in reports if each.round == self._published.version]
        await self._store.count_refusals(self._published.epoch, current)
        return [None] * len(reports)


async def _stored(answer: Awaitable[Any], context: Any) -> Any:
    """What the store answers, or the end of the RPC if it can't."""
    try:
        return await answer
    except FullError:
        code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, _FULL
    except RolloutStoreError as error:
        log.error("a report could not be stored: %s", error)  # noqa: TRY400
        code, text = grpc.StatusCode.UNAVAILABLE, _UNAVAILABLE
    except Exception as error:
        log.error("a report could not be stored: %s", type(error).__name__)  # noqa: TRY400
        code, text = grpc.StatusCode.INTERNAL, _UNAVAILABLE
    # Outside of the handler of the exception, which would otherwise be the context of what abort raises.
    return await context.abort(code, text)


class Publisher:
    """Looks at the repository and at the counts: announces what is new, and halts what goes wrong.

    Args:
        repository: The folder with `metadata` and `targets`.
        store: Where reports are kept, opened.
        service: Announces.
        halt: Stops the roll-out of an epoch. None: nobody does, but status says that somebody should.
    """

    def __init__(
        self, repository: Path, store: RolloutStore, service: RolloutService, halt: Halt | None = None
    ) -> None:
        self._repository = repository
        self._store = store
        self._service = service
        self._halt = halt
        self._seen = b""
        self._judged = (b"", 0)
        # The timestamp under which a roll-out was halted: it is not halted again before there is another one.
        self._stopped = b""
        self._problem = ""
        self._published = Published(0)

    async def look(self) -> None:
        """Looks once.

        Raises:
            ConfigError: The repository can't be read.
            RolloutStoreError: The store can't be read or written.
        """
        stamp = await asyncio.to_thread(published.timestamp, self._repository)
        if stamp != self._seen:
            found = await asyncio.to_thread(published.read, self._repository)
            await self._service.announce(found)
            self._seen, self._published = stamp, found
            log.info("timestamp %d: epoch %d for %g of the fleet", found.version, found.epoch, found.share)
        if (stamp, self._service.reports) != self._judged:
            await self._judge()
            self._judged = stamp, self._service.reports

    async def run(self) -> None:
        """Looks until it is cancelled. Whatever is wrong, it says so once, and looks again."""
        while True:
            pause = _AFTER_FAILURE
            try:
                await self.look()
            except DpmeshError as error:
                self._say(str(error))
            except Exception as error:
                self._say(f"{type(error).__name__} in dpmesh while it looked at the roll-out")
            else:
                self._problem, pause = "", _LOOKS
            await asyncio.sleep(pause)

    async def _judge(self) -> None:
        """Halts the newest epoch if what was reported says so. Where all devices have it already, nobody can."""
        if not 0 < self._published.share < 1:
            return
        epoch = self._published.epoch
        found = next((each for each in await self._store.counts() if each.epoch == epoch), None)
        reason = "" if found is None else found.halted or why_halt(found)
        if not reason:
            return
        if await self._store.halt(epoch, reason):
            log.error("the roll-out of epoch %d has to halt: %s", epoch, reason)
        if self._halt is not None and self._stopped != self._seen:
            await self._halt(epoch)
            self._stopped = self._seen
            log.error("the roll-out of epoch %d is halted: no other device takes it", epoch)

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s", problem)
        self._problem = problem


def why_halt(found: EpochCounts) -> str:
    """Why the roll-out of an epoch has to halt; "" if it may go on."""
    return halting.why_halt(found.acks + found.others, found.refused, found.rounds)


@asynccontextmanager
async def rollout_server(
    service: RolloutService, identity: RotatingIdentity, address: str
) -> AsyncIterator[int]:
    """Serves a push service behind mutual TLS: to devices of its identity's trust domain.

    Args:
        service: Answers RPCs.
        identity: An opened identity with a server's certificate.
        address: Where to listen, such as "127.0.0.1:0".

    Yields:
        The port.

    Raises:
        ConfigError: It can't listen there.
        IdentityError: The identity is not open, has ended, or is bad.
    """
    options = (
        ("grpc.max_receive_message_length", _LARGEST),
        ("grpc.max_concurrent_streams", _CONCURRENT),
        ("grpc.so_reuseport", 0),  # Two services on one port would be a mistake.
        *server_options(identity),
    )
    server = grpc.aio.server(interceptors=[peer_interceptor(identity)], options=options)
    rpc.add_RolloutServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    try:
        port = server.add_secure_port(address, rotating_server_credentials(identity))
    except RuntimeError:
        raise ConfigError(f"the push service can't listen on {address!r}") from None
    await server.start()
    try:
        yield port
    finally:
        await server.stop(_GRACE)
