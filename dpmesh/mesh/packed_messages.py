"""Opening: what the Anys of one message pack is found and judged, before it is billed and protected.

All of it happens in one copy of the message, and every packed message is parsed once. So what is billed is what is
protected, whatever other threads do with the message or import meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.errors import DpmeshError, ProtectionError
from dpmesh.ledger import Charge
from dpmesh.mesh.billers import Bill, Biller, merged
from dpmesh.mesh.billing import BillingTable
from dpmesh.mesh.pricing import PricedPlan
from dpmesh.policy import AROUND, Plan, Pseudonymise
from dpmesh.policy.codegen.steps import drop_extensions
from dpmesh.policy.compile.anys import DEEPEST, Find, Found, find_types, is_any
from dpmesh.telemetry import names
from dpmesh.v1 import privacy_pb2 as pb


def opened(
    routes: BillingTable, route: PricedPlan, message: Message, method: str, direction: str
) -> tuple[PricedPlan | None, Message]:
    """Opens the Anys in a message.

    Args:
        routes: Knows the routes of packed types.
        route: The message's own.
        message: What is to be released; it is only read, once.
        method: The RPC.
        direction: "request" or "response".

    Returns:
        A route for this message only, and the copy that was judged. The route reads nothing but that copy. It is None
        where nothing in the message is protected. Where something can't be judged, its `bill` raises why.
    """
    try:
        content = _Content(routes, route, message, method, direction)
    except DpmeshError as error:
        failed = error.with_traceback(None)
    except Exception as error:  # Whatever it is, its text stays here.
        kind = type(error).__name__
        failed = ProtectionError("INTERNAL", route.plan.descriptor.full_name, f"could not be opened ({kind})")
    else:
        return content.route(), content.copy
    failed.__context__ = None
    return replace(route, bill=_raising(failed), opens=False), message


def _raising(error: DpmeshError) -> Biller:
    # Not kept once it is raised: it then holds the frames that it went through, and so the message.
    kept = [error]

    def bill(_snapshot: Any, _consumer: str) -> NoReturn:
        raise kept.pop()

    return bill


@dataclass(slots=True)
class _Packed:
    """A message in an Any.

    Attributes:
        found: The Any and where it stands.
        kind: Its type.
        route: Its route; None for a type without rules.
        units: The ids of all units around it.
        message: The message, once it was parsed.
    """

    found: Found
    kind: Descriptor
    route: PricedPlan | None
    units: tuple[bytes, ...]
    message: Any = None

    def parse(self) -> Any:
        """The packed message.

        Raises:
            ProtectionError: The Any's bytes are no message of the type.
        """
        if self.message is None:
            message, sound = GetMessageClass(self.kind)(), True
            try:
                message.ParseFromString(self.found.any.value)
            except DecodeError:
                sound = False
            # Raised outside of the handler, so that what may quote a value is not even its context.
            if not sound or not message.IsInitialized():
                text = f"holds an Any whose bytes are no {self.kind.full_name}"
                raise ProtectionError("WRONG_TYPE", self.found.name, text)
            self.message = message
        return self.message

    def owners(self) -> Sequence[tuple[int, bytes]]:
        """Who pays for it: pairs of a scope and an account.

        Which messages an Any packs is data of the units around it: they pay for the values of other units as well.
        """
        assert self.route is not None
        plan = self.route.plan
        found: list[tuple[int, bytes]] = []
        for scope, unit in plan.owners(self.parse()):
            path = plan.scopes[scope].path
            if path != AROUND:
                found.append((scope, unit))
            if path:
                found += [(scope, around) for around in self.units]
        return found

    def pack(self, message: Message | None) -> None:
        """Puts what may leave into the Any; nothing for a message that can't leave without its required fields."""
        if message is None or not message.IsInitialized():
            self.found.any.Clear()
        else:
            self.found.any.value = message.SerializeToString()


class _Content:
    """A copy of a message, and all that is packed in it.

    Args:
        routes: Knows the routes of packed types.
        route: The message's own.
        message: What is to be released.
        method: The RPC.
        direction: "request" or "response".

    Attributes:
        copy: The copy.
        protected: Something in it is protected.

    Raises:
        DpmeshError: Something can't be judged.
    """

    def __init__(
        self, routes: BillingTable, route: PricedPlan, message: Message, method: str, direction: str
    ) -> None:
        anys = route.plan.anys
        assert anys is not None
        self.copy: Any = type(message)()
        self.copy.CopyFrom(message)
        self._routes = routes
        self._route = route
        self._method = method
        self._direction = direction
        self._packed: list[_Packed] = []
        self._dropped = False
        # Messages that wait to be looked into: each with what finds its Anys, the units around it, whether it lies in
        # a protected message, and the plans of all messages on the way, its own included: one for each Any.
        self._todo: list[tuple[Any, Find, tuple[bytes, ...], bool, tuple[Plan, ...]]] = [
            (self.copy, anys.find, (), False, (route.plan,))
        ]
        while self._todo:
            self._look(*self._todo.pop())
        self.protected = (
            not anys.alone or self._dropped or any(entry.route is not None for entry in self._packed)
        )
        if self.protected:
            for entry in self._packed:
                entry.parse()  # Of a type without rules, unknown fields do not leave now.

    def route(self) -> PricedPlan | None:
        """The route of this one message, or None where nothing in it is protected."""
        if not self.protected:
            return None
        routes = [self._route, *(entry.route for entry in self._packed if entry.route is not None)]
        plans = [route.plan for route in routes if not route.plan.is_open]
        mechanisms = tuple(sorted({name for plan in plans for name in plan.mechanisms}))
        anys = self._route.plan.anys
        assert anys is not None
        protect, blank = anys.protect, anys.blank
        return replace(
            self._route,
            plan=replace(
                self._route.plan,
                # The copy was made when the message was opened.
                snapshot=lambda _: None,
                build=lambda _, alias: self._leave(protect, alias, blank=False),
                build_blank=lambda _, alias: self._leave(blank, alias, blank=True),
            ),
            mechanisms=",".join(mechanisms),
            attributes={
                **self._route.attributes,
                names.MECHANISMS: mechanisms,
                names.FIELDS_COUNT: sum(plan.protected for plan in plans),
                names.POLICY_VERSION: ",".join(dict.fromkeys(plan.version for plan in plans)),
                names.DELTA: sum(plan.delta for plan in plans),
            },
            bill=self._bill,
            opens=False,
        )

    def _look(
        self, holder: Any, find: Find, units: tuple[bytes, ...], strict: bool, around: tuple[Plan, ...]
    ) -> None:
        """Judges the Anys of one message."""
        dropped: list[Found] = []
        for found in find(holder, strict):
            if len(around) > DEEPEST:
                raise ProtectionError("WRONG_TYPE", found.name, f"more than {DEEPEST} Anys lie in each other")
            if self._judge(found, found.units + units, around):
                dropped.append(found)
        for found in reversed(dropped):
            self._dropped = True
            found.drop()

    def _judge(self, found: Found, units: tuple[bytes, ...], around: tuple[Plan, ...]) -> bool:
        """Judges one Any; whether it is dropped."""
        if not found.any.type_url and not found.any.value:
            return False  # It holds nothing.
        kinds = find_types(found.any.type_url, found.holder.DESCRIPTOR.file.pool, found.name)
        kind = kinds[0] if kinds else None
        if kind is not None and is_any(kind):
            # What holds the outer Any decides about the inner one too.
            entry = _Packed(found, kind, None, units)
            inner = entry.parse()
            self._packed.append(entry)
            same = found._replace(any=inner, holder=inner, field=None, key=None, units=())
            self._todo.append((inner, _only(same), units, found.strict, (*around, around[-1])))
            return False
        route = None
        for each in kinds:
            there = self._routes.price_packed(around, each, bool(units), self._method, self._direction)
            if there is not None and (route is None or (route.plan.is_open and not there.plan.is_open)):
                kind, route = each, there
        plan = None if route is None else route.plan
        if kind is None or route is None or route.plan.is_open:
            if found.rule == pb.MessageRules.REJECT:
                text = "holds an Any of a type that is unknown or has no rules, which its message rejects"
                raise ProtectionError("UNANNOTATED", found.name, text)
            if found.rule == pb.MessageRules.SUPPRESS:
                return True
            route = None
        if kind is not None:
            entry = _Packed(found, kind, route, units)
            self._packed.append(entry)
            if plan is not None:
                entry.parse()
                if plan.anys is not None:
                    inside = (*around, plan)
                    self._todo.append((entry.message, plan.anys.find, units, found.strict, inside))
        return False

    def _bill(self, _snapshot: Any, consumer: str) -> Bill:
        """What the message costs, and what each message packed in it costs."""
        charges: list[Charge] = []
        epsilon = rho = 0.0
        if not self._route.plan.is_open:
            own, epsilon, rho = self._route.bill(self._route.plan.snapshot(self.copy), consumer)
            charges += own
        for entry in self._packed:
            if entry.route is not None:
                own, *lost = self._routes.bill_owners(entry.route, entry.owners(), consumer)
                charges += own
                epsilon, rho = epsilon + lost[0], rho + lost[1]
        return merged(charges), epsilon, rho

    def _leave(
        self, protect: Callable[[Message, Pseudonymise], Message], alias: Pseudonymise, *, blank: bool
    ) -> Message:
        """The protected message; once, because the raw content is not kept."""
        # Those that lie in others were found after these, and have to be done before them.
        packed, self._packed = self._packed[::-1], []
        copy, self.copy = self.copy, None
        for entry in packed:
            entry.pack(_protected(entry, alias, blank))
        return protect(copy, alias)


def _only(found: Found) -> Find:
    def find(_message: Any, _strict: bool) -> Iterable[Found]:
        return (found,)

    return find


def _protected(entry: _Packed, alias: Pseudonymise, blank: bool) -> Message:
    """What may leave of a packed message, in which everything that was packed is protected already."""
    if entry.route is None:
        entry.message.DiscardUnknownFields()
        if entry.found.strict:
            drop_extensions(entry.message)
        message: Message = entry.message
        return message
    plan = entry.route.plan
    run = plan.anys or plan
    return (run.blank if blank else run.protect)(entry.message, alias)
