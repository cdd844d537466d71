"""The fleet's two services, as any team would write them: they know nothing of privacy."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc

from dpmesh_fleet import fleet_pb2, fleet_pb2_grpc
from dpmesh_fleet.data import Flight

ORIGINS = tuple(fleet_pb2.Origin.keys()[1:])
CARRIERS = tuple(fleet_pb2.Carrier.keys()[1:])
# What fleet.proto promises of the aggregates.
FLIGHTS_A_DAY = 3
LEAST_DELAY, MOST_DELAY = -30.0, 180.0
MOST_AIR_TIME = 700.0


class Collector(fleet_pb2_grpc.CollectorServicer):
    """Stores the reports that it receives.

    Attributes:
        reports: All of them, as they came.
    """

    def __init__(self) -> None:
        self.reports: list[fleet_pb2.FlightReport] = []

    async def Report(
        self, request: fleet_pb2.FlightReport, context: grpc.aio.ServicerContext[Any, Any]
    ) -> fleet_pb2.Ack:
        """Stores one report."""
        self.reports.append(request)
        return fleet_pb2.Ack(stored=1)

    async def ReportAll(
        self,
        request_iterator: AsyncIterator[fleet_pb2.FlightReport],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> fleet_pb2.Ack:
        """Stores each report of a stream."""
        stored = 0
        async for report in request_iterator:
            self.reports.append(report)
            stored += 1
        return fleet_pb2.Ack(stored=stored)


class FleetStatistics(fleet_pb2_grpc.FleetStatisticsServicer):
    """Answers analysts from the operator's own records.

    Args:
        flights: In order of time.
    """

    def __init__(self, flights: Sequence[Flight]) -> None:
        self._flights = flights

    async def Summarize(
        self, request: fleet_pb2.SummarizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> fleet_pb2.FleetSummary:
        """A month in aggregates."""
        flights = [flight for flight in self._flights if flight.month == request.month]
        if not flights:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there are no records of this month")
        return summarize(flights)


def summarize(flights: Iterable[Flight]) -> fleet_pb2.FleetSummary:
    """The aggregates of fleet.proto, over at most three flights of an aircraft on each day.

    Args:
        flights: In order of time.
    """
    counted = list(first_of_day(flights, FLIGHTS_A_DAY))
    summary = fleet_pb2.FleetSummary(
        flights=len(counted), air_time=round(sum(min(flight.air_time, MOST_AIR_TIME) for flight in counted))
    )
    for origin in ORIGINS:
        delays = [cut_delay(flight) for flight in counted if flight.origin == origin]
        summary.origins.add(origin=origin, flights=len(delays), dep_delay=round(sum(delays)))
    for carrier in CARRIERS:
        summary.carriers.add(carrier=carrier, flights=sum(flight.carrier == carrier for flight in counted))
    return summary


def first_of_day(flights: Iterable[Flight], most: int) -> Iterable[Flight]:
    """Each aircraft's first flights of each day."""
    seen: Counter[tuple[int, str]] = Counter()
    for flight in flights:
        seen[flight.day, flight.tail_number] += 1
        if seen[flight.day, flight.tail_number] <= most:
            yield flight


def cut_delay(flight: Flight) -> float:
    """The departure delay, between the bounds of fleet.proto."""
    return min(max(flight.dep_delay, LEAST_DELAY), MOST_DELAY)
