"""Routes: for each message class (and RPC, where budgets tell those apart), its plan and who pays what for it.

Decided once and kept, failures too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.accounting import AMOUNT, Accounting, Cost
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger import Budget, Charge
from dpmesh.ledger.budget import DIRECTIONS, consumer_key, parents
from dpmesh.policy import Plan, Policy
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
class Route:
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
    """

    plan: Plan
    amounts: Amounts
    quotas: Amounts
    losses: tuple[tuple[float, float], ...]
    mechanisms: str
    attributes: Mapping[str, Any]
    bill: Callable[[Any, str], Bill]


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
        return _merged(charges), *_lost(owners, losses)

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
        return _merged(charges), *_lost(owners, losses)

    return bill if plan.unit is None else unit_bill


def _lost(owners: Sequence[tuple[int, bytes]], losses: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What all owners lose together: epsilon and rho."""
    return sum(losses[scope][0] for scope, _ in owners), sum(losses[scope][1] for scope, _ in owners)


def _merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    sums: dict[tuple[int, bytes], int] = {}
    for budget, account, amount in charges:
        sums[budget, account] = sums.get((budget, account), 0) + amount
    return [(budget, account, amount) for (budget, account), amount in sums.items()]


class Routes:
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
        self._known: dict[Any, Route | _Fault | None] = {}

    def of(self, message_type: type, method: str = "", direction: str = "request") -> Route | None:
        """The route of a message class on an RPC, or None when it has nothing to protect.

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
            route = self._add(key, message_type, method, direction)
        if type(route) is tuple:  # isinstance takes longer, as does all else that would tell mypy.
            raise AnnotationError(*route)
        return route  # type: ignore[return-value]

    def protects(self, message_type: type) -> bool:
        """Whether a message class has anything to protect, whoever pays for it.

        Raises:
            AnnotationError: Its annotations are bad.
            ProtectionError: It is no protobuf message class.
        """
        return self._plan(message_type) is not None

    def _add(self, key: Any, message_type: type, method: str, direction: str) -> Route | _Fault | None:
        found: Route | _Fault | None
        try:
            plan = self._plan(message_type)
            found = None if plan is None else self._route(plan, method, direction)
        except AnnotationError as error:
            found = error.rule, error.element, error.text, error.fix
        if len(self._known) >= _ROUTES_KEPT:
            self._known.clear()
        self._known[key] = found
        return found

    def _plan(self, message_type: type) -> Plan | None:
        if not issubclass(message_type, Message):
            raise ProtectionError("WRONG_TYPE", message_type.__name__, "is not a protobuf message")
        return self._policy.plan(cast(Descriptor, message_type.DESCRIPTOR))

    def _route(self, plan: Plan, method: str, direction: str) -> Route:
        paying = self._paying(plan, method, direction)
        amounts = tuple(
            self._pay(plan, scope.cost, "unit" if scope.path else "global", paying, method, direction)
            for scope in plan.scopes
        )
        quotas = tuple(
            self._limit(plan, scope.cost, {budget for budget, _ in pairs}, paying)
            for scope, pairs in zip(plan.scopes, amounts, strict=True)
        )
        losses = tuple((self._epsilon(scope.cost), scope.cost.rho / AMOUNT) for scope in plan.scopes)
        return Route(
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
