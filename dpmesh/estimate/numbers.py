"""Means of noisy numbers: unbiased, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import spread
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.kinds.grid import Grid
from dpmesh.policy.kinds.numeric import NumericPayload
from dpmesh.policy.plan import FieldPlan

Array = NDArray[np.float64]

_FLOAT32 = 2.0**-23
# The log of the probability that a sample of this policy is refused by mistake.
_REFUSED = math.log(1e-10)


def as_number(field: FieldPlan) -> NumericPayload:
    """How a field leaves as a number.

    Raises:
        EstimateError: It leaves as something else.
    """
    number = field.kind.as_number(field)
    if number is None:
        raise EstimateError(field.path, f"is {field.kind}, not numeric: nothing to estimate a number from")
    return number


def indexes(field: FieldPlan, values: Iterable[float]) -> Array:
    """Received values as grid positions, each with the value's grid index as its expectation.

    Of discrete Laplace and Duchi IN_RANGE, outputs at the two ends stand for everything beyond them; they are replaced
    by points outside of the range (post-processing, which costs no privacy: Ghosh, Roughgarden, Sundararajan 2009).
    Of the optimized Piecewise mechanism IN_RANGE, all outputs are moved away from the middle.

    Raises:
        EstimateError: No values, one that is not a number, or one that this policy can't have released: outside of
            its outputs, or between the points of its grid.
    """
    number = as_number(field)
    grid, mechanism = number.grid, number.mechanism
    try:
        received = np.fromiter((float(value) for value in values), np.float64)
    except (TypeError, ValueError, OverflowError):
        raise EstimateError(field.path, "one of the values is not a number") from None
    if not received.size:
        raise EstimateError(field.path, "there are no values")
    low, high = grid.value(mechanism.low), grid.value(mechanism.high)
    if number.in_range:
        high = min(high, grid.upper)
    # A float field rounds what it carries.
    rounding = _FLOAT32 * max(abs(low), abs(high))
    slack = rounding + grid.step / 2
    if not bool(np.all((received >= low - slack) & (received <= high + slack))):
        raise EstimateError(
            field.path,
            f"one of the values lies outside of {low:.6g} to {high:.6g}, so this policy has not released it",
        )
    if not _on_outputs(number, received, rounding):
        raise EstimateError(
            field.path,
            "one of the values is none of its policy's outputs, so this policy has not released it",
        )
    return _unbiased(grid, mechanism, received)


def _on_outputs(number: NumericPayload, received: Array, rounding: float) -> bool:
    """Whether all values are outputs of the mechanism, as far as the rounding of floats tells."""
    grid = number.grid
    where = (received - grid.lower) / grid.step
    outputs = _few_outputs(number)
    index = np.rint(where)
    if outputs is not None:
        right = np.clip(np.searchsorted(outputs, where), 1, outputs.size - 1)
        left = right - 1
        index = np.where(where - outputs[left] < outputs[right] - where, outputs[left], outputs[right])
    expected = grid.lower + index * grid.step
    if number.in_range:
        # The last grid point may lie above the upper bound, where the sender cuts it.
        cut = np.abs(received - grid.upper) <= rounding
        expected = np.where(cut, received, expected)
    return bool(np.all(np.abs(received - expected) <= rounding))


def _few_outputs(number: NumericPayload) -> Array | None:
    """The grid indexes that can be received, in increasing order, where they are few."""
    size, mechanism = number.grid.size, number.mechanism
    if mechanism.outputs is not None:
        return np.array(mechanism.outputs, np.float64)
    law = spread.two_points(mechanism, size)
    if law is None:
        return None
    margin = 0 if number.in_range else int(law.margin)
    ends = np.array([-margin - 1, -margin, size + margin, size + margin + 1], np.float64)
    return ends[(ends >= mechanism.low) & (ends <= mechanism.high)]


def _unbiased(grid: Grid, mechanism: NumericMechanism, received: Array) -> Array:
    index = (received - grid.lower) / grid.step
    if mechanism.stretch == 1 and mechanism.unbiased_low is None:
        return index
    # IN_RANGE. The last grid point may lie above the upper bound, where the sender cuts it: tell it from the one before
    # by the middle between the two.
    last = (min(grid.upper, grid.value(grid.size)) + grid.value(grid.size - 1)) / 2
    if mechanism.unbiased_low is None or mechanism.unbiased_high is None:
        index = np.where(received > last, float(grid.size), index)
        return grid.size / 2 + (index - grid.size / 2) * mechanism.stretch
    index = np.where(index < 0.5, mechanism.unbiased_low, index)
    return np.where(received > last, mechanism.unbiased_high, index)


def mean(field: FieldPlan, values: Iterable[float], confidence: float) -> Estimate:
    """The mean of what the senders held, from what they released.

    The interval counts at least the variance that the mechanism is known to have, however many values there are:
    see `spread.around`, and `spread.from_ends` for mechanisms that tell one of two ends. It covers the mean of the
    values sent (clamped and rounded to the grid), and, if these are a random sample large enough to show how they
    spread, that of the population.

    Raises:
        EstimateError: See `indexes`; or the mean is one that this policy's outputs can't have.
    """
    number = as_number(field)
    grid, mechanism = number.grid, number.mechanism
    at = indexes(field, values)
    n = at.size
    _refuse_impossible(field, grid, mechanism, at)
    law = spread.two_points(mechanism, grid.size)
    if law is not None:
        upper = int(np.count_nonzero(at > grid.size / 2))
        middle, low, high = spread.from_ends(law, upper, n, spread.checked(confidence))
    else:
        middle = float(np.mean(at))
        variance = float(np.var(at, ddof=1)) if n > 1 else 0.0
        least = spread.least_variance(mechanism, grid.size)
        low, high = spread.around(middle, variance, n, least, confidence)
    return Estimate(
        grid.lower + middle * grid.step,
        grid.lower + low * grid.step,
        grid.lower + high * grid.step,
        n,
        confidence,
    )


def _refuse_impossible(field: FieldPlan, grid: Grid, mechanism: NumericMechanism, at: Array) -> None:
    """Refuses a mean so far outside of the range that it occurs once in 10^10 samples of this policy.

    By Bernstein's inequality: with variances up to v, and outputs up to r from their mean, the mean of n of them is
    beyond its own by L r/(3 n) + sqrt((L r/(3 n))^2 + 2 L v/n) with probability at most exp(-L).
    """
    ends = [mechanism.low, mechanism.high, mechanism.unbiased_low or 0.0, mechanism.unbiased_high or 0.0]
    reach = max(max(ends), grid.size - min(ends)) * mechanism.stretch
    part = -_REFUSED * reach / (3 * at.size)
    beyond = part + math.sqrt(part * part - 2 * _REFUSED * mechanism.worst_variance / at.size)
    if not -beyond <= float(np.mean(at)) <= grid.size + beyond:
        raise EstimateError(
            field.path, "the values' mean is not one that this policy gives: another policy has released them"
        )
