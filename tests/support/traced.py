"""A client and a server in processes of their own, traced as a user would: run as a program.

    server LEDGER           prints its port, and serves until its input ends; prints what it received, as JSON
    client LEDGER TARGET    makes the RPCs; prints the status code of each, as JSON

Where their spans go, and as which service, the environment says (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.instrumentation import grpc as instrumented

import dpmesh
from dpmesh_fleet import fleet_pb2, fleet_pb2_grpc
from dpmesh_fleet.data import Flight
from dpmesh_fleet.fly import configuration
from dpmesh_fleet.service import Collector, summarize
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

# One moment for all, so that no budget's window ends during the test.
NOW = 1_357_041_600.0
# Values that occur nowhere else. Digits that no rounding of another number would give, and that are too many to be
# found by chance in the hundreds of numbers and times that Jaeger returns.
DELAY, AIR_TIME, DESTINATION, NUMBER = 41.734375, 217.734375, "QZX", 2_070_177_077
UNARY, STREAMED, REFUSED_STREAM, FAILING = "N-UNARY-7Q", "N-STREAM-7Q", "N-OVER-7Q", "N-FAIL-7Q"
TAILS = (UNARY, STREAMED, REFUSED_STREAM, FAILING)
# Refused from the fourth on: fleet.toml gives an aircraft three reports a day.
REPORTS = 4


def flight(tail: str) -> Flight:
    return Flight(NOW, tail, "ORIGIN_JFK", DESTINATION, "CARRIER_B6", NUMBER, DELAY, AIR_TIME)


class Statistics(fleet_pb2_grpc.FleetStatisticsServicer):
    """Answers, and once stumbles over a value and quotes it."""

    async def Summarize(self, request: Any, context: Any) -> Any:
        if request.month == "fail":
            raise ValueError(f"{FAILING} was delayed by {DELAY}")
        return summarize([flight(UNARY)])


async def server(ledger: str) -> None:
    async with dpmesh.open(configuration(Path(ledger)), clock=lambda: NOW) as mesh:
        outer = instrumented.aio_server_interceptor()
        served = grpc.aio.server(interceptors=[outer, *aio_server_interceptors(mesh)])
        collector = Collector()
        fleet_pb2_grpc.add_CollectorServicer_to_server(collector, served)
        fleet_pb2_grpc.add_FleetStatisticsServicer_to_server(Statistics(), served)
        print(served.add_insecure_port("127.0.0.1:0"), flush=True)
        await served.start()
        await asyncio.to_thread(sys.stdin.read)
        await served.stop(5)
    print(json.dumps([MessageToDict(report) for report in collector.reports]))


async def client(ledger: str, target: str) -> None:
    codes: list[str] = []
    async with dpmesh.open(configuration(Path(ledger)), clock=lambda: NOW) as mesh:
        outer = instrumented.aio_client_interceptors()
        interceptors = [*outer, *aio_client_interceptors(mesh)]
        async with grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
            collector = fleet_pb2_grpc.CollectorStub(channel)
            statistics = fleet_pb2_grpc.FleetStatisticsStub(channel)
            for _ in range(REPORTS):
                codes.append(await code(collector.Report(flight(UNARY).report())))
            for tail, count in ((STREAMED, REPORTS - 1), (REFUSED_STREAM, REPORTS)):
                codes.append(await code(collector.ReportAll(stream(tail, count))))
            for month in ("2013-01", "fail"):
                codes.append(await code(statistics.Summarize(fleet_pb2.SummarizeRequest(month=month))))
    print(json.dumps(codes))


async def stream(tail: str, count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield flight(tail).report()


async def code(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


if __name__ == "__main__":
    asyncio.run({"server": server, "client": client}[sys.argv[1]](*sys.argv[2:]))
