"""PolicyFollower: puts the policies of a source in force while a mesh is open, and remembers what was refused."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dpmesh.errors import AnnotationError, ConfigError, DpmeshError, PolicyHeldError, PolicyUnavailableError
from dpmesh.rollout import admission
from dpmesh.rollout.freshness import Freshness
from dpmesh.rollout.held import Held
from dpmesh.rollout.outcome import Outcome
from dpmesh.rollout.policy_order import Terms
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
        | it is looser, and the source is not fresh         | it is tried again when the source is fresh    |
        | the ledger, the disk or dpmesh fails              | it is tried again at the next look            |
        | another offer comes                               | it is forgotten                               |

    Args:
        source: Where policies come from.
        seconds: The time between two looks, about.
        freshness: Counts the time without an answer.
        first: The source's policy with which the mesh begins; None if it is not the source's.
        held: Remembers a policy that waits.

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
        held: Held | None = None,
    ) -> None:
        self.source: Final = source
        self.freshness: Final = freshness
        self.refused = ""
        self.state = freshness.of(source.state)
        self.taken = None if first is None else Outcome.of(first, "", time.time())
        self.push = ""
        self.folder: Path | None = None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_state: Callable[[State], None] = lambda _: None
        self._first = first
        self._seconds = seconds
        self._now: Callable[[], float] = time.time
        self._held = held or Held(None)
        # The policy in force is not the source's, so that there is nothing that the source could loosen.
        self._takes_first = first is None
        self._offer: Offer | None = None
        # Why the offer, or one that was refused for good, is not in force.
        self._unfit = ""
        self._not_before = 0.0
        self._needs_fresh = False
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

    def admit(self, offer: Offer, now: float, old: Terms, new: Terms) -> str:
        """Judges whether an offer may be in force now. It blocks for as long as both policies take to compile.

        Args:
            offer: The policy.
            now: Seconds since 1970, by the ledger's clock.
            old: What is in force.
            new: What the offer would put in force.

        Returns:
            What the ledger has to record before; "" if nothing.

        Raises:
            PolicyHeldError: It is too early.
            ConfigError, PolicyUnavailableError, LedgerError: As of `admission.admitted_at`.
        """
        since = self._held.since(offer.content, now)
        verdict = admission.judge(
            old,
            new,
            offer,
            state=self.source.state,
            signed=self.source.signed,
            first=self._takes_first,
            since=since,
        )
        if verdict.at > now:
            self._held.remember(offer.content, since)
            why = "looser than the policy in force" if verdict.note else "published for later"
            raise PolicyHeldError(
                verdict.at,
                f"policy: epoch {offer.document.epoch} is {why}, and begins at {_utc(verdict.at)}",
            )
        return verdict.note

    def start(self, take: Callable[[Offer], Awaitable[None]], now: Callable[[], float]) -> None:
        """Begins to look, in the running event loop: at once, and then at intervals.

        Args:
            take: Puts a policy in force. It raises PolicyHeldError if that is too early; ConfigError or AnnotationError
                if something is wrong with the policy; PolicyUnavailableError if it may be tried again when the source
                is fresh; any other exception if it may be tried again.
            now: Seconds since 1970, by the ledger's clock.
        """
        self._now = now
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
                self._exchange(offer)
        if self.source.state is State.FRESH:
            await asyncio.to_thread(self.freshness.answered)
        self._pass_to(self.freshness.of(self.source.state))
        may_try = self._now() >= self._not_before and not (
            self._needs_fresh and self.source.state is not State.FRESH
        )
        if self._offer is not None and may_try:
            await self._try(self._offer, take)
        self._say(failed or self._unfit)

    def _exchange(self, offer: Offer) -> None:
        """Puts another offer in the place of the one that waits, if any."""
        waiting = self._offer
        self._forget()
        self._offer = offer
        epoch = offer.document.epoch
        if (
            waiting is not None
            and epoch
            and epoch == waiting.document.epoch
            and offer.content != waiting.content
        ):
            self._unfit = (
                f"policy: epoch {epoch} waits already, with another content: publish it under a new epoch"
            )
            self._end(offer)

    def _forget(self) -> None:
        self._offer, self._unfit, self._not_before, self._needs_fresh = None, "", 0.0, False

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
            self._unfit, self._needs_fresh = str(error), isinstance(error, PolicyUnavailableError)
            return
        except Exception as error:
            self._unfit = _bug(error, "swapped its policy")  # It may have been want of memory.
            return
        else:
            self._unfit, self._takes_first = "", False
        self._end(offer)

    def _end(self, offer: Offer) -> None:
        """Tells what became of an offer, which is not tried any more."""
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


def _utc(at: float) -> str:
    """A time for people, to the second."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"{at:.0f} s since 1970"


def _bug(error: Exception, doing: str) -> str:
    """What people are told of an exception that is not dpmesh's own: its text may quote anything."""
    return f"{type(error).__name__} in dpmesh while it {doing}; report this as a bug"
