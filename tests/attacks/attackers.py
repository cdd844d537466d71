"""Attackers that learn the laws of two worlds from samples, as a receiver can that runs the product itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from tests.attacks.outcomes import Distinguished

BINS = 24
Features = Sequence[Hashable]


def told_apart(one: Sequence[Features], other: Sequence[Features]) -> Distinguished:
    """A Bayes attacker: learns each feature's law from the first half of either world, and judges the second half.

    It adds the log likelihood ratios of all features, which is the best that can be done where they are independent, as
    draws of noise are. Floats are put into bins of equally many, whose edges come from the first half.

    Args:
        one: What was seen in each trial of the first world; every trial has equally many features.
        other: The trials of the second one.
    """
    known = (one[: len(one) // 2], other[: len(other) // 2])
    asked = (one[len(one) // 2 :], other[len(other) // 2 :])
    edges = [_edges([row[at] for rows in known for row in rows]) for at in range(len(one[0]))]
    counts = [
        [Counter(_value(row[at], edges[at]) for row in rows) for rows in known] for at in range(len(one[0]))
    ]
    sizes = [len(rows) for rows in known]

    def score(row: Features) -> float:
        return sum(
            np.log((here[value] + 0.5) / (sizes[0] + 1)) - np.log((there[value] + 0.5) / (sizes[1] + 1))
            for (here, there), value in zip(counts, map(_value, row, edges), strict=True)
        )

    hits, alarms = (sum(score(row) > 1e-9 for row in rows) for rows in asked)
    return Distinguished(int(hits), len(asked[0]), int(alarms), len(asked[1]))


def _edges(values: list) -> np.ndarray | None:
    """The edges of the bins of a feature that is a float in each row."""
    if not all(isinstance(value, float) for value in values):
        return None
    return np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))


def _value(value: Hashable, edges: np.ndarray | None) -> Hashable:
    return value if edges is None else int(np.searchsorted(edges, value, side="right"))
