"""Absence: what absent values count as, and how estimates leave them out.

Presence and length are data, so a sender fills every place: an absent value leaves as a default with noise, and the
receiver can't tell it from a value that was held. The receiver can estimate the mean over all places.
With h the share of places that hold a value, and d what the others count as, the mean over the held values is
d + (mean - d)/h.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.spread import checked

# The share of places that hold a value.
Held = float | Estimate


def confidence_of_places(held: Held | None, confidence: float) -> float:
    """How often the estimate over all places has to hold, so that the one over the held values does.

    Where the share is estimated too, each of the two may fail half as often: then both hold often enough, whatever
    they depend on one another (Bonferroni).

    Raises:
        ValueError: The confidence is not between 0 and 1.
    """
    checked(confidence)
    return (1 + confidence) / 2 if isinstance(held, Estimate) else confidence


def _held_share(path: str, held: Held, confidence: float) -> tuple[float, float, float]:
    """The share of places that hold a value, and its interval, within 0 and 1."""
    if not isinstance(held, Estimate):
        if isinstance(held, bool) or not isinstance(held, (int, float)) or not 0 < held <= 1:
            raise EstimateError(
                path, "held is the share of places that hold a value, so it must be above 0 and at most 1"
            )
        return held, held, held
    needed = confidence_of_places(held, confidence)
    if held.confidence < needed - 1e-12:
        raise EstimateError(
            path, f"held needs a confidence of at least {needed:g}, so that both estimates hold together"
        )
    if not held.value > 0:
        raise EstimateError(path, "by the estimate of held, no place holds a value")
    return min(held.value, 1.0), min(max(held.low, 0.0), 1.0), min(max(held.high, 0.0), 1.0)


def mean_of_held(path: str, places: Estimate, default: float, held: Held, confidence: float) -> Estimate:
    """The mean over the values that are held, from the one over all places.

    Args:
        path: The field, for errors.
        places: The mean over all places, at `confidence_of_places`.
        default: What an absent value counts as.
        held: The share of places that hold a value.
        confidence: Of the interval. An end is infinite where the share may be 0.

    Raises:
        EstimateError: `held` is no share, or an estimate with less confidence than `confidence_of_places`.
    """
    value, least, most = _held_share(path, held, confidence)
    below, above = places.low - default, places.high - default
    return replace(
        places,
        value=default + (places.value - default) / value,
        low=default + _over(below, most if below >= 0 else least),
        high=default + _over(above, least if above >= 0 else most),
        confidence=confidence,
    )


def sum_of_held(path: str, places: Estimate, default: float, held: Held, confidence: float) -> Estimate:
    """The sum of the values that are held; arguments as for `mean_of_held`.

    Raises:
        EstimateError: As for `mean_of_held`.
    """
    value, *ends = _held_share(path, held, confidence)
    filled = sorted(default * end for end in ends)
    return replace(
        places,
        value=places.n * (places.value - default + default * value),
        low=places.n * (places.low - default + filled[0]),
        high=places.n * (places.high - default + filled[1]),
        confidence=confidence,
    )


def _over(distance: float, part: float) -> float:
    if part == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / part
