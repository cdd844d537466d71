"""Pooled accumulators: reports of one field under several policies, each read by the law that drew it.

Estimates of each policy's reports are unbiased, and so is their weighted mean. Two kinds of weights are of use:

- By the number of reports. The estimate is about all values that were sent, whatever differs between the policies: a
  policy that came into force at noon has the values of the afternoon.
- By the inverse of the variance, if the senders of all policies are alike, as those of rings that were chosen at
  random. It gives the narrowest intervals. The variance is that of the mechanism for values all over the range, which
  is public: weights that depend on the reports would bias the estimate.

Intervals are put together by the recovery of variances (MOVER: Zou and Donner 2008): with weights a, estimates e and
lower ends l, the lower end is sum(a e) - sqrt(sum(a^2 (e - l)^2)). With upper ends u, the upper end is
sum(a e) + sqrt(sum(a^2 (u - e)^2)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np

from dpmesh.estimate import absence, accumulator, distribution, frequencies
from dpmesh.estimate.absence import Held
from dpmesh.estimate.accumulator import Accumulator
from dpmesh.estimate.distribution import Bins, Distribution
from dpmesh.estimate.heat_map import HeatCell, HeatMap
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.vectors import VectorEstimate
from dpmesh.policy.plan import FieldPlan, Plan

# So many policies at most: an accumulator has the figures of each.
POLICIES_LIMIT = 64
# So many pairs of a digest and a value are in memory at a time.
_BLOCK = 8192
_FORMAT = 1


class PooledAccumulator:
    """What estimates of one field need of values that were received under several policies.

    `Reader.accumulator` makes it, if the reader has `policies`. Its methods are those of `Accumulator`; the memory does
    not grow with the values.

    Args:
        path: The field.
        parts: An empty accumulator for each policy under which the field carries noise, by digest.
        without: The digests of the other policies.
        alike: The senders of all policies are alike, so that estimates are weighted by their variance.
    """

    def __init__(
        self, path: str, parts: Mapping[str, Accumulator], without: frozenset[str], *, alike: bool
    ) -> None:
        self._path, self._parts, self._without, self._alike = path, dict(parts), without, alike

    @property
    def n(self) -> int:
        """How many values have been added."""
        return sum(part.n for part in self._parts.values())

    @property
    def has_bins(self) -> bool:
        """Whether it tells the distribution of a numeric field."""
        return all(part.has_bins for part in self._parts.values())

    def add(self, values: Any) -> Self:
        """Adds values. If one of them is refused, none of this call are added.

        Args:
            values: Pairs of a digest and a value (or a message); or a mapping from digests to what `Accumulator.add`
                takes, columns too.

        Raises:
            EstimateError: A digest is none of the reader's, or a value is none that its policy can have released.
        """
        with self._all_or_nothing():
            if isinstance(values, Mapping):
                for digest, of_policy in values.items():
                    self._part(digest).add(of_policy)
                return self
            each = iter(values)
            while block := list(itertools.islice(each, _BLOCK)):
                for digest, of_policy in self._by_digest(block).items():
                    self._part(digest).add(of_policy)
        return self

    def merge(self, other: PooledAccumulator | Mapping[str, Any]) -> Self:
        """Adds the values of another accumulator, or of what its `to_dict` gave.

        Raises:
            EstimateError: `other` has a policy that this reader has not, or is otherwise none that `Accumulator.merge`
                takes.
        """
        state = other.to_dict() if isinstance(other, PooledAccumulator) else other
        policies = state.get("policies") if isinstance(state, Mapping) else None
        if (
            not isinstance(state, Mapping)
            or state.get("format") != _FORMAT
            or not isinstance(policies, Mapping)
        ):
            raise EstimateError(self._path, "can only be merged with an accumulator of several policies")
        with self._all_or_nothing():
            for digest, part in policies.items():
                self._part(digest).merge(part)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything that is known of the values, as JSON can hold it. Only `merge` needs to understand it."""
        return {
            "format": _FORMAT,
            "policies": {digest: part.to_dict() for digest, part in self._with_values().items()},
        }

    def mean(self, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The mean of a numeric field, unbiased; see `Reader.mean` for arguments and errors."""
        needed = absence.confidence_of_places(held, confidence)
        places = self._weighted(lambda part: part.mean(confidence=needed), self._weights())
        if held is None:
            return places
        return absence.mean_of_held(self._path, places, self._default(held), held, confidence)

    def sum(self, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The sum of a numeric field, unbiased; see `Reader.sum` for arguments and errors."""
        needed = absence.confidence_of_places(held, confidence)
        if held is None:
            return self._weighted(lambda part: part.sum(confidence=needed), [1.0] * len(self._with_values()))
        # A sum is about the values of all senders.
        places = self._weighted(lambda part: part.mean(confidence=needed), self._by_number())
        return absence.sum_of_held(self._path, places, self._default(held), held, confidence)

    def distribution(self, *, held: Held | None = None, confidence: float = 0.95) -> Distribution:
        """The share of each bin of a numeric field; see `Reader.distribution` for arguments and errors."""
        found = [part.distribution(held=held, confidence=confidence) for part in self._with_values().values()]
        self._agree("bins: give their edges", [each.edges for each in found])
        return distribution.pooled(self._weights(), found)

    def quantile(self, q: float, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The number below which a part q of all numbers lies; see `Reader.quantile` for arguments and errors."""
        return self.distribution(held=held, confidence=confidence).quantile(q)

    def frequencies(
        self, *, held: Held | None = None, project: bool = False, confidence: float = 0.95
    ) -> dict[Any, Estimate]:
        """The share of each category, unbiased; see `Reader.frequencies` for arguments and errors."""
        needed = absence.confidence_of_places(held, confidence)
        # The first part says what `project` and `held` are refused for.
        parts = list(self._with_values().values())
        parts[0].frequencies(held=held, project=project, confidence=confidence)
        found = [part.frequencies(confidence=needed) for part in parts]
        self._agree("categories", [list(each) for each in found])
        weights = self._weights()
        shares = {name: _pooled(weights, [each[name] for each in found]) for name in found[0]}
        if held is not None:
            defaults = parts[0].shares_of_default()
            shares = {
                name: absence.mean_of_held(self._path, share, default, held, confidence)
                for (name, share), default in zip(shares.items(), defaults, strict=True)
            }
        if project:
            shares = dict(zip(shares, frequencies.projected(list(shares.values())), strict=True))
        return shares

    def heat_map(self, *, confidence: float = 0.95) -> HeatMap:
        """How many places lie in each cell; see `Reader.heat_map` for arguments and errors."""
        found = [part.heat_map(confidence=confidence) for part in self._with_values().values()]
        self._agree(
            "cells: give a cell_km",
            [[(cell.latitude, cell.longitude) for cell in each.cells] for each in found],
        )
        weights, n = self._weights(), self.n
        cells = []
        for of_cell in zip(*(each.cells for each in found), strict=True):
            share = _pooled(weights, [cell.share for cell in of_cell])
            cells.append(HeatCell(of_cell[0].latitude, of_cell[0].longitude, share, share.scaled(n)))
        middle = [
            _pooled(weights, [getattr(each, name) for each in found]) for name in ("latitude", "longitude")
        ]
        return HeatMap(tuple(cells), found[0].cell_km, *middle)

    def mean_vector(self, *, confidence: float = 0.95) -> VectorEstimate:
        """The mean of a vector field, unbiased; see `Reader.mean_vector` for arguments and errors."""
        found = [part.mean_vector(confidence=confidence) for part in self._with_values().values()]
        self._agree("coordinates", [each.values.size for each in found])
        weights = np.array(self._weights())[:, np.newaxis]
        values, low, high = (
            np.stack([getattr(each, name) for each in found]) for name in ("values", "low", "high")
        )
        middle = (weights * values).sum(axis=0)
        below, above = (np.sqrt(((weights * (values - end)) ** 2).sum(axis=0)) for end in (low, high))
        error = math.hypot(*(w * each.standard_error for w, each in zip(weights[:, 0], found, strict=True)))
        return VectorEstimate(middle, middle - below, middle + above, error, self.n, confidence)

    def histogram(self, *, confidence: float = 0.95) -> dict[Any, Estimate]:
        """The sum of each key's value; see `Reader.histogram` for arguments and errors.

        Noise of few draws is no normal one, and what hides missing keys is none at all. So each policy's interval
        may fail a part of the time, and their ends are added up (Bonferroni).
        """
        parts = list(self._with_values().values())
        confidence_of_each = 1 - (1 - confidence) / len(parts)
        keys = dict.fromkeys(
            itertools.chain.from_iterable(part.histogram(confidence=confidence) for part in parts)
        )
        found = [part.histogram(confidence=confidence_of_each, keys=keys) for part in parts]
        if not all(each.keys() >= keys.keys() for each in found):
            raise self._disagreement("keys")
        value, low, high = (
            {key: sum(getattr(each[key], end) for each in found) for key in keys}
            for end in ("value", "low", "high")
        )
        return {key: Estimate(value[key], low[key], high[key], self.n, confidence) for key in keys}

    def _part(self, digest: Any) -> Accumulator:
        part = self._parts.get(digest) if isinstance(digest, str) else None
        if part is not None:
            return part
        if isinstance(digest, str) and digest in self._without:
            raise EstimateError(
                self._path, "carries no noise under one of the policies: leave its reports out"
            )
        raise EstimateError(
            self._path, "one of the reports has a digest that is none of the reader's policies"
        )

    def _by_digest(self, pairs: Iterable[Any]) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
                raise EstimateError(self._path, "with several policies, pass pairs of a digest and a value")
            found.setdefault(pair[0], []).append(pair[1])
        return found

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = {digest: part.figures for digest, part in self._parts.items()}
        try:
            yield
        except BaseException:
            for digest, figures in before.items():
                self._parts[digest].figures = figures
            raise

    def _with_values(self) -> dict[str, Accumulator]:
        """The parts that have values; all of them if none has."""
        return {digest: part for digest, part in self._parts.items() if part.n} or self._parts

    def _by_number(self) -> list[float]:
        return [part.n / self.n if self.n else 1.0 for part in self._with_values().values()]

    def _weights(self) -> list[float]:
        """What each policy's estimate counts for; they sum to 1."""
        if not self._alike or not self.n:
            return self._by_number()
        precise = [part.n / part.variance() for part in self._with_values().values()]
        return [each / math.fsum(precise) for each in precise]

    def _weighted(self, ask: Callable[[Accumulator], Estimate], weights: Sequence[float]) -> Estimate:
        return _pooled(weights, [ask(part) for part in self._with_values().values()])

    def _default(self, held: Held) -> float:
        """What an absent number counts as."""
        defaults = [part.default_place(held) for part in self._with_values().values()]
        self._agree("bounds, and so another default", defaults)
        return defaults[0]

    def _agree(self, what: str, of_parts: Sequence[Any]) -> None:
        if any(each != of_parts[0] for each in of_parts):
            raise self._disagreement(what)

    def _disagreement(self, what: str) -> EstimateError:
        return EstimateError(self._path, f"one of the policies gives it other {what}")


AnyAccumulator = Accumulator | PooledAccumulator


def _pooled(weights: Sequence[float], found: Sequence[Estimate]) -> Estimate:
    """A weighted sum of independent estimates, with its interval."""
    value = math.fsum(w * each.value for w, each in zip(weights, found, strict=True))
    below = math.hypot(*(w * (each.value - each.low) for w, each in zip(weights, found, strict=True)))
    above = math.hypot(*(w * (each.high - each.value) for w, each in zip(weights, found, strict=True)))
    n, per_place = sum(each.n for each in found), any(each.per_place for each in found)
    return replace(found[0], value=value, low=value - below, high=value + above, n=n, per_place=per_place)


def make(
    fields: Mapping[str, tuple[Plan, FieldPlan, Callable[[FieldPlan, Any], Any]]],
    without: frozenset[str],
    candidates: Iterable[str] | None,
    cell_km: float | None,
    bins: Bins | None,
    *,
    alike: bool,
) -> PooledAccumulator:
    """The accumulator of a field under several policies.

    Args:
        fields: By digest: the type's plan, the field's, and what takes values out of messages.
        without: The digests of policies under which the field carries no noise.
        candidates: As for `Reader.accumulator`, as are the next two.
        cell_km: The distance of cells.
        bins: With "auto", those that the policy with the fewest takes.
        alike: As for `PooledAccumulator`.

    Raises:
        EstimateError: As for `accumulator.make`.
    """
    if bins is not None and not isinstance(bins, (int, str)):
        bins = tuple(bins)
    if candidates is not None:
        candidates = list(candidates)

    def made(bins: Bins | None) -> dict[str, Accumulator]:
        return {
            digest: accumulator.make(plan, field, read, candidates, cell_km, bins)
            for digest, (plan, field, read) in fields.items()
        }

    parts = made(bins)
    if isinstance(bins, str):
        fewest: list[tuple[float, ...]] = sorted((part.edges for part in parts.values()), key=len)
        parts = made(fewest[0])
    path = next(field.path for _, field, _ in fields.values())
    return PooledAccumulator(path, parts, without, alike=alike)
