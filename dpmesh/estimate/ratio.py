"""The ratio of two noisy aggregates: Fieller's interval, with the noises' own laws instead of the normal one.

Fieller (1954): the set holds each theta for which A - theta B is not surprisingly far from 0, its expectation at the
true ratio. The noise of A - theta B is Z1 - theta Z2, whose tails follow from the two laws; with Laplace noise
the normal quantile would cover too seldom, and the delta method fails where B is small.
"""

from __future__ import annotations

import math

import numpy as np

from dpmesh.estimate.laws import Law

_POINTS = 256
_HALVINGS = 48


def fieller(a: float, b: float, law_a: Law, law_b: Law, confidence: float) -> tuple[float, float]:
    """The confidence set of a ratio.

    Args:
        a: The numerator, in multiples of its law's grid step.
        b: The denominator, in multiples of its law's grid step; not 0.
        law_a: The numerator's noise.
        law_b: The denominator's noise, independent of the other.
        confidence: Between 0 and 1.

    Returns:
        (low, high); infinite on both sides when b can't be told from 0, for then no ratio can be ruled out.
    """
    alpha = 1 - confidence
    if float(law_b.beyond(np.array([abs(b)]))[0]) >= alpha:
        return -math.inf, math.inf
    noise = law_b.quantiles(_POINTS)

    def plausible(theta: float) -> bool:
        distance = abs(a - theta * b)
        shifted = theta * noise
        # P(|Z1 + s| > t) = (P(|Z1| > t - s) + P(|Z1| > t + s))/2 on each side of 0.
        above, below = _above(law_a, distance - shifted), _above(law_a, distance + shifted)
        return float(np.mean(above + below)) > alpha

    step = law_a.scale / abs(b)
    return _edge(plausible, a / b, -1, step), _edge(plausible, a / b, 1, step)


def _above(law: Law, distance: np.ndarray) -> np.ndarray:
    """P(Z > t) for any sign of t."""
    half = law.beyond(np.abs(distance)) / 2
    return np.where(distance >= 0, half, 1 - half)


def _edge(plausible, inside: float, sign: int, step: float) -> float:  # type: ignore[no-untyped-def]
    """Where the plausible ratios end on one side."""
    outside = inside + sign * step
    while plausible(outside):
        inside, step = outside, step * 2
        outside = inside + sign * step
        if not math.isfinite(outside):
            return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if plausible(middle):
            inside = middle
        else:
            outside = middle
    return outside
