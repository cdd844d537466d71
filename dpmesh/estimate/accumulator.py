"""Accumulator: a field's received values in memory that does not grow with them, and what they tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from dpmesh.estimate import (
    absence,
    distribution,
    frequencies,
    heat_map,
    histograms,
    numbers,
    paths,
    supports,
    vectors,
)
from dpmesh.estimate.absence import Held
from dpmesh.estimate.distribution import Bins, Distribution
from dpmesh.estimate.heat_map import HeatMap
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.tally import Tally, added
from dpmesh.estimate.vectors import VectorEstimate
from dpmesh.policy.kinds.category import CategoricalPayload
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.kinds.location import LocationPayload
from dpmesh.policy.kinds.vector_mechanism import VectorMechanism
from dpmesh.policy.plan import FieldPlan, Plan

_FORMAT = 1


class Accumulator:
    """What estimates of one field need of its received values: counts and sums of integers.

    `Reader.accumulator` makes it. Values are added in any number of parts, on any number of machines, and accumulators
    of one field and policy are merged. In whatever order this happens, the answers are equal to the reader's answers
    for all values at once::

        day = reader.accumulator("air_time").add(column)
        stored = json.dumps(day.to_dict())
        week = reader.accumulator("air_time").merge(day).merge(json.loads(other_day))
        week.mean()

    An accumulator is not for several threads at a time: give each its own, and merge them.

    Args:
        plan: Of the message type.
        field: The field.
        tally: What turns the field's values into figures.
        read: Takes values out of messages; leaves all else as it is.
        members: The categories that are counted, if the field has categories.

    Attributes:
        figures: What has been counted, which is replaced as a whole.
    """

    __slots__ = ("_field", "_members", "_plan", "_read", "_tally", "figures")

    def __init__(
        self,
        plan: Plan,
        field: FieldPlan,
        tally: Tally,
        read: Callable[[FieldPlan, Any], Any],
        members: Sequence[Any] = (),
    ) -> None:
        self._plan, self._field, self._tally, self._read, self._members = plan, field, tally, read, members
        self.figures = tally.nothing()

    @property
    def n(self) -> int:
        """How many values have been added."""
        return self.figures["n"][0]

    @property
    def has_bins(self) -> bool:
        """Whether it tells the distribution of a numeric field."""
        return "received" in self.figures

    @property
    def edges(self) -> tuple[float, ...]:
        """The edges of its bins."""
        return tuple(self._tally.setting["edges"])

    def add(self, values: Any) -> Self:
        """Adds values: all that the field's method of Reader takes, messages and columns too.

        Values are read in blocks. If one of them is refused, none of this call are added.

        Raises:
            EstimateError: One of the values is none that this policy can have released.
        """
        self.figures = added(self.figures, self._tally.count(self._read(self._field, values)))
        return self

    def merge(self, other: Accumulator | Mapping[str, Any]) -> Self:
        """Adds the values of another accumulator, or of what its `to_dict` gave.

        Raises:
            EstimateError: `other` is of another policy, field, candidates, cells or bins, or it is no accumulator.
        """
        state = other.to_dict() if isinstance(other, Accumulator) else other
        if not isinstance(state, Mapping):
            raise EstimateError(self._field.path, "can only be merged with an accumulator")
        own = self.to_dict()
        for name in own.keys() - {"figures"}:
            if name not in state or state[name] != own[name]:
                raise EstimateError(
                    self._field.path,
                    f"is merged with an accumulator of another {name}: only those of one policy go together",
                )
        figures: Any = state.get("figures")
        if not self._tally.fits(figures):
            raise EstimateError(self._field.path, "is merged with figures that no accumulator of it has")
        self.figures = added(self.figures, figures)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything that is known of the values, as JSON can hold it. Only `merge` needs to understand it."""
        return {
            "format": _FORMAT,
            "type": self._plan.descriptor.full_name,
            "policy": self._plan.version,
            "field": self._field.path,
            "setting": self._tally.setting,
            "figures": {name: list(figure) for name, figure in self.figures.items()},
        }

    def mean(self, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The mean of a numeric field, unbiased; see `Reader.mean` for arguments and errors."""
        places, default = self._places(held, confidence)
        if held is None:
            return replace(places, per_place=self._may_be_absent)
        return absence.mean_of_held(self._field.path, places, default, held, confidence)

    def sum(self, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The sum of a numeric field, unbiased; see `Reader.sum` for arguments and errors."""
        places, default = self._places(held, confidence)
        if held is None:
            return replace(places.scaled(places.n), per_place=default != 0 and self._may_be_absent)
        return absence.sum_of_held(self._field.path, places, default, held, confidence)

    def distribution(self, *, held: Held | None = None, confidence: float = 0.95) -> Distribution:
        """The share of each bin of a numeric field; see `Reader.distribution` for arguments and errors."""
        numbers.as_number(self._field)
        if not self.has_bins:
            raise EstimateError(self._field.path, "has no bins: give bins to Reader.accumulator")
        self._check_held(held)
        return distribution.distribution_of(
            self._field,
            self.figures,
            self._tally.setting,
            confidence,
            per_place=held is None and self._may_be_absent,
            held=held,
            default=self._default,
        )

    def quantile(self, q: float, *, held: Held | None = None, confidence: float = 0.95) -> Estimate:
        """The number below which a part q of all numbers lies; see `Reader.quantile` for arguments and errors."""
        return self.distribution(held=held, confidence=confidence).quantile(q)

    def mean_vector(self, *, confidence: float = 0.95) -> VectorEstimate:
        """The mean of a vector field, unbiased; see `Reader.mean_vector` for arguments and errors."""
        vectors.mechanism_of(self._field)
        return vectors.mean_of(self._field, self.figures, confidence)

    def heat_map(self, *, confidence: float = 0.95) -> HeatMap:
        """How many places lie in each cell; see `Reader.heat_map` for arguments and errors."""
        heat_map.place_of(self._field)
        return heat_map.heat_map_of(self._field, self.figures, self._tally.setting, confidence)

    def histogram(self, *, confidence: float = 0.95, keys: Iterable[Any] = ()) -> dict[Any, Estimate]:
        """The sum of each key's value; see `Reader.histogram` for arguments and errors.

        Args:
            confidence: Of each interval by itself.
            keys: Which are told of in any case, where the rule names no keys.
        """
        missing = {} if self._tally.key is None else {json.dumps(key): [0, 0] for key in keys}
        return histograms.estimate(self._field, missing | self.figures, confidence)

    def frequencies(
        self, *, held: Held | None = None, project: bool = False, confidence: float = 0.95
    ) -> dict[Any, Estimate]:
        """The share of each category, unbiased; see `Reader.frequencies` for arguments and errors."""
        category, path = category_of(self._field), self._field.path
        self._check_held(held)
        if project and not category.domain:
            raise EstimateError(path, "has candidates, whose shares need not sum to 1, so leave project out")
        needed = absence.confidence_of_places(held, confidence)
        mechanism, (n,) = category.mechanism, self.figures["n"]
        found = frequencies.estimate_frequencies(
            path, self.figures["seen"], n, mechanism.truth, mechanism.lie, needed
        )
        if held is None:
            found = [replace(entry, per_place=self._may_be_absent) for entry in found]
        else:
            found = [
                absence.mean_of_held(path, entry, default, held, confidence)
                for default, entry in zip(self.shares_of_default(), found, strict=True)
            ]
        if project:
            found = frequencies.projected(found)
        labels = category.labels
        return {labels.get(value, value): entry for value, entry in zip(self._members, found, strict=True)}

    def variance(self) -> float:
        """The variance that one report gives an estimate, for senders whose values are spread all over the range.

        It is known from the plan alone, and comparable between policies of one field.
        """
        reading = self._field.kind.reading(self._field)
        if self.has_bins:
            return distribution.deviation(self._field, self._tally.setting) ** 2
        if isinstance(reading, CategoricalPayload):
            mechanism = reading.mechanism
            supported = mechanism.lie + (mechanism.truth - mechanism.lie) / max(2, len(self._members))
            return supported * (1 - supported) / (mechanism.truth - mechanism.lie) ** 2
        if isinstance(reading, VectorMechanism):
            return float(reading.variance(np.zeros(1))[0])
        if isinstance(reading, LocationPayload):
            return heat_map.variance(self._field, self._tally.setting)
        number = numbers.as_number(self._field)
        spread_out = number.grid.size**2 / 12
        return float((number.mechanism.worst_variance + spread_out) * number.grid.step**2)

    def default_place(self, held: Held | None) -> float:
        """What an absent number counts as.

        Raises:
            EstimateError: The field is not numeric, or never absent.
        """
        grid = numbers.as_number(self._field).grid
        self._check_held(held)
        return grid.value(grid.index(self._default))

    def shares_of_default(self) -> list[float]:
        """The share of each category in what absent values count as: 1 for one of them."""
        absent = category_of(self._field).absent
        return [float(value == absent) for value in self._members]

    @property
    def _may_be_absent(self) -> bool:
        return paths.may_be_absent(self._plan, self._field)

    @property
    def _default(self) -> float:
        """What fills the place of an absent number."""
        return float(paths.default(self._plan.descriptor, self._field))

    def _check_held(self, held: Held | None) -> None:
        if held is not None and not self._may_be_absent:
            raise EstimateError(self._field.path, "is never absent, so leave held out")

    def _places(self, held: Held | None, confidence: float) -> tuple[Estimate, float]:
        """The mean over all places, and what an absent value counts as."""
        number = numbers.as_number(self._field)
        default = self.default_place(held)
        needed = absence.confidence_of_places(held, confidence)
        places = numbers.mean_of(self._field.path, number, numbers.sums_of(self.figures), needed)
        return places, default


def category_of(field: FieldPlan) -> CategoricalPayload:
    """How a field leaves as a category.

    Raises:
        EstimateError: It leaves as something else.
    """
    category = field.kind.reading(field)
    if not isinstance(category, CategoricalPayload):
        raise EstimateError(field.path, f"is {field.kind}, not categorical: it has no frequencies")
    return category


def make(
    plan: Plan,
    field: FieldPlan,
    read: Callable[[FieldPlan, Any], Any],
    candidates: Iterable[str] | None,
    cell_km: float | None,
    bins: Bins | None,
) -> Accumulator:
    """The accumulator of a field, by its kind; arguments as for `Reader.accumulator`.

    Raises:
        EstimateError: There are candidates, a cell_km or bins that don't fit, or no candidates where they are needed.
    """
    path, kind, reading = field.path, field.kind, field.kind.reading(field)
    if cell_km is not None and not isinstance(reading, LocationPayload):
        raise EstimateError(path, "is no location, so leave cell_km out")
    if bins is not None:
        return Accumulator(plan, field, distribution.tally(field, bins), read)
    if isinstance(reading, CategoricalPayload):
        if reading.domain and candidates is not None:
            raise EstimateError(path, "has a domain of its own, so leave candidates out")
        members = reading.domain or supports.checked_candidates(path, candidates)
        tally = supports.tally(path, members, reading.mechanism, reading.labels)
        return Accumulator(plan, field, tally, read, members)
    if candidates is not None:
        raise EstimateError(path, f"is {kind}, not categorical, so leave candidates out")
    if isinstance(reading, VectorMechanism):
        return Accumulator(plan, field, vectors.tally(field), read)
    if isinstance(reading, LocationPayload):
        return Accumulator(plan, field, heat_map.tally(field, cell_km), read)
    if isinstance(reading, (HistogramPayload, SelectionPayload)):
        key = paths.key_type(plan.descriptor, field)
        return Accumulator(plan, field, histograms.tally(field, key), read)
    return Accumulator(plan, field, numbers.tally(field), read)
