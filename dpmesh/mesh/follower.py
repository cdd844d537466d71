"""PolicyFollower: puts the policies of a source in force while a mesh is open, and remembers what was refused."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dpmesh.errors import AnnotationError, ConfigError, DpmeshError, PolicyHeldError, PolicyUnavailableError
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.outcome import Outcome
from dpmesh.rollout.source import Offer, PolicySource, State

log = logging.getLogger("dpmesh")

# Each wait is up to this part shorter or longer, so that a fleet does not ask all at once.
_JITTER = 0.1
# How long a source may take to answer. Sources have limits of their own, which are shorter.
_LONGEST_FETCH = 120.0


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """Where a mesh stands with its policy.

    Attributes:
        state: Whether the mesh can be believed to have the newest one.
        epoch: Of the policy in force; 0 if it has none.
        digest: Of the overlays in force.
        age: Seconds since the source last showed what is newest; 0 without a source.
        refused: Why the source's policy is not the one in force, as far as the last look showed; "" if it is.
    """

    state: State
    epoch: int
    digest: str
    age: float
    refused: str


class PolicyFollower:
    """Asks a source for policies at intervals, in a task of its own.

    Whatever is wrong with the source or its policy, the policy in force stays, and the log says why, once for each
    reason.

    How it works:
        An offer is tried until it is in force, or is refused for good.

        | what happens to an offer                          | what is done                                  |
        |---------------------------------------------------|-----------------------------------------------|
        | it is put in force                                | its outcome is told                           |
        | it is refused by itself (a bad rule, an old epoch)| its outcome is told; the next one is waited for |
        | it may not be in force yet                        | it is tried again when it may                 |
        | the ledger, the disk or dpmesh fails              | it is tried again at the next look            |
        | another offer comes                               | it is forgotten                               |

    Args:
        source: Where policies come from.
        seconds: The time between two looks, about.
        freshness: Counts the time without an answer.
        first: The source's policy with which the mesh begins; None if it is not the source's.
        now: Seconds since 1970.

    Attributes:
        source: As given.
        refused: Why the source's policy is not the one in force, as far as the last look showed; "" if it is.
        state: How far the mesh can be believed to have the newest policy, as of the last look.
        freshness: As given.
        taken: The last outcome of a policy that is in force; None if the source has none of them.
        push: The address of the push service that tells when to look; "" if there is none.
        folder: Where the device keeps its secret; None if it keeps nothing.
        on_outcome: Called with what became of each offer.
        on_state: Called with each new state.
    """

    def __init__(
        self,
        source: PolicySource,
        seconds: float,
        freshness: Freshness,
        *,
        first: Offer | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.source: Final = source
        self.freshness: Final = freshness
        self.refused = ""
        self.state = freshness.of(source.state)
        self.taken = None if first is None else Outcome.of(first, "", now())
        self.push = ""
        self.folder: Path | None = None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_state: Callable[[State], None] = lambda _: None
        self._first = first
        self._seconds = seconds
        self._now = now
        self._offer: Offer | None = None
        # Why the offer, or one that was refused for good, is not in force.
        self._unfit = ""
        self._not_before = 0.0
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Makes the policy with which the mesh begins durable, and the time of the first start. It blocks.

        Raises:
            ConfigError: Another process has taken a newer policy.
            DpmeshError: It can't be stored.
        """
        if self._first is not None:
            self.source.keep(self._first)
        self.freshness.begin()

    def start(self, take: Callable[[Offer], Awaitable[None]]) -> None:
        """Begins to look, in the running event loop: at once, and then at intervals.

        Args:
            take: Puts a policy in force. It raises PolicyHeldError if that is too early; ConfigError or AnnotationError
                if something is wrong with the policy; any other exception if it may be tried again.
        """
        self._poked = asyncio.Event()  # It belongs to the loop.
        self._task = asyncio.get_running_loop().create_task(self._follow(take), name="dpmesh policy")

    async def stop(self) -> None:
        """Ends looking. A policy that is just being put in force is in force as a whole, or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def poke(self) -> None:
        """Looks now: somebody says that there is something new. Call it in the loop of `start`."""
        self._poked.set()

    async def _follow(self, take: Callable[[Offer], Awaitable[None]]) -> None:
        while True:
            try:
                await self._look(take)
            except Exception as error:  # The task has to go on.
                self._say(_bug(error, "looked for its policy"))
            try:
                async with asyncio.timeout(self._seconds * random.uniform(1 - _JITTER, 1 + _JITTER)):  # noqa: S311
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()

    async def _look(self, take: Callable[[Offer], Awaitable[None]]) -> None:
        failed = ""
        try:
            async with asyncio.timeout(_LONGEST_FETCH):
                offer = await self.source.fetch()
        except TimeoutError:
            failed = f"{self.source.name}: does not answer"
        except DpmeshError as error:
            failed = str(error)
            if not isinstance(error, PolicyUnavailableError):
                self._forget()  # There is another answer than the one that was offered.
        else:
            if offer is not None:
                self._forget()
                self._offer = offer
        if self.source.state is State.FRESH:
            await asyncio.to_thread(self.freshness.answered)
        self._pass_to(self.freshness.of(self.source.state))
        if self._offer is not None and self._now() >= self._not_before:
            await self._try(self._offer, take)
        self._say(failed or self._unfit)

    def _forget(self) -> None:
        self._offer, self._unfit, self._not_before = None, "", 0.0

    async def _try(self, offer: Offer, take: Callable[[Offer], Awaitable[None]]) -> None:
        self._unfit = "its swap was cut off"
        try:
            await take(offer)
        except PolicyHeldError as error:
            self._unfit, self._not_before = str(error), error.until
            return
        except (AnnotationError, ConfigError) as error:
            self._unfit = str(error)
        except DpmeshError as error:
            self._unfit = str(error)
            return
        except Exception as error:
            self._unfit = _bug(error, "swapped its policy")  # It may have been want of memory.
            return
        else:
            self._unfit = ""
        self._offer = None
        outcome = Outcome.of(offer, self._unfit, self._now())
        if outcome.taken:
            self.taken = outcome
        self.on_outcome(outcome)

    def _pass_to(self, state: State) -> None:
        if state is self.state:
            return
        self.state = state
        if state is State.FRESH:
            log.info("policy: %s answers again", self.source.name)
        elif state is State.STALE:
            log.warning("policy: %s does not answer: there may be a newer policy", self.source.name)
        else:
            log.error("policy: expired: %s did not answer for too long; nothing may leave", self.source.name)
        self.on_state(state)

    def _say(self, refused: str) -> None:
        if refused and refused != self.refused:
            log.error("the policy in force stays: %s", refused)
        elif self.refused and not refused:
            log.info("the policy of %s is in force", self.source.name)
        self.refused = refused


def _bug(error: Exception, doing: str) -> str:
    """What people are told of an exception that is not dpmesh's own: its text may quote anything."""
    return f"{type(error).__name__} in dpmesh while it {doing}; report this as a bug"
