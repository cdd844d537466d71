"""Corridor: the one way on which a message leaves: it is checked, charged for, and only then sampled.

How it works:
    `begin` checks a message and releases it if a lease that is held already pays for it. Otherwise `finish` waits.

    | state     | begin                                             | finish                                  |
    |-----------|---------------------------------------------------|-----------------------------------------|
    | closed    | checks                                            | refuses                                 |
    | enforcing | checks; spends from leases and samples if it can  | charges the ledger and samples          |
    | expired   | checks                                            | refuses                                 |
    | observing | checks                                            | charges; the message leaves as it is    |

    `open` leads from closed to enforcing or observing, depending on the mode, and `close` leads back. `expire` leads
    from enforcing to expired, and back. `enforce` leads from observing to enforcing, or to expired.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from dpmesh.errors import BudgetExhaustedError, DpmeshError, NotOpenError, ProtectionError
from dpmesh.ledger import Charge, Ledger
from dpmesh.mesh.answers import Answering, Answers, UnitEpoch
from dpmesh.mesh.exhausted import ExhaustedCache
from dpmesh.mesh.observed import ObservedRefusals
from dpmesh.mesh.packed_messages import open_anys
from dpmesh.mesh.pricing import Bill, PricedPlan
from dpmesh.mesh.pseudonyms import Pseudonyms
from dpmesh.mesh.receipt import Direction, Receipt, make_receipt
from dpmesh.mesh.recording import Record, Recording, ReleaseRecord, StreamRecord
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.policy import Plan, Pseudonymise
from dpmesh.telemetry import names

log = logging.getLogger("dpmesh")


# A message that was checked, and whose release has to wait: what is done to it and who pays; the message; its consumer;
# what telemetry is told, if anything listens. A class of its own would take as long to make as the charge from a lease.
CheckedMessage = tuple[PricedPlan, Message, str, Record | None]


class Corridor:
    """Releases messages.

    Attributes:
        is_open: The ledger is open, so that messages may be released.
        refusals: How many messages were refused so far.
    """

    def __init__(
        self,
        ledger: Ledger,
        recording: Recording,
        pseudonyms: Pseudonyms,
        exhausted: ExhaustedCache,
        observed: ObservedRefusals | None,
    ) -> None:
        self._ledger = ledger
        self._telemetry = recording.telemetry
        self._recording = recording
        self._pseudonyms = pseudonyms
        self._exhausted = exhausted
        self._observed = observed
        self._answers = Answers(ledger)
        self.is_open = False
        self.refusals = 0
        # The corridor is open and protects: the one state in which a message may leave without waiting.
        self._enforcing = False
        self._expired = False

    def open(self) -> None:
        """Lets messages leave."""
        self.is_open = True
        self._enforcing = self._observed is None and not self._expired

    def expire(self, expired: bool) -> None:
        """Refuses all messages while the policy is expired, unless the mode is observe."""
        self._expired = expired
        self._enforcing = self.is_open and self._observed is None and not expired

    def enforce(self) -> None:
        """Protects all messages from now on, those that were checked in observe mode too."""
        self._observed = None
        self._enforcing = self.is_open and not self._expired

    def close(self) -> None:
        """Refuses all messages from now on."""
        self.is_open = self._enforcing = False

    def begin(
        self,
        message: Message,
        method: str,
        direction: Direction,
        consumer: str,
        snapshot: PolicySnapshot,
        stream: StreamRecord | None = None,
    ) -> Receipt | CheckedMessage:
        """Checks a message, and releases it if a lease that is held already pays for it.

        The arguments are those of Mesh.release, and the record of the stream that the message is part of, if it is.

        Returns:
            The receipt; or the checked message, for which nothing is charged yet, for `finish`.

        Raises:
            ProtectionError: The message can't be protected.
            AnnotationError: Its type's annotations are bad, or no budget covers it.
        """
        # Check.
        try:
            priced = snapshot.billing.price(type(message), method, direction)
        except DpmeshError as error:
            self.refused(error, method, direction, stream)
            raise
        if priced is None:
            return make_receipt((message, names.UNPROTECTED, 0.0, 0.0))
        if priced.opens:
            priced, copied = open_anys(snapshot.billing, priced, message, method, direction)
            if priced is None:
                return Receipt(message if self._observed is not None else copied, names.UNPROTECTED, 0.0, 0.0)
        record = self._record(priced, method, direction, stream) if self._telemetry.listening else None
        if not self._enforcing:
            return priced, message, consumer, record
        try:
            plan = priced.plan
            # Another thread may change the message meanwhile: what leaves is what was charged for.
            content = plan.snapshot(message)
            # Charge.
            charges, epsilon, rho = priced.bill(content, consumer)
            if not self._ledger.holds_keys(self._epochs(priced, record)):
                return priced, message, consumer, record
            pseudonymise = self._pseudonyms.to(consumer)
            if priced.memos is not None:
                unit_epoch = self._answers.of(priced.memos, content, consumer)
                if not unit_epoch.paid:
                    return priced, message, consumer, record
                pseudonymise = Answering(unit_epoch, pseudonymise)
            if not self._ledger.spend(charges):
                return priced, message, consumer, record
            # Sample.
            receipt = make_receipt((plan.build(content, pseudonymise), names.RELEASED, epsilon, rho))
        except Exception as error:
            failed = _refusal(error, priced)
        else:
            if record is not None:
                record.cut(plan, content)
                record.settled(names.RELEASED, epsilon, rho, charges)
            return receipt
        self.refusals += 1
        # Raised outside of the handler, so that an exception that may quote a value is not even its context.
        if record is not None:
            record.refused(failed)
        try:
            raise failed
        finally:
            # The error holds this frame, and so the message, which would stay until the garbage is collected.
            del failed

    async def finish(self, checked: CheckedMessage) -> Receipt:
        """Releases a checked message, waiting for the ledger as long as necessary.

        Raises:
            BudgetExhaustedError: A budget does not cover it.
            LedgerError: The ledger can't answer, or the corridor is closed.
            ProtectionError: The message can't be protected.
        """
        priced, message, consumer, record = checked
        try:
            receipt, charges = await self._settle(priced, message, consumer, record)
        except BaseException as error:
            failed = _refusal(error, priced)
            self.refusals += isinstance(failed, DpmeshError)  # Other exceptions cancel it.
        else:
            if record is not None:
                record.settled(receipt.decision, receipt.epsilon, receipt.rho, charges)
            return receipt
        if record is not None:
            record.refused(failed)
        try:
            raise failed
        finally:
            # The error holds this frame, and so the message, which would stay until the garbage is collected.
            del failed

    def refused(
        self, error: DpmeshError, method: str, direction: Direction, stream: StreamRecord | None = None
    ) -> None:
        """Records the refusal of a message that has no priced plan."""
        self.refusals += self._observed is None
        if not self._telemetry.listening:
            return
        record = self._record(None, method, direction, stream)
        if self._observed is not None:  # Transports let the message go anyway.
            record.observed_refusal()
            record.settled(names.OBSERVED, 0.0, 0.0, ())
        else:
            record.refused(error)

    def _record(
        self, priced: PricedPlan | None, method: str, direction: Direction, stream: StreamRecord | None
    ) -> Record:
        """The record of a message that begins now."""
        if stream is None:
            return ReleaseRecord(self._recording, priced, method, direction)
        return stream.message(priced)

    async def _settle(
        self, priced: PricedPlan, message: Message, consumer: str, record: Record | None
    ) -> tuple[Receipt, Sequence[Charge]]:
        """Charges for a checked message and samples; the receipt, and what was charged."""
        if not self.is_open:
            raise NotOpenError
        if self._observed is not None:
            return await self._observe(self._observed, priced, message, consumer, record)
        plan = priced.plan
        self._check_expiry(plan)
        # The caller may change its message while this one waits: what leaves is what was charged for.
        content = plan.snapshot(message)
        await self._ledger.hold_keys(self._epochs(priced, record))
        charges, epsilon, rho = priced.bill(content, consumer)
        pseudonymise, unit_epoch = self._pseudonyms.to(consumer), self._unit_epoch(priced, content, consumer)
        if unit_epoch is not None:
            pseudonymise = Answering(unit_epoch, pseudonymise)
        try:
            charges, epsilon, rho = await self._pay((charges, epsilon, rho), unit_epoch)
        except BudgetExhaustedError as error:
            receipt = self._at_no_cost(error.budget, priced, content, pseudonymise, unit_epoch)
            if receipt is None:
                raise
            return receipt, charges
        receipt = make_receipt((plan.build(content, pseudonymise), names.RELEASED, epsilon, rho))
        if record is not None:
            record.cut(plan, content)
        return receipt, charges

    def _check_expiry(self, plan: Plan) -> None:
        if self._expired:
            text = "the policy is expired, because its source did not answer for too long"
            raise ProtectionError("POLICY_EXPIRED", plan.descriptor.full_name, text)

    def _epochs(self, priced: PricedPlan, record: Record | None) -> tuple[float, ...]:
        """The lengths of the epochs whose keys a message needs, and what is recorded of it."""
        return priced.epochs if record is None else priced.epochs + self._recording.epochs

    def _at_no_cost(
        self,
        budget: str,
        priced: PricedPlan,
        content: Any,
        pseudonymise: Pseudonymise,
        unit_epoch: UnitEpoch | None,
    ) -> Receipt | None:
        """What leaves of a message that a budget does not cover: what costs nothing more, or None."""
        exhausted = next(each.on_exhausted for each in self._ledger.budgets if each.name == budget)
        if exhausted == "suppress":
            decision, build = names.SUPPRESSED, priced.plan.build_blank
        elif exhausted == "replay" and priced.memos and unit_epoch and unit_epoch.paid:
            decision, build = names.REPLAYED, priced.memos.memos.build
        else:
            return None
        message = build(content, pseudonymise)
        # A required field may need noise, and then the message can't leave without it.
        return Receipt(message, decision, 0.0, 0.0) if message.IsInitialized() else None

    def _unit_epoch(self, priced: PricedPlan, content: Any, consumer: str) -> UnitEpoch | None:
        """The epoch of a message's unit, if the message has memoized fields."""
        return None if priced.memos is None else self._answers.of(priced.memos, content, consumer)

    async def _pay(self, bill: Bill, unit_epoch: UnitEpoch | None) -> Bill:
        """Charges for a message, and for its unit's memoized answers where these are not paid yet."""
        charges, epsilon, rho = bill
        if unit_epoch is None:
            await self._charge(charges)
            return bill
        charges, for_answers = await self._answers.pay(unit_epoch, charges, self._charge)
        if for_answers:
            epsilon, rho = epsilon + unit_epoch.loss[0], rho + unit_epoch.loss[1]
        return charges, epsilon, rho

    async def _charge(self, charges: Sequence[Charge]) -> None:
        """Charges all accounts, or none."""
        self._exhausted.check(charges)
        try:
            await self._ledger.charge(charges)
        except BudgetExhaustedError as error:
            refusal = self._exhausted.learn(charges, error)
        else:
            return
        try:
            raise refusal
        finally:
            del refusal  # It holds this frame.

    async def _observe(
        self,
        observed: ObservedRefusals,
        priced: PricedPlan,
        message: Message,
        consumer: str,
        record: Record | None,
    ) -> tuple[Receipt, Sequence[Charge]]:
        """Accounts for a message and lets it leave as it is, whatever happens.

        If the mode becomes enforce while this waits for the ledger, the message leaves protected, or not at all.

        Raises:
            DpmeshError: The mode is enforce now, and the message can't be protected.
        """
        plan = priced.plan
        charges: Sequence[Charge] = ()
        epsilon = rho = 0.0
        try:
            content = plan.snapshot(message)
            await self._ledger.hold_keys(self._epochs(priced, record))
            charges, epsilon, rho = priced.bill(content, consumer)
            unit_epoch = self._unit_epoch(priced, content, consumer)
            charges, epsilon, rho = await self._pay((charges, epsilon, rho), unit_epoch)
            if self._observed is None:
                self._check_expiry(plan)
                pseudonymise = self._pseudonyms.to(consumer)
                if unit_epoch is not None:
                    pseudonymise = Answering(unit_epoch, pseudonymise)
                return make_receipt(
                    (plan.build(content, pseudonymise), names.RELEASED, epsilon, rho)
                ), charges
        except Exception as error:
            if self._observed is None:
                raise
            observed.note(log, plan.descriptor.full_name, error)
            if record is not None:
                record.observed_refusal()
        return make_receipt((message, names.OBSERVED, epsilon, rho)), charges


_Failure = TypeVar("_Failure", bound=BaseException)


def _refusal(error: _Failure, priced: PricedPlan) -> _Failure | ProtectionError:
    """What is raised for an exception: dpmesh's own error, or one without the text, which may quote a value."""
    if isinstance(error, DpmeshError) or not isinstance(error, Exception):
        return error
    name, kind = priced.plan.descriptor.full_name, type(error).__name__
    return ProtectionError("INTERNAL", name, f"could not be protected ({kind})")
