"""Conversions between pure differential privacy, zCDP and (epsilon, delta), each rounded the safe way.

Sources: Bun and Steinke 2016 (zCDP); Canonne, Kamath and Steinke 2020, proposition 12 (zCDP to epsilon and
delta).
"""

from __future__ import annotations

import enum
import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

from dpmesh.accounting.amounts import Number, amount_down, exact

_CONTEXT = Context(prec=60, Emin=-999_999, Emax=999_999)
_MARGIN = Fraction(1, 10**55)  # bounds the absolute error of tanh below, five operations of 60 digits each
_SATURATED = 100  # tanh(50) differs from 1 by less than 1e-43


class Accounting(enum.StrEnum):
    """How losses add up: pure sums epsilons (Rogers et al. 2016), zcdp sums rhos."""

    PURE = "pure"
    ZCDP = "zcdp"


def pure_to_rho(epsilon: Number) -> Fraction:
    """The zCDP cost of a pure epsilon-DP release: epsilon * tanh(epsilon / 2), rounded up by less than 1e-40.

    It bounds the Renyi divergence of order alpha, divided by alpha; randomized response attains it as alpha
    goes to 1.

    Raises:
        ValueError: epsilon is NaN, infinite or negative.
    """
    loss = exact(epsilon, "epsilon")
    if loss >= _SATURATED:
        return loss
    with localcontext(_CONTEXT):
        power = (Decimal(loss.numerator) / Decimal(loss.denominator)).exp()  # correctly rounded
        tanh = Fraction((power - 1) / (power + 1)) + _MARGIN
    # Where epsilon is tiny the margin dominates; tanh(x) <= x and tanh(x) <= 1 bound it there.
    return loss * min(tanh, loss / 2, Fraction(1))


def rho_to_epsilon(rho: float, delta: float) -> float:
    """The epsilon that rho-zCDP guarantees at a delta, by the optimal conversion; an upper bound.

    It is the smallest epsilon where the infimum over alpha > 1 of
    e^((alpha-1)(alpha rho - epsilon)) (1-1/alpha)^alpha / (alpha-1) is at most delta. With x = alpha - 1 that
    is the minimum over x > 0 of

        (1+x) rho + ln(x/(1+x)) - (ln delta + ln(1+x)) / x,

    whose derivative rho + (ln delta + ln(1+x)) / x^2 has one root. Every x gives a valid epsilon, so an
    inexact root costs tightness only.

    Raises:
        ValueError: rho is NaN, infinite or negative, or delta is outside (0, 1).
    """
    exact(rho, "rho")
    _delta(delta)
    if rho == 0:
        return 0.0
    x = _best_order(rho, math.log(delta))
    terms = ((1 + x) * rho, math.log(x), -math.log1p(x), -math.log(delta) / x, -math.log1p(x) / x)
    rounding = 1e-15 * sum(abs(term) for term in terms)  # several ulps of each term
    return max(0.0, math.fsum(terms) + rounding)


def _best_order(rho: float, log_delta: float) -> float:
    """The root x of rho x^2 + ln(1+x) + ln(delta), which increases with x: by bisection."""
    low, high = 0.0, min(math.sqrt(-log_delta / rho), math.expm1(min(-log_delta, 700.0)))
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if rho * middle * middle + math.log1p(middle) + log_delta < 0:
            low = middle
        else:
            high = middle
    return high


def epsilon_delta_to_rho(epsilon: float, delta: float) -> float:
    """The largest rho whose rho-zCDP guarantees (epsilon, delta); a lower bound, so a cap may use it.

    Raises:
        ValueError: epsilon is NaN, infinite or not positive, or delta is outside (0, 1).
    """
    _positive(epsilon, "epsilon")
    _delta(delta)
    low, high = 0.0, epsilon
    while rho_to_epsilon(high, delta) <= epsilon:
        low, high = high, 2 * high
    while low == 0.0 and high > 0.0:
        if rho_to_epsilon(high / 2, delta) <= epsilon:
            low = high / 2
        else:
            high /= 2
    for _ in range(60):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        # Only a rho whose own (upper bound on) epsilon fits is ever returned.
        if rho_to_epsilon(middle, delta) <= epsilon:
            low = middle
        else:
            high = middle
    return low


def cap(accounting: Accounting, epsilon: float, delta: float) -> int:
    """What a budget of (epsilon, delta) admits in all, as a ledger amount, rounded down.

    Args:
        accounting: PURE caps the sum of epsilons at epsilon (delta goes unused); ZCDP caps the sum of rhos at
            the largest rho that guarantees (epsilon, delta).
        epsilon: The budget's loss, positive.
        delta: In (0, 1) for ZCDP, in [0, 1) for PURE.

    Raises:
        ValueError: A parameter is out of range, or the cap is below 1e-9.
    """
    _positive(epsilon, "epsilon")
    if Accounting(accounting) is Accounting.PURE:
        _delta(delta, zero=True)
        amount = amount_down(epsilon, "epsilon")
    else:
        _delta(delta)
        # No budget beyond what a ledger holds: refuse it before the search.
        amount_down(epsilon, "epsilon")
        amount = amount_down(Fraction(epsilon_delta_to_rho(epsilon, delta)), "epsilon")
    if amount < 1:
        raise ValueError(f"epsilon is too small to account for: {epsilon} admits less than 1e-9")
    return amount


def _positive(value: float, name: str) -> None:
    if exact(value, name) == 0:
        raise ValueError(f"{name} must be greater than 0")


def _delta(delta: float, *, zero: bool = False) -> None:
    if exact(delta, "delta") >= 1 or (delta == 0 and not zero):
        raise ValueError(
            f"delta must be {'at least' if zero else 'greater than'} 0 and less than 1, not {delta}"
        )
