"""Means of noisy numbers: back to the grid, bias taken out, and an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.plan import FieldPlan, Grid

Array = NDArray[np.float64]

# Below this many values their own spread is too uncertain to stand alone.
_SMALL = 100
_FLOAT32 = 2.0**-23


def parts(field: FieldPlan) -> tuple[Grid, NumericMechanism]:
    """The grid and mechanism of a numeric field.

    Raises:
        EstimateError: The field is of another kind.
    """
    if field.grid is None or not isinstance(field.mechanism, NumericMechanism):
        raise EstimateError(field.path, f"is {field.kind}, not numeric: nothing to estimate a number from")
    return field.grid, field.mechanism


def indexes(field: FieldPlan, values: Iterable[float]) -> Array:
    """Received values as grid positions, each with the value's grid index as its expectation.

    Outputs at the two ends of a field that is IN_RANGE stand for everything beyond them; they are replaced by
    points outside of the range (privacy-preserving post-processing: Ghosh, Roughgarden, Sundararajan 2009).

    Raises:
        EstimateError: No values, one that is not a number, or one that this policy can't have released.
    """
    grid, mechanism = parts(field)
    try:
        received = np.fromiter((float(value) for value in values), np.float64)
    except (TypeError, ValueError, OverflowError):
        raise EstimateError(field.path, "one of the values is not a number") from None
    if not received.size:
        raise EstimateError(field.path, "there are no values")
    low, high = grid.value(mechanism.low), grid.value(mechanism.high)
    if field.in_range:
        high = min(high, grid.upper)
    # A float field rounds what it carries.
    slack = _FLOAT32 * max(abs(low), abs(high)) + grid.step / 2
    if not bool(np.all((received >= low - slack) & (received <= high + slack))):
        raise EstimateError(
            field.path,
            f"one of the values lies outside of {low:.6g} to {high:.6g}, so this policy has not released it",
        )
    return _unbiased(field, grid, mechanism, received)


def _unbiased(field: FieldPlan, grid: Grid, mechanism: NumericMechanism, received: Array) -> Array:
    index = (received - grid.lower) / grid.step
    if mechanism.unbiased_low is None or mechanism.unbiased_high is None:
        return index
    # The last grid point may lie above the upper bound, where the sender cuts it: tell it from the one before
    # by the middle between the two.
    last = (min(grid.upper, grid.value(grid.size)) + grid.value(grid.size - 1)) / 2
    index = np.where(index < 0.5, mechanism.unbiased_low, index)
    return np.where(received > last, mechanism.unbiased_high, index)


def mean(field: FieldPlan, values: Iterable[float], confidence: float) -> Estimate:
    """The mean of what the senders held, from what they released.

    The interval is the normal one on the spread of the values received, and for fewer than 100 of them on the
    plan's worst variance if that is larger. It covers the mean of the values sent (clamped and rounded to the
    grid), and, if these are a random sample, that of the population.

    Raises:
        EstimateError: See `indexes`.
    """
    grid, mechanism = parts(field)
    at = indexes(field, values)
    n = at.size
    variance = float(np.var(at, ddof=1)) if n > 1 else 0.0
    if n < _SMALL:
        variance = max(variance, mechanism.worst_variance)
    middle = grid.value(0) + float(np.mean(at)) * grid.step
    margin = quantile(confidence) * math.sqrt(variance / n) * grid.step
    return Estimate(middle, middle - margin, middle + margin, n, confidence)


def quantile(confidence: float) -> float:
    """How many standard deviations a two-sided normal interval takes.

    Raises:
        ValueError: The confidence is not between 0 and 1.
    """
    return NormalDist().inv_cdf((1 + checked(confidence)) / 2)


def checked(confidence: float) -> float:
    """A confidence that means something.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence!r}")
    return confidence
