"""Summary: all that accumulators tell of a message type's fields, as one list of figures for each field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message

from dpmesh.estimate import numbers, paths
from dpmesh.estimate.columns import Clock
from dpmesh.estimate.distribution import Bins
from dpmesh.estimate.pooled import AnyAccumulator
from dpmesh.estimate.reader import Reader
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.policy.kinds.category import CategoricalPayload
from dpmesh.policy.kinds.histogram import HistogramPayload
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.kinds.location import LocationPayload
from dpmesh.policy.kinds.vector_mechanism import VectorMechanism
from dpmesh.policy.plan import FieldPlan


@dataclass(frozen=True, slots=True)
class Figure:
    """One estimate.

    Attributes:
        name: What it is, such as "mean" or "share".
        of: Of what, such as a category, a key, the two ends of a bin, or the two degrees of a cell; None for all
            values.
        estimate: It and its interval.
    """

    name: str
    of: Any
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """What is known of a field.

    Attributes:
        path: From the root message, as people type it.
        kind: What was done to it.
        n: How many noisy values (or maps) there are.
        figures: The estimates.
        clock: How times became numbers, for a field of times; else None.
    """

    path: str
    kind: str
    n: int
    figures: tuple[Figure, ...]
    clock: Clock | None = None


class Summary:
    """Accumulators for fields of one message type, in constant memory.

    Args:
        reader: For the type.
        fields: The fields' names; empty for all that have estimates.
        candidates: The texts whose shares are wanted, for fields that hold any text.
        bins: Of distributions.
        cell_km: Of heat maps.

    Attributes:
        skipped: Fields that have no estimates, and why. A field that was named is never among them.

    Raises:
        EstimateError: A field that was named is unknown, public, or has no estimates; or no field has any.
    """

    def __init__(
        self,
        reader: Reader,
        fields: Sequence[str] = (),
        *,
        candidates: Sequence[str] = (),
        bins: Bins = "auto",
        cell_km: float | None = None,
    ) -> None:
        self.skipped: dict[str, str] = {}
        self._candidates, self._bins, self._cell_km = tuple(candidates), bins, cell_km
        self._accumulators: dict[str, tuple[FieldPlan, AnyAccumulator]] = {}
        noised = [paths.plain(field.path) for field in reader.plan.fields if field.mechanism_name]
        for path in dict.fromkeys(fields or noised):
            try:
                field = paths.find(reader.plan, path)
                self._accumulators[paths.plain(path)] = field, self._make(reader, path, field)
            except EstimateError as error:
                if fields:
                    raise
                self.skipped[path] = str(error).removeprefix(f"{error.field}: ")
        if not self._accumulators:
            raise EstimateError(reader.plan.descriptor.full_name, "none of its fields has estimates")

    def _make(self, reader: Reader, path: str, field: FieldPlan) -> AnyAccumulator:
        reading = field.kind.reading(field)
        if isinstance(reading, CategoricalPayload):
            return reader.accumulator(path, candidates=None if reading.domain else self._candidates)
        if isinstance(reading, LocationPayload):
            return reader.accumulator(path, cell_km=self._cell_km)
        if isinstance(reading, (HistogramPayload, SelectionPayload, VectorMechanism)):
            return reader.accumulator(path)
        try:
            return reader.accumulator(path, bins=self._bins)
        except EstimateError:
            if self._bins != "auto":
                raise
            # The mechanism tells a mean and no distribution.
            return reader.accumulator(path)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that are summed up."""
        return tuple(self._accumulators)

    def add(self, messages: Sequence[Message] | Sequence[tuple[str, Message]]) -> None:
        """Adds messages to all fields; pairs of a digest and a message, if the reader has several policies.

        Raises:
            EstimateError: A message holds values that the policy can't have released.
        """
        for _, accumulator in self._accumulators.values():
            accumulator.add(messages)

    def add_column(self, field: str, column: Any) -> None:
        """Adds a column of values to one of the fields.

        Raises:
            EstimateError: As for `add`.
        """
        self._accumulators[field][1].add(column)

    def answers(self, *, quantiles: Iterable[float], confidence: float) -> Iterator[FieldSummary]:
        """All estimates of each field; of a field without values an empty list.

        Args:
            quantiles: Which ones to tell of numbers.
            confidence: Of each interval by itself.
        """
        wanted = tuple(quantiles)
        for path, (field, accumulator) in self._accumulators.items():
            found = _figures(field, accumulator, wanted, confidence) if accumulator.n else ()
            clock = numbers.clock_of(field)
            yield FieldSummary(path, str(field.kind), accumulator.n, tuple(found), clock)


def _figures(
    field: FieldPlan, accumulator: AnyAccumulator, quantiles: Sequence[float], confidence: float
) -> Iterator[Figure]:
    reading = field.kind.reading(field)
    if isinstance(reading, CategoricalPayload):
        for category, share in accumulator.frequencies(confidence=confidence).items():
            yield Figure("share", category, share)
    elif isinstance(reading, LocationPayload):
        found = accumulator.heat_map(confidence=confidence)
        yield Figure("mean", "latitude", found.latitude)
        yield Figure("mean", "longitude", found.longitude)
        for cell in found.cells:
            yield Figure("share", (cell.latitude, cell.longitude), cell.share)
    elif isinstance(reading, VectorMechanism):
        vector = accumulator.mean_vector(confidence=confidence)
        rows: list[tuple[float, float, float]] = np.stack(
            [vector.values, vector.low, vector.high], 1
        ).tolist()
        for index, (value, low, high) in enumerate(rows):
            yield Figure("mean", index, Estimate(value, low, high, vector.n, confidence))
    elif isinstance(reading, (HistogramPayload, SelectionPayload)):
        for key, total in accumulator.histogram(confidence=confidence).items():
            yield Figure("sum", key, total)
    else:
        clock = numbers.clock_of(field)
        adds_up = clock is None or not clock.dated
        yield from _of_numbers(accumulator, quantiles, confidence, adds_up=adds_up)


def _of_numbers(
    accumulator: AnyAccumulator, quantiles: Sequence[float], confidence: float, *, adds_up: bool
) -> Iterator[Figure]:
    yield Figure("mean", None, accumulator.mean(confidence=confidence))
    if adds_up:
        yield Figure("sum", None, accumulator.sum(confidence=confidence))
    if not accumulator.has_bins:
        return
    distribution = accumulator.distribution(confidence=confidence)
    for q in quantiles:
        yield Figure("quantile", q, distribution.quantile(q))
    for low, high, share in zip(
        distribution.edges, distribution.edges[1:], distribution.shares, strict=False
    ):
        yield Figure("share", (low, high), share)
