"""Mesh: ties the rooms together. Mesh.release() is the one way on which a message leaves."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from dpmesh import config as configuration
from dpmesh.config import Config
from dpmesh.errors import BudgetExhaustedError, ConfigError, DpmeshError, NotOpenError, ProtectionError
from dpmesh.ledger import Charge, Ledger, open_store
from dpmesh.mesh.billing import BillingTable, PricedPlan
from dpmesh.mesh.exhausted import ExhaustedCache
from dpmesh.mesh.packed_messages import opened
from dpmesh.mesh.recording import Record, Recording
from dpmesh.policy import Policy, loaded_types
from dpmesh.policy.in_force import InForce
from dpmesh.telemetry import Telemetry, configure_from_environment, names
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")

Direction = Literal["request", "response"]

_REFRESH_SECONDS = 1.0
_ALIASES_KEPT = 1024


class Receipt(NamedTuple):
    """What may be sent, and what it cost.

    Attributes:
        message: A protected copy. In observe mode, and for types that have nothing to protect, the message itself. For
            types that can hold google.protobuf.Any or extensions, an equal copy where nothing is protected.
        decision: "released", "suppressed", "observed", or "unprotected" if it has nothing to protect.
        epsilon: The loss of all owners together; for mechanisms that are not pure, at the smallest budget's delta.
        rho: The same as zCDP.
    """

    message: Any
    decision: str
    epsilon: float
    rho: float


# What the class's own constructor does, in one call.
_receipt: Callable[[tuple[Any, str, float, float]], Receipt] = functools.partial(tuple.__new__, Receipt)


def open(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    policy: str | Path | policy_pb2.Policy | None = None,
    clock: Callable[[], float] = time.time,
) -> Mesh:
    """Makes a mesh, to be entered with `async with`.

    Args:
        config: dpmesh.toml's path, or its content as a mapping. None: annotations as the policy, a SQLite ledger in
            the working directory's .dpmesh/, and a daily budget of epsilon 8 per unit and 8 for aggregates.
        policy: Overlays, as a file's path or a message; wins over the configuration's [policy] file.
        clock: Seconds since 1970, for the budgets' windows and the pseudonyms' epochs; for simulations and tests. On
            PostgreSQL windows follow the database's clock instead.

    Raises:
        ConfigError: The configuration or the policy file is wrong.
    """
    settings = configuration.load(config)
    # An empty path is a mistake, and must not count as no policy.
    overlays = settings.policy.file or None if policy is None else policy
    return Mesh(settings, Policy(overlays), clock)


class Mesh:
    """The engine behind the interceptors: policy, ledger, noise and telemetry in one place.

    An asynchronous context manager: it opens the ledger on entry and returns unspent leases on exit.

    Attributes:
        config: The configuration.
        policy: The rules in force.
        ledger: Where budgets live.
        observing: The mode is observe: messages leave as they are.
        has_quotas: Some budget has quotas, so that it matters who the consumer of a message is.
    """

    def __init__(self, config: Config, policy: Policy, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.policy = policy
        self.observing = config.mode == "observe"
        self.ledger = Ledger(open_store(config.ledger.url), configuration.budgets(config), clock=clock)
        self.ledger.on_commit = self._committed
        self._in_force = InForce(policy)
        self._routes = BillingTable(policy, self.ledger.budgets)
        self._refusals = ExhaustedCache(self.ledger)
        self._telemetry = Telemetry()
        self._recording = Recording(self._telemetry, self.ledger, self._alias)
        self.has_quotas = any(budget.is_quota for budget in self.ledger.budgets)
        self._suppressing = {
            budget.name for budget in self.ledger.budgets if budget.on_exhausted == "suppress"
        }
        self._clock = clock
        # By length: the epoch at hand.
        self._epochs: dict[float, _Epoch] = {}
        self._refreshing: asyncio.TimerHandle | None = None
        self._flush: Callable[[], None] | None = None
        self._is_open = False
        # Open, and messages leave protected: the one state in which a message may be released without waiting.
        self._enforcing = False

    @property
    def policy_digest(self) -> str:
        """What names the policy on the wire (metadata key dpmesh-policy)."""
        return self.policy.digest

    async def __aenter__(self) -> Self:
        """Checks every loaded type that has or reaches a rule, and opens the ledger.

        Raises:
            AnnotationError: An annotation of a loaded type is bad.
            ConfigError: The policy names something that no loaded proto has, or a budget contradicts the ledger's.
            LedgerError: The ledger can't be opened.
        """
        self._check_loaded()
        await self.ledger.open()
        self._is_open = True
        self._enforcing = not self.observing
        self._flush = configure_from_environment()
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
        self._is_open = self._enforcing = False
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self.ledger.close()
        if self._flush is not None:
            await asyncio.to_thread(self._flush)

    def _check_loaded(self) -> None:
        """Compiles every loaded type that can reach a rule, and reads every method's rules: a bad one fails now."""
        unresolved = self.policy.unresolved_overlays()
        if unresolved:
            raise ConfigError(
                f"policy: no loaded proto has {', '.join(unresolved)}; "
                "correct the name, or import its _pb2 module before dpmesh.open"
            )
        for descriptor in loaded_types.message_types(self.policy):
            self.policy.plan(descriptor)
        for method in loaded_types.methods():
            self.policy.requires(method)

    # -- what transports ask ------------------------------------------------------------------------------------------

    def protects(self, message_type: type) -> bool:
        """Whether messages of a class may have anything to protect, so that each of them has to be released.

        Raises:
            AnnotationError: Its annotations are bad, so it can't be told.
            ProtectionError: It is no protobuf message class.
        """
        return self._routes.protects(message_type)

    def has_rules(self) -> bool:
        """Whether any rule is in force: an overlay, or an annotation of a type that is loaded."""
        return self._in_force()

    def protection(self, message_type: type) -> bool | None:
        """Whether messages of a class have anything to protect: True, False, or None where only each message tells.

        True and False are for good. None is for types that can hold google.protobuf.Any or extensions.

        Raises:
            AnnotationError: Its annotations are bad, so it can't be told.
            ProtectionError: It is no protobuf message class.
        """
        return self._routes.protection(message_type)

    def requires(self, method: str) -> bool:
        """Whether a method's requests are refused unless a dpmesh sender protected them.

        Args:
            method: "/package.Service/Method".
        """
        try:
            # Other spellings of the name count too: a generic handler may serve them.
            found = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
        except KeyError:
            return False
        return self.policy.requires(found)

    async def release(
        self, message: Message, *, method: str = "", direction: Direction = "request", consumer: str = ""
    ) -> Receipt:
        """Protects one message: checks it, charges for it, and only then samples.

        Args:
            message: What is to be sent; it is never changed.
            method: The RPC's full method, "/package.Service/Method": for telemetry, and for budgets by method.
            direction: Which way it goes: for the same.
            consumer: Who receives it, for quotas; "" for whoever is not known. It is in no span, log or error.

        Returns:
            The receipt, with the protected copy.

        Raises:
            BudgetExhaustedError: A budget does not cover it.
            LedgerError: The ledger can't answer, or the mesh is not open.
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        try:
            route = self._routes.of(type(message), method, direction)
        except DpmeshError as error:
            self.refused(error, method=method, direction=direction)
            raise
        if route is None:
            return Receipt(message, names.UNPROTECTED, 0.0, 0.0)
        if route.opens:
            route, copied = opened(self._routes, route, message, method, direction)
            if route is None:
                return Receipt(message if self.observing else copied, names.UNPROTECTED, 0.0, 0.0)
        record = self._recording.release(route, method, direction) if self._telemetry.listening else None
        receipt = self._release_now(route, message, consumer, record)
        return await self._release(route, message, consumer, record) if receipt is None else receipt

    def release_now(
        self, message: Message, *, method: str = "", direction: Direction = "request", consumer: str = ""
    ) -> Receipt | None:
        """Protects one message as `release` does, if what it costs is paid for by a lease that is held already.

        Args:
            message: What is to be sent; it is never changed.
            method: The RPC's full method, as for `release`.
            direction: Which way it goes, as for `release`.
            consumer: Who receives it, as for `release`.

        Returns:
            The receipt, or None where only `release` can tell: nothing is charged then.

        Raises:
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        try:
            route = self._routes.of(type(message), method, direction)
        except DpmeshError as error:
            self.refused(error, method=method, direction=direction)
            raise
        if route is None:
            return Receipt(message, names.UNPROTECTED, 0.0, 0.0)
        if route.opens:
            route, copied = opened(self._routes, route, message, method, direction)
            if route is None:
                return Receipt(message if self.observing else copied, names.UNPROTECTED, 0.0, 0.0)
        record = self._recording.release(route, method, direction) if self._telemetry.listening else None
        return self._release_now(route, message, consumer, record)

    def refused(self, error: DpmeshError, *, method: str = "", direction: Direction = "request") -> None:
        """Records the refusal of a message that was not released, because of its type.

        Args:
            error: Why it is refused.
            method: The RPC's full method, as for `release`.
            direction: Which way the message was to go.
        """
        if self._telemetry.listening:
            self._note(self._recording.release(None, method, direction), error)

    def _note(self, record: Record, error: DpmeshError) -> None:
        if self.observing:  # Transports let the message go all the same.
            record.settled(names.OBSERVED, 0.0, 0.0, ())
        else:
            record.refused(error)

    def stream(
        self, *, method: str = "", direction: Direction = "request", consumer: str = ""
    ) -> ReleaseStream:
        """One direction of a stream, whose messages share a span.

        Args:
            method: The RPC's full method.
            direction: Which way the messages go.
            consumer: Who receives them, for quotas.
        """
        return ReleaseStream(self, method, direction, consumer)

    # -- the corridor: check, charge, sample --------------------------------------------------------------------------

    def _release_now(
        self, route: PricedPlan, message: Message, consumer: str, record: Record | None
    ) -> Receipt | None:
        """Releases one message if a held lease pays for it; what it returns may be sent."""
        if not self._enforcing:
            return None
        try:
            plan = route.plan
            # Another thread may change the message meanwhile: what leaves is what was charged for.
            snapshot = plan.snapshot(message)
            charges, epsilon, rho = route.bill(snapshot, consumer)
            if not self.ledger.spend(charges):
                return None
            receipt = _receipt((plan.build(snapshot, self._alias), names.RELEASED, epsilon, rho))
        except Exception as error:
            failed = _refusal(error, route)
        else:
            if record is not None:
                record.settled(names.RELEASED, epsilon, rho, charges)
            return receipt
        # Raised outside of the handler, so that an exception that may quote a value is not even its context.
        if record is not None:
            record.refused(failed)
        try:
            raise failed
        finally:
            # It holds this frame, and so the message, which would stay until the garbage is collected.
            del failed

    async def _release(
        self, route: PricedPlan, message: Message, consumer: str, record: Record | None
    ) -> Receipt:
        """Releases one message, whatever has to be waited for; what it returns may be sent."""
        try:
            receipt, charges = await self._settle(route, message, consumer)
        except BaseException as error:
            failed = _refusal(error, route)
        else:
            if record is not None:
                record.settled(receipt.decision, receipt.epsilon, receipt.rho, charges)
            return receipt
        if record is not None:
            record.refused(failed)
        try:
            raise failed
        finally:
            # It holds this frame, and so the message, which would stay until the garbage is collected.
            del failed

    async def _settle(
        self, route: PricedPlan, message: Message, consumer: str
    ) -> tuple[Receipt, Sequence[Charge]]:
        if not self._is_open:
            raise NotOpenError
        if self.observing:
            return await self._observe(route, message, consumer)
        plan = route.plan
        # The caller may go on with its message while this one waits: what leaves is what was charged for.
        snapshot = plan.snapshot(message)
        charges, epsilon, rho = route.bill(snapshot, consumer)
        try:
            self._refusals.check(charges)
            await self._charge(charges)
        except BudgetExhaustedError as error:
            if error.budget not in self._suppressing:
                raise
            blank = plan.build_blank(snapshot, self._alias)
            if not blank.IsInitialized():
                raise  # a required field needs noise, and the message can't go without it
            return Receipt(blank, names.SUPPRESSED, 0.0, 0.0), charges
        return Receipt(plan.build(snapshot, self._alias), names.RELEASED, epsilon, rho), charges

    async def _charge(self, charges: Sequence[Charge]) -> None:
        try:
            await self.ledger.charge(charges)
        except BudgetExhaustedError as error:
            refusal = self._refusals.learn(charges, error)
        else:
            return
        try:
            raise refusal
        finally:
            del refusal  # It holds this frame.

    async def _observe(
        self, route: PricedPlan, message: Message, consumer: str
    ) -> tuple[Receipt, Sequence[Charge]]:
        """Accounts for a message and lets it go as it is, whatever happens."""
        charges: Sequence[Charge] = ()
        epsilon = rho = 0.0
        try:
            charges, epsilon, rho = route.bill(route.plan.snapshot(message), consumer)
            self._refusals.check(charges)
            await self._charge(charges)
        except Exception as error:
            # Any exception but our own may quote a value.
            why = str(error) if isinstance(error, DpmeshError) else type(error).__name__
            log.warning("observe mode: %s would have been refused: %s", route.plan.descriptor.full_name, why)
        return Receipt(message, names.OBSERVED, epsilon, rho), charges

    def _alias(self, unit: bytes, epoch: float) -> bytes:
        """The unit's pseudonym: BLAKE2b (RFC 7693) keyed with this epoch's key, 16 bytes."""
        number = self._clock() // epoch
        known = self._epochs.get(epoch)
        if known is None or known.number != number:
            label = b"dpmesh pseudonym %d %d" % (epoch * 1e6, number)
            known = self._epochs[epoch] = _Epoch(
                number, hashlib.blake2b(label, key=self.ledger.secret).digest()
            )
        found = known.aliases.get(unit)
        return known.alias(unit) if found is None else found

    # -- telemetry ----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Looks for OpenTelemetry's providers, which may be set after the mesh was opened, from time to time."""
        self._telemetry.refresh()
        self._refreshing = asyncio.get_running_loop().call_later(_REFRESH_SECONDS, self._refresh)

    def _committed(self, seconds: float) -> None:
        if self._telemetry.metering:
            self._telemetry.ledger(seconds)


class _Epoch:
    """One epoch's key for pseudonyms, and those of the units that were just seen: most senders are few units."""

    def __init__(self, number: float, key: bytes) -> None:
        self.number = number
        self.aliases: dict[bytes, bytes] = {}
        self._key = key

    def alias(self, unit: bytes) -> bytes:
        if len(self.aliases) >= _ALIASES_KEPT:
            self.aliases.clear()
        found = self.aliases[unit] = hashlib.blake2b(unit, key=self._key, digest_size=16).digest()
        return found


_Failure = TypeVar("_Failure", bound=BaseException)


def _refusal(error: _Failure, route: PricedPlan) -> _Failure | ProtectionError:
    """What is raised for an exception on the way: dpmesh's own, or one without its text, which may quote a value."""
    if isinstance(error, DpmeshError) or not isinstance(error, Exception):
        return error
    name, kind = route.plan.descriptor.full_name, type(error).__name__
    return ProtectionError("INTERNAL", name, f"could not be protected ({kind})")


class ReleaseStream:
    """One direction of a stream: every message is released by itself, and all share one span.

    Args:
        mesh: Who releases.
        method: The RPC's full method.
        direction: Which way the messages go.
        consumer: Who receives them.
    """

    def __init__(self, mesh: Mesh, method: str, direction: Direction, consumer: str = "") -> None:
        self._mesh = mesh
        self._method = method
        self._direction = direction
        self._consumer = consumer
        self._recorded = mesh._recording.stream(method, direction)

    async def release(self, message: Message) -> Receipt:
        """Protects one message, as Mesh.release does and with the same errors."""
        mesh = self._mesh
        try:
            route = mesh._routes.of(type(message), self._method, self._direction)
        except DpmeshError as error:
            self.refused(error)
            raise
        if route is None:
            return Receipt(message, names.UNPROTECTED, 0.0, 0.0)
        if route.opens:
            route, copied = opened(mesh._routes, route, message, self._method, self._direction)
            if route is None:
                return Receipt(message if mesh.observing else copied, names.UNPROTECTED, 0.0, 0.0)
        record = self._recorded.message(route) if mesh._telemetry.listening else None
        receipt = mesh._release_now(route, message, self._consumer, record)
        return await mesh._release(route, message, self._consumer, record) if receipt is None else receipt

    def refused(self, error: DpmeshError) -> None:
        """Records the refusal of a message that was not released, as Mesh.refused does, in the stream's span."""
        mesh = self._mesh
        if mesh._telemetry.listening:
            mesh._note(self._recorded.message(None), error)

    def close(self) -> None:
        """Ends the stream's span; calling it again does nothing."""
        self._recorded.close()
