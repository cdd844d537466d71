"""Means of noisy vectors: unbiased, with an interval for each coordinate, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import spread
from dpmesh.estimate.result import EstimateError
from dpmesh.policy.kinds.vector_mechanism import VectorMechanism
from dpmesh.policy.plan import FieldPlan

Array = NDArray[np.float64]


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


def mean(field: FieldPlan, vectors: Iterable[Sequence[float]], confidence: float) -> VectorEstimate:
    """The mean of the vectors that the senders held, from what they released.

    A coordinate's interval counts at least the variance that the mechanism has, which is known (see `spread.around`),
    and what the sample shows beyond it. The mechanism's variance is taken where it is largest within the interval that
    its largest variance gives: a mean near 0 may come from coordinates that are not.

    Args:
        field: Its plan.
        vectors: What was received.
        confidence: Of each interval by itself.

    Raises:
        EstimateError: The field is no vector; there are no vectors; or one that this policy can't have released.
        ValueError: The confidence is not between 0 and 1.
    """
    mechanism = field.kind.as_vector(field)
    if mechanism is None:
        raise EstimateError(field.path, f"is {field.kind}, not a vector: it has no mean vector")
    z = spread.normal(confidence)
    n, middle, variance = _moments(field, mechanism, vectors)
    t = spread.student(confidence, n - 1) if n > 1 else 0.0

    def margin(known: Array | float) -> Array:
        return np.asarray(
            np.sqrt((z * z * known + t * t * np.maximum(0.0, variance - known)) / n), np.float64
        )

    farthest = margin(mechanism.worst_variance)
    known = np.max([mechanism.variance(middle + farthest * sign) for sign in (-1.0, 0.0, 1.0)], axis=0)
    error = margin(known)
    common = math.sqrt(max(float(mechanism.variance(np.zeros(1))[0]), float(np.mean(variance))) / n)
    return VectorEstimate(middle, middle - error, middle + error, common, n, confidence)


def _moments(
    field: FieldPlan, mechanism: VectorMechanism, vectors: Iterable[Sequence[float]]
) -> tuple[int, Array, Array]:
    """How many vectors there are, and the mean and the variance of each coordinate."""
    n, total, squares = 0, np.zeros(mechanism.dimension), np.zeros(mechanism.dimension)
    start = None
    for vector in vectors:
        received = _checked(field, mechanism, vector)
        # Distances from the first vector lose no digits where all vectors are near each other.
        start = received if start is None else start
        distance = received - start
        total += distance
        squares += distance * distance
        n += 1
    if start is None:
        raise EstimateError(field.path, "there are no vectors")
    variance = np.maximum(0.0, squares - total * total / n) / max(1, n - 1)
    return n, start + total / n, variance


def _checked(field: FieldPlan, mechanism: VectorMechanism, vector: Sequence[float]) -> Array:
    """A received vector.

    Raises:
        EstimateError: It has another length, or a coordinate that is no output of this policy.
    """
    try:
        received = np.array(vector[:], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise EstimateError(field.path, "one of the values is not a vector of numbers") from None
    if received.shape != (mechanism.dimension,):
        raise EstimateError(
            field.path,
            f"one of the vectors has not {mechanism.dimension} coordinates, so this policy has not released it",
        )
    index = received / mechanism.step
    if not bool(np.all((np.abs(received) <= mechanism.reach) & (index == np.rint(index)))):
        raise EstimateError(
            field.path,
            "one of the vectors is none of its policy's outputs, so this policy has not released it",
        )
    return received
