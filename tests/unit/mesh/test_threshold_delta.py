"""Histograms without keys are charged to a budget's threshold_delta."""

from fractions import Fraction

import pytest

import dpmesh
from dpmesh.accounting import AMOUNT, Accounting, Cost
from dpmesh.errors import AnnotationError, BudgetExhaustedError, ConfigError
from dpmesh.ledger import Budget
from tests.support.protos import compiled

HIST = "(dpmesh.v1.field).histogram"
TYPES = compiled(
    f"message Day {{ map<string, uint32> m = 1 [{HIST} = {{contribution: 1 epsilon: 0.01 delta: 1e-7}}]; }}"
)


def opened(**budget):
    section = {"name": "all", "key": "global", "epsilon": 8.0, "window": "24h", **budget}
    return dpmesh.open({"ledger": {"url": "memory:"}, "budget": [section]})


async def test_ten_tenths_of_threshold_delta_are_admitted():
    """The rho of epsilon 0.01 takes less than a thousandth of the budget, so delta runs out first."""
    async with opened(delta=1e-6, threshold_delta=1e-6) as mesh:
        for _ in range(9):
            receipt = await mesh.release(TYPES.Day(m={"a": 1}))
            assert receipt.epsilon == 0.01
        with pytest.raises(BudgetExhaustedError):
            await mesh.release(TYPES.Day(m={"a": 1}))


async def test_budgets_that_admit_no_such_delta_refuse():
    async with opened(delta=1e-6) as mesh:
        with pytest.raises(AnnotationError, match="has no threshold_delta"):
            await mesh.release(TYPES.Day())
    async with opened(accounting="pure") as mesh:
        with pytest.raises(AnnotationError, match="has no pure epsilon"):
            await mesh.release(TYPES.Day())
    async with opened(delta=1e-6, threshold_delta=1e-8) as mesh:
        with pytest.raises(AnnotationError, match="one message costs more than"):
            await mesh.release(TYPES.Day())


@pytest.mark.parametrize("value", [-1e-6, 1.0, float("nan")])
def test_threshold_delta_is_a_probability(value):
    with pytest.raises(ConfigError, match="threshold_delta"):
        Budget("b", threshold_delta=value)


def test_pure_accounting_has_no_threshold_delta():
    with pytest.raises(ConfigError, match="admits no delta"):
        Budget("b", accounting=Accounting.PURE, threshold_delta=1e-6)


def test_an_approximate_cost_adds_up_and_takes_its_part_of_the_cap():
    cost = Cost.approximate(Fraction(1), Fraction(1, 10**6))
    pure = Cost.pure(Fraction(1))
    assert (cost.epsilon, cost.rho, cost.pure_epsilon) == (None, pure.rho, AMOUNT)
    both = cost.times(3) + pure
    assert (both.delta, both.rho, both.pure_epsilon) == (Fraction(3, 10**6), 4 * pure.rho, 4 * AMOUNT)
    assert both.epsilon_at(1e-6) == 4.0
    assert cost.largest(cost.times(2)) == cost.times(2)
    assert pure.largest(cost).delta == cost.delta
    assert cost.amount(Accounting.ZCDP, 1000, 1e-5) == cost.rho + 100
    assert cost.amount(Accounting.ZCDP, 1000, 3e-6) == cost.rho + 334
    with pytest.raises(ValueError, match="threshold_delta"):
        cost.amount(Accounting.ZCDP)
    with pytest.raises(ValueError, match="pure"):
        cost.amount(Accounting.PURE, 1000, 1e-5)
    for delta in (Fraction(0), Fraction(1), Fraction(-1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Cost.approximate(Fraction(1), delta)
    with pytest.raises(ValueError, match="at least 0"):
        Cost(0, 0, delta=Fraction(-1))
    with pytest.raises(ValueError, match="at least 0"):
        Cost(0, 0, delta=0.1)


def test_every_charge_of_a_budget_stays_below_both_limits():
    """Whatever mix of costs a cap admits: rhos at most the cap, deltas at most threshold_delta."""
    budget = Budget("b", epsilon=8.0, delta=1e-6, threshold_delta=1e-6)
    costs = [Cost.approximate(Fraction(1, 100), Fraction(1, 10**k)) for k in (7, 8, 9)] + [
        Cost.pure(Fraction(1, 2))
    ]
    for turn in range(4):
        spent, total = 0, Cost.ZERO
        while True:
            cost = costs[turn] if turn == 3 or spent < budget.cap // 2 else costs[3 - turn]
            amount = cost.amount(Accounting.ZCDP, budget.cap, budget.threshold_delta)
            if spent + amount > budget.cap:
                break
            spent, total = spent + amount, total + cost
        assert total.rho <= budget.cap
        assert total.delta <= Fraction(1e-6)
