"""Packed messages: finds what the Anys of one message pack, and decides about it before the message is billed.

All of it happens in one copy of the message, and every packed message is parsed once. So what is billed is what is
protected, even if other threads change the message or import modules meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.errors import DpmeshError, ProtectionError
from dpmesh.ledger import Charge
from dpmesh.mesh.billing import BillingTable
from dpmesh.mesh.pricing import Bill, Biller, PricedPlan, merged
from dpmesh.policy import AROUND, Plan, Pseudonymise
from dpmesh.policy.codegen.steps import drop_extensions
from dpmesh.policy.compile.anys import Find, Found, find_types, is_any
from dpmesh.policy.descriptors import DEEPEST
from dpmesh.telemetry import names
from dpmesh.v1 import privacy_pb2 as pb


def open_anys(
    billing: BillingTable, priced: PricedPlan, message: Message, method: str, direction: str
) -> tuple[PricedPlan | None, Message]:
    """Opens the Anys in a message, which is only read, once.

    Returns:
        A priced plan for this message only, and the copy that was opened. The plan reads nothing but that copy. It is
        None if nothing in the message is protected. If an Any can't be judged, its `bill` raises why.
    """
    try:
        opened = _OpenedMessage(billing, priced, message, method, direction)
    except DpmeshError as error:
        failed = error.with_traceback(None)
    except Exception as error:  # Whatever it is, its text stays here.
        kind = type(error).__name__
        failed = ProtectionError(
            "INTERNAL", priced.plan.descriptor.full_name, f"could not be opened ({kind})"
        )
    else:
        return opened.priced(), opened.copy
    failed.__context__ = None
    return replace(priced, bill=_raising(failed), opens=False), message


def _raising(error: DpmeshError) -> Biller:
    # The error is not kept once it is raised: it then holds the frames that it went through, and so the message.
    kept = [error]

    def bill(_snapshot: Any, _consumer: str) -> NoReturn:
        raise kept.pop()

    return bill


@dataclass(slots=True)
class _Packed:
    """A message in an Any.

    Attributes:
        found: The Any and where it stands.
        type: The message's type.
        priced: Its priced plan; None for a type without rules.
        units: The ids of all units around it.
        message: The message, once it was parsed.
    """

    found: Found
    type: Descriptor
    priced: PricedPlan | None
    units: tuple[bytes, ...]
    message: Any = None

    def parse(self) -> Any:
        """The packed message; it is refused if the Any's bytes are no message of the type."""
        if self.message is None:
            message, valid = GetMessageClass(self.type)(), True
            try:
                message.ParseFromString(self.found.any.value)
            except DecodeError:
                valid = False
            # Raised outside of the handler, so that what may quote a value is not even its context.
            if not valid or not message.IsInitialized():
                text = f"holds an Any whose bytes are no {self.type.full_name}"
                raise ProtectionError("WRONG_TYPE", self.found.name, text)
            self.message = message
        return self.message

    def owners(self) -> Sequence[tuple[int, bytes]]:
        """Who pays for it: pairs of a scope and an account.

        Which messages an Any packs is data of the units around it: they pay for the values of other units as well.
        """
        assert self.priced is not None
        plan = self.priced.plan
        owners: list[tuple[int, bytes]] = []
        for scope, unit in plan.owners(self.parse()):
            path = plan.scopes[scope].path
            if path != AROUND:
                owners.append((scope, unit))
            if path:
                owners += [(scope, around) for around in self.units]
        return owners

    def protect(self, pseudonymise: Pseudonymise, *, blank: bool) -> None:
        """Replaces the message in its Any by what may leave; all that is packed in it was replaced before.

        The Any becomes empty if the message would lack a required field. `blank` leaves out what needs noise.
        """
        if self.priced is None:
            message = self.message
            message.DiscardUnknownFields()
            if self.found.strict:
                drop_extensions(message)
        else:
            plan = self.priced.plan
            protection = plan.anys or plan
            message = (protection.blank if blank else protection.protect)(self.message, pseudonymise)
        if message.IsInitialized():
            self.found.any.value = message.SerializeToString()
        else:
            self.found.any.Clear()


class _Unopened(NamedTuple):
    """A message whose Anys were not looked at yet.

    Attributes:
        message: The message.
        find: Finds its Anys.
        units: The ids of the units around it.
        strict: It lies in a protected message.
        around: For each Any on the way to it, the plan of the message that holds the Any; last, its own plan.
    """

    message: Any
    find: Find
    units: tuple[bytes, ...]
    strict: bool
    around: tuple[Plan, ...]


class _OpenedMessage:
    """A copy of a message, and all that is packed in it; arguments as for `open_anys`.

    Attributes:
        copy: The copy.
        protected: Something in it is protected.

    Raises:
        DpmeshError: Something can't be judged.
    """

    def __init__(
        self, billing: BillingTable, priced: PricedPlan, message: Message, method: str, direction: str
    ) -> None:
        anys = priced.plan.anys
        assert anys is not None
        self._anys = anys
        self.copy: Any = type(message)()
        self.copy.CopyFrom(message)
        self._billing = billing
        self._priced = priced
        self._method = method
        self._direction = direction
        self._packed: list[_Packed] = []
        self._dropped = False
        self._unopened = [_Unopened(self.copy, anys.find, (), False, (priced.plan,))]
        while self._unopened:
            self._open(self._unopened.pop())
        self.protected = (
            not anys.alone or self._dropped or any(packed.priced is not None for packed in self._packed)
        )
        if self.protected:
            for packed in self._packed:
                packed.parse()  # Unknown fields of a type without rules must not leave: `protect` discards them.

    def priced(self) -> PricedPlan | None:
        """The priced plan of this one message, or None if nothing in it is protected."""
        if not self.protected:
            return None
        packed_plans = [packed.priced.plan for packed in self._packed if packed.priced is not None]
        plans = [plan for plan in (self._priced.plan, *packed_plans) if not plan.is_open]
        mechanisms = tuple(sorted({name for plan in plans for name in plan.mechanisms}))
        count_cut = self._priced.plan.count_cut
        cut = 0 if count_cut is None else count_cut(self.copy)  # Once it is protected, the copy is gone.
        return replace(
            self._priced,
            plan=replace(
                self._priced.plan,
                # The copy was made when the message was opened.
                snapshot=lambda _: None,
                build=lambda _, pseudonymise: self._protect(pseudonymise, blank=False),
                build_blank=lambda _, pseudonymise: self._protect(pseudonymise, blank=True),
                count_cut=(lambda _: cut) if cut else None,
            ),
            mechanisms=",".join(mechanisms),
            attributes={
                **self._priced.attributes,
                names.MECHANISMS: mechanisms,
                names.FIELDS_COUNT: sum(plan.protected for plan in plans),
                names.POLICY_VERSION: ",".join(dict.fromkeys(plan.version for plan in plans)),
                names.DELTA: sum(plan.delta for plan in plans),
            },
            bill=self._bill,
            opens=False,
            epochs=tuple(sorted(frozenset[float]().union(*(plan.epochs for plan in plans)))),
        )

    def _open(self, unopened: _Unopened) -> None:
        """Decides about the Anys of one message, and drops those that may not leave."""
        dropped: list[Found] = []
        for found in unopened.find(unopened.message, unopened.strict):
            if len(unopened.around) > DEEPEST:
                raise ProtectionError("WRONG_TYPE", found.name, f"more than {DEEPEST} Anys lie in each other")
            if not self._keep(found, found.units + unopened.units, unopened.around):
                dropped.append(found)
        for found in reversed(dropped):
            self._dropped = True
            found.drop()

    def _keep(self, found: Found, units: tuple[bytes, ...], around: tuple[Plan, ...]) -> bool:
        """Decides about one Any; whether it stays in the message."""
        if not found.any.type_url and not found.any.value:
            return True  # It is empty.
        types = find_types(found.any.type_url, found.holder.DESCRIPTOR.file.pool, found.name)
        if types and is_any(types[0]):
            self._add_any(_Packed(found, types[0], None, units), around)
            return True
        packed_type, priced = self._price(types, bool(units), around)
        if priced is None or priced.plan.is_open:
            if found.rule == pb.MessageRules.REJECT:
                text = "holds an Any of a type that is unknown or has no rules, which its message rejects"
                raise ProtectionError("UNANNOTATED", found.name, text)
            if found.rule == pb.MessageRules.SUPPRESS:
                return False
        if packed_type is not None:
            self._add(found, packed_type, priced, units, around)
        return True

    def _price(
        self, types: Sequence[Descriptor], has_unit: bool, around: tuple[Plan, ...]
    ) -> tuple[Descriptor | None, PricedPlan | None]:
        """The type that protects most, of those that an Any's type_url can mean; None for what is unknown."""
        chosen = types[0] if types else None
        strictest: PricedPlan | None = None
        for each in types:
            priced = self._billing.price_packed(around, each, has_unit, self._method, self._direction)
            if priced is not None and (
                strictest is None or (strictest.plan.is_open and not priced.plan.is_open)
            ):
                chosen, strictest = each, priced
        return chosen, strictest

    def _add_any(self, packed: _Packed, around: tuple[Plan, ...]) -> None:
        """Adds an Any that another Any packs: what holds the outer one decides about the inner one too."""
        inner = packed.parse()
        self._packed.append(packed)
        found = packed.found._replace(any=inner, holder=inner, field=None, key=None, units=())
        self._unopened.append(
            _Unopened(inner, lambda *_: (found,), packed.units, found.strict, (*around, around[-1]))
        )

    def _add(
        self,
        found: Found,
        packed_type: Descriptor,
        priced: PricedPlan | None,
        units: tuple[bytes, ...],
        around: tuple[Plan, ...],
    ) -> None:
        """Adds a packed message, and its own Anys to those that are still to be opened."""
        plan = None if priced is None else priced.plan
        if plan is not None and plan.memos is not None:
            text = "holds an Any of a type with memoized fields, which leaves only by itself"
            raise ProtectionError("WRONG_TYPE", found.name, text)
        packed = _Packed(found, packed_type, None if plan is None or plan.is_open else priced, units)
        self._packed.append(packed)
        if plan is None:
            return
        packed.parse()
        if plan.anys is not None:
            self._unopened.append(
                _Unopened(packed.message, plan.anys.find, units, found.strict, (*around, plan))
            )

    def _bill(self, _content: Any, consumer: str) -> Bill:
        """The bill of the message and of each message packed in it."""
        charges: list[Charge] = []
        epsilon = rho = 0.0
        if not self._priced.plan.is_open:
            outer, epsilon, rho = self._priced.bill(self._priced.plan.snapshot(self.copy), consumer)
            charges += outer
        for packed in self._packed:
            if packed.priced is not None:
                inner, *loss = self._billing.bill_owners(packed.priced, packed.owners(), consumer)
                charges += inner
                epsilon, rho = epsilon + loss[0], rho + loss[1]
        return merged(charges), epsilon, rho

    def _protect(self, pseudonymise: Pseudonymise, *, blank: bool) -> Message:
        """The protected message; it can be made once, because the raw content is not kept."""
        # A message in another one was found after it, and has to be protected before it.
        packed_messages, self._packed = self._packed[::-1], []
        copy, self.copy = self.copy, None
        for packed in packed_messages:
            packed.protect(pseudonymise, blank=blank)
        return (self._anys.blank if blank else self._anys.protect)(copy, pseudonymise)
