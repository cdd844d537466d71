"""Costs add up in both accountings at once."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import Accounting, Cost, amount_up, pure_to_rho, rho_to_epsilon

LOSSES = st.fractions(min_value=0, max_value=100)


@given(LOSSES)
def test_a_pure_release_costs_its_epsilon_and_its_rho(epsilon):
    cost = Cost.pure(epsilon)
    assert cost.epsilon == cost.amount(Accounting.PURE) == amount_up(epsilon)
    assert cost.rho == cost.amount(Accounting.ZCDP) == amount_up(pure_to_rho(epsilon))


@given(LOSSES)
def test_a_gaussian_release_has_no_pure_cost(rho):
    cost = Cost.gaussian(rho)
    assert cost.amount(Accounting.ZCDP) == amount_up(rho)
    with pytest.raises(ValueError, match="epsilon"):
        cost.amount(Accounting.PURE)
    assert (cost + Cost.pure(Fraction(1))).epsilon is None
    assert (Cost.pure(Fraction(1)) + cost).epsilon is None


@given(LOSSES, LOSSES, st.integers(0, 1000))
def test_sums_and_multiples(a, b, m):
    x, y = Cost.pure(a), Cost.pure(b)
    assert x + y == y + x == Cost(x.epsilon + y.epsilon, x.rho + y.rho)
    assert x + Cost.ZERO == x
    assert x.times(m) == Cost(x.epsilon * m, x.rho * m)
    assert Cost.gaussian(a).times(0) == Cost.ZERO


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Fraction(-1), 1e10])
def test_bad_losses_are_refused_by_name(value):
    with pytest.raises(ValueError, match="epsilon"):
        Cost.pure(value)
    with pytest.raises(ValueError, match="rho"):
        Cost.gaussian(value)


def test_only_whole_non_negative_amounts():
    for epsilon, rho in [(-1, 0), (0, -1), (0.5, 0), (0, None), (True, 0)]:
        with pytest.raises(ValueError, match="epsilon|rho"):
            Cost(epsilon, rho)
    for m in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="m must"):
            Cost.ZERO.times(m)
    with pytest.raises(TypeError):
        Cost.ZERO + 1


PARTS = st.lists(st.tuples(st.booleans(), st.fractions(min_value=Fraction(1, 1000), max_value=2)), max_size=8)


@given(PARTS, st.sampled_from([1e-9, 1e-6, 1e-2]))
def test_the_epsilon_at_a_delta_is_the_smaller_of_both_compositions(parts, delta):
    costs = [Cost.pure(loss) if is_pure else Cost.gaussian(loss) for is_pure, loss in parts]
    total = sum(costs, Cost.ZERO)
    pure = sum(cost.epsilon for cost in costs if cost.epsilon is not None)
    rho = sum(cost.rho for cost in costs if cost.epsilon is None)
    if rho == 0:
        assert total.epsilon_at(delta) == total.epsilon / 1e9 == pure / 1e9
    else:
        apart = pure / 1e9 + rho_to_epsilon(rho / 1e9, delta)
        assert total.epsilon_at(delta) == min(apart, rho_to_epsilon(total.rho / 1e9, delta))
    twice = total + total
    assert twice == total.times(2)


@given(PARTS, PARTS, st.sampled_from([1e-9, 1e-2]))
def test_the_larger_of_two_costs_covers_both(one, other, delta):
    costs = [
        sum((Cost.pure(loss) if is_pure else Cost.gaussian(loss) for is_pure, loss in parts), Cost.ZERO)
        for parts in (one, other)
    ]
    most = costs[0].largest(costs[1])
    for cost in costs:
        assert most.rho >= cost.rho
        assert most.epsilon is None or most.epsilon >= cost.epsilon
        assert most.epsilon_at(delta) >= cost.epsilon_at(delta) * (1 - 1e-12)


def test_a_bad_rho_is_refused_beside_no_epsilon_too():
    for rho in (-1, 0.5, None, True):
        with pytest.raises(ValueError, match="rho"):
            Cost(None, rho)
