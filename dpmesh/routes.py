"""Routes: for each message class, its plan and who pays what for it; decided once and kept, failures too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.accounting import AMOUNT, Accounting, Cost, rho_to_epsilon
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger import Budget, Charge
from dpmesh.policy import Plan, Policy
from dpmesh.telemetry import names

# What a message costs: charges, and the epsilon and rho of all owners together.
Bill = tuple[Sequence[Charge], float, float]


@dataclass(frozen=True, slots=True)
class Route:
    """All that releasing a message of one class needs to know.

    Attributes:
        plan: What is done to it.
        amounts: For each of the plan's scopes, (budget's index, ledger amount) pairs.
        losses: For each of the plan's scopes, what one instance loses: epsilon (of what is not pure, at the smallest
            budget's delta) and rho.
        mechanisms: Their names, joined by commas, for metrics.
        attributes: What all its spans have in common.
        bill: Who pays what for a message. Raises ProtectionError where a unit's id is missing.
    """

    plan: Plan
    amounts: tuple[tuple[tuple[int, int], ...], ...]
    losses: tuple[tuple[float, float], ...]
    mechanisms: str
    attributes: Mapping[str, Any]
    bill: Callable[[Message], Bill]


def _biller(
    plan: Plan, amounts: Sequence[Sequence[tuple[int, int]]], losses: Sequence[tuple[float, float]]
) -> Callable[[Message], Bill]:
    """What bills messages of one class; an account that occurs twice is charged once, for both."""
    if plan.unit is not None and len(amounts[0]) == 1:
        read, ((budget, amount),), (epsilon, rho) = plan.unit, amounts[0], losses[0]
        return lambda message: (((budget, read(message), amount),), epsilon, rho)

    def bill(message: Message) -> Bill:
        owners = plan.owners(message)
        charges = [(budget, unit, amount) for scope, unit in owners for budget, amount in amounts[scope]]
        lost = [losses[scope] for scope, _ in owners]
        return _merged(charges), sum(epsilon for epsilon, _ in lost), sum(rho for _, rho in lost)

    return bill


def _merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    sums: dict[tuple[int, bytes], int] = {}
    for budget, unit, amount in charges:
        sums[budget, unit] = sums.get((budget, unit), 0) + amount
    return [(budget, unit, amount) for (budget, unit), amount in sums.items()]


class Routes:
    """The routes of all message classes.

    Args:
        policy: What makes the plans.
        budgets: What pays, in the ledger's order.
    """

    def __init__(self, policy: Policy, budgets: Sequence[Budget]) -> None:
        self._policy = policy
        self._budgets = budgets
        self._known: dict[type, Route | AnnotationError | None] = {}

    def of(self, message_type: type) -> Route | None:
        """The route of a message class, or None when it has nothing to protect.

        Raises:
            AnnotationError: Its annotations are bad, or no budget covers it.
            ProtectionError: It is no protobuf message class.
        """
        try:
            route = self._known[message_type]
        except KeyError:
            route = self._known[message_type] = self._add(message_type)
        if isinstance(route, AnnotationError):
            raise route.with_traceback(None)
        return route

    def _add(self, message_type: type) -> Route | AnnotationError | None:
        if not issubclass(message_type, Message):
            raise ProtectionError("WRONG_TYPE", message_type.__name__, "is not a protobuf message")
        try:
            plan = self._policy.plan(cast(Descriptor, message_type.DESCRIPTOR))
            return None if plan is None else self._route(plan)
        except AnnotationError as error:
            return error

    def _route(self, plan: Plan) -> Route:
        amounts = tuple(
            self._pay(plan, scope.cost, "unit" if scope.path else "global") for scope in plan.scopes
        )
        losses = tuple((self._epsilon(scope.cost), scope.cost.rho / AMOUNT) for scope in plan.scopes)
        return Route(
            plan=plan,
            amounts=amounts,
            losses=losses,
            bill=_biller(plan, amounts, losses),
            mechanisms=",".join(plan.mechanisms),
            attributes={
                names.MESSAGE: plan.descriptor.full_name,
                names.MECHANISMS: plan.mechanisms,
                names.FIELDS_COUNT: plan.protected,
                names.POLICY_VERSION: plan.version,
                names.DELTA: plan.delta,
            },
        )

    def _pay(self, plan: Plan, cost: Cost, key: str) -> tuple[tuple[int, int], ...]:
        """Every budget of the scope's key pays; a release that none pays for is refused."""
        paying = tuple((i, _amount(plan, b, cost)) for i, b in enumerate(self._budgets) if b.key == key)
        if cost != Cost.ZERO and not paying:
            fix = (
                "add one" if key == "unit" else "mark the message's unit, or add a budget with key = 'global'"
            )
            raise AnnotationError(
                "no-budget", plan.descriptor.full_name, f"no budget with key = {key!r} pays for it", fix
            )
        return paying if cost != Cost.ZERO else ()

    def _epsilon(self, cost: Cost) -> float:
        if cost.epsilon is not None:
            return cost.epsilon / AMOUNT
        deltas = [budget.delta for budget in self._budgets if budget.accounting is Accounting.ZCDP]
        return rho_to_epsilon(cost.rho / AMOUNT, min(deltas))


def _amount(plan: Plan, budget: Budget, cost: Cost) -> int:
    name = plan.descriptor.full_name
    if budget.accounting is Accounting.PURE and cost.epsilon is None:
        raise AnnotationError(
            "accounting",
            name,
            f"a discrete Gaussian has no pure epsilon, and budget {budget.name!r} counts those",
            "accounting = 'zcdp' on the budget, or DISCRETE_LAPLACE on the field",
        )
    amount = cost.amount(budget.accounting)
    if amount > budget.cap:
        raise AnnotationError(
            "over-budget",
            name,
            f"one message costs more than budget {budget.name!r} has in all",
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
