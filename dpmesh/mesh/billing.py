"""BillingTable: the priced plan of each message class, and of each RPC where budgets tell RPCs apart.

Answers are decided once and kept, errors too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.bounded import BoundedTable
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger.budget import consumer_key
from dpmesh.mesh.pricing import Bill, Budgets, PricedPlan, Pricing, total_loss, with_unit_around
from dpmesh.policy import Plan, Policy
from dpmesh.policy.policy import is_foreign

# Peers choose the names of methods where a generic handler serves any method.
_KEPT = 16_384


class _BadAnnotation(NamedTuple):
    """What an AnnotationError is made of. Once raised, the exception itself holds the frames that it went through."""

    rule: str
    element: str
    text: str
    fix: str


class _Unsettled(NamedTuple):
    """An answer that a module imported later can change, or an error.

    Attributes:
        answer: The answer.
        conditions: It is right as long as all of them are true. They raise AnnotationError.
    """

    answer: PricedPlan | _BadAnnotation | None
    conditions: Sequence[Callable[[], bool]]


class BillingTable:
    """The priced plans of all message classes under one policy.

    Args:
        policy: The rules.
        budgets: As for Pricing.

    Attributes:
        budgets: By index.

    Raises:
        ConfigError: A quota does not belong under its budget.
    """

    def __init__(self, policy: Policy, budgets: Budgets) -> None:
        self._policy = policy
        self._pricing = Pricing(policy, budgets)
        self.budgets = self._pricing.budgets
        self._by_rpc = self._pricing.by_rpc
        self._settled: BoundedTable[Any, PricedPlan | None] = BoundedTable(_KEPT)
        self._unsettled: BoundedTable[Any, _Unsettled] = BoundedTable(_KEPT)

    def price(self, message_type: type, method: str = "", direction: str = "request") -> PricedPlan | None:
        """The priced plan of a message class on an RPC, or None when it can't have anything to protect.

        Raises:
            AnnotationError: The class's annotations are bad, or no budget covers it.
            ProtectionError: It is no protobuf message class, or there is no such direction.
        """
        key = (message_type, method, direction) if self._by_rpc else message_type
        try:
            return self._settled[key]
        except KeyError:
            pass
        return self._decide(key, descriptor_of(message_type), method, direction)

    def price_packed(
        self, around: Sequence[Plan], packed: Descriptor, has_unit: bool, method: str, direction: str
    ) -> PricedPlan | None:
        """The priced plan of a message packed in another one, or None when it can't have anything to protect.

        Every budget that fits the packed type pays, and every one that fits a message around it.

        Args:
            around: The plans of the released message and of all packed ones around this one.
            packed: The packed type.
            has_unit: A unit stands around the Any, and pays for the packed message's local values that have no unit.
            method: "/package.Service/Method".
            direction: "request" or "response".

        Raises:
            AnnotationError: The packed type's annotations are bad, or no budget covers it.
        """
        key: Any = (packed, has_unit)
        if self._by_rpc:
            outer = frozenset((plan.descriptor, plan.version) for plan in around)
            key = (packed, has_unit, outer, method, direction)
        try:
            return self._settled[key]
        except KeyError:
            pass
        return self._decide(key, packed, method, direction, around, has_unit)

    def priced_so_far(self) -> list[tuple[type, str, str]]:
        """The message classes that were priced so far, each with a method and a direction."""
        keys = [
            key if isinstance(key, tuple) else (key, "", "request")
            for key in (*self._settled.copy(), *self._unsettled.copy())  # Other threads may price meanwhile.
        ]
        return [key for key in keys if isinstance(key[0], type)]  # Packed messages go by their descriptors.

    def bill_owners(self, priced: PricedPlan, owners: Sequence[tuple[int, bytes]], consumer: str) -> Bill:
        """The bill of one message by its owners, as of Plan.owners; its charges are not merged yet."""
        charges = [
            (budget, unit, amount) for scope, unit in owners for budget, amount in priced.amounts[scope]
        ]
        for scope, unit in owners:
            charges += [
                (quota, consumer_key(unit, consumer), amount)
                for quota, amount in priced.quotas[scope]
                if self.budgets[quota].is_for(consumer)
            ]
        return charges, *total_loss(owners, priced.losses)

    def _decide(
        self,
        key: Any,
        message: Descriptor,
        method: str,
        direction: str,
        around: Sequence[Plan] = (),
        has_unit: bool = False,
    ) -> PricedPlan | None:
        """The answer about a type that is not settled: the one that was kept, as long as it holds, or a new one."""
        kept = self._unsettled.get(key)
        if kept is not None and all(holds() for holds in kept.conditions):
            answer = kept.answer
        else:
            answer = plan = None
            try:
                plan = self._policy.plan(message)
                if plan is not None:
                    priced = with_unit_around(plan) if has_unit else plan
                    answer = self._pricing.price(priced, method, direction, around)
            except AnnotationError as error:
                answer = _BadAnnotation(error.rule, error.element, error.text, error.fix)
            conditions = self._conditions(message, plan, method)
            if conditions or isinstance(answer, _BadAnnotation):
                self._unsettled[key] = _Unsettled(answer, conditions)
            else:
                self._settled[key] = answer
        if isinstance(answer, _BadAnnotation):
            raise AnnotationError(*answer)
        return answer

    def _conditions(self, message: Descriptor, plan: Plan | None, method: str) -> list[Callable[[], bool]]:
        """The conditions under which an answer stays right; modules imported later can break them."""
        policy, conditions = self._policy, []
        extendable = plan is not None and plan.anys is not None and plan.anys.extendable
        if extendable or is_foreign(message):
            conditions.append(lambda: policy.plan(message) is plan)
        if plan is not None and self._by_rpc and method and not policy.declares(method, message.file.pool):
            # The method's labels choose budgets, and its proto may be imported later.
            conditions.append(lambda: not policy.declares(method, message.file.pool))
        return conditions


def descriptor_of(message_type: type) -> Descriptor:
    """The descriptor of a message class.

    Raises:
        ProtectionError: It is no protobuf message class.
    """
    if not issubclass(message_type, Message):
        raise ProtectionError("WRONG_TYPE", message_type.__name__, "is not a protobuf message")
    return cast(Descriptor, message_type.DESCRIPTOR)
