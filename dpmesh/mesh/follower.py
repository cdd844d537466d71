"""PolicyFollower: puts the policies of a source in force while a mesh is open, and remembers what was refused."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dpmesh.errors import (
    AnnotationError,
    ConfigError,
    DpmeshError,
    LedgerError,
    PolicyHeldError,
    PolicyUnavailableError,
)
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
# After how many seconds a swap may be taken to hang: far more than compiling a policy takes.
_LONGEST_SWAP = 120.0


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """Where a mesh stands with its policy.

    Attributes:
        state: Whether the mesh is known to have the newest one.
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

        | what happens to an offer                          | what is done                                            |
        |---------------------------------------------------|---------------------------------------------------------|
        | it is put in force                                | its outcome is told                                     |
        | it is refused for its content, such as a bad rule | its outcome is told; an import of a module: another try |
        | it is too early                                   | it is tried again when its time comes                   |
        | it is looser, and the source is not fresh         | it is tried again when the source is fresh              |
        | the ledger, the disk or dpmesh fails              | its outcome is told; the next look tries it again       |
        | another offer comes                               | it is forgotten                                         |

        The task that looks may wait for a source, a disk or a lock that never answers. So somebody else calls `check`,
        which lets the state become stale, and the policy expire, in the meantime.

    Args:
        source: Where policies come from.
        seconds: The time between two looks, about.
        freshness: Counts the time without an answer.
        first: The source's policy with which the mesh begins; None if it is not the source's.
        held: Remembers a policy that waits.
        has_taken: The device has taken a policy of the source before, though it may begin with another one.

    Attributes:
        source: As given.
        refused: Why the source's policy is not the one in force, as far as the last look showed; "" if it is.
        state: Whether the mesh is known to have the newest policy, as of the last look or check.
        freshness: As given.
        taken: The last outcome of a policy that is in force; None if the source has none of them.
        push: The address of the push service that tells when to look; "" if there is none.
        folder: Where the device keeps its secret; None if it keeps nothing.
        on_outcome: Called with what became of each offer, once for each reason of a refusal.
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
        has_taken: bool = False,
    ) -> None:
        self.source: Final = source
        self.freshness: Final = freshness
        self.refused = ""
        if source.state is State.FRESH:
            freshness.answered()
        # The source's state as of the last look; STALE if it did not answer.
        self._shown = source.state
        self.state = freshness.of(source.state)
        self.taken = None if first is None else Outcome.of(first, "", time.time())
        self.push = ""
        self.folder: Path | None = None
        self.on_outcome: Callable[[Outcome], None] = lambda _: None
        self.on_state: Callable[[State], None] = lambda _: None
        self._first = first
        self._seconds = seconds
        # How old the last answer can be, as long as looks end.
        self._overdue = seconds * (1 + _JITTER) + _LONGEST_FETCH + _LONGEST_SWAP
        self._now: Callable[[], float] = time.time
        self._held = held or Held(None)
        # The policy in force is not the source's, so that there is nothing that the source could loosen.
        self._takes_first = first is None and not has_taken
        self._offer: Offer | None = None
        # Why the offer, or one that was refused for good, is not in force.
        self._unfit = ""
        self._not_before = 0.0
        self._needs_fresh = False
        # How many modules were imported when the offer was refused by itself; -1 if it was not.
        self._modules = -1
        # The digest of the offer, and why it was refused, as of the last outcome.
        self._told: tuple[str, str] | None = None
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Makes the policy with which the mesh begins durable, and the time of the first start. It blocks.

        Raises:
            ConfigError: A newer policy was taken before, or by another process.
            DpmeshError: It can't be stored.
        """
        if self._first is not None:
            self.source.keep(self._first)
            self._first = None  # A mesh that is entered again goes on with the policy that it has then.
        self.freshness.note()

    def check(self) -> None:
        """Lets the state follow the time. Call it in the loop of `start`, every few seconds at least."""
        overdue = self._shown is State.FRESH and self.freshness.age > self._overdue
        state = self.freshness.of(State.STALE if overdue else self._shown)
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
        failed = await self._ask()
        if self._shown is State.FRESH:
            self.freshness.answered()
        self.check()
        if self._offer is not None and self._may_try():
            await self._try(self._offer, take)
        self._say(failed or self._unfit)
        await asyncio.to_thread(self.freshness.note)

    async def _ask(self) -> str:
        """Asks the source, and returns why there is no answer, or none that can be taken; "" if there is."""
        shown = State.STALE
        try:
            async with asyncio.timeout(_LONGEST_FETCH):
                offer = await self.source.fetch()
        except TimeoutError:
            failed = f"{self.source.name}: does not answer"
        except PolicyUnavailableError as error:
            failed = str(error)
        except DpmeshError as error:
            failed, shown = str(error), self.source.state
            self._forget()  # There is another answer than the one that was offered.
        except Exception as error:
            failed = _bug(error, "looked for its policy")
        else:
            failed, shown = "", self.source.state
            if offer is not None:
                self._exchange(offer)
        self._shown = shown
        return failed

    def _exchange(self, offer: Offer) -> None:
        """Puts another offer in the place of the one that waits, if any."""
        waiting = self._offer if self._modules < 0 else None
        self._forget()
        epoch = offer.document.epoch
        if waiting and epoch and epoch == waiting.document.epoch and offer.content != waiting.content:
            self._unfit = (
                f"policy: epoch {epoch} waits already, with another content: publish it under a new epoch"
            )
            self._tell(offer, self._unfit)
        else:
            self._offer = offer

    def _forget(self) -> None:
        self._offer, self._unfit = None, ""
        self._not_before, self._needs_fresh, self._modules = 0.0, False, -1

    def _may_try(self) -> bool:
        """Whether the offer may be in force by now, unless it was refused by itself and nothing has changed since."""
        return (
            self._now() >= self._not_before
            and not (self._needs_fresh and self._shown is not State.FRESH)
            and self._modules != len(sys.modules)
        )

    async def _try(self, offer: Offer, take: Callable[[Offer], Awaitable[None]]) -> None:
        self._unfit, self._modules = "its swap was cut off", -1
        modules = len(sys.modules)
        told = None
        try:
            await take(offer)
        except PolicyHeldError as error:
            self._unfit, self._not_before = str(error), error.until
            return
        except (AnnotationError, ConfigError) as error:
            self._unfit, self._modules = str(error), modules
        except DpmeshError as error:
            self._unfit, self._needs_fresh = str(error), isinstance(error, PolicyUnavailableError)
            if self._needs_fresh:
                return
            if isinstance(error, LedgerError):
                told = "the ledger can't answer"  # Its own text may name the ledger's host or file.
        except Exception as error:
            self._unfit = _bug(error, "swapped its policy")  # It may have been want of memory.
        else:
            self._unfit, self._offer, self._takes_first = "", None, False
        self._tell(offer, self._unfit if told is None else told)

    def _tell(self, offer: Offer, reason: str) -> None:
        """Tells what became of an offer, unless that is what was told last."""
        outcome = Outcome.of(offer, reason, self._now())
        if outcome.taken:
            self.taken = outcome
        if (outcome.digest, outcome.reason) != self._told:
            self._told = outcome.digest, outcome.reason
            self.on_outcome(outcome)

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
