"""Conversions agree with independent computations, and always err on the safe side."""

import json
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from hypothesis import given
from hypothesis import strategies as st

from dpmesh.accounting import (
    AMOUNT,
    Accounting,
    amount_up,
    cap,
    epsilon_delta_to_rho,
    pure_to_rho,
    rho_to_epsilon,
)

VECTORS = Path(__file__).parents[2] / "vectors"
ZCDP = json.loads((VECTORS / "zcdp_to_epsilon_delta.json").read_text())["cases"]
PURE = json.loads((VECTORS / "pure_to_zcdp.json").read_text())["cases"]
RHOS = st.floats(1e-12, 1e6)
DELTAS = st.floats(1e-300, 1 - 1e-9)
BAD = [math.nan, math.inf, -math.inf, -1.0]


@pytest.mark.parametrize("case", ZCDP, ids=lambda case: f"{case['rho']}-{case['delta']}")
def test_zcdp_vectors(case):
    rho, delta, epsilon = (float(case[key]) for key in ("rho", "delta", "epsilon"))
    assert rho_to_epsilon(rho, delta) == pytest.approx(epsilon, rel=1e-12)
    assert epsilon_delta_to_rho(epsilon, delta) == pytest.approx(rho, rel=1e-12)


@pytest.mark.parametrize("case", PURE, ids=lambda case: case["epsilon"])
def test_pure_vectors(case):
    assert float(pure_to_rho(Fraction(case["epsilon"]))) == pytest.approx(float(case["rho"]), rel=1e-15)


@given(st.fractions(min_value=Fraction(1, 10**12), max_value=1000))
def test_pure_to_rho_is_rounded_up_and_barely(epsilon):
    with mpmath.workdps(80):
        x = mpmath.mpf(epsilon.numerator) / epsilon.denominator
        true = x * mpmath.tanh(x / 2)
        got = mpmath.mpf(pure_to_rho(epsilon).numerator) / pure_to_rho(epsilon).denominator
        assert true <= got <= true * (1 + mpmath.mpf(10) ** -40)


def test_no_pure_loss_is_no_rho():
    assert pure_to_rho(0) == 0


@given(RHOS, DELTAS)
def test_rho_to_epsilon_is_an_upper_bound_of_the_optimum(rho, delta):
    with mpmath.workdps(40):
        claimed = mpmath.mpf(rho_to_epsilon(rho, delta))

        def achieved(x):
            """ln of the delta that order 1 + x gives at the claimed epsilon, less ln delta."""
            return (
                x * ((1 + x) * rho - claimed)
                + (1 + x) * mpmath.log(x / (1 + x))
                - mpmath.log(x)
                - mpmath.log(delta)
            )

        # Valid: at the best order the claimed epsilon keeps to delta. (Not below: the order is where the derivative
        # of the bound vanishes, found here by a root finder of its own.)
        x = mpmath.findroot(
            lambda x: rho * x * x + mpmath.log1p(x) + mpmath.log(delta),
            (0, mpmath.sqrt(-mpmath.log(delta) / rho)),
            solver="anderson",
            verify=False,
        )
        assert achieved(x) <= 0
        if claimed > 0:  # Tight: a hair less would not do.
            claimed *= 1 - mpmath.mpf(10) ** -9
            claimed -= mpmath.mpf(10) ** -12
            assert achieved(x) > 0


@pytest.mark.parametrize(
    ("rho", "delta"), [(0.001, 1e-9), (0.1, 1e-6), (1.0, 1e-5), (3.0, 1e-6), (20.0, 1e-8)]
)
def test_agrees_with_dp_accounting(rho, delta):
    orders = [1 + rho_to_epsilon(rho, delta) / (2 * rho) * k / 2000 for k in range(200, 4000)]
    theirs, _ = rdp.compute_epsilon(orders, [order * rho for order in orders], delta)
    assert rho_to_epsilon(rho, delta) == pytest.approx(theirs, rel=1e-6)


@given(st.floats(1e-6, 1e6), DELTAS)
def test_a_cap_never_promises_more_than_it_holds(epsilon, delta):
    rho = epsilon_delta_to_rho(epsilon, delta)
    assert rho_to_epsilon(rho, delta) <= epsilon
    assert rho_to_epsilon(rho * (1 + 1e-6) + 1e-300, delta) > epsilon


def test_caps():
    assert cap(Accounting.PURE, 8.0, 0.0) == 8 * AMOUNT
    assert cap(Accounting.PURE, 0.3, 1e-6) == 300_000_000
    rho = cap(Accounting.ZCDP, 8.0, 1e-6)
    assert rho_to_epsilon(rho / AMOUNT, 1e-6) <= 8.0 < rho_to_epsilon((rho + 2) / AMOUNT, 1e-6)
    # Four fields of epsilon 0.5 each: twice into a day of (8, 1e-6), where their epsilons alone would fit four times.
    assert rho // (4 * amount_up(pure_to_rho(0.5))) == 2


@pytest.mark.parametrize("bad", [*BAD, "1", None])
def test_bad_parameters_are_refused_by_name(bad):
    for name, call in {
        "epsilon": lambda: pure_to_rho(bad),
        "rho": lambda: rho_to_epsilon(bad, 1e-6),
        "delta": lambda: rho_to_epsilon(1.0, bad),
        "epsilon ": lambda: epsilon_delta_to_rho(bad, 1e-6),
        "delta ": lambda: epsilon_delta_to_rho(1.0, bad),
        "epsilon  ": lambda: cap(Accounting.PURE, bad, 0.0),
        "delta  ": lambda: cap(Accounting.PURE, 1.0, bad),
    }.items():
        with pytest.raises(ValueError, match=name.strip()):
            call()


def test_ranges():
    for delta in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="delta"):
            cap(Accounting.ZCDP, 1.0, delta)
    with pytest.raises(ValueError, match="delta"):
        cap(Accounting.PURE, 1.0, 1.0)
    for epsilon in (0, 0.0, -0.0, 1e-300, 1e308):
        for accounting in Accounting:
            with pytest.raises(ValueError, match="epsilon"):
                cap(accounting, epsilon, 1e-6)
    with pytest.raises(ValueError, match="renyi"):
        cap("renyi", 1.0, 1e-6)


def test_extreme_but_valid():
    assert rho_to_epsilon(0, 1e-6) == 0.0
    assert rho_to_epsilon(5e-324, 0.5) == 0.0
    assert 0 < rho_to_epsilon(5e-324, 5e-324) < 1e-9
    assert rho_to_epsilon(1e300, 1e-6) >= 1e300
    assert 0 < epsilon_delta_to_rho(1.0, 5e-324) < 1.0
    assert 0 < epsilon_delta_to_rho(9e9, 1e-6) < 9e9


def test_the_smallest_cap_is_one_amount():
    assert cap(Accounting.PURE, 1e-9, 0.0) == 1
    with pytest.raises(ValueError, match="too small"):
        cap(Accounting.PURE, 0.99e-9, 0.0)
    rho = 1.5 / AMOUNT
    assert cap(Accounting.ZCDP, rho_to_epsilon(rho, 1e-6), 1e-6) == 1
    with pytest.raises(ValueError, match="too small"):
        cap(Accounting.ZCDP, rho_to_epsilon(rho / 2, 1e-6), 1e-6)


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.5, 1.0, 8.0, 60.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1, 0.5, 0.9, 0.999])
def test_the_largest_rho_is_the_largest_at_every_delta(epsilon, delta):
    rho = epsilon_delta_to_rho(epsilon, delta)
    assert rho_to_epsilon(rho, delta) <= epsilon
    assert rho_to_epsilon(rho * (1 + 1e-6), delta) > epsilon


def test_the_ends_of_pure_to_rho():
    assert pure_to_rho(100) == 100
    tiny = Fraction(1, 10**70)
    assert pure_to_rho(tiny) == tiny**2 / 2
