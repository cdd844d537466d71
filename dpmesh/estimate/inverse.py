"""Inverse: weights that take the noise of a public law out of counts of what was received, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import spread
from dpmesh.estimate.result import Estimate

Array = NDArray[np.float64]


def weights_of(law: Array, expected: Array, condition_limit: float) -> Array | None:
    """What each received bin adds to the share of each of the receiver's bins.

    Over the law of one of the receiver's bins, the weights have a mean of 1 for this bin and of 0 for all others. Of
    all such weights, these have the least variance where received bins are as probable as `expected`.

    Args:
        law: The probability of each received bin for values all over a bin, shape (received, bins).
        expected: The probability of each received bin for values all over the range, above 0, shape (received,).
        condition_limit: By how much the weights may make an error of rounding larger.

    Returns:
        The weights, shape (received, bins); None if the noise blurs the bins beyond what can be undone.
    """
    root = np.sqrt(expected)[:, np.newaxis]
    scaled = law / root
    if np.linalg.cond(scaled) > condition_limit:
        return None
    weights: Array = np.linalg.pinv(scaled).T / root
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """The shares of the receiver's bins, with intervals, and sums of them.

    The variance is that of the sample, or what the mechanism has for senders with these shares, if that is more: a
    small sample may not show it.

    Attributes:
        weights: What each received bin adds to the share of each of the receiver's, shape (received, bins).
        law: The probability of each received bin for values all over a bin, shape (received, bins).
        counts: How often each bin was received, shape (received,).
        confidence: Of each interval by itself.
    """

    weights: Array
    law: Array
    counts: Array
    confidence: float

    def sums(self, parts: Array) -> tuple[Array, Array]:
        """Sums with these parts of each share, shape (bins, sums), and half the widths of their intervals."""
        n = int(self.counts.sum())
        received, weights = self.counts / n, self.weights @ parts
        sums = received @ weights
        sample = np.maximum(received @ weights**2 - sums**2, 0.0) * (n / max(n - 1, 1))
        held = np.maximum(received @ self.weights, 0.0)
        known = held / held.sum() @ (self.law.T @ weights**2 - (self.law.T @ weights) ** 2)
        z = spread.student(self.confidence, n - 1) if n > 1 else spread.normal(self.confidence)
        return sums, np.asarray(z * np.sqrt(np.maximum(sample, known) / n), np.float64)

    def estimates(self, parts: Array | None = None, *, per_place: bool = False) -> list[Estimate]:
        """Sums with these parts of each share, shape (bins, sums); by default each share."""
        n = int(self.counts.sum())
        sums, margins = self.sums(np.eye(self.weights.shape[1]) if parts is None else parts)
        return [
            Estimate(value, value - margin, value + margin, n, self.confidence, per_place)
            for value, margin in zip(sums.tolist(), margins.tolist(), strict=True)
        ]
