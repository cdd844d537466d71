"""Routes: for each message class (and RPC, where budgets tell those apart), its plan and who pays what for it.

Decided once and kept, failures too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.accounting import AMOUNT, Accounting, Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger import Budget, Charge
from dpmesh.ledger.budget import DIRECTIONS, consumer_key, parents
from dpmesh.policy import AROUND, Plan, Policy, Scope
from dpmesh.policy.policy import is_foreign
from dpmesh.telemetry import names

# What a message costs: charges, and the epsilon and rho of all owners together.
Bill = tuple[Sequence[Charge], float, float]
# For each of a plan's scopes, (budget's index, ledger amount) pairs.
Amounts = tuple[tuple[tuple[int, int], ...], ...]

# What an AnnotationError is made of. The exception itself is not kept: once raised, it holds the frames that it went
# through, and all that is in them.
_Fault = tuple[str, str, str, str]

# Peers choose the names of methods where a generic handler serves any, and a fleet can have any number of consumers.
_ROUTES_KEPT = 16_384
_CONSUMERS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """All that releasing a message of one class needs to know.

    Attributes:
        plan: What is done to it.
        amounts: For each of the plan's scopes, what each budget that pays for it is charged.
        quotas: The same for the quotas under those budgets, whoever the consumer is.
        losses: For each of the plan's scopes, what one instance loses: epsilon (of what is not pure, at the smallest
            budget's delta) and rho.
        mechanisms: Their names, joined by commas, for metrics.
        attributes: What all its spans have in common.
        bill: Who pays what for a message to a consumer, by the plan's snapshot of it. Raises ProtectionError where a
            unit's id is missing.
        opens: Messages can hold Anys: dpmesh.mesh.packed_messages opens each first and finds a PricedPlan for it.
    """

    plan: Plan
    amounts: Amounts
    quotas: Amounts
    losses: tuple[tuple[float, float], ...]
    mechanisms: str
    attributes: Mapping[str, Any]
    bill: Callable[[Any, str], Bill]
    opens: bool = False


class _Provisional(NamedTuple):
    """An answer that a module which is imported later can change.

    Attributes:
        answer: The answer.
        holds: Whether it still is the right one. Raises AnnotationError.
    """

    answer: PricedPlan | _Fault | None
    holds: Callable[[], bool]


def _biller(
    plan: Plan, amounts: Amounts, losses: Sequence[tuple[float, float]]
) -> Callable[[Any, str], Bill]:
    """What bills messages of one class; an account that occurs twice is charged once, for both."""
    if plan.unit is not None and len(amounts[0]) == 1:
        read, ((budget, amount),), (epsilon, rho) = plan.unit, amounts[0], losses[0]
        return lambda snapshot, _: (((budget, read(snapshot), amount),), epsilon, rho)
    if plan.unit is not None:
        return _unit_biller(plan.unit, amounts[0], *losses[0])

    def bill(snapshot: Any, _: str) -> Bill:
        owners = plan.payers(snapshot)
        charges = [(budget, unit, amount) for scope, unit in owners for budget, amount in amounts[scope]]
        return merged(charges), *_lost(owners, losses)

    return bill


def _unit_biller(
    read: Callable[[Any], bytes], pairs: Sequence[tuple[int, int]], epsilon: float, rho: float
) -> Callable[[Any, str], Bill]:
    """The same where one unit pays for the whole message, from several budgets: no account occurs twice."""

    def bill(snapshot: Any, _: str) -> Bill:
        unit = read(snapshot)
        return [(budget, unit, amount) for budget, amount in pairs], epsilon, rho

    return bill


def _quota_biller(
    plan: Plan,
    amounts: Amounts,
    quotas: Amounts,
    losses: Sequence[tuple[float, float]],
    budgets: Sequence[Budget],
) -> Callable[[Any, str], Bill]:
    """The same where quotas pay too. The budgets come first, so that where both are spent the budget is named."""
    plain = _biller(plan, amounts, losses)
    known: dict[str, Amounts] = {}

    def held(consumer: str) -> Amounts:
        """The quotas of one consumer."""
        if len(known) >= _CONSUMERS_KEPT:
            known.clear()
        found = known[consumer] = tuple(
            tuple(pair for pair in pairs if budgets[pair[0]].is_for(consumer)) for pairs in quotas
        )
        return found

    def unit_bill(snapshot: Any, consumer: str) -> Bill:
        own = known.get(consumer) or held(consumer)
        charges, epsilon, rho = plain(snapshot, consumer)
        if own[0]:
            account = consumer_key(charges[0][1], consumer)
            charges = [*charges, *((quota, account, amount) for quota, amount in own[0])]
        return charges, epsilon, rho

    def bill(snapshot: Any, consumer: str) -> Bill:
        own = known.get(consumer) or held(consumer)
        owners = plan.payers(snapshot)
        charges = [(budget, unit, amount) for scope, unit in owners for budget, amount in amounts[scope]]
        for scope, unit in owners:
            if own[scope]:
                account = consumer_key(unit, consumer)
                charges += [(quota, account, amount) for quota, amount in own[scope]]
        return merged(charges), *_lost(owners, losses)

    return bill if plan.unit is None else unit_bill


def _lost(owners: Sequence[tuple[int, bytes]], losses: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What all owners lose together: epsilon and rho."""
    return sum(losses[scope][0] for scope, _ in owners), sum(losses[scope][1] for scope, _ in owners)


def merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    """The charges with one for each account of each budget."""
    sums: dict[tuple[int, bytes], int] = {}
    for budget, account, amount in charges:
        sums[budget, account] = sums.get((budget, account), 0) + amount
    return [(budget, account, amount) for (budget, account), amount in sums.items()]


class BillingTable:
    """The routes of all message classes.

    Args:
        policy: What makes the plans.
        budgets: What pays, in the ledger's order, quotas included.

    Raises:
        ConfigError: A quota does not belong under its budget.
    """

    def __init__(self, policy: Policy, budgets: Sequence[Budget]) -> None:
        self._policy = policy
        self._budgets = budgets
        self._parents = parents(budgets)
        # As long as all budgets pay for everything, a message's class alone decides.
        self._by_rpc = not all(budget.match.everything for budget in budgets)
        self._known: dict[Any, PricedPlan | _Fault | _Provisional | None] = {}

    def of(self, message_type: type, method: str = "", direction: str = "request") -> PricedPlan | None:
        """The route of a message class on an RPC, or None when it can't have anything to protect.

        Args:
            message_type: The class.
            method: "/package.Service/Method".
            direction: "request" or "response".

        Raises:
            AnnotationError: Its annotations are bad, or no budget covers it.
            ProtectionError: It is no protobuf message class, or there is no such direction.
        """
        key = (message_type, method, direction) if self._by_rpc else message_type
        try:
            route = self._known[key]
        except KeyError:
            route = self._add(key, _descriptor(message_type), method, direction)
        # isinstance takes longer, as does all else that would tell mypy.
        if type(route) is PricedPlan or route is None:
            return route
        if type(route) is _Provisional:
            if not route.holds():
                self._known.pop(key, None)
                return self.of(message_type, method, direction)
            route = route.answer
        if type(route) is tuple:
            raise AnnotationError(*route)
        return cast("PricedPlan | None", route)

    def inside(
        self, around: Sequence[Plan], packed: Descriptor, has_unit: bool, method: str, direction: str
    ) -> PricedPlan | None:
        """The route of a message that is packed in another one, or None when it can't have anything to protect.

        Every budget that fits the packed type pays, and every one that fits a message around it.

        Args:
            around: The plans of the message that is released and of all packed ones around this one.
            packed: The packed type.
            has_unit: A unit stands around the Any, and pays for the packed message's local values that have none.
            method: The RPC.
            direction: "request" or "response".

        Raises:
            AnnotationError: The packed type's annotations are bad, or no budget covers it.
        """
        key: Any = (packed, has_unit)
        if self._by_rpc:
            outer = frozenset((plan.descriptor, plan.version) for plan in around)
            key = (packed, has_unit, outer, method, direction)
        try:
            found = self._known[key]
        except KeyError:
            found = self._add(key, packed, method, direction, around, has_unit)
        if type(found) is _Provisional:
            if not found.holds():
                self._known.pop(key, None)
                return self.inside(around, packed, has_unit, method, direction)
            found = found.answer
        if type(found) is tuple:
            raise AnnotationError(*found)
        return cast("PricedPlan | None", found)

    def charges(self, route: PricedPlan, owners: Sequence[tuple[int, bytes]], consumer: str) -> Bill:
        """Who pays what for the owners of one message: charges that are not merged yet, epsilon and rho.

        Args:
            route: The message's route.
            owners: Pairs of a scope and an account, as of Plan.owners.
            consumer: Who receives it.
        """
        charges = [
            (budget, unit, amount) for scope, unit in owners for budget, amount in route.amounts[scope]
        ]
        for scope, unit in owners:
            charges += [
                (quota, consumer_key(unit, consumer), amount)
                for quota, amount in route.quotas[scope]
                if self._budgets[quota].is_for(consumer)
            ]
        return charges, *_lost(owners, route.losses)

    def protection(self, message_type: type) -> bool | None:
        """Whether messages of a class have anything to protect, whoever pays for it.

        Returns:
            True or False, which is for good; None where only each message tells, because of what it can hold (Anys,
            or extensions), or because its type is from another pool than protobuf's default pool.

        Raises:
            AnnotationError: Its annotations are bad.
            ProtectionError: It is no protobuf message class.
        """
        message = _descriptor(message_type)
        plan = self._policy.plan(message)
        if plan is None:
            return None if is_foreign(message) else False
        return None if plan.is_open else True

    def protects(self, message_type: type) -> bool:
        """Whether messages of a class may have anything to protect, whoever pays for it.

        Raises:
            AnnotationError: Its annotations are bad.
            ProtectionError: It is no protobuf message class.
        """
        return self.protection(message_type) is not False

    def _add(
        self,
        key: Any,
        message: Descriptor,
        method: str,
        direction: str,
        around: Sequence[Plan] = (),
        has_unit: bool = False,
    ) -> PricedPlan | _Fault | _Provisional | None:
        found: PricedPlan | _Fault | _Provisional | None
        plan = None
        try:
            plan = self._policy.plan(message)
            if plan is None:
                found = None
            else:
                found = self._route(_packed(plan) if has_unit else plan, method, direction, around)
        except AnnotationError as error:
            found = error.rule, error.element, error.text, error.fix
        doubts = self._doubts(message, plan, method)
        if doubts:
            found = _Provisional(found, lambda: all(holds() for holds in doubts))
        if len(self._known) >= _ROUTES_KEPT:
            self._known.clear()
        self._known[key] = found
        return found

    def _doubts(self, message: Descriptor, plan: Plan | None, method: str) -> list[Callable[[], bool]]:
        """What can change a route after it was found: each as a question whether it has not happened yet."""
        policy, doubts = self._policy, []
        extendable = plan is not None and plan.anys is not None and plan.anys.extendable
        if extendable or is_foreign(message):
            doubts.append(lambda: policy.plan(message) is plan)
        if plan is not None and self._by_rpc and method and not policy.declares(method, message.file.pool):
            # Its labels choose budgets, and its proto may be imported yet.
            doubts.append(lambda: not policy.declares(method, message.file.pool))
        return doubts

    def _route(self, plan: Plan, method: str, direction: str, around: Sequence[Plan] = ()) -> PricedPlan:
        paying = sorted(
            {index for each in (plan, *around) for index in self._paying(each, method, direction)}
        )
        amounts = tuple(
            self._pay(plan, scope.cost, "unit" if scope.path else "global", paying, method, direction)
            for scope in plan.scopes
        )
        quotas = tuple(
            self._limit(plan, scope.cost, {budget for budget, _ in pairs}, paying)
            for scope, pairs in zip(plan.scopes, amounts, strict=True)
        )
        losses = tuple((self._epsilon(scope.cost), scope.cost.rho / AMOUNT) for scope in plan.scopes)
        return PricedPlan(
            plan=plan,
            amounts=amounts,
            quotas=quotas,
            losses=losses,
            bill=_quota_biller(plan, amounts, quotas, losses, self._budgets)
            if any(quotas)
            else _biller(plan, amounts, losses),
            mechanisms=",".join(plan.mechanisms),
            attributes={
                names.MESSAGE: plan.descriptor.full_name,
                names.MECHANISMS: plan.mechanisms,
                names.FIELDS_COUNT: plan.protected,
                names.POLICY_VERSION: plan.version,
                names.DELTA: plan.delta,
            },
            opens=plan.anys is not None,
        )

    def _paying(self, plan: Plan, method: str, direction: str) -> list[int]:
        """The budgets and quotas that fit a release, by index."""
        if not self._by_rpc:
            return list(range(len(self._budgets)))
        name = plan.descriptor.full_name
        if direction not in DIRECTIONS:  # It would fit no budget for one direction, and get around them.
            raise ProtectionError("INTERNAL", name, f"the direction has to be {' or '.join(DIRECTIONS)}")
        # A message that was compiled apart from the modules that are loaded has a pool of its own.
        labels = self._policy.labels(method) | self._policy.labels(method, plan.descriptor.file.pool)
        labels |= set(plan.labels)
        return [
            i for i, b in enumerate(self._budgets) if b.match.fits(method, plan.messages, direction, labels)
        ]

    def _pay(
        self, plan: Plan, cost: Cost, owner: str, paying: Sequence[int], method: str, direction: str
    ) -> tuple[tuple[int, int], ...]:
        """Every budget of the scope's key that fits pays; a release that none pays for is refused."""
        if cost == Cost.ZERO:
            return ()
        budgets = self._budgets
        found = tuple((i, _amount(plan, budgets[i], cost)) for i in paying if budgets[i].key == owner)
        if not found:
            fix = (
                "add one"
                if owner == "unit"
                else "mark the message's unit, or add a budget with key = 'global'"
            )
            where = f" in a {direction} of {method or 'no method'}" if self._by_rpc else ""
            raise AnnotationError(
                "no-budget",
                plan.descriptor.full_name,
                f"no budget with key = {owner!r} pays for it{where}",
                fix,
            )
        return found

    def _limit(
        self, plan: Plan, cost: Cost, payers: set[int], paying: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """Every quota that fits, under a budget that pays.

        One that is for some consumers only may be too small for the message: then it refuses those, and no others.
        """
        limits = [(i, self._budgets[i]) for i in paying if self._parents.get(i) in payers]
        return tuple(
            (i, cost.amount(quota.accounting) if quota.consumers else _amount(plan, quota, cost))
            for i, quota in limits
        )

    def _epsilon(self, cost: Cost) -> float:
        deltas = [budget.delta for budget in self._budgets if budget.accounting is Accounting.ZCDP]
        return cost.epsilon_at(min(deltas, default=0.0))


def _descriptor(message_type: type) -> Descriptor:
    if not issubclass(message_type, Message):
        raise ProtectionError("WRONG_TYPE", message_type.__name__, "is not a protobuf message")
    return cast(Descriptor, message_type.DESCRIPTOR)


def _packed(plan: Plan) -> Plan:
    """The plan of a message packed in one with a unit, which pays for local values that have none of their own.

    The account of the scope AROUND is left open: the message does not know it.
    """
    own = tuple(scope for scope in plan.scopes if scope.path)
    local, central = plan.ownerless
    around = [(Scope(AROUND, local), local), (Scope("", central), central)]
    extra = tuple(scope for scope, cost in around if cost != Cost.ZERO)

    def payers(snapshot: Any) -> Sequence[tuple[int, bytes]]:
        found = [entry for entry in plan.payers(snapshot) if entry[0] < len(own)]
        return [*found, *((len(own) + index, b"") for index in range(len(extra)))]

    return replace(plan, scopes=own + extra, payers=payers, unit=None)


def _amount(plan: Plan, budget: Budget, cost: Cost) -> int:
    name = plan.descriptor.full_name
    if budget.accounting is Accounting.PURE and cost.epsilon is None:
        raise AnnotationError(
            "accounting",
            name,
            f"a discrete Gaussian has no pure epsilon, and {budget.kind} {budget.name!r} counts those",
            "accounting = 'zcdp' on the budget, or DISCRETE_LAPLACE on the field",
        )
    amount = cost.amount(budget.accounting)
    if amount > budget.cap:
        raise AnnotationError(
            "over-budget",
            name,
            f"one message costs more than {budget.kind} {budget.name!r} has in all",
            _cheaper(budget, cost),
        )
    return amount


def _cheaper(budget: Budget, cost: Cost) -> str:
    """What helps a message that costs more than its whole budget."""
    if (
        budget.accounting is Accounting.ZCDP
        and cost.epsilon is not None
        and cost.epsilon <= budget.epsilon * AMOUNT
    ):
        return "accounting = 'pure' admits it: zcdp is for many releases of small epsilon"
    return "lower the epsilons, or raise the budget"
