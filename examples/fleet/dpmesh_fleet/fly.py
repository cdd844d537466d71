"""One month of the fleet in one process: a real server, a real channel, and a clock that follows the data.

The three lines that dpmesh needs are marked below; everything else would be here without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

import dpmesh
from dpmesh_fleet import fleet_pb2
from dpmesh_fleet import fleet_pb2_grpc as _generated
from dpmesh_fleet.data import DAY, Flight
from dpmesh_fleet.service import Collector, FleetStatistics
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

# protoc writes the stubs without types.
fleet_pb2_grpc: Any = _generated

IN_FLIGHT = 48
# The analyst gives up after so many answers; the budget ends it long before.
_QUESTIONS = 100


@dataclass(frozen=True, slots=True)
class Refusal:
    """How an RPC ends that a budget does not cover: its status, google.rpc.ErrorInfo, and the seconds of RetryInfo."""

    status: str
    details: str
    reason: str
    retry_after: float | None


@dataclass(slots=True)
class Month:
    """What came of it.

    Attributes:
        flights: All flights that were to be reported.
        received: The reports as the collector has them.
        refused: How many reports were refused.
        refusal: The first refusal of a report.
        spent: What each aircraft has spent on each day that it flew, as epsilon.
        answers: What the analyst was told.
        answer_refusal: How the analyst's last question ended.
        seconds: How long the reports took.
    """

    flights: Sequence[Flight]
    received: list[fleet_pb2.FlightReport] = field(default_factory=list)
    refused: int = 0
    refusal: Refusal | None = None
    spent: list[float] = field(default_factory=list)
    answers: list[fleet_pb2.FleetSummary] = field(default_factory=list)
    answer_refusal: Refusal | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class Clock:
    """Seconds since 1970, as the data go."""

    now: float

    def __call__(self) -> float:
        """What dpmesh reads."""
        return self.now


def configuration(ledger: Path) -> dict[str, Any]:
    """fleet.toml with a ledger of its own."""
    text = resources.files("dpmesh_fleet").joinpath("fleet.toml").read_text(encoding="utf-8")
    return {**tomllib.loads(text), "ledger": {"url": f"sqlite:///{ledger}"}}


async def fly(
    flights: Sequence[Flight],
    ledgers: Path,
    *,
    landed: Callable[[], object] = lambda: None,
    client: Sequence[Any] = (),
    server: Sequence[Any] = (),
) -> Month:
    """Sends all reports, then asks for the fleet's statistics until that is refused.

    Args:
        flights: In order of time.
        ledgers: The directory where the aircraft's and the operator's ledger are kept.
        landed: Called after each report.
        client: Interceptors that are to see the RPCs before dpmesh does.
        server: The same on the server.

    Raises:
        grpc.aio.AioRpcError: An RPC failed for another reason than a spent budget.
    """
    month = Month(flights)
    clock = Clock(flights[0].departure)
    aircraft_side = configuration(ledgers / "aircraft.db")
    operator_side = configuration(ledgers / "operator.db")
    async with (
        dpmesh.open(aircraft_side, clock=clock) as aircraft,  # line 1, on either side
        dpmesh.open(operator_side, clock=clock) as operator,
        _served(month, operator, server) as target,
    ):
        started = time.perf_counter()
        interceptors = [*client, *aio_client_interceptors(aircraft)]  # line 2, where requests leave
        async with grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
            await _report(month, fleet_pb2_grpc.CollectorStub(channel), aircraft, clock, landed)
        month.seconds = time.perf_counter() - started
        async with grpc.aio.insecure_channel(target, interceptors=list(client)) as channel:
            await _ask(month, fleet_pb2_grpc.FleetStatisticsStub(channel), flights[0].month)
    return month


@contextlib.asynccontextmanager
async def _served(month: Month, mesh: dpmesh.Mesh, outer: Sequence[Any]) -> AsyncIterator[str]:
    """The operator's server, on a free port of this machine; gives its address."""
    interceptors = [*outer, *aio_server_interceptors(mesh)]  # line 3, where responses leave
    server = grpc.aio.server(interceptors=interceptors)
    collector = Collector()
    fleet_pb2_grpc.add_CollectorServicer_to_server(collector, server)
    fleet_pb2_grpc.add_FleetStatisticsServicer_to_server(FleetStatistics(month.flights), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        month.received = collector.reports


async def _report(
    month: Month, stub: Any, mesh: dpmesh.Mesh, clock: Clock, landed: Callable[[], object]
) -> None:
    """Day by day, so that no report of one day is charged to the next."""
    for day, flown in itertools.groupby(month.flights, key=lambda flight: flight.day):
        waiting = iter(list(flown))
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(_send(month, stub, waiting, clock, landed))
        accounts = await mesh.ledger.accounts("aircraft-day")
        month.spent += [account.spent / 1e9 for account in accounts if account.window_start == day * DAY]


async def _send(
    month: Month, stub: Any, waiting: Iterable[Flight], clock: Clock, landed: Callable[[], object]
) -> None:
    for flight in waiting:
        clock.now = max(clock.now, flight.departure)
        try:
            await stub.Report(flight.report())
        except grpc.aio.AioRpcError as error:
            month.refusal = month.refusal or _refusal(error)
            month.refused += 1
        landed()


async def _ask(month: Month, stub: Any, asked: str) -> None:
    for _ in range(_QUESTIONS):
        try:
            month.answers.append(await stub.Summarize(fleet_pb2.SummarizeRequest(month=asked)))
        except grpc.aio.AioRpcError as error:
            month.answer_refusal = _refusal(error)
            return


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """What the status says; anything but a spent budget is raised again."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise error
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return Refusal(error.code().name, error.details() or "", info.reason, delay)
