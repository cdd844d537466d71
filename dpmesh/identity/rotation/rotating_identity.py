"""RotatingIdentity: the identity in force, renewed before it ends, whatever its source does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dpmesh import forks
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.rotation import fetching, schedule
from dpmesh.identity.rotation.source_health import SourceHealth
from dpmesh.identity.rotation.tasks import Tasks
from dpmesh.identity.rotation.waiters import Waiters
from dpmesh.telemetry import names
from dpmesh.telemetry.identity import IdentityTelemetry

log = logging.getLogger("dpmesh")

_random = secrets.SystemRandom()

# Seconds that tasks and the source get to end when the identity is closed.
_CLOSING = 5.0
# How often whoever waits for another event loop looks whether it still runs, in seconds.
_LOOK = 0.5


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """How rotation stands.

    Attributes:
        generation: How many identities there were, the one in force included.
        not_after: When the one in force ends, in seconds since 1970.
        renews_at: When the next one is asked for, likewise; None where the source decides when there is one.
        failures: How many attempts failed since the last that did not.
        last_error: The reason of the last of them, or None.
    """

    generation: int
    not_after: float
    renews_at: float | None
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class _Held:
    """An identity in force. Since it never changes, other threads read it without a lock.

    Attributes:
        identity: It.
        obtained: When it came into force, in monotonic seconds.
        ends: When it is over, likewise.
        renews_at: When it is to be renewed, in seconds since 1970.
    """

    identity: Identity
    obtained: float
    ends: float
    renews_at: float


class RotatingIdentity:
    """The identity in force: fetched when opened, renewed at about half of its life, refused when it is over.

    A source that fails is asked again with back-off, and the last good identity stays in force until it ends. Then
    `current` raises, until the source has another. An identity is over as soon as either the given clock or the
    monotonic clock says so, and is renewed likewise: a clock that is set neither stops rotation nor prolongs a life.

    `current`, `generation` and `status` may be read in any thread, `wait` and `renew` awaited in any event loop.
    A forked child has no identity: one that two processes present would tie them to each other.

    Use it with `async with`, once.

    Args:
        source: Where identities come from. It is closed with this.
        every: Rotate after so many seconds, give or take a tenth, where that is sooner than about half of the life.
            Not for a source that follows what somebody else decides.
        clock: Seconds since 1970.

    Raises:
        ConfigError: `every` is not a positive number, or the source is one that follows.
    """

    def __init__(
        self, source: Source, *, every: float | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        if every is not None and not 0 < every < math.inf:
            raise ConfigError(f"an identity's `every` must be a positive number of seconds, not {every}")
        if every is not None and source.follows:
            raise ConfigError(
                "an identity's `every` has no effect with a source that others renew: leave it out"
            )
        self._source = source
        self._every = every
        self._clock = clock
        self._monotonic = time.monotonic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened = self._open = False
        self._held: _Held | None = None
        self._generation = 0
        self._standing = SourceHealth()
        self._next = 0.0  # When the source is asked next, in monotonic seconds.
        self._turn = asyncio.Lock()  # Held by who asks the source.
        self._tasks = Tasks()
        self._waiters = Waiters()
        self._telemetry = IdentityTelemetry(self._age)

    async def __aenter__(self) -> Self:
        """Fetches the first identity.

        Raises:
            IdentityError: There is none to be had, so nothing can start; or it was opened before.
        """
        if self._opened:
            raise IdentityError("EXPIRED", "a rotating identity can't be opened twice: make a new one")
        self._loop = asyncio.get_running_loop()
        self._monotonic = self._loop.time
        self._opened = self._open = True
        forks.register(self)
        try:
            await self._tasks.run(self._first(), _not_open())
        except BaseException:
            await self._close()
            raise
        self._tasks.start(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends rotation, closes the source and lets go of the identity."""
        await self._close()

    @property
    def current(self) -> Identity:
        """The identity in force. It is at least as new as a `generation` that was read before it.

        Raises:
            IdentityError: EXPIRED: the last good one is over and there is no new one yet, or this is not open.
        """
        held = self._in_force()
        if not self._left(held) > 0:
            raise IdentityError("EXPIRED", "the last identity is over, and no new one could be had yet")
        return held.identity

    @property
    def generation(self) -> int:
        """How many identities there were: 1 for the first, 0 before it."""
        return self._generation

    def status(self) -> IdentityStatus:
        """How rotation stands.

        Raises:
            IdentityError: This is not open.
        """
        held = self._in_force()
        wait = max(0.0, self._next - self._monotonic())
        return IdentityStatus(
            generation=self._generation,
            not_after=held.identity.not_after,
            renews_at=None if self._source.follows else self._clock() + wait,
            failures=self._standing.failures,
            last_error=self._standing.last_error,
        )

    async def wait(self, generation: int) -> int:
        """Waits for an identity that is newer than the given generation; returns the newest one's generation.

        Raises:
            IdentityError: This is not open, or is closed meanwhile.
        """
        while True:
            with self._waiters.waiter() as woken:
                # Looked at after the waiter is in place, so that nothing is missed.
                if not self._open:
                    raise _not_open()
                if self._generation > generation:
                    return self._generation
                await woken

    async def renew(self, reason: str) -> None:
        """Rotates now. Calls that overlap share one rotation.

        Args:
            reason: Why, in a constant word or two: spans carry it.

        Raises:
            IdentityError: The source has no new identity now. The one in force stays so.
        """
        loop = self._loop
        if not self._open or loop is None or loop.is_closed():
            raise _not_open()
        work = self._tasks.run(self._renew(reason, self._generation), _not_open())
        if loop is asyncio.get_running_loop():
            await work
        else:
            await _result_in(loop, work)

    # -- asking the source ---------------------------------------------------------------------------------------------

    async def _first(self) -> None:
        async with self._turn:
            await self._rotate(names.IDENTITY_OPENED)

    async def _renew(self, reason: str, generation: int) -> None:
        async with self._turn:
            if self._generation == generation and not await self._rotate(reason):
                raise IdentityError(
                    "ISSUER_UNAVAILABLE", "the source has no other identity than the one in force"
                )

    async def _keep(self) -> None:
        """Renews for as long as this is open. Wakes at least once a second, because the clock may be set any time."""
        while self._open:  # It ends by itself in a forked child that runs on with its parent's event loop.
            await asyncio.sleep(max(0.0, min(self._next - self._monotonic(), schedule.POLL)))
            if not self._open:
                return
            try:
                await self._look()
            except Exception as error:  # A clock or a span processor that raises must not end rotation.
                self._next = max(self._next, self._monotonic() + schedule.POLL)
                self._standing.stumbled(type(error).__name__)
            else:
                self._standing.stumbled(None)

    async def _look(self) -> None:
        """Renews if it is time to."""
        self._telemetry.refresh()
        self._standing.tell(over=not self._rest() > 0)
        async with self._turn:
            reason = self._due()
            if reason is None:
                return
            try:
                await self._rotate(reason)
            except IdentityError:
                self._retry()

    def _due(self) -> str | None:
        """Why it is time to ask the source, or None when it is not."""
        held = self._in_force()
        # After a failure the back-off decides alone. Otherwise the given clock counts too: it may have been set
        # forward, or gone on while the machine slept, which the monotonic clock does not.
        past = not (self._source.follows or self._standing.failures) and self._clock() >= held.renews_at
        if not past and self._monotonic() < self._next:
            return None
        if not self._left(held) > 0:
            return names.IDENTITY_EXPIRED
        return names.IDENTITY_CHANGED if self._source.follows else names.IDENTITY_DUE

    async def _rotate(self, reason: str) -> bool:
        """Asks the source, and takes what it gives. The turn is the caller's.

        Returns:
            Whether there is a new identity. A source that follows may have none.

        Raises:
            IdentityError: It has none that is of use.
        """
        started = time.time_ns()
        try:
            found = await fetching.ask(self._source, self._clock, schedule.time_limit(self._rest()))
            changed = self._held is None or fetching.differs(found, self._held.identity, self._source.follows)
        except IdentityError as error:
            self._failed(error.reason)
            raise
        if not self._open:
            raise _not_open()
        overlap = max(0.0, self._rest())
        if changed:
            self._take(found)
        else:
            self._next = self._monotonic() + schedule.POLL
        self._standing.succeeded()
        if changed:
            self._telemetry.refresh()
            self._telemetry.rotated(self._generation, reason, overlap, started, time.time_ns())
        return changed

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def _take(self, found: Identity) -> None:
        now, monotonic = self._clock(), self._monotonic()
        life = found.not_after - now
        delay = schedule.renew_after(life, self._every, _random.uniform(-1, 1))
        self._held = _Held(found, monotonic, monotonic + life, now + delay)
        self._generation += 1
        self._next = monotonic + (schedule.POLL if self._source.follows else delay)
        self._waiters.wake()

    def _failed(self, reason: str) -> None:
        self._telemetry.refresh()
        self._telemetry.failed(self._standing.failed(reason))
        if self._held is not None:
            self._standing.tell(over=not self._rest() > 0)

    def _retry(self) -> None:
        held, roll = self._held, _random.uniform(-1, 1)
        life = 0.0 if held is None else held.ends - held.obtained
        delay = schedule.retry_after(self._standing.failures, self._rest(), life, roll)
        self._next = self._monotonic() + delay

    def _in_force(self) -> _Held:
        held = self._held
        if held is None or not self._open:
            raise _not_open()
        return held

    def _left(self, held: _Held) -> float:
        """Seconds that an identity has still to live, by the clock that gives it less; 0 or less when it is over."""
        return min(held.identity.not_after - self._clock(), held.ends - self._monotonic())

    def _rest(self) -> float:
        """The same of the one in force; 0 when there is none."""
        return 0.0 if self._held is None else self._left(self._held)

    def _age(self) -> float | None:
        held = self._held
        return None if held is None else max(0.0, self._monotonic() - held.obtained)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        if not self._open:
            return  # Also in a forked child, where the tasks and the source's connections are the parent's.
        self._open = False
        self._telemetry.close()
        try:
            await self._tasks.end(_CLOSING)
        finally:
            self._held = None
            self._waiters.wake()
            await self._close_source()

    async def _close_source(self) -> None:
        try:
            async with asyncio.timeout(_CLOSING):
                await self._source.close()
        except Exception as error:  # Closing must not break the program's end.
            log.warning("a source of identities could not be closed (%s)", type(error).__name__)

    def after_fork_in_child(self) -> None:
        """Closes at once: the identity, its tasks and who waits are the parent's."""
        self._open = False
        self._held = None
        self._tasks.ended = True
        self._waiters = Waiters()
        self._telemetry.close()


async def _result_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine in another event loop, and does not wait for one that has ended.

    Raises:
        IdentityError: It has.
    """
    result = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
    stood_still = False
    try:
        while not (await asyncio.wait({result}, timeout=_LOOK))[0]:
            # A loop may also stand still between two `run_until_complete`.
            if stood_still and not loop.is_running():
                raise _not_open()
            stood_still = not loop.is_running()
        await result
    finally:
        if not loop.is_closed():
            result.cancel()


def _not_open() -> IdentityError:
    return IdentityError(
        "EXPIRED", "there is no identity: it is not open, was closed, or is a parent process's"
    )
