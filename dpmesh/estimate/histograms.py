"""Histograms: the sum of each key's value over noisy maps."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dpmesh.estimate import numbers
from dpmesh.estimate.laws import Laplace, law_of
from dpmesh.estimate.result import Estimate, EstimateError, not_released
from dpmesh.noise.thresholds import ONE
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.plan import FieldPlan, Model

_FLOAT32 = 2.0**-23


def estimate(field: FieldPlan, maps: Iterable[Any], confidence: float) -> dict[Any, Estimate]:
    """The sum of each key's value.

    Where the rule names keys, maps without any are no reports: messages leave this way under on_exhausted = "suppress".
    Where it names none, they can't be told from reports of maps of which no key passed, and count as such.

    Args:
        field: A histogram.
        maps: What was received.
        confidence: Of each interval by itself, between 0 and 1.

    Raises:
        EstimateError: The field is no histogram, there are no maps, or one that this policy can't have released.
    """
    histogram = field.kind.as_histogram(field)
    if histogram is None:
        raise EstimateError(field.path, f"is {field.kind}, no histogram: nothing to sum by key")
    if isinstance(histogram, SelectionPayload):
        return _selected_keys(field, histogram, list(maps), confidence)
    return _public_keys(field, histogram, [held for held in maps if len(held)], confidence)


def _public_keys(
    field: FieldPlan, histogram: HistogramPayload, maps: Sequence[Any], confidence: float
) -> dict[Any, Estimate]:
    keys = set(histogram.keys)
    if not maps:
        raise EstimateError(field.path, "there are no maps")
    if any(len(held) != len(keys) or held.keys() - keys for held in maps):
        raise not_released(field.path, "one of the maps does not hold its public keys")
    law = law_of(histogram.number.mechanism) if field.model is Model.CENTRAL else None
    assert law is None or isinstance(law, Laplace)
    found = {}
    for key in histogram.keys:
        values = [held[key] for held in maps]
        if law is None:
            found[key] = numbers.mean(field, values, confidence).scaled(len(maps))
        else:
            found[key] = _sum(field, values, law, confidence)
    return found


def _sum(field: FieldPlan, values: Sequence[float], law: Laplace, confidence: float) -> Estimate:
    """The sum of aggregates with independent discrete Laplace noise.

    An output at an end of the range has less noise than the law says, so its interval is too wide, not too narrow.
    """
    number = numbers.as_number(field)
    grid, at = number.grid, numbers.indexes(field, values)
    n, total = len(values), float(np.sum(at))
    margin = float(law.margin_of_sum(n, confidence))
    # Of one value the clamp at an end only moves the output towards the truth.
    inside = min(max(total, number.mechanism.low), number.mechanism.high) if n == 1 else total
    if not grid.integral or grid.step > 1:
        margin += n / 2
    start, step = n * grid.lower, grid.step
    return Estimate(
        start + total * step,
        start + (inside - margin) * step,
        start + (inside + margin) * step,
        n,
        confidence,
    )


def _selected_keys(
    field: FieldPlan, selection: SelectionPayload, maps: Sequence[Any], confidence: float
) -> dict[Any, Estimate]:
    """The sums of all keys that any map shows.

    With J the noise (see `PartitionSelection`), a key that shows y had the count y - middle + J, and one that is
    missing had a count below J. Each of n maps may fail with probability (1 - confidence)/n: a quarter where J is too
    small, a quarter where J is too large, and half where a large count is missing. The sum of the intervals fails at
    most as often as all maps together (Bonferroni).
    """
    if not maps:
        raise EstimateError(field.path, "there are no maps")
    law, grid, below = selection.law, selection.grid, selection.below
    part = int(ONE * (1 - confidence) / (4 * len(maps)))
    first = bisect_right(law.thresholds, part) + 1
    last = bisect_left(law.thresholds, ONE - part) + 1
    unseen = bisect_left(law.thresholds, ONE - 2 * part) + below
    shown: dict[Any, list[int]] = {}
    for held in maps:
        for key, value in held.items():
            shown.setdefault(key, []).append(_count(field, selection, value) + below - law.middle)
    rounding = 0.0 if grid.integral and grid.step == 1 else len(maps) / 2
    found = {}
    for key in sorted(shown):
        counts, missing = shown[key], len(maps) - len(shown[key])
        value = sum(counts) + len(counts) * law.mean
        low = sum(max(count + first, below + 1) for count in counts) - rounding
        high = sum(counts) + len(counts) * last + missing * unseen + rounding
        found[key] = Estimate(value * grid.step, low * grid.step, high * grid.step, len(maps), confidence)
    return found


def _count(field: FieldPlan, selection: SelectionPayload, value: float) -> int:
    """The index, less what `threshold` takes, of a value that was shown."""
    grid, law = selection.grid, selection.law
    at = value / grid.step if math.isfinite(value) else -1.0
    index = round(at)
    if abs(at - index) > max(1e-6, _FLOAT32 * abs(at)) or not law.middle <= index - selection.below:
        raise not_released(field.path, "one of the values is none of its policy's outputs")
    return index - selection.below
