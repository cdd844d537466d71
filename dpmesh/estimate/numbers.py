"""Means of noisy numbers: unbiased, with an interval, from sums of grid indexes, which are exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import columns, spread
from dpmesh.estimate.result import Estimate, EstimateError, not_released
from dpmesh.estimate.tally import Figures, Tally
from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.kinds.grid import Grid
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.kinds.numeric import NumericPayload
from dpmesh.policy.kinds.time import TimePayload
from dpmesh.policy.plan import FieldPlan

Array = NDArray[np.float64]

_FLOAT32 = 2.0**-23
# The log of the probability that a sample of this policy is refused by mistake.
_REFUSED = math.log(1e-10)
# A block's sum of squares of integers up to this is exact in floats.
_EXACT = math.isqrt(2**53 // columns.BLOCK)
# Among so many points, comparing with all middles between two is faster than a search.
_COMPARED = 16


def as_number(field: FieldPlan) -> NumericPayload:
    """How a field leaves as a number.

    Raises:
        EstimateError: It leaves as something else.
    """
    number = field.kind.reading(field)
    if isinstance(number, NumericPayload):
        return number
    if isinstance(number, (HistogramPayload, SelectionPayload)):
        raise EstimateError(field.path, "is histogram, whose numbers belong to different keys: use histogram")
    raise EstimateError(field.path, f"is {field.kind}, not numeric: nothing to estimate a number from")


@dataclass(frozen=True, slots=True)
class Sums:
    """What a mean and its interval need of received numbers: integers, so that adding them up is exact in any order.

    Attributes:
        n: How many there are.
        total: The sum of their grid indexes.
        squares: The sum of their squares.
        first: How many are at index 0 or below.
        last: How many are at the last index or above.
    """

    n: int = 0
    total: int = 0
    squares: int = 0
    first: int = 0
    last: int = 0

    def with_block(self, index: Array, size: int) -> Sums:
        """The sums with a block of grid indexes, of which `size` is the last one."""
        total, squares = _powers(index)
        return Sums(
            self.n + index.size,
            self.total + total,
            self.squares + squares,
            self.first + int(np.count_nonzero(index <= 0)),
            self.last + int(np.count_nonzero(index >= size)),
        )

    def figures(self) -> Figures:
        """The sums as a tally's figures."""
        return {entry.name: [getattr(self, entry.name)] for entry in fields(self)}


LENGTHS = dict.fromkeys((entry.name for entry in fields(Sums)), 1)


def tally(field: FieldPlan) -> Tally:
    """Adds up received numbers to the figures of `Sums`.

    Raises:
        EstimateError: The field does not leave as a number.
    """
    number = as_number(field)

    def count(values: Any) -> Figures:
        found = Sums()
        for block in received(field, values):
            found = found.with_block(positions(field.path, number, block), number.grid.size)
        return found.figures()

    return Tally(LENGTHS, count)


def received(field: FieldPlan, values: Any) -> Iterator[Array]:
    """Blocks of received numbers in the field's own units; times and lengths of time too, for a field of kind time.

    Raises:
        EstimateError: As for `columns.numbers`.
    """
    return columns.numbers(field.path, values, clock_of(field))


def clock_of(field: FieldPlan) -> columns.Clock | None:
    """How times become the numbers of a field of kind time; None for other fields."""
    time = field.payload
    if not isinstance(time, TimePayload):
        return None
    return columns.Clock(time.dated, 1 if time.message else time.unit / 1e9)


def sums_of(figures: Figures) -> Sums:
    """The sums that a tally of numbers has counted."""
    return Sums(**{entry.name: figures[entry.name][0] for entry in fields(Sums)})


def _powers(index: Array) -> tuple[int, int]:
    """The exact sum of a block's integers, and of their squares."""
    if max(-float(index.min()), float(index.max())) <= _EXACT:
        return int(index.sum()), int(index @ index)
    exact = list(map(int, index.tolist()))
    return sum(exact), sum(each * each for each in exact)


def positions(path: str, number: NumericPayload, received: Array) -> Array:
    """The grid indexes that were released: whole numbers.

    Args:
        path: The field, for errors.
        number: How it leaves.
        received: A block of numbers in the field's own units, at least one.

    Raises:
        EstimateError: One of them is none of the policy's outputs, as far as the rounding of floats tells.
    """
    grid, mechanism = number.grid, number.mechanism
    low, high = grid.value(mechanism.low), grid.value(mechanism.high)
    if number.in_range:
        high = min(high, grid.upper)
    # A float field rounds what it carries.
    rounding = _FLOAT32 * max(abs(low), abs(high))
    slack = rounding + grid.step / 2
    # The least and the largest of numbers with a NaN are NaN.
    if not (received.min() >= low - slack and received.max() <= high + slack):
        raise not_released(path, f"one of the values lies outside of {low:.6g} to {high:.6g}")
    index = _nearest(number, (received - grid.lower) / grid.step)
    distance = np.abs(received - (grid.lower + index * grid.step))
    if number.in_range and grid.value(grid.size) > grid.upper:
        # The sender cuts the last point at the upper bound: the middle between the two tells it from the one before.
        last = (grid.upper + grid.value(grid.size - 1)) / 2
        index = np.where(received > last, float(grid.size), np.minimum(index, grid.size - 1))
        distance = np.where(np.abs(received - grid.upper) <= rounding, 0.0, distance)
    if distance.max() > rounding:
        raise not_released(path, "one of the values is none of its policy's outputs")
    return index


def _nearest(number: NumericPayload, where: Array) -> Array:
    """The index that can be received next to each place on the grid."""
    outputs = _few_outputs(number)
    if outputs is None:
        return np.rint(where)
    middles = (outputs[1:] + outputs[:-1]) / 2
    if middles.size > _COMPARED:
        return outputs[np.searchsorted(middles, where)]
    found = np.zeros(where.size, np.uint8)
    for middle in middles.tolist():
        found += (where > middle).view(np.uint8)
    return outputs[found]


@lru_cache(maxsize=1024)
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


def indexes(field: FieldPlan, values: Iterable[float]) -> Array:
    """Received values as grid positions, each with the value's grid index as its expectation.

    Of discrete Laplace and Duchi IN_RANGE, outputs at the two ends stand for everything beyond them; they are replaced
    by points outside of the range (post-processing, which costs no privacy: Ghosh, Roughgarden, Sundararajan 2009).
    Of the optimized Piecewise mechanism IN_RANGE, all outputs are moved away from the middle.

    Raises:
        EstimateError: No values, or values that this policy can't have released.
    """
    number = as_number(field)
    blocks = [positions(field.path, number, block) for block in received(field, values)]
    if not blocks:
        raise EstimateError(field.path, "there are no values")
    size, mechanism, index = number.grid.size, number.mechanism, np.concatenate(blocks)
    if mechanism.unbiased_low is None or mechanism.unbiased_high is None:
        return index if mechanism.stretch == 1 else size / 2 + (index - size / 2) * mechanism.stretch
    index = np.where(index <= 0, mechanism.unbiased_low, index)
    return np.where(index >= size, mechanism.unbiased_high, index)


def moments(number: NumericPayload, found: Sums) -> tuple[Fraction, float]:
    """The mean of what `indexes` gives, and its variance in the sample; of one number the variance is 0."""
    size, mechanism = number.grid.size, number.mechanism
    total, squares = Fraction(found.total), Fraction(found.squares)
    if mechanism.unbiased_low is not None and mechanism.unbiased_high is not None:
        low, high = Fraction(mechanism.unbiased_low), Fraction(mechanism.unbiased_high)
        total += found.first * low + found.last * (high - size)
        squares += found.first * low**2 + found.last * (high**2 - size**2)
    middle = total / found.n
    variance = (squares - total * middle) / max(1, found.n - 1)
    stretched = Fraction(size, 2) + (middle - Fraction(size, 2)) * Fraction(mechanism.stretch)
    return stretched, float(variance) * mechanism.stretch**2


def mean_of(path: str, number: NumericPayload, found: Sums, confidence: float) -> Estimate:
    """The mean of what the senders held, from the sums of what they released.

    The interval counts at least the variance that the mechanism is known to have, however many values there are:
    see `spread.around`, and `spread.from_ends` for mechanisms that tell one of two ends. It covers the mean of the
    values sent (clamped and rounded to the grid), and, if these are a random sample large enough to show how they
    spread, that of the population.

    Args:
        path: The field, for errors.
        number: How it leaves.
        found: The sums.
        confidence: Between 0 and 1.

    Raises:
        EstimateError: No values, or their mean is one that this policy's outputs can't have.
    """
    grid, mechanism, n = number.grid, number.mechanism, found.n
    if not n:
        raise EstimateError(path, "there are no values")
    mean, variance = moments(number, found)
    middle = float(mean)
    _refuse_impossible(path, grid, mechanism, middle, n)
    law = spread.two_points(mechanism, grid.size)
    if law is not None:
        middle, low, high = spread.from_ends(law, found.last, n, spread.checked(confidence))
    else:
        least = spread.least_variance(mechanism, grid.size)
        low, high = spread.around(middle, variance, n, least, confidence)
    return Estimate(
        grid.lower + middle * grid.step,
        grid.lower + low * grid.step,
        grid.lower + high * grid.step,
        n,
        confidence,
    )


def _refuse_impossible(path: str, grid: Grid, mechanism: NumericMechanism, middle: float, n: int) -> None:
    """Refuses a mean so far outside of the range that it occurs once in 10^10 samples of this policy.

    By Bernstein's inequality: with variances up to v, and outputs up to r from their mean, the mean of n of them is
    beyond its own by L r/(3 n) + sqrt((L r/(3 n))^2 + 2 L v/n) with probability at most exp(-L).
    """
    ends = [mechanism.low, mechanism.high, mechanism.unbiased_low or 0.0, mechanism.unbiased_high or 0.0]
    reach = max(max(ends), grid.size - min(ends)) * mechanism.stretch
    part = -_REFUSED * reach / (3 * n)
    beyond = part + math.sqrt(part * part - 2 * _REFUSED * mechanism.worst_variance / n)
    if not -beyond <= middle <= grid.size + beyond:
        raise EstimateError(
            path, "the values' mean is not one that this policy gives: another policy has released them"
        )
