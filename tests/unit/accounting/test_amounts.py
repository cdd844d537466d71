"""Ledger amounts: exact, and rounded the safe way."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import AMOUNT, MAX_AMOUNT, amount_down, amount_up, exact

HELD = st.fractions(min_value=0, max_value=Fraction(MAX_AMOUNT, AMOUNT))


@given(HELD)
def test_costs_round_up_and_caps_down(value):
    assert amount_down(value) <= value * AMOUNT <= amount_up(value)
    assert amount_up(value) - amount_down(value) == (0 if (value * AMOUNT).denominator == 1 else 1)


@given(st.integers(0, MAX_AMOUNT))
def test_whole_amounts_stay(amount):
    assert amount_up(Fraction(amount, AMOUNT)) == amount == amount_down(Fraction(amount, AMOUNT))


def test_a_float_is_the_decimal_that_its_author_wrote():
    assert amount_up(0.1) == 100_000_000
    assert amount_down(0.3) == 300_000_000 == 3 * amount_up(0.1)
    assert exact(0.1) == Fraction(1, 10) == exact(Decimal("0.1"))


def test_what_is_smaller_than_an_amount_costs_one():
    assert amount_up(5e-324) == 1
    assert amount_down(5e-324) == 0
    assert amount_up(0) == amount_up(-0.0) == 0


@pytest.mark.parametrize("function", [amount_up, amount_down, exact])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -1, -1e-9, Decimal("NaN"), Decimal("-Infinity"), True, "1", None]
)
def test_what_is_no_loss_is_refused_by_name(function, value):
    with pytest.raises(ValueError, match="my_epsilon"):
        function(value, "my_epsilon")


@pytest.mark.parametrize("function", [amount_up, amount_down])
@pytest.mark.parametrize("value", [1e308, 10**10, Fraction(MAX_AMOUNT + 1, AMOUNT)])
def test_more_than_a_ledger_holds_is_refused_by_name(function, value):
    with pytest.raises(ValueError, match="my_epsilon must be at most 9223372036"):
        function(value, "my_epsilon")


def test_the_largest_amount_is_an_amount():
    assert amount_up(Fraction(MAX_AMOUNT, AMOUNT)) == amount_down(Fraction(MAX_AMOUNT, AMOUNT)) == MAX_AMOUNT
    with pytest.raises(ValueError, match="at most"):
        amount_up(Fraction(MAX_AMOUNT + 1, AMOUNT))
