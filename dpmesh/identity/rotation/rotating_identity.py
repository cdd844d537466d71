"""RotatingIdentity: the identity in force, renewed before it expires, whatever its source does meanwhile.

How it works. A rotating identity is in one of these states:

    NEW      not opened yet
    VALID    open, and the last identity is in force: `current` returns it
    EXPIRED  open, and the last identity has expired: `current` raises
    CLOSED   closed, or in a forked child; for good

    from            event                                           to
    NEW             `async with`, and the source gives an identity  VALID
    NEW             `async with`, and the source fails              CLOSED
    VALID           renewal is due, and the source gives another    VALID, one generation later
    VALID           renewal is due, and the source fails            VALID; the source is asked again after a back-off
    VALID           either clock passes the identity's end          EXPIRED
    EXPIRED         the source gives an identity                    VALID, one generation later
    EXPIRED         the source fails                                EXPIRED; the source is asked again after a back-off
    VALID, EXPIRED  the end of `async with`                         CLOSED
    VALID, EXPIRED  a fork, in the child                            CLOSED

One task asks the source when renewal is due; `renew` asks at once. Both take `_fetch_lock`, so that the source is
asked once at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dpmesh import forks
from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.rotation import fetching, schedule
from dpmesh.identity.rotation.source_health import SourceHealth
from dpmesh.identity.rotation.tasks import Tasks, Waiters, result_in
from dpmesh.telemetry import names
from dpmesh.telemetry.identity import IdentityTelemetry

log = logging.getLogger("dpmesh")

_random = secrets.SystemRandom()

# Seconds that tasks and the source have to end when the identity is closed.
_CLOSING = 5.0


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """The state of rotation.

    Attributes:
        generation: How many identities there were, the one in force included.
        not_after: When the one in force expires, in seconds since 1970.
        renews_at: When the next one is asked for, in seconds since 1970; None where the source decides that.
        failures: How many attempts have failed since the last success.
        last_error: The reason of the last failure since then, or None.
    """

    generation: int
    not_after: float
    renews_at: float | None
    failures: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class _InForce:
    """An identity and its times. It never changes, so other threads read it without a lock.

    Attributes:
        identity: The identity.
        obtained: When it came into force, in monotonic seconds.
        ends: When it expires, in monotonic seconds.
        renews_at: When it is to be renewed, in seconds since 1970.
    """

    identity: Identity
    obtained: float
    ends: float
    renews_at: float


class RotatingIdentity:
    """The identity in force: fetched when opened, renewed at about half of its life, refused when it has expired.

    A source that fails is asked again with back-off, and the last good identity stays in force until it expires. Then
    `current` raises until the source gives another. An identity expires as soon as either the given clock or the
    monotonic clock says so, and is due for renewal by the same rule: setting the clock neither stops rotation nor
    prolongs a life.

    Any thread may read `current`, `generation` and `status`; any event loop may await `wait` and `renew`.
    A forked child has no identity: two processes that present one identity would be linked by it.

    Use it with `async with`, once.

    Args:
        source: Where identities come from. It is closed with this object.
        every: Rotate after so many seconds, give or take a tenth, where that is sooner than about half of the life.
            Not for a source that follows what somebody else decides.
        clock: Seconds since 1970.

    Raises:
        ConfigError: `every` is not a positive number, or is given with a source that follows.
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
        self._latest: _InForce | None = None
        self._generation = 0
        self._health = SourceHealth()
        self._next_fetch = 0.0  # When to ask the source next, in monotonic seconds.
        self._fetch_lock = asyncio.Lock()
        self._tasks = Tasks()
        self._waiters = Waiters()
        self._telemetry = IdentityTelemetry(self._age)

    async def __aenter__(self) -> Self:
        """Fetches the first identity.

        Raises:
            IdentityError: The source gives none, so nothing can start; or this was opened before.
        """
        if self._opened:
            raise IdentityError("EXPIRED", "a rotating identity can't be opened twice: make a new one")
        self._loop = asyncio.get_running_loop()
        self._monotonic = self._loop.time
        self._opened = self._open = True
        forks.register(self)
        try:
            await self._tasks.run(self._rotate_from(0, names.IDENTITY_OPENED), _not_open())
        except BaseException:
            await self._close()
            raise
        self._tasks.start(self._rotate_until_closed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends rotation, closes the source and forgets the identity."""
        await self._close()

    @property
    def current(self) -> Identity:
        """The identity in force. It is at least as new as a `generation` that was read before it.

        Raises:
            IdentityError: EXPIRED: the last identity has expired and there is no new one yet, or this is not open.
        """
        latest = self._in_force()
        if not self._remaining(latest) > 0:
            raise IdentityError("EXPIRED", "the last identity is over, and no new one could be had yet")
        return latest.identity

    @property
    def generation(self) -> int:
        """How many identities there were: 1 for the first, 0 before it."""
        return self._generation

    def status(self) -> IdentityStatus:
        """The state of rotation.

        Raises:
            IdentityError: This is not open.
        """
        latest = self._in_force()
        wait = max(0.0, self._next_fetch - self._monotonic())
        return IdentityStatus(
            generation=self._generation,
            not_after=latest.identity.not_after,
            renews_at=None if self._source.follows else self._clock() + wait,
            failures=self._health.failures,
            last_error=self._health.last_error,
        )

    async def wait(self, generation: int) -> int:
        """Waits for an identity that is newer than the given generation; returns the newest one's generation.

        Raises:
            IdentityError: This is not open, or is closed meanwhile.
        """
        while True:
            with self._waiters.waiter() as woken:
                # Checked once the waiter is in place, so that no identity is missed.
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
            IdentityError: The source gives no new identity now. The old one stays in force.
        """
        loop = self._loop
        if not self._open or loop is None or loop.is_closed():
            raise _not_open()
        work = self._tasks.run(self._rotate_from(self._generation, reason), _not_open())
        if loop is asyncio.get_running_loop():
            await work
        else:
            await result_in(loop, work, _not_open())

    # -- when the source is asked ---------------------------------------------------------------------------------

    async def _rotate_from(self, generation: int, reason: str) -> None:
        async with self._fetch_lock:
            if self._generation == generation and not await self._rotate(reason):
                raise IdentityError(
                    "ISSUER_UNAVAILABLE", "the source has no other identity than the one in force"
                )

    async def _rotate_until_closed(self) -> None:
        """Rotates when it is due. Looks at least once a second, because the clock may be set at any time."""
        while self._open:  # False in a forked child that runs on with its parent's event loop.
            await asyncio.sleep(max(0.0, min(self._next_fetch - self._monotonic(), schedule.POLL)))
            if not self._open:
                return
            try:
                await self._rotate_if_due()
            except Exception as error:  # A clock or a span processor that raises must not end rotation.
                self._next_fetch = max(self._next_fetch, self._monotonic() + schedule.POLL)
                self._health.log_unexpected(type(error).__name__)
            else:
                self._health.log_unexpected(None)

    async def _rotate_if_due(self) -> None:
        self._telemetry.refresh()
        self._health.log_failing(expired=not self._remaining(self._latest) > 0)
        async with self._fetch_lock:
            reason = self._due()
            if reason is None:
                return
            try:
                await self._rotate(reason)
            except IdentityError:
                self._back_off()

    def _due(self) -> str | None:
        """Why the source is to be asked now, or None."""
        latest = self._in_force()
        # After a failure only the back-off counts. Otherwise the given clock counts too: it may have been set forward,
        # or have run on while the machine slept, which the monotonic clock does not.
        past = not (self._source.follows or self._health.failures) and self._clock() >= latest.renews_at
        if not past and self._monotonic() < self._next_fetch:
            return None
        if not self._remaining(latest) > 0:
            return names.IDENTITY_EXPIRED
        return names.IDENTITY_CHANGED if self._source.follows else names.IDENTITY_DUE

    # -- one rotation ---------------------------------------------------------------------------------------------

    async def _rotate(self, reason: str) -> bool:
        """Asks the source, and puts what it gives in force. The caller holds the lock.

        Returns:
            Whether there is a new identity. A source that follows may have none.

        Raises:
            IdentityError: The source gives none that is usable.
        """
        started = time.time_ns()
        try:
            fetched = await fetching.fetch(
                self._source, self._clock, schedule.time_limit(self._remaining(self._latest))
            )
            changed = self._latest is None or fetching.differs(
                fetched, self._latest.identity, self._source.follows
            )
        except IdentityError as error:
            self._record_failure(error.reason)
            raise
        if not self._open:
            raise _not_open()
        overlap = max(0.0, self._remaining(self._latest))
        if changed:
            self._put_in_force(fetched)
        else:
            self._next_fetch = self._monotonic() + schedule.POLL
        self._health.record_success()
        if changed:
            self._telemetry.refresh()
            self._telemetry.rotated(self._generation, reason, overlap, started, time.time_ns())
        return changed

    def _put_in_force(self, fetched: Identity) -> None:
        now, monotonic = self._clock(), self._monotonic()
        life = fetched.not_after - now
        delay = schedule.renew_after(life, self._every, _random.uniform(-1, 1))
        self._latest = _InForce(fetched, monotonic, monotonic + life, now + delay)
        self._generation += 1
        self._next_fetch = monotonic + (schedule.POLL if self._source.follows else delay)
        self._waiters.wake()

    def _record_failure(self, reason: str) -> None:
        self._telemetry.refresh()
        self._telemetry.failed(self._health.record_failure(reason))
        if self._latest is not None:
            self._health.log_failing(expired=not self._remaining(self._latest) > 0)

    def _back_off(self) -> None:
        latest, roll = self._latest, _random.uniform(-1, 1)
        life = 0.0 if latest is None else latest.ends - latest.obtained
        delay = schedule.retry_after(self._health.failures, self._remaining(latest), life, roll)
        self._next_fetch = self._monotonic() + delay

    # -- what is in force -----------------------------------------------------------------------------------------

    def _in_force(self) -> _InForce:
        latest = self._latest
        if latest is None or not self._open:
            raise _not_open()
        return latest

    def _remaining(self, latest: _InForce | None) -> float:
        """Seconds until an identity expires, by the clock that gives it less; 0 when there is none."""
        if latest is None:
            return 0.0
        return min(latest.identity.not_after - self._clock(), latest.ends - self._monotonic())

    def _age(self) -> float | None:
        latest = self._latest
        return None if latest is None else max(0.0, self._monotonic() - latest.obtained)

    # -- the end --------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        if not self._open:
            return  # Also in a forked child, where the tasks and the source's connections are the parent's.
        self._open = False
        self._telemetry.close()
        try:
            await self._tasks.end(_CLOSING)
        finally:
            self._latest = None
            self._waiters.wake()
            await self._close_source()

    async def _close_source(self) -> None:
        try:
            async with asyncio.timeout(_CLOSING):
                await self._source.close()
        except Exception as error:  # Closing must not break the program's end.
            log.warning("a source of identities could not be closed (%s)", type(error).__name__)

    def after_fork_in_child(self) -> None:
        """Closes at once: the identity, its tasks and its waiters are the parent's."""
        self._open = False
        self._latest = None
        self._tasks.ended = True
        self._waiters = Waiters()
        self._telemetry.close()


def _not_open() -> IdentityError:
    return IdentityError(
        "EXPIRED", "there is no identity: it is not open, was closed, or is a parent process's"
    )
