"""Histograms: the sum of each key's value over noisy maps, in memory that grows with the keys only."""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import columns, numbers
from dpmesh.estimate.laws import Laplace, law_of
from dpmesh.estimate.result import Estimate, EstimateError, not_released
from dpmesh.estimate.spread import checked
from dpmesh.estimate.tally import Figures, Tally, powers
from dpmesh.noise.thresholds import ONE
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.kinds.numeric import NumericPayload
from dpmesh.policy.plan import FieldPlan, Model

_FLOAT32 = 2.0**-23
# The figures of each public key, as in `numbers.Sums`.
_SUMS = ("total", "squares", "first", "last")


def histogram_of(field: FieldPlan) -> HistogramPayload | SelectionPayload:
    """How a field leaves as a histogram.

    Raises:
        EstimateError: It leaves as something else.
    """
    histogram = field.kind.reading(field)
    if not isinstance(histogram, (HistogramPayload, SelectionPayload)):
        raise EstimateError(field.path, f"is {field.kind}, no histogram: nothing to sum by key")
    return histogram


def tally(field: FieldPlan, key: type) -> Tally:
    """Adds up the numbers of each key, in grid steps.

    Where the rule names keys, maps without any are no reports: messages leave this way under on_exhausted = "suppress".
    Where it names none, they can't be told from reports of maps of which no key passed, and count as such.

    Args:
        field: A histogram.
        key: The Python type of its keys.

    Raises:
        EstimateError: The field is no histogram.
    """
    histogram = histogram_of(field)
    if isinstance(histogram, SelectionPayload):
        return Tally(
            {"n": 1}, lambda maps: _count_selected(field.path, histogram, key, maps), None, key, per_key=2
        )
    lengths = {"n": 1, **dict.fromkeys(_SUMS, len(histogram.keys))}
    return Tally(lengths, lambda maps: _count_public(field.path, histogram, maps))


def estimate(field: FieldPlan, figures: Figures, confidence: float) -> dict[Any, Estimate]:
    """The sum of each key's value.

    Args:
        field: A histogram.
        figures: What its tally has counted.
        confidence: Of each interval by itself.

    Raises:
        EstimateError: The field is no histogram, or there are no maps.
        ValueError: The confidence is not between 0 and 1.
    """
    histogram = histogram_of(field)
    checked(confidence)
    if not figures["n"][0]:
        raise EstimateError(field.path, "there are no maps")
    if isinstance(histogram, SelectionPayload):
        return _selected_keys(histogram, figures, confidence)
    law = law_of(histogram.number.mechanism) if field.model is Model.CENTRAL else None
    assert law is None or isinstance(law, Laplace)
    found, (n,) = {}, figures["n"]
    for key, *sums in zip(histogram.keys, *(figures[name] for name in _SUMS), strict=True):
        of_key = numbers.Sums(n, *sums)
        if law is None:
            found[key] = numbers.mean_of(field.path, histogram.number, of_key, confidence).scaled(n)
        else:
            found[key] = _sum(histogram.number, of_key, law, confidence)
    return found


def _count_public(path: str, histogram: HistogramPayload, maps: Iterable[Any]) -> Figures:
    keys, number, each, n = histogram.keys, histogram.number, iter(maps), 0
    known, sums = set(keys), [np.zeros(len(keys), object) for _ in _SUMS]
    while block := list(itertools.islice(each, max(1, columns.BLOCK // len(keys)))):
        values: list[Any] = []
        for held in filter(len, _maps(path, block)):
            if len(held) != len(keys) or held.keys() - known:
                raise not_released(path, "one of the maps does not hold its public keys")
            values.extend(held[key] for key in keys)
        if not values:
            continue
        index = _indexes(path, number, values).reshape(-1, len(keys))
        n += len(index)
        ends = np.count_nonzero(index <= 0, axis=0), np.count_nonzero(index >= number.grid.size, axis=0)
        for total, of_block in zip(sums, (*powers(index), *ends), strict=True):
            total += of_block
    return {"n": [n], **{name: [int(x) for x in total] for name, total in zip(_SUMS, sums, strict=True)}}


def _indexes(path: str, number: NumericPayload, values: list[Any]) -> NDArray[np.int64]:
    blocks = (numbers.positions(path, number, block) for block in columns.numbers(path, values))
    return np.concatenate(list(blocks)).astype(np.int64)


def _maps(path: str, values: Iterable[Any]) -> Iterator[Mapping[Any, Any]]:
    """The maps; those in a column of Arrow as Python's, without its nulls."""
    for value in values:
        held = value.as_py() if hasattr(value, "as_py") else value
        if held is None and held is not value:
            continue
        if isinstance(held, list):
            held = _of_pairs(path, held)
        if not isinstance(held, Mapping):
            raise _no_map(path)
        # In a column of structs, a key that a map does not hold is null.
        yield held if held is value else {key: each for key, each in held.items() if each is not None}


def _of_pairs(path: str, pairs: list[Any]) -> dict[Any, Any]:
    """A map, which Arrow gives as a list of keys and values."""
    try:
        held = dict(pairs)
    except (TypeError, ValueError):
        raise _no_map(path) from None
    if len(held) < len(pairs):
        raise not_released(path, "one of the maps holds a key twice")
    return held


def _no_map(path: str) -> EstimateError:
    return EstimateError(path, "one of the values is no map; pass maps, or the messages that were received")


def _sum(number: NumericPayload, found: numbers.Sums, law: Laplace, confidence: float) -> Estimate:
    """The sum of aggregates with independent discrete Laplace noise.

    An output at an end of the range has less noise than the law says, so its interval is too wide, not too narrow.
    """
    grid, n = number.grid, found.n
    total = float(numbers.moments(number, found)[0] * n)
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


def _count_selected(path: str, selection: SelectionPayload, key: type, maps: Iterable[Any]) -> Figures:
    """The number of maps that show a key, and the sum of its counts less the law's middle."""
    n, shown = 0, dict[str, list[int]]()
    for n, held in enumerate(_maps(path, maps), 1):  # noqa: B007 - The last number is how many there are.
        for name, value in held.items():
            if type(name) is not key:
                raise not_released(path, "one of the keys is none that the map's type can have")
            figure = shown.setdefault(json.dumps(name), [0, 0])
            figure[0] += 1
            figure[1] += _count(path, selection, value) + selection.below - selection.law.middle
    return {"n": [n], **shown}


def _selected_keys(selection: SelectionPayload, figures: Figures, confidence: float) -> dict[Any, Estimate]:
    """The sums of all keys that any map shows.

    With J the noise (see `PartitionSelection`), a key that shows y had the count y - middle + J, and one that is
    missing had a count below J. Each of n maps may fail with probability (1 - confidence)/n: a quarter where J is too
    small, a quarter where J is too large, and half where a large count is missing. The sum of the intervals fails at
    most as often as all maps together (Bonferroni).
    """
    law, grid, (n,) = selection.law, selection.grid, figures["n"]
    part = int(ONE * (1 - confidence) / (4 * n))
    first = bisect_right(law.thresholds, part) + 1
    last = bisect_left(law.thresholds, ONE - part) + 1
    unseen = bisect_left(law.thresholds, ONE - 2 * part) + selection.below
    rounding = 0.0 if grid.integral and grid.step == 1 else n / 2
    shown = {json.loads(name): figure for name, figure in figures.items() if name != "n"}
    found = {}
    for key in sorted(shown):
        times, total = shown[key]
        value = total + times * law.mean
        low = total + times * first - rounding
        high = total + times * last + (n - times) * unseen + rounding
        found[key] = Estimate(value * grid.step, low * grid.step, high * grid.step, n, confidence)
    return found


def _count(path: str, selection: SelectionPayload, value: float) -> int:
    """The index, less what `threshold` takes, of a value that was shown."""
    grid, law = selection.grid, selection.law
    try:
        at = value / grid.step if math.isfinite(value) else -1.0
    except (TypeError, ValueError, OverflowError):
        raise EstimateError(path, "one of the values is not a number") from None
    index = round(at)
    if abs(at - index) > max(1e-6, _FLOAT32 * abs(at)) or not law.middle <= index - selection.below:
        raise not_released(path, "one of the values is none of its policy's outputs")
    return index - selection.below
