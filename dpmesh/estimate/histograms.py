"""Histograms: the sum of each key's value over noisy maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dpmesh.estimate import numbers
from dpmesh.estimate.laws import Laplace, law_of
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.plan import FieldPlan, Model


def estimate(field: FieldPlan, maps: Iterable[Any], confidence: float) -> dict[Any, Estimate]:
    """The sum of each key's value.

    Maps without any key are no reports: messages leave this way under on_exhausted = "suppress".

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
    return _public_keys(field, histogram, [held for held in maps if len(held)], confidence)


def _public_keys(
    field: FieldPlan, histogram: HistogramPayload, maps: Sequence[Any], confidence: float
) -> dict[Any, Estimate]:
    keys = set(histogram.keys)
    if not maps:
        raise EstimateError(field.path, "there are no maps")
    if any(len(held) != len(keys) or held.keys() - keys for held in maps):
        raise EstimateError(
            field.path, "one of the maps does not hold its public keys, so this policy has not released it"
        )
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
