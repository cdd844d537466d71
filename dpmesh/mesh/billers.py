"""Billers: who pays how much for one message, by the plan of its type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dpmesh.bounded import BoundedTable
from dpmesh.ledger import Budget, Charge
from dpmesh.ledger.budget import consumer_key
from dpmesh.policy import Plan

# What a message costs: charges, and the epsilon and rho of all owners together.
Bill = tuple[Sequence[Charge], float, float]
# For each of a plan's scopes, (budget's index, ledger amount) pairs.
Amounts = tuple[tuple[tuple[int, int], ...], ...]
# For each of a plan's scopes, the epsilon and rho of one instance.
Losses = Sequence[tuple[float, float]]

# A fleet can have any number of consumers.
_CONSUMERS_KEPT = 1024


class Biller(Protocol):
    """Bills messages of one type."""

    def __call__(self, content: Any, consumer: str, /) -> Bill:
        """The bill of one message; it charges each account of each budget once.

        Args:
            content: What the plan's `snapshot` gives for the message.
            consumer: Who receives it, for quotas.

        Raises:
            ProtectionError: A unit's id is missing.
        """


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
    plan: Plan, amounts: Amounts, quotas: Amounts, losses: Losses, budgets: Sequence[Budget]
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
