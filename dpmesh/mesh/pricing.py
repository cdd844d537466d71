"""Pricing: which budgets and quotas pay how much for the messages of one plan, and the bill of one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpmesh.accounting import AMOUNT, Accounting, Cost
from dpmesh.bounded import BoundedTable
from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.ledger import Budget, Charge
from dpmesh.ledger.budget import DIRECTIONS, consumer_key, parents
from dpmesh.policy import AROUND, Plan, Policy, Scope
from dpmesh.policy.plan import Memos
from dpmesh.telemetry import names

# What a message costs: charges, and the epsilon and rho of all owners together.
Bill = tuple[Sequence[Charge], float, float]
# Bills one message, from what the plan's `snapshot` gives for it and its consumer. It charges each account of each
# budget once, and raises ProtectionError if a unit's id is missing.
Biller = Callable[[Any, str], Bill]
# For each of a plan's scopes, (budget's index, ledger amount) pairs.
Amounts = tuple[tuple[tuple[int, int], ...], ...]
# For each of a plan's scopes, the epsilon and rho of one instance.
Losses = Sequence[tuple[float, float]]

# All of a ledger's in their order, or those of one policy by their indexes in the ledger.
Budgets = Sequence[Budget] | Mapping[int, Budget]

# A fleet can have any number of consumers.
_CONSUMERS_KEPT = 1024


def biller(plan: Plan, amounts: Amounts, losses: Losses) -> Biller:
    """The biller of a type for which no quota pays."""
    if plan.unit is not None and len(amounts[0]) == 1:
        read, ((budget, amount),), (epsilon, rho) = plan.unit, amounts[0], losses[0]
        return lambda content, _: (((budget, read(content), amount),), epsilon, rho)
    if plan.unit is not None:
        return _one_unit_biller(plan.unit, amounts[0], *losses[0])

    def bill(content: Any, _: str) -> Bill:
        owners = plan.payers(content)
        charges = [(budget, unit, amount) for scope, unit in owners for budget, amount in amounts[scope]]
        return merged(charges), *total_loss(owners, losses)

    return bill


def _one_unit_biller(
    read: Callable[[Any], bytes], pairs: Sequence[tuple[int, int]], epsilon: float, rho: float
) -> Biller:
    """The biller of a type for which one unit pays, from several budgets: no account occurs twice."""

    def bill(content: Any, _: str) -> Bill:
        unit = read(content)
        return [(budget, unit, amount) for budget, amount in pairs], epsilon, rho

    return bill


def quota_biller(
    plan: Plan, amounts: Amounts, quotas: Amounts, losses: Losses, budgets: Mapping[int, Budget]
) -> Biller:
    """The biller of a type for which quotas pay too.

    Budgets come before quotas, so that a refusal names the budget where both are exhausted.
    """
    bill_budgets = biller(plan, amounts, losses)
    by_consumer: BoundedTable[str, Amounts] = BoundedTable(_CONSUMERS_KEPT)

    def add_consumer(consumer: str) -> Amounts:
        limits = by_consumer[consumer] = tuple(
            tuple(pair for pair in pairs if budgets[pair[0]].is_for(consumer)) for pairs in quotas
        )
        return limits

    def bill_one_unit(content: Any, consumer: str) -> Bill:
        limits = by_consumer.get(consumer) or add_consumer(consumer)
        charges, epsilon, rho = bill_budgets(content, consumer)
        if limits[0]:
            account = consumer_key(charges[0][1], consumer)
            charges = [*charges, *((quota, account, amount) for quota, amount in limits[0])]
        return charges, epsilon, rho

    def bill(content: Any, consumer: str) -> Bill:
        limits = by_consumer.get(consumer) or add_consumer(consumer)
        owners = plan.payers(content)
        charges = [(budget, unit, amount) for scope, unit in owners for budget, amount in amounts[scope]]
        for scope, unit in owners:
            if limits[scope]:
                account = consumer_key(unit, consumer)
                charges += [(quota, account, amount) for quota, amount in limits[scope]]
        return merged(charges), *total_loss(owners, losses)

    return bill if plan.unit is None else bill_one_unit


def total_loss(owners: Sequence[tuple[int, bytes]], losses: Losses) -> tuple[float, float]:
    """The epsilon and rho of all owners together."""
    return sum(losses[scope][0] for scope, _ in owners), sum(losses[scope][1] for scope, _ in owners)


def merged(charges: Sequence[Charge]) -> Sequence[Charge]:
    """The charges, with one for each account of each budget."""
    sums: dict[tuple[int, bytes], int] = {}
    for budget, account, amount in charges:
        sums[budget, account] = sums.get((budget, account), 0) + amount
    return [(budget, account, amount) for (budget, account), amount in sums.items()]


@dataclass(frozen=True, slots=True)
class PricedMemos:
    """What a unit pays for all memoized answers of a plan in one epoch.

    Attributes:
        memos: The plan's.
        amounts: What each budget that pays is charged: (budget's index, ledger amount) pairs.
        quotas: What each quota under those budgets is charged, if it is for the consumer.
        loss: The epsilon and rho.
        label: Differs where other accounts pay, or other amounts, or for other answers.
        budgets: The budgets and quotas, by index.
    """

    memos: Memos
    amounts: tuple[tuple[int, int], ...]
    quotas: tuple[tuple[int, int], ...]
    loss: tuple[float, float]
    label: bytes
    budgets: Mapping[int, Budget]


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """All that releasing a message of one type needs to know.

    Attributes:
        plan: What is done to the message.
        amounts: For each of the plan's scopes, what each budget that pays for it is charged.
        quotas: For each scope, what each quota under those budgets is charged, if it is for the consumer.
        losses: For each scope, the epsilon and rho of one instance. The epsilon of a mechanism that is not pure is
            that at the smallest budget's delta.
        mechanisms: The mechanisms' names, joined by commas, for metrics.
        attributes: What all spans of its messages have in common.
        bill: Bills one message.
        opens: Messages can hold Anys: dpmesh.mesh.packed_messages opens each one and makes a PricedPlan for it.
        memos: What a unit pays for its memoized answers, beside what each message costs.
        epochs: The lengths in seconds of the epochs whose keys its messages need.
    """

    plan: Plan
    amounts: Amounts
    quotas: Amounts
    losses: tuple[tuple[float, float], ...]
    mechanisms: str
    attributes: Mapping[str, Any]
    bill: Biller
    opens: bool = False
    memos: PricedMemos | None = None
    epochs: tuple[float, ...] = ()


class Pricing:
    """Finds who pays for a plan's messages.

    Args:
        policy: The rules.
        budgets: All budgets and quotas, or by index those that there are in this policy.

    Attributes:
        budgets: By index.
        by_rpc: Some budget pays for some RPCs or types only, so that a message's class alone does not decide.

    Raises:
        ConfigError: A quota does not belong under its budget.
    """

    def __init__(self, policy: Policy, budgets: Budgets) -> None:
        self.budgets = budgets if isinstance(budgets, Mapping) else dict(enumerate(budgets))
        self.by_rpc = not all(budget.match.everything for budget in self.budgets.values())
        self._policy = policy
        epoch = policy.document.epoch
        self._epoch = {names.POLICY_EPOCH: epoch} if epoch else {}
        indexes = list(self.budgets)
        under = parents(list(self.budgets.values()))
        self._parents = {indexes[quota]: indexes[budget] for quota, budget in under.items()}

    def price(self, plan: Plan, method: str, direction: str, around: Sequence[Plan] = ()) -> PricedPlan:
        """Prices a plan. For a packed message, budgets of the plans around it pay, too.

        Raises:
            AnnotationError: No budget covers the plan's cost.
            ProtectionError: There is no such direction.
        """
        budgets = self.budgets
        paying = sorted(
            {index for each in (plan, *around) for index in self._paying(each, method, direction)}
        )
        amounts = tuple(
            self._budget_amounts(
                plan, scope.cost, "unit" if scope.path else "global", paying, method, direction
            )
            for scope in plan.scopes
        )
        quotas = tuple(
            self._quota_amounts(plan, scope.cost, {budget for budget, _ in pairs}, paying)
            for scope, pairs in zip(plan.scopes, amounts, strict=True)
        )
        losses = tuple((self._epsilon(scope.cost), scope.cost.rho / AMOUNT) for scope in plan.scopes)
        return PricedPlan(
            plan=plan,
            amounts=amounts,
            quotas=quotas,
            losses=losses,
            bill=quota_biller(plan, amounts, quotas, losses, budgets)
            if any(quotas)
            else biller(plan, amounts, losses),
            mechanisms=",".join(plan.mechanisms),
            attributes={
                names.MESSAGE: plan.descriptor.full_name,
                names.MECHANISMS: plan.mechanisms,
                names.FIELDS_COUNT: plan.protected,
                names.POLICY_VERSION: plan.version,
                **self._epoch,
                names.DELTA: plan.delta,
            },
            opens=plan.anys is not None,
            memos=None
            if plan.memos is None
            else self._price_memos(plan, plan.memos, paying, method, direction),
            epochs=tuple(sorted(plan.epochs)),
        )

    def _price_memos(
        self, plan: Plan, memos: Memos, paying: Sequence[int], method: str, direction: str
    ) -> PricedMemos:
        """Who pays for a unit's memoized answers, in the epoch's first message.

        The window in which they are paid has to be the only one in which they leave.

        Raises:
            AnnotationError: No budget covers it, or an epoch does not lie in one window of each that pays.
        """
        amounts = self._budget_amounts(plan, memos.cost, "unit", paying, method, direction)
        quotas = self._quota_amounts(plan, memos.cost, {budget for budget, _ in amounts}, paying)
        own: dict[int, int] = {}
        for scope in plan.scopes:
            for index, amount in self._budget_amounts(
                plan, scope.cost, "unit" if scope.path else "global", paying, method, direction
            ):
                own[index] = max(own.get(index, 0), amount)
        for index, amount in (*amounts, *quotas):
            budget = self.budgets[index]
            if budget.window is not None and budget.window % memos.epoch:
                raise AnnotationError(
                    "memoize",
                    plan.descriptor.full_name,
                    f"memoizes for {memos.epoch:g} s, which is no part of the window of {budget.kind} {budget.name!r}",
                    f"an epoch that divides {budget.window:g} s, or window = 'lifetime'",
                )
            if amount + own.get(index, 0) > budget.cap and not budget.consumers:
                raise AnnotationError(
                    "over-budget",
                    plan.descriptor.full_name,
                    f"the first message of an epoch costs more than {budget.kind} {budget.name!r} has in all, because "
                    "it pays for every memoized answer",
                    "lower the epsilons or the number of values, or raise the budget",
                )
        named = [(self.budgets[index].name, amount) for index, amount in (*amounts, *quotas)]
        return PricedMemos(
            memos=memos,
            amounts=amounts,
            quotas=quotas,
            loss=(self._epsilon(memos.cost), memos.cost.rho / AMOUNT),
            label=memos.label + repr(named).encode(),
            budgets=self.budgets,
        )

    def _paying(self, plan: Plan, method: str, direction: str) -> list[int]:
        """The budgets and quotas that fit a release, by index."""
        if not self.by_rpc:
            return list(self.budgets)
        name = plan.descriptor.full_name
        # With another direction a message would fit no budget for one direction, and get around them all.
        if direction not in DIRECTIONS:
            raise ProtectionError("INTERNAL", name, f"the direction has to be {' or '.join(DIRECTIONS)}")
        # A message that was compiled apart from the loaded modules has a pool of its own.
        labels = self._policy.labels(method) | self._policy.labels(method, plan.descriptor.file.pool)
        labels |= set(plan.labels)
        return [
            index
            for index, budget in self.budgets.items()
            if budget.match.fits(method, plan.messages, direction, labels)
        ]

    def _budget_amounts(
        self, plan: Plan, cost: Cost, owner: str, paying: Sequence[int], method: str, direction: str
    ) -> tuple[tuple[int, int], ...]:
        """What one scope charges to every budget that fits and has the scope's key; there has to be one."""
        if cost == Cost.ZERO:
            return ()
        budgets = self.budgets
        pairs = tuple(
            (index, _amount(plan, budgets[index], cost)) for index in paying if budgets[index].key == owner
        )
        if not pairs:
            fix = (
                "add one"
                if owner == "unit"
                else "mark the message's unit, or add a budget with key = 'global'"
            )
            where = f" in a {direction} of {method or 'no method'}" if self.by_rpc else ""
            raise AnnotationError(
                "no-budget",
                plan.descriptor.full_name,
                f"no budget with key = {owner!r} pays for it{where}",
                fix,
            )
        return pairs

    def _quota_amounts(
        self, plan: Plan, cost: Cost, payers: set[int], paying: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """What one scope charges to every quota that fits and is under a budget that pays.

        A quota for some consumers only may be too small for the message: it then refuses those consumers alone.
        """
        limits = [(index, self.budgets[index]) for index in paying if self._parents.get(index) in payers]
        return tuple(
            (index, _uncapped(quota, cost) if quota.consumers else _amount(plan, quota, cost))
            for index, quota in limits
        )

    def _epsilon(self, cost: Cost) -> float:
        deltas = [budget.delta for budget in self.budgets.values() if budget.accounting is Accounting.ZCDP]
        return cost.epsilon_at(min(deltas, default=0.0))


def with_unit_around(plan: Plan) -> Plan:
    """The plan of a message packed in one with a unit, which pays for local values that have no unit of their own.

    Such values belong to the scope AROUND. Its account is left empty, because the packed message does not know it.
    """
    units = tuple(scope for scope in plan.scopes if scope.path)
    local, central = plan.ownerless
    around = [(Scope(AROUND, local), local), (Scope("", central), central)]
    extra = tuple(scope for scope, cost in around if cost != Cost.ZERO)

    def payers(content: Any) -> Sequence[tuple[int, bytes]]:
        owners = [owner for owner in plan.payers(content) if owner[0] < len(units)]
        return [*owners, *((len(units) + index, b"") for index in range(len(extra)))]

    return replace(plan, scopes=units + extra, payers=payers, unit=None)


def _amount(plan: Plan, budget: Budget, cost: Cost) -> int:
    name = plan.descriptor.full_name
    if budget.accounting is Accounting.PURE and cost.epsilon is None:
        raise AnnotationError(
            "accounting",
            name,
            f"a discrete Gaussian or a histogram without keys has no pure epsilon, and {budget.kind} {budget.name!r} "
            "counts those",
            "accounting = 'zcdp' on the budget; or DISCRETE_LAPLACE, or keys, on the field",
        )
    if cost.delta and not budget.threshold_delta:
        raise AnnotationError(
            "threshold-delta",
            name,
            f"a histogram without keys has a delta, and {budget.kind} {budget.name!r} has no threshold_delta to pay "
            "for it",
            "threshold_delta on the budget, for example 1e-6; or keys on the field",
        )
    amount = _uncapped(budget, cost)
    if amount > budget.cap:
        raise AnnotationError(
            "over-budget",
            name,
            f"one message costs more than {budget.kind} {budget.name!r} has in all",
            _how_to_afford(budget, cost),
        )
    return amount


def _uncapped(budget: Budget, cost: Cost) -> int:
    """What a budget that admits the cost is charged, be it more than it has."""
    return cost.amount(budget.accounting, budget.cap, budget.threshold_delta)


def _how_to_afford(budget: Budget, cost: Cost) -> str:
    if (
        budget.accounting is Accounting.ZCDP
        and cost.epsilon is not None
        and cost.epsilon <= budget.epsilon * AMOUNT
    ):
        return "accounting = 'pure' admits it: zcdp is for many releases of small epsilon"
    return "lower the epsilons, or raise the budget"
