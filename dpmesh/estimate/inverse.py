"""Inverse: weights that take the noise of a public law out of counts of what was received."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
