"""Rollout client: a device hears of new policies at once, and reports what became of them.

It only makes things faster. Without the service, or with one that lies, the device polls its source as before, and
takes nothing that is not signed.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from dpmesh import files
from dpmesh.errors import ConfigError
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh.mesh.mesh import Mesh
from dpmesh.rollout.outcome import Outcome
from dpmesh.rollout.push.reports import outcome_pseudonym, randomized, refusal_pseudonym, scrubbed
from dpmesh.rollout.rings import device_secret
from dpmesh.v1 import rollout_pb2_grpc as rpc
from dpmesh.v1.rollout_pb2 import ReportOutcomeRequest, ReportRefusalsRequest, WatchRequest, WatchResponse
from dpmesh_grpc.rotation.channel import rotating_channel

log = logging.getLogger("dpmesh.grpc")

_SILENCE: Final = 180.0  # seconds without a word after which a stream is taken to be dead: three heartbeats
_TIMEOUT: Final = 10.0  # seconds for a report
_SHORTEST_PAUSE: Final = 0.5  # seconds before the first new attempt
_LONGEST_PAUSE: Final = 60.0  # seconds between two attempts
_LASTED: Final = (
    5.0  # seconds after which a stream that ends was no failure: servers end connections from time to time
)
_BETWEEN_LOOKS: Final = 1.0  # seconds between two looks, at least, however often the service asks for them
_LONGEST_SPREAD: Final = 600.0  # seconds; what the service says is bounded
_LONGEST_QUESTION: Final = 3600.0  # seconds
_REST: Final = (
    3600.0  # seconds between two answers about refused messages, so that nobody can ask all the time
)
_QUEUED: Final = 8  # outcomes that wait for the service: the newest ones

# The service will never take these reports, so nobody sends them again.
_FINAL: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
)


@asynccontextmanager
async def rollout_client(
    mesh: Mesh, identity: RotatingIdentity, *, server_name: str | None = None
) -> AsyncIterator[None]:
    """Lets a mesh hear of new policies from the push service of `[policy] push`, and report what became of them.

    Without that key it does nothing. Enter it in the event loop that opened the mesh.

    Args:
        mesh: An opened mesh.
        identity: An opened identity of the service's trust domain, open for longer than the client.
        server_name: The DNS name in the service's certificate; by default the identity's trust domain.

    Raises:
        ConfigError: The device's secret can't be read or written.
        IdentityError: The identity is not open, or has ended.
    """
    follower = mesh.follower
    if follower is None or not follower.push:
        yield
        return
    secret = await asyncio.to_thread(_secret, follower.folder)
    async with (
        rotating_channel(follower.push, identity, server_name=server_name) as channel,
        RolloutClient(
            channel,
            secret,
            look=follower.poke,
            refusals=lambda: mesh.refusals,
            epoch=lambda: mesh.policy.document.epoch,
        ) as client,
    ):

        def tell(outcome: Outcome) -> None:
            client.report(outcome.epoch, bytes.fromhex(outcome.digest), outcome.taken, outcome.reason)

        mesh.outcome_listeners.append(tell)
        if follower.taken is not None:
            tell(follower.taken)
        try:
            yield
        finally:
            mesh.outcome_listeners.remove(tell)


def _secret(folder: Path | None) -> bytes:
    """The device's secret. One that keeps nothing on its disk gets another at each start, and counts again."""
    if folder is None:
        return secrets.token_bytes(32)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return device_secret(folder)
    except OSError as error:
        raise ConfigError(
            f"policy.cache: {folder}: the device's secret can't be kept ({error.strerror})"
        ) from None
    except files.NotPrivateError:
        raise ConfigError(f"policy.cache: {folder}: others may read the device's secret") from None


class RolloutClient:
    """Watches a push service in tasks of its own, from `async with` to its end.

    Args:
        channel: To the service, open for longer than the client: `dpmesh_grpc.rotating_channel`.
        secret: Known to this device only. It outlives a restart.
        look: Makes the device look for a policy now.
        refusals: How many messages this process has refused so far.
        epoch: The epoch of the policy in force.
        rest: Seconds between two answers about refused messages.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        secret: bytes,
        *,
        look: Callable[[], None],
        refusals: Callable[[], int],
        epoch: Callable[[], int],
        rest: float = _REST,
    ) -> None:
        self._stub: Any = rpc.RolloutServiceStub(channel)  # type: ignore[no-untyped-call]
        self._secret = secret
        self._look = look
        self._refusals = refusals
        self._epoch = epoch
        self._rest = rest
        self._outcomes: dict[int, ReportOutcomeRequest] = {}
        self._wake = asyncio.Event()
        self._version = 0
        self._baseline = 0
        self._answered: float | None = None
        self._looked = -math.inf
        self._looking: asyncio.TimerHandle | None = None
        self._question: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        # In an empty context: the client may be made inside of a trace, which would otherwise go on.
        self._tasks = [
            loop.create_task(work, context=contextvars.Context()) for work in (self._watch(), self._report())
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._tasks, *([self._question] if self._question else [])]
        if self._looking is not None:
            self._looking.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report(self, epoch: int, digest: bytes, taken: bool, reason: str = "") -> None:
        """Reports whether this device took a policy, as soon as the service can be reached. Call it in the event loop.

        Args:
            epoch: The policy's. Policies that were never published, which have none, are not reported.
            digest: SHA-256 of its document.
            taken: It is in force.
            reason: Why it is not, without values.
        """
        if taken:
            self._baseline = self._refusals()  # What another policy refused does not count.
        if not epoch:
            return
        self._outcomes.pop(epoch, None)  # The newest report comes last.
        self._outcomes[epoch] = ReportOutcomeRequest(
            epoch=epoch,
            digest=digest,
            pseudonym=outcome_pseudonym(self._secret, epoch),
            taken=taken,
            reason="" if taken else scrubbed(reason),
        )
        while len(self._outcomes) > _QUEUED:
            del self._outcomes[next(iter(self._outcomes))]
        self._wake.set()

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            begun = loop.time()
            try:
                await self._stream()
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    raise
            except Exception as error:  # The task has to go on.
                log.error("the push service can't be watched: %s", type(error).__name__)  # noqa: TRY400
            failures = 1 if loop.time() - begun > _LASTED else failures + 1
            if failures == 3:
                log.warning("the push service can't be reached; policies are polled as before")
            await asyncio.sleep(_pause(failures))

    async def _stream(self) -> None:
        """One stream, until it ends or is silent for too long."""
        call = self._stub.Watch(WatchRequest())
        try:
            while True:
                async with asyncio.timeout(_SILENCE):
                    notice = await call.read()
                if notice is grpc.aio.EOF:
                    return
                self._heard(notice)
        finally:
            call.cancel()

    def _heard(self, notice: WatchResponse) -> None:
        if notice.timestamp_version == self._version:
            return
        # The question that is open when a process starts may have been answered by the one before.
        first, self._version = not self._version, notice.timestamp_version
        loop = asyncio.get_running_loop()
        if self._looking is None:
            spread = min(notice.spread_ms / 1000, _LONGEST_SPREAD)
            delay = max(spread * random.random(), self._looked + _BETWEEN_LOOKS - loop.time())  # noqa: S311
            self._looking = loop.call_later(delay, self._look_now)
        if self._question is not None:
            self._question.cancel()
            self._question = None
        within = min(notice.refusals_within_ms / 1000, _LONGEST_QUESTION)
        if within and not first and (self._answered is None or loop.time() - self._answered >= self._rest):
            self._baseline = self._refusals()
            self._question = loop.create_task(self._answer(notice.timestamp_version, within))

    def _look_now(self) -> None:
        self._looking = None
        self._looked = asyncio.get_running_loop().time()
        self._look()

    async def _answer(self, round_: int, within: float) -> None:
        """Answers, at a random moment of the second half of the time, whether a message was refused meanwhile."""
        await asyncio.sleep(within * random.uniform(0.5, 1))  # noqa: S311
        # Noted before the answer is sent: one that may have arrived is not drawn again.
        self._answered = asyncio.get_running_loop().time()
        request = ReportRefusalsRequest(
            round=round_,
            epoch=self._epoch(),
            pseudonym=refusal_pseudonym(self._secret, round_),
            noisy_refused=randomized(self._refusals() > self._baseline),
        )
        await self._sent(self._stub.ReportRefusals, request)

    # -- reporting ----------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        failures = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outcomes:
                epoch, request = next(iter(self._outcomes.items()))
                if await self._sent(self._stub.ReportOutcome, request):
                    failures = 0
                    if self._outcomes.get(epoch) is request:
                        del self._outcomes[epoch]
                else:
                    failures += 1
                    await asyncio.sleep(_pause(failures))

    async def _sent(self, method: Any, request: Any) -> bool:
        """Sends a report; whether it need not be sent again."""
        try:
            await method(request, timeout=_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return error.code() in _FINAL
        except asyncio.CancelledError as error:
            if _is_cancelled(error):
                raise
            return False  # The channel cancelled the RPC: its identity ended.
        except Exception as error:
            log.error("a report to the push service failed: %s", type(error).__name__)  # noqa: TRY400
            return False
        return True


def _pause(failures: int) -> float:
    """Seconds before the next attempt: longer after each failure, and random, so that a fleet does not come at once."""
    longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311


def _is_cancelled(error: BaseException) -> bool:
    """Whether this task is asked to end. gRPC raises CancelledError also where an RPC is cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
