"""Truth against estimates: what the operator knows, and what noisy reports and noisy answers tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from dpmesh.estimate import Estimate, Reader
from dpmesh_fleet import fleet_pb2
from dpmesh_fleet.fly import Month
from dpmesh_fleet.service import CARRIERS, MOST_AIR_TIME, ORIGINS, cut_delay


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, four times.

    Attributes:
        label: What it is about.
        raw: The figure itself.
        truth: The same after values were cut to their public bounds: what the intervals are about.
        local: Estimated from the noisy reports.
        central: From the operator's first noisy answer.
    """

    label: str
    raw: float
    truth: float
    local: Estimate
    central: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of the demo.

    Attributes:
        delays: Mean departure delay in minutes, one for each airport.
        air_time: Mean air time in minutes.
        shares: Each carrier's share of the flights.
    """

    delays: Sequence[Row]
    air_time: Row
    shares: Sequence[Row]

    def held(self) -> tuple[int, int]:
        """How many intervals hold their truth, and how many there are."""
        rows = [*self.delays, self.air_time, *self.shares]
        held = [row.local.covers(row.truth) for row in rows] + [row.central.covers(row.truth) for row in rows]
        return sum(held), len(held)


def compare(month: Month) -> Comparison:
    """Sets what was estimated against what is true of all flights, refused reports included."""
    reports, summary = Reader(fleet_pb2.FlightReport), Reader(fleet_pb2.FleetSummary)
    answer = month.answers[0]
    return Comparison(
        delays=[_delay(month, origin, reports, summary) for origin in ORIGINS],
        air_time=Row(
            "all flights",
            fmean(flight.air_time for flight in month.flights),
            fmean(min(flight.air_time, MOST_AIR_TIME) for flight in month.flights),
            reports.mean("air_time", month.received),
            summary.ratio("air_time", answer, "flights", answer),
        ),
        shares=_shares(month, reports, summary),
    )


def _delay(month: Month, origin: str, reports: Reader, summary: Reader) -> Row:
    number = fleet_pb2.Origin.Value(origin)
    flights = [flight for flight in month.flights if flight.origin == origin]
    told = next(entry for entry in month.answers[0].origins if entry.origin == number)
    return Row(
        origin.removeprefix("ORIGIN_"),
        _mean_or_zero([flight.dep_delay for flight in flights]),
        _mean_or_zero([cut_delay(flight) for flight in flights]),
        reports.mean("dep_delay", (report for report in month.received if report.origin == number)),
        summary.ratio("origins.dep_delay", told.dep_delay, "origins.flights", told.flights),
    )


def _mean_or_zero(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _shares(month: Month, reports: Reader, summary: Reader) -> list[Row]:
    local = reports.frequencies("carrier", month.received)
    answer = month.answers[0]
    told: dict[int, int] = {entry.carrier: entry.flights for entry in answer.carriers}
    rows = []
    for carrier in CARRIERS:
        share = fmean(flight.carrier == carrier for flight in month.flights)
        count = told[fleet_pb2.Carrier.Value(carrier)]
        central = summary.ratio("carriers.flights", count, "flights", answer)
        rows.append(Row(carrier.removeprefix("CARRIER_"), share, share, local[carrier], central))
    return rows
