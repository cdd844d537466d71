"""Mesh: what transports and applications hold. It owns the policy in force, and opens and closes the ledger."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from google.protobuf.message import Message

from dpmesh.config import Config, GrpcConfig
from dpmesh.errors import ConfigError, DpmeshError, LedgerError, NotOpenError
from dpmesh.ledger import Ledger
from dpmesh.mesh import swapping
from dpmesh.mesh.corridor import Corridor
from dpmesh.mesh.exhausted import ExhaustedCache
from dpmesh.mesh.follower import PolicyFollower, PolicyStatus
from dpmesh.mesh.observed import ObservedRefusals
from dpmesh.mesh.pseudonyms import Pseudonyms
from dpmesh.mesh.receipt import Direction, Receipt
from dpmesh.mesh.recording import Recording, StreamRecord
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.mesh.stream import ReleaseStream
from dpmesh.policy import Policy
from dpmesh.rollout.outcome import Outcome
from dpmesh.rollout.policy_order import Terms
from dpmesh.rollout.source import Offer, State
from dpmesh.telemetry import Telemetry, configure_from_environment, names
from dpmesh.telemetry.policy import PolicyTelemetry
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")

_REFRESH_SECONDS = 1.0


class Mesh:
    """The engine behind the interceptors: policy, ledger, noise and telemetry in one place.

    An asynchronous context manager: it opens the ledger on entry and returns unspent leases on exit. `dpmesh.open`
    makes one from a configuration.

    Args:
        policy: The rules.
        ledger: Where budgets live; the mesh opens and closes it.
        telemetry: Where spans and metrics go.
        mode: "enforce", or "observe": messages leave as they are, they are accounted for and traced only.
        grpc: What may leave although no rule protects it.
        monotonic: Seconds, for how long an exhausted account is refused from memory.
        follower: Looks for other policies while the mesh is open; None: only `swap` replaces the policy.
        settings: The configuration, whose budgets and mode hold where a policy has none. None: the ledger's budgets and
            `mode` do.

    Attributes:
        snapshot: The policy in force, with everything that follows from it. `swap` replaces it.
        ledger: Where budgets live.
        grpc: What may leave although no rule protects it.
        observing: The mode is observe.
        observed: Logs what enforce mode would refuse; None if the mode is not observe.
        outcome_listeners: Called with what became of each policy that the follower offered, after the log was told.

    Raises:
        ConfigError: A part is of the wrong type, there is no such mode, or a quota does not belong under its budget.
    """

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        telemetry: Telemetry | None = None,
        mode: Literal["enforce", "observe"] = "enforce",
        *,
        grpc: GrpcConfig = GrpcConfig(),  # noqa: B008 - it is immutable
        monotonic: Callable[[], float] = time.monotonic,
        follower: PolicyFollower | None = None,
        settings: Config | None = None,
    ) -> None:
        for name, part, kind in (("policy", policy, Policy), ("ledger", ledger, Ledger)):
            if not isinstance(part, kind):
                raise ConfigError(f"{name}: must be a {kind.__name__}, not a {type(part).__name__}")
        if mode not in ("enforce", "observe"):
            raise ConfigError(f"mode: unknown mode {mode!r}; allowed: enforce, observe")
        self.snapshot = PolicySnapshot(policy, ledger.budgets, mode)
        self.ledger = ledger
        self.grpc = grpc
        self.observing = mode == "observe"
        self._telemetry = telemetry or Telemetry()
        pseudonyms = Pseudonyms(ledger)
        self._recording = Recording(self._telemetry, ledger, pseudonyms.to(""))
        exhausted = ExhaustedCache(ledger, monotonic)
        self.observed = ObservedRefusals() if self.observing else None
        self._corridor = Corridor(ledger, self._recording, pseudonyms, exhausted, self.observed)
        self._follower = follower
        self._local = swapping.LocalTerms(ledger.budgets, mode, settings)
        self.outcome_listeners: list[Callable[[Outcome], None]] = []
        self._policy_telemetry: PolicyTelemetry | None = None
        self._swapping = asyncio.Lock()
        # What the ledger's chain recorded last of a looser policy.
        self._noted = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refreshing: asyncio.TimerHandle | None = None
        self._flush: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        """Checks every loaded type that has or reaches a rule, and opens the ledger.

        Raises:
            AnnotationError: An annotation of a loaded type is bad.
            ConfigError: The policy names something that no loaded proto has, a budget contradicts the ledger's, or
                another mesh has the ledger open.
            LedgerError: The ledger can't be opened.
            DpmeshError: The policy to begin with can't be kept.
        """
        if self.ledger.on_commit not in (None, self._committed):
            raise ConfigError(
                "ledger: it has an on_commit, as that of another mesh; give each mesh a Ledger of its own"
            )
        self.snapshot.compile_loaded()
        self._flush = configure_from_environment()  # Bad variables fail before anything is open.
        if self._follower is not None:
            await asyncio.to_thread(self._follower.begin)
        await self.ledger.open()
        self.ledger.on_commit = self._committed
        self._swapping = asyncio.Lock()
        self._loop = asyncio.get_running_loop()  # The lock belongs to it.
        self._corridor.open()
        if self._follower is not None:
            self._follow(self._follower)
        self._refresh()
        if self.observing:
            log.warning(
                "dpmesh is in observe mode: messages leave UNPROTECTED, they are accounted and traced only"
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns unspent leases and closes the ledger; what is released later is refused."""
        if self._follower is not None:
            await self._follower.stop()
        if self._policy_telemetry is not None:
            self._policy_telemetry.close()
        self._corridor.close()
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self.ledger.close()
        self.ledger.on_commit = None
        if self._flush is not None:
            await asyncio.to_thread(self._flush)

    # -- the policy in force ------------------------------------------------------------------------------------------

    async def swap(self, policy: Policy | policy_pb2.Policy | str | Path) -> None:
        """Replaces the policy while messages are released.

        The new policy is compiled and checked first, in a thread. Then it replaces the old one at once: each message
        is released wholly under one of them. If anything is wrong with it, the old policy stays in force. RPCs and
        request streams go on under the policy with which they began; response streams change at a message.

        Its budgets and quotas replace the old ones as `Ledger.adopt` says: smaller caps hold at once, larger ones from
        the next window. The mode may change from observe to enforce, for all messages at once.

        Swaps take place one after the other. Call it in the event loop that opened the mesh. The application's own code
        is trusted: a looser policy takes effect at once, and the ledger does not record it. The policies of `[policy]
        source` have to fulfil the rules of `rollout.admission` first.

        Args:
            policy: The rules; or overlays, as a message or a file's path.

        Raises:
            AnnotationError: An annotation or overlay of a loaded type is bad, a mechanism fails its self-test, or no
                budget covers messages that a budget covered under the old policy.
            ConfigError: The file can't be read or does not fit the schema, or names something that no loaded proto has.
                One of its budgets is wrong or can't replace the old one, or its mode is observe where it was enforce.
                Or this is not the event loop that opened the mesh.
            LedgerError: The ledger can't answer.
            NotOpenError: The mesh is not open.
        """
        self._check_open()
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigError("swap: this is not the event loop that opened the mesh; call it there")
        await self._replace(policy, lambda _old, _new: "", lambda: None)

    async def _replace(
        self,
        policy: Policy | policy_pb2.Policy | str | Path,
        admit: Callable[[Terms, Terms], str],
        keep: Callable[[], None],
    ) -> None:
        """Replaces the policy; arguments and errors as of `swap`.

        Args:
            policy: The rules.
            admit: Compares what is in force to what shall be, in a thread, and raises if it may not be. Returns what
                the ledger has to record before the policy is in force; "" if nothing.
            keep: Makes the policy durable, in a thread, before it is in force.
        """
        async with self._swapping:
            self._check_open()
            before = self.snapshot
            snapshot = await asyncio.to_thread(
                swapping.prepare, policy, self._local, self.ledger.places, before
            )
            note = await asyncio.to_thread(admit, self._terms(before), self._terms(snapshot))
            if note and note != self._noted:
                await self.ledger.record(note)
                self._noted = note  # If what follows fails, it is tried again, and the chain has the note.
            places = tuple(snapshot.billing.budgets)
            budgets = tuple(snapshot.billing.budgets.values())
            adopts = any(budget not in self.ledger.budgets for budget in budgets)
            if adopts:
                # Before it is kept: the next start would fail with it.
                try:
                    await self.ledger.may_adopt(budgets)
                except ConfigError as error:
                    name = policy if isinstance(policy, str | Path) else "policy"
                    raise ConfigError(f"{name}: {error}") from None
            await asyncio.to_thread(keep)
            self._check_open()  # It may have been closed meanwhile.
            if adopts and await self.ledger.adopt(budgets) != places:
                raise LedgerError("the ledger's budgets have changed meanwhile")
            self._check_open()
            self._put_in_force(snapshot)
        epochs = snapshot.policy.document.epoch, before.policy.document.epoch
        log.info(
            "policy epoch %d (%.16s) replaces epoch %d (%.16s)",
            epochs[0],
            snapshot.digest,
            epochs[1],
            before.digest,
        )

    def _put_in_force(self, snapshot: PolicySnapshot) -> None:
        self._recording.note_budgets()
        if self.observing and snapshot.mode == "enforce":
            # First: until the snapshot is there, messages are protected by the old one.
            self._corridor.enforce()
            self.observing, self.observed = False, None
            log.info("dpmesh is in enforce mode: messages are protected from now on")
        self.snapshot = snapshot

    @staticmethod
    def _terms(snapshot: PolicySnapshot) -> Terms:
        return Terms(snapshot.policy, [*snapshot.billing.budgets.values()], snapshot.mode)

    def _check_open(self) -> None:
        if not self._corridor.is_open:
            raise NotOpenError

    @property
    def policy(self) -> Policy:
        """The rules in force."""
        return self.snapshot.policy

    @property
    def policy_digest(self) -> str:
        """Names the policy in logs: a digest of its overlays."""
        return self.snapshot.digest

    @property
    def policy_status(self) -> PolicyStatus:
        """Where the mesh stands with the policy of `[policy] source`."""
        epoch, digest, follower = self.policy.document.epoch, self.policy_digest, self._follower
        if follower is None:
            return PolicyStatus(State.FRESH, epoch, digest, 0.0, "")
        return PolicyStatus(follower.state, epoch, digest, follower.freshness.age, follower.refused)

    @property
    def is_expired(self) -> bool:
        """Nothing that a rule protects may leave, because the policy is expired. In observe mode messages leave."""
        return self.policy_status.state is State.EXPIRED and not self.observing

    @property
    def follower(self) -> PolicyFollower | None:
        """What follows the policies of a source; None if there is none."""
        return self._follower

    @property
    def refusals(self) -> int:
        """How many messages this mesh has refused since it was made. The mode observe refuses none."""
        return self._corridor.refusals

    def _follow(self, follower: PolicyFollower) -> None:
        """Begins to take the policies of a source."""
        telemetry = self._policy_telemetry = PolicyTelemetry(lambda: self.policy_status)

        async def take(offer: Offer) -> None:
            keep = partial(follower.source.keep, offer)
            if offer.document == self.policy.document:
                await asyncio.to_thread(keep)
            else:
                await self._replace(offer.document, partial(follower.admit, offer, self.ledger.now()), keep)

        def note(state: State) -> None:
            self._corridor.expire(state is State.EXPIRED)
            self._recording.policy_state = {names.POLICY_STATE: state.value}

        def state_changed(state: State) -> None:
            note(state)
            telemetry.happened(state.value, self.policy.document.epoch)

        def tried(outcome: Outcome) -> None:
            telemetry.happened(names.TAKEN if outcome.taken else names.REFUSED, outcome.epoch)
            for each in self.outcome_listeners:
                each(outcome)

        follower.on_state, follower.on_outcome = state_changed, tried
        note(follower.state)
        follower.start(take, self.ledger.now)

    # -- releases -----------------------------------------------------------------------------------------------------

    async def release(
        self,
        message: Message,
        *,
        method: str = "",
        direction: Direction = "request",
        consumer: str = "",
        snapshot: PolicySnapshot | None = None,
    ) -> Receipt:
        """Protects one message: checks it, charges for it, and only then samples.

        Args:
            message: What is to be sent; it is never changed.
            method: The RPC's full method, "/package.Service/Method": for telemetry, and for budgets by method.
            direction: Which way the message goes: for telemetry, and for budgets by direction.
            consumer: Who receives it, for quotas and pseudonyms; "" if unknown. It is in no span, log or error.
            snapshot: The policy version under which it leaves; None: the one in force.

        Returns:
            The receipt, with the protected copy.

        Raises:
            BudgetExhaustedError: A budget does not cover it.
            LedgerError: The ledger can't answer, or the mesh is not open.
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        begun = self._corridor.begin(message, method, direction, consumer, snapshot or self.snapshot)
        return begun if type(begun) is Receipt else await self._corridor.finish(begun)

    def release_now(
        self,
        message: Message,
        *,
        method: str = "",
        direction: Direction = "request",
        consumer: str = "",
        snapshot: PolicySnapshot | None = None,
    ) -> Receipt | None:
        """Protects one message as `release` does, if a lease that is held already pays for it.

        The arguments are those of `release`.

        Returns:
            The receipt, or None where only `release` can tell: nothing is charged then.

        Raises:
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        begun = self._corridor.begin(message, method, direction, consumer, snapshot or self.snapshot)
        return begun if type(begun) is Receipt else None

    def refused(self, error: DpmeshError, *, method: str = "", direction: Direction = "request") -> None:
        """Records the refusal of a message that was not released, because of its type.

        Args:
            error: Why it is refused.
            method: The RPC's full method, as for `release`.
            direction: Which way the message was to go.
        """
        self._corridor.refused(error, method, direction)

    def stream(
        self,
        *,
        method: str = "",
        direction: Direction = "request",
        consumer: str = "",
        snapshot: PolicySnapshot | None = None,
    ) -> ReleaseStream:
        """One direction of a stream, whose messages share a span.

        Args:
            method: The RPC's full method.
            direction: Which way the messages go.
            consumer: Who receives them, for quotas and pseudonyms.
            snapshot: The policy version for all messages. None: requests keep the one that is in force now, because
                their sender attests it; each response takes the one in force then.
        """
        if snapshot is None and direction == "request":
            snapshot = self.snapshot
        record = StreamRecord(self._recording, method, direction)
        return ReleaseStream(self, self._corridor, record, method, direction, consumer, snapshot)

    # -- telemetry ----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Looks for OpenTelemetry's providers from time to time: they may be set after the mesh was opened."""
        # First: an application's provider may raise, and the policy has to expire all the same.
        self._refreshing = asyncio.get_running_loop().call_later(_REFRESH_SECONDS, self._refresh)
        if self._follower is not None:
            self._follower.check()
        self._telemetry.refresh()
        if self._policy_telemetry is not None:
            self._policy_telemetry.refresh()

    def _committed(self, seconds: float) -> None:
        self._telemetry.ledger(seconds)
