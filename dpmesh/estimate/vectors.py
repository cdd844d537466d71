"""Means of noisy vectors: unbiased, with an interval for each coordinate, in constant memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import columns, spread
from dpmesh.estimate.result import EstimateError, not_released
from dpmesh.estimate.tally import Figures, Tally, powers
from dpmesh.policy.kinds.vector_mechanism import VectorMechanism
from dpmesh.policy.plan import FieldPlan

Array = NDArray[np.float64]

# So many vectors are in work at a time.
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class VectorEstimate:
    """An estimated vector, in the field's own units; all arrays have the shape (dimension,).

    Attributes:
        values: The estimate of each coordinate, unbiased. So a vector may be longer than the declared norm.
        low: The lower end of each coordinate's interval.
        high: The upper end.
        standard_error: That of a coordinate, the root mean square over all of them: by the sample, and at least what
            the mechanism adds to 0.
        n: How many noisy vectors it rests on.
        confidence: How often one interval, by itself, holds the true coordinate.
    """

    values: Array
    low: Array
    high: Array
    standard_error: float
    n: int
    confidence: float

    @property
    def error(self) -> float:
        """The expected distance of the estimate from the true vector: the root mean square, in L2."""
        return self.standard_error * math.sqrt(self.values.size)

    def covers(self, coordinates: Sequence[float] | Array) -> NDArray[np.bool_]:
        """Which of the coordinates lie in their intervals."""
        figures = np.asarray(coordinates, np.float64)
        covered: NDArray[np.bool_] = (self.low <= figures) & (figures <= self.high)
        return covered


def tally(field: FieldPlan) -> Tally:
    """Adds up the vectors that were received, in grid steps: sums and sums of squares of each coordinate.

    Raises:
        EstimateError: The field is no vector.
    """
    mechanism = mechanism_of(field)

    def count(vectors: Any) -> Figures:
        n = 0
        total, squares = (np.zeros(mechanism.dimension, object) for _ in range(2))
        for block in _blocks(field, mechanism, vectors):
            n += len(block)
            of_block, of_squares = powers(block)
            total += of_block
            squares += of_squares
        return {"n": [n], "total": _integers(total), "squares": _integers(squares)}

    return Tally({"n": 1, "total": mechanism.dimension, "squares": mechanism.dimension}, count)


def mean_of(field: FieldPlan, figures: Figures, confidence: float) -> VectorEstimate:
    """The mean of the vectors that the senders held, from the sums of what they released.

    A coordinate's interval counts at least the variance that the mechanism has, which is known (see `spread.around`),
    and what the sample shows beyond it. The mechanism's variance is taken where it is largest within the interval that
    its largest variance gives: a mean near 0 may come from coordinates that are not.

    Args:
        field: Its plan.
        figures: What its tally has counted.
        confidence: Of each interval by itself.

    Raises:
        EstimateError: The field is no vector, or there are no vectors.
        ValueError: The confidence is not between 0 and 1.
    """
    mechanism, (n,) = mechanism_of(field), figures["n"]
    z = spread.normal(confidence)
    if not n:
        raise EstimateError(field.path, "there are no vectors")
    t = spread.student(confidence, n - 1) if n > 1 else 0.0
    middle = np.array([total / n for total in figures["total"]]) * mechanism.step
    # In integers, so that no digits are lost where the variance is small beside the mean.
    spreads = [
        n * square - total * total for total, square in zip(figures["total"], figures["squares"], strict=True)
    ]
    variance = np.array([each / (n * max(1, n - 1)) for each in spreads]) * mechanism.step**2

    def margin(known: Array | float) -> Array:
        return np.asarray(
            np.sqrt((z * z * known + t * t * np.maximum(0.0, variance - known)) / n), np.float64
        )

    farthest = margin(mechanism.worst_variance)
    known = np.max([mechanism.variance(middle + farthest * sign) for sign in (-1.0, 0.0, 1.0)], axis=0)
    error = margin(known)
    common = math.sqrt(max(float(mechanism.variance(np.zeros(1))[0]), float(np.mean(variance))) / n)
    return VectorEstimate(middle, middle - error, middle + error, common, n, confidence)


def mechanism_of(field: FieldPlan) -> VectorMechanism:
    """How a field leaves as a vector.

    Raises:
        EstimateError: It leaves as something else.
    """
    mechanism = field.kind.reading(field)
    if not isinstance(mechanism, VectorMechanism):
        raise EstimateError(field.path, f"is {field.kind}, not a vector: it has no mean vector")
    return mechanism


def _integers(figures: NDArray[Any]) -> list[int]:
    return [int(each) for each in figures]


def _blocks(field: FieldPlan, mechanism: VectorMechanism, vectors: Any) -> Iterator[NDArray[np.int64]]:
    """The received vectors as multiples of the mechanism's step, some at a time, shape (vectors, dimension).

    Raises:
        EstimateError: One has another length, or a coordinate that is no output of this policy.
    """
    found = columns.chunks(vectors)
    each = iter(vectors) if found is None else itertools.chain.from_iterable(found)
    while rows := [_row(field, mechanism, vector) for vector in itertools.islice(each, _BLOCK)]:
        received = np.array(rows)
        index = received / mechanism.step
        if not bool(np.all((np.abs(received) <= mechanism.reach) & (index == np.rint(index)))):
            raise not_released(field.path, "one of the vectors is none of its policy's outputs")
        yield index.astype(np.int64)


def _row(field: FieldPlan, mechanism: VectorMechanism, vector: Sequence[float]) -> Array:
    try:
        received = np.array(vector[:], np.float64)
    except (TypeError, ValueError, OverflowError, IndexError):
        raise EstimateError(field.path, "one of the values is not a vector of numbers") from None
    if received.shape != (mechanism.dimension,):
        raise not_released(field.path, f"one of the vectors has not {mechanism.dimension} coordinates")
    return received
