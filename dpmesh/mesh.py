"""Mesh: ties the rooms together. Mesh.release() is the one way on which a message leaves."""

from __future__ import annotations

import asyncio
import copy
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
from dpmesh.errors import BudgetExhaustedError, ConfigError, DpmeshError, LedgerError, ProtectionError
from dpmesh.ledger import Charge, Ledger, open_store
from dpmesh.policy import Policy, loaded
from dpmesh.recording import Record, Recording
from dpmesh.routes import Route, Routes
from dpmesh.telemetry import Telemetry, configure_from_environment, names
from dpmesh.v1 import policy_pb2

log = logging.getLogger("dpmesh")

Direction = Literal["request", "response"]
_Result = TypeVar("_Result")

_REFRESH_SECONDS = 1.0
_ALIASES_KEPT = 1024


class Receipt(NamedTuple):
    """What may be sent, and what it cost.

    Attributes:
        message: A protected copy (in observe mode, and for types that have nothing to protect, the message itself).
        decision: "released", "suppressed", "observed", or "unprotected" for a type that has nothing to protect.
        epsilon: The loss of all owners together; for mechanisms that are not pure, at the smallest budget's delta.
        rho: The same as zCDP.
    """

    message: Any
    decision: str
    epsilon: float
    rho: float


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
        clock: Seconds since 1970, for the budgets' windows and the pseudonyms' epochs; for simulations and tests.

    Raises:
        ConfigError: The configuration or the policy file is wrong.
    """
    settings = configuration.load(config)
    return Mesh(settings, Policy(policy or settings.policy.file or None), clock)


class Mesh:
    """The engine behind the interceptors: policy, ledger, noise and telemetry in one place.

    An asynchronous context manager: it opens the ledger on entry and returns unspent leases on exit.

    Attributes:
        config: The configuration.
        policy: The rules in force.
        ledger: Where budgets live.
        observing: The mode is observe: messages leave as they are.
    """

    def __init__(self, config: Config, policy: Policy, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.policy = policy
        self.observing = config.mode == "observe"
        self.ledger = Ledger(open_store(config.ledger.url), configuration.budgets(config), clock=clock)
        self.ledger.on_commit = self._committed
        self._routes = Routes(policy, self.ledger.budgets)
        self._telemetry = Telemetry()
        self._recording = Recording(self._telemetry, self.ledger, self._alias)
        self._suppressing = {entry.name for entry in config.budget if entry.on_exhausted == "suppress"}
        self._clock = clock
        # By length: the epoch at hand.
        self._epochs: dict[float, _Epoch] = {}
        self._next_refresh = 0.0
        self._flush: Callable[[], None] | None = None
        self._is_open = False

    @property
    def policy_digest(self) -> str:
        """What names the policy on the wire (metadata key dpmesh-policy)."""
        return self.policy.digest

    async def __aenter__(self) -> Self:
        """Checks every annotated type that is loaded, and opens the ledger.

        Raises:
            AnnotationError: An annotation of a loaded type is bad.
            ConfigError: The policy names something that no loaded proto has, or a budget contradicts the ledger's.
            LedgerError: The ledger can't be opened.
        """
        self._check_loaded()
        await self.ledger.open()
        self._is_open = True
        self._flush = configure_from_environment()
        self._telemetry.refresh()
        if self.observing:
            log.warning(
                "dpmesh is in observe mode: messages leave UNPROTECTED, they are accounted and traced only"
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns unspent leases and closes the ledger; what is released later is refused."""
        self._is_open = False
        await self.ledger.close()
        if self._flush is not None:
            await asyncio.to_thread(self._flush)

    def _check_loaded(self) -> None:
        """Compiles every annotated type that is loaded: a bad annotation fails now, not with the first message."""
        stray = self.policy.stray()
        if stray:
            raise ConfigError(
                f"policy: no loaded proto has {', '.join(stray)}; "
                "correct the name, or import its _pb2 module before dpmesh.open"
            )
        for descriptor in loaded.message_types(self.policy):
            self.policy.plan(descriptor)

    # -- what transports ask ------------------------------------------------------------------------------------------

    def protects(self, message_type: type) -> bool:
        """Whether messages of a class have anything to protect.

        Raises:
            AnnotationError: Its annotations are bad, so it can't be told.
            ProtectionError: It is no protobuf message class.
        """
        return self._routes.of(message_type) is not None

    def requires(self, method: str) -> bool:
        """Whether a method's requests are refused unless a dpmesh sender protected them.

        Args:
            method: "/package.Service/Method".
        """
        try:
            found = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
        except KeyError:
            return False
        return self.policy.requires(found)

    async def release(
        self, message: Message, *, method: str = "", direction: Direction = "request"
    ) -> Receipt:
        """Protects one message: checks it, charges for it, and only then samples.

        Args:
            message: What is to be sent; it is never changed.
            method: The RPC's full method, "/package.Service/Method", for telemetry.
            direction: Which way it goes, for telemetry.

        Returns:
            The receipt, with the protected copy.

        Raises:
            BudgetExhaustedError: A budget does not cover it.
            LedgerError: The ledger can't answer, or the mesh is not open.
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        route = self._routes.of(type(message))
        if route is None:
            return Receipt(message, names.UNPROTECTED, 0.0, 0.0)
        started = time.time_ns()
        if started > self._next_refresh:
            self._refresh(started)
        telemetry = self._telemetry
        if not (telemetry.tracing or telemetry.metering):
            return await self._settle(route, message)
        with self._recording.release(route, method, direction, started) as record:
            return await self._settle(route, message, record)

    def stream(self, *, method: str = "", direction: Direction = "request") -> ReleaseStream:
        """One direction of a stream, whose messages share a span.

        Args:
            method: The RPC's full method.
            direction: Which way the messages go.
        """
        return ReleaseStream(self, method, direction)

    # -- the corridor: check, charge, sample --------------------------------------------------------------------------

    async def _settle(self, route: Route, message: Message, record: Record | None = None) -> Receipt:
        """Releases one message; what it returns may be sent."""
        if not self._is_open:
            raise LedgerError("the mesh is not open: use `async with dpmesh.open(...) as mesh`")
        if self.observing:
            return await self._observe(route, message, record)
        try:
            return await self._protect(route, message, record)
        except DpmeshError:
            raise
        except Exception as error:
            # It may quote a value: its text ends here.
            kind = type(error).__name__
        # Raised outside of the handler, so that the original is not even its context.
        raise ProtectionError("INTERNAL", route.plan.descriptor.full_name, f"could not be protected ({kind})")

    async def _protect(self, route: Route, message: Message, record: Record | None) -> Receipt:
        charges, epsilon, rho = route.bill(message)
        try:
            if not self.ledger.spend(charges):
                # The caller may go on with its message while this one waits: what leaves is what was charged for.
                message = copy.deepcopy(message)
                await self.ledger.charge(charges)
        except BudgetExhaustedError as error:
            if error.budget not in self._suppressing:
                raise
            blank = route.plan.blank(message, self._alias)
            if not blank.IsInitialized():
                raise  # a required field needs noise, and the message can't go without it
            return _settled(Receipt(blank, names.SUPPRESSED, 0.0, 0.0), charges, record)
        protected = route.plan.protect(message, self._alias)
        return _settled(Receipt(protected, names.RELEASED, epsilon, rho), charges, record)

    async def _observe(self, route: Route, message: Message, record: Record | None) -> Receipt:
        """Accounts for a message and lets it go as it is, whatever happens."""
        charges: Sequence[Charge] = ()
        epsilon = rho = 0.0
        try:
            charges, epsilon, rho = route.bill(message)
            await self.ledger.charge(charges)
        except Exception as error:
            # Any exception but our own may quote a value.
            why = error if isinstance(error, DpmeshError) else type(error).__name__
            log.warning("observe mode: %s would have been refused: %s", route.plan.descriptor.full_name, why)
        return _settled(Receipt(message, names.OBSERVED, epsilon, rho), charges, record)

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

    def _refresh(self, now: int) -> None:
        """OpenTelemetry's providers may be set after the mesh was opened; looking is too dear for every message."""
        self._next_refresh = now + _REFRESH_SECONDS * 1e9
        self._telemetry.refresh()

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


def _settled(receipt: Receipt, charges: Sequence[Charge], record: Record | None) -> Receipt:
    if record is not None:
        record.settled(receipt.decision, receipt.epsilon, receipt.rho, charges)
    return receipt


class ReleaseStream:
    """One direction of a stream: every message is released by itself, and all share one span.

    Args:
        mesh: Who releases.
        method: The RPC's full method.
        direction: Which way the messages go.
    """

    def __init__(self, mesh: Mesh, method: str, direction: Direction) -> None:
        self._mesh = mesh
        self._recorded = mesh._recording.stream(method, direction)

    async def release(self, message: Message) -> Receipt:
        """Protects one message, as Mesh.release does and with the same errors."""
        mesh = self._mesh
        route = mesh._routes.of(type(message))
        if route is None:
            return Receipt(message, names.UNPROTECTED, 0.0, 0.0)
        started = time.time_ns()
        if started > mesh._next_refresh:
            mesh._refresh(started)
        if not (mesh._telemetry.tracing or mesh._telemetry.metering):
            return await mesh._settle(route, message)
        with self._recorded.message(route, started) as record:
            return await mesh._settle(route, message, record)

    def close(self) -> None:
        """Ends the stream's span; calling it again does nothing."""
        self._recorded.close()
