"""Distributions of noisy numbers: the share of each bin, and quantiles, from counts of what was received."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpmesh.estimate import absence, numbers, spread
from dpmesh.estimate.absence import Held
from dpmesh.estimate.inverse import Shares, weights_of
from dpmesh.estimate.output_laws import Cumulative, cumulative
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.tally import Figures, Tally
from dpmesh.policy.kinds.grid import Grid
from dpmesh.policy.kinds.numeric import NumericPayload
from dpmesh.policy.plan import FieldPlan

Array = NDArray[np.float64]
# So many equal bins, as many as are told apart well, or the edges of bins.
Bins = int | Literal["auto"] | Iterable[float]

BINS_LIMIT = 200
# What is received is counted in so many bins, about equally probable, and in those of the receiver.
_RECEIVED = 128
# So many indexes, evenly spread, stand for those of a bin if it has more.
_SAMPLES = 64
# An inverse that makes the smallest rounding so large is none.
_CONDITION_LIMIT = 1e6
# With "auto", at most so many bins, of which 10,000 reports give cumulative shares with a standard error of 0.04.
_AUTO, _AUTO_DEVIATION = 20, 4.0
# A quantile's interval ends at one of so many places in each bin.
_PLACES = 256


@dataclass(frozen=True, eq=False)
class Distribution:
    """How the senders' numbers are distributed.

    Attributes:
        edges: Of the bins, in the field's own units. A bin holds its lower edge; the last one holds both.
        shares: The share of each bin. Single ones may be below 0, because they are unbiased; they sum to 1.
        n: How many noisy numbers they rest on.
        confidence: How often one interval, by itself, holds its figure.
    """

    edges: tuple[float, ...]
    shares: tuple[Estimate, ...]
    n: int
    confidence: float
    _found: Shares | _Pooled = field(repr=False)
    _absent: _Absent | None = field(repr=False, default=None)

    def below(self, number: float) -> Estimate:
        """The share of numbers below a number, within a bin by linear interpolation."""
        (value,), (low,), (high,) = self._below(np.array([float(number)]))
        return replace(self.shares[0], value=float(value), low=float(low), high=float(high))

    def quantile(self, q: float) -> Estimate:
        """The number below which a part q of all numbers lies, such as the median for 0.5.

        The value is found by linear interpolation within a bin. The interval has all bins in which a number lies for
        which `below` has an interval that holds q. It has them whole, because where in a bin the senders' numbers are
        is not known.

        Raises:
            ValueError: q is not between 0 and 1.
        """
        if not 0 < q < 1:
            raise ValueError(f"q must be between 0 and 1, not {q!r}")
        places = np.unique(
            np.concatenate([np.linspace(a, b, _PLACES) for a, b in itertools.pairwise(self.edges)])
        )
        values, low_ends, high_ends = self._below(places)
        # Single shares may be below 0, so q may be reached at several places: their middle stands for them.
        reached = values >= q
        reached[0], reached[-1] = False, True
        first, last = int(np.argmax(reached)), len(places) - int(np.argmin(reached[::-1]))
        covered = np.flatnonzero((low_ends <= q) & (q <= high_ends)).tolist()
        # One place more on each side, because the interval ends between two.
        low = max(min(first, *covered, first) - 1, 0)
        high = min(max(last, *covered, last) + 1, len(places) - 1)
        value = (places[first] + places[last]) / 2
        edges = np.array(self.edges)
        low_edge = edges[np.searchsorted(edges, places[low], side="right") - 1]
        high_edge = edges[np.searchsorted(edges, places[high], side="left")]
        return replace(self.shares[0], value=float(value), low=float(low_edge), high=float(high_edge))

    def _below(self, places: Array) -> tuple[Array, Array, Array]:
        """The share below each place, and both ends of its interval."""
        edges = np.array(self.edges)
        parts = np.clip((places[:, np.newaxis] - edges[:-1]) / np.diff(edges), 0.0, 1.0)
        if self._absent is None:
            sums, margins = self._found.sums(parts.T)
            return sums, sums - margins, sums + margins
        found = self._absent.cleared(self._found.estimates(parts.T), parts.T)
        values, low, high = np.array([(each.value, each.low, each.high) for each in found]).T
        return values, low, high


@dataclass(frozen=True, slots=True, eq=False)
class _Absent:
    """What takes absent values out of sums of shares.

    Attributes:
        path: The field, for errors.
        expected: The mean share of each bin that reports of absent values give, shape (bins,).
        held: The share of places that hold a value.
        confidence: Of each interval by itself.
    """

    path: str
    expected: Array
    held: Held
    confidence: float

    def cleared(self, sums: list[Estimate], parts: Array) -> list[Estimate]:
        """The sums over the held values, from those over all places, with these parts of each share: (bins, sums)."""
        return [
            absence.mean_of_held(self.path, each, absent, self.held, self.confidence)
            for each, absent in zip(sums, (self.expected @ parts).tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Pooled:
    """Weighted means of the shares that independent reports tell, as `Shares` gives them.

    Attributes:
        weights: What each part counts for.
        parts: What the reports of each policy tell.
    """

    weights: tuple[float, ...]
    parts: tuple[Shares | _Pooled, ...]

    def sums(self, parts: Array) -> tuple[Array, Array]:
        """As `Shares.sums`; the variances of the parts add up."""
        weights = np.array(self.weights)[:, np.newaxis]
        sums, margins = (
            np.stack(each) for each in zip(*(part.sums(parts) for part in self.parts), strict=True)
        )
        return (weights * sums).sum(axis=0), np.sqrt(((weights * margins) ** 2).sum(axis=0))

    def estimates(self, parts: Array | None = None, *, per_place: bool = False) -> list[Estimate]:
        """As `Shares.estimates`."""
        of_parts = [part.estimates(parts) for part in self.parts]
        n, found = sum(each[0].n for each in of_parts), []
        for of_sum in zip(*of_parts, strict=True):
            value = math.fsum(w * each.value for w, each in zip(self.weights, of_sum, strict=True))
            margin = math.hypot(*(w * each.margin for w, each in zip(self.weights, of_sum, strict=True)))
            found.append(Estimate(value, value - margin, value + margin, n, of_sum[0].confidence, per_place))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Inverse:
    """What a received bin counts for.

    Attributes:
        edges: Of the receiver's bins, in the field's own units.
        last: The largest index of each received bin but the last one.
        weights: What each received bin adds to the share of each of the receiver's, shape (received, bins).
        law: The probability of each received bin for numbers all over a bin, shape (received, bins).
    """

    edges: tuple[float, ...]
    last: Array
    weights: Array
    law: Array

    @property
    def deviation(self) -> float:
        """The largest standard deviation that one report gives a cumulative share, if all bins hold as much."""
        even, bins = self.law.mean(axis=1), self.law.shape[1]
        cumulated = self.weights @ np.triu(np.ones((bins, bins - 1)))
        variance = even @ cumulated**2 - (even @ cumulated) ** 2
        return math.sqrt(max(0.0, variance.max(initial=0.0)))


def tally(plan: FieldPlan, bins: Bins) -> Tally:
    """Counts received numbers by bins of what is received, and adds them up as `numbers.tally` does.

    Args:
        plan: A numeric field's.
        bins: How many equal bins the range has; "auto" for as many as are told apart well, 2 to 20; or their edges,
            which increase from at most the lower bound to at least the upper one.

    Raises:
        EstimateError: The field is not numeric, or leaves as one of two ends; or the bins are none, too many, or so
            narrow that the noise blurs them beyond what can be undone.
    """
    number = numbers.as_number(plan)
    if spread.two_points(number.mechanism, number.grid.size) is not None:
        raise EstimateError(plan.path, "leaves as one of two ends, which tell a mean and no distribution")
    edges = (
        _auto(plan.path, number)
        if isinstance(bins, str) and bins == "auto"
        else _edges(plan.path, number.grid, bins)
    )
    inverse = _inverse(plan.path, number, edges)

    def count(values: Any) -> Figures:
        found, counts = numbers.Sums(), np.zeros(len(inverse.law), np.int64)
        for received in numbers.received(plan, values):
            index = numbers.positions(plan.path, number, received)
            found = found.with_block(index, number.grid.size)
            counts += np.bincount(np.searchsorted(inverse.last, index), minlength=len(counts))
        return found.figures() | {"received": counts.tolist()}

    setting = {"edges": list(edges), "received": inverse.last.tolist()}
    return Tally({**numbers.LENGTHS, "received": len(inverse.law)}, count, setting)


def distribution_of(
    plan: FieldPlan,
    figures: Figures,
    setting: Any,
    confidence: float,
    *,
    per_place: bool = False,
    held: Held | None = None,
    default: float = 0.0,
) -> Distribution:
    """Takes the noise out of the counts of received numbers.

    The public law says how probable each received bin is for numbers in each of the receiver's bins. Weights of the
    received bins turn that around: the law of a bin's numbers gives 1 for this bin and 0 for all others. Of all such
    weights, these have the least variance for numbers all over the range. So the shares are unbiased if numbers are
    spread evenly within each bin, whatever they do between bins. That is the best that noise allows: it hides on which
    side of an edge a number near it was, and of two numbers in one bin which is which.

    Args:
        plan: A numeric field's.
        figures: What its tally has counted.
        setting: The tally's setting.
        confidence: Of each interval by itself.
        per_place: What the estimates say of themselves.
        held: The share of places that hold a value; the shares are those of held values then.
        default: What an absent value counts as.

    Raises:
        EstimateError: There are no values.
        ValueError: The confidence is not between 0 and 1.
    """
    (n,), counts = figures["n"], np.array(figures["received"], np.float64)
    needed = absence.confidence_of_places(held, confidence)
    if not n:
        raise EstimateError(plan.path, "there are no values")
    inverse = _inverse(plan.path, numbers.as_number(plan), tuple(setting["edges"]))
    found, absent = Shares(inverse.weights, inverse.law, counts, needed), None
    shares = found.estimates(per_place=per_place)
    if held is not None:
        absent = _Absent(plan.path, _of_one(plan, inverse, default), held, confidence)
        shares = absent.cleared(shares, np.eye(len(shares)))
    return Distribution(inverse.edges, tuple(shares), n, confidence, found, absent)


def pooled(weights: Sequence[float], found: Sequence[Distribution]) -> Distribution:
    """The weighted mean of distributions of independent reports, over equal bins.

    Args:
        weights: What each of them counts for; they sum to 1.
        found: The distributions, with or without absent values.
    """
    first, shares = found[0], _Pooled(tuple(weights), tuple(each._found for each in found))
    estimates, absent = shares.estimates(per_place=first.shares[0].per_place), first._absent
    if absent is not None:
        expected = [each._absent.expected for each in found if each._absent is not None]
        absent = replace(absent, expected=np.asarray(weights) @ np.stack(expected))
        estimates = absent.cleared(estimates, np.eye(len(estimates)))
    n = sum(each.n for each in found)
    return Distribution(first.edges, tuple(estimates), n, first.confidence, shares, absent)


def deviation(plan: FieldPlan, setting: Any) -> float:
    """The standard deviation that one report gives a cumulative share, if all bins hold as much.

    Args:
        plan: A numeric field's.
        setting: That of its tally.
    """
    return _inverse(plan.path, numbers.as_number(plan), tuple(setting["edges"])).deviation


def _of_one(plan: FieldPlan, inverse: _Inverse, value: float) -> Array:
    """The mean share of each bin that reports of one number give, shape (bins,)."""
    number = numbers.as_number(plan)
    index = np.array([number.grid.index(value)], np.float64)
    below = cumulative(number.mechanism, number.grid.size)(index, inverse.last)
    return np.asarray(np.diff(below, axis=0, prepend=0.0, append=1.0)[:, 0] @ inverse.weights, np.float64)


@lru_cache(maxsize=64)
def _auto(path: str, number: NumericPayload) -> tuple[float, ...]:
    """The edges of the most bins whose cumulative shares are known well; of two if none are."""
    for bins in range(_AUTO, 2, -1):
        try:
            inverse = _inverse(path, number, _edges(path, number.grid, bins))
        except EstimateError:
            continue
        if inverse.deviation <= _AUTO_DEVIATION:
            return inverse.edges
    return _edges(path, number.grid, 2)


def _edges(path: str, grid: Grid, bins: Bins) -> tuple[float, ...]:
    text = f"bins must be a number from 1 to {BINS_LIMIT}, or edges that increase"
    try:
        if isinstance(bins, (int, np.integer)) and not isinstance(bins, bool):
            edges = (
                tuple(np.linspace(grid.lower, grid.upper, bins + 1).tolist())
                if 0 < bins <= BINS_LIMIT
                else ()
            )
        else:
            edges = tuple(float(edge) for edge in bins)  # type: ignore[union-attr]
    except (TypeError, ValueError, OverflowError):
        raise EstimateError(path, text) from None
    if not 2 <= len(edges) <= BINS_LIMIT + 1 or not all(a < b for a, b in itertools.pairwise(edges)):
        raise EstimateError(path, text)
    if not (math.isfinite(edges[0]) and math.isfinite(edges[-1])):
        raise EstimateError(path, text)
    if edges[0] > grid.lower or edges[-1] < grid.upper:
        raise EstimateError(
            path,
            f"bins must reach from {grid.lower:.6g} to {grid.upper:.6g}, where senders clamp their numbers",
        )
    return edges


@lru_cache(maxsize=64)
def _inverse(path: str, number: NumericPayload, edges: tuple[float, ...]) -> _Inverse:
    grid, law = number.grid, cumulative(number.mechanism, number.grid.size)
    # The first index of each bin, and the end of the last one.
    firsts = np.ceil((np.array(edges) - grid.lower) / grid.step - 1e-9)
    firsts[0], firsts[-1] = 0, grid.size + 1
    if np.any(np.diff(firsts) < 1):
        raise EstimateError(
            path, f"has a grid of steps of {grid.step:.6g}, and one of the bins holds no point of it"
        )
    held = [_spread_out(first, end) for first, end in itertools.pairwise(firsts.tolist())]
    last = _received_bins(number, law, firsts[1:-1] - 1)
    below = np.stack([law(each, last).mean(axis=1) for each in held], axis=1)
    table = np.diff(below, axis=0, prepend=0.0, append=1.0)
    # What numbers all over the range give; some received bins may be out of their reach.
    expected = np.maximum(table @ (np.diff(firsts) / firsts[-1]), 1e-300)
    full = np.linalg.matrix_rank(table) == table.shape[1]
    weights = weights_of(table, expected, _CONDITION_LIMIT) if full else None
    if weights is None:
        raise EstimateError(
            path, "the noise blurs such bins beyond what can be undone: take fewer and wider ones"
        )
    return _Inverse(edges, last, weights, table)


def _spread_out(first: float, end: float) -> Array:
    """Indexes from `first` to before `end`, evenly spread: all, or a sample."""
    count = int(end - first)
    if count <= _SAMPLES:
        return np.asarray(first + np.arange(count), np.float64)
    return np.asarray(np.floor(first + (np.arange(_SAMPLES) + 0.5) * count / _SAMPLES), np.float64)


def _received_bins(number: NumericPayload, law: Cumulative, inner: Array) -> Array:
    """The largest index of each received bin but the last one: about equally probable ones, and the receiver's own."""
    mechanism = number.mechanism
    if mechanism.outputs is not None and len(mechanism.outputs) <= _RECEIVED:
        return np.array(mechanism.outputs[:-1], np.float64)
    if mechanism.high - mechanism.low < _RECEIVED:
        return np.arange(mechanism.low, mechanism.high, dtype=np.float64)
    everywhere = _spread_out(0, number.grid.size + 1)
    wanted = np.arange(1, _RECEIVED) / _RECEIVED
    low = np.full(wanted.size, float(mechanism.low) - 1)
    high = np.full(wanted.size, float(mechanism.high))
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        reached = law(everywhere, middle).mean(axis=1) >= wanted
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    found = np.unique(np.concatenate([high, inner]))
    return found[found < mechanism.high]
