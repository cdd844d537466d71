"""RPCs through both interceptors, beside the same RPCs bare, with no-op interceptors, and with OpenTelemetry's.

Each variant has a process of its own, with client and server in it; they take turns, round by round, so that the
machine's moods hit all of them alike. What is reported is the median of a round's ratios.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio

import dpmesh
from benchmarks import telemetry_pb2 as pb
from benchmarks import telemetry_pb2_grpc
from benchmarks.release import CONFIG, reading
from benchmarks.table import Row
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors
from dpmesh_grpc.aio.arities import changed

CONCURRENCY = 32
CALLS = 1500
MESSAGES = 4000
ROUNDS = 11
VARIANTS = ("bare", "no-op", "no-op that marks", "dpmesh", "dpmesh and SDK", "opentelemetry")


class Collector(telemetry_pb2_grpc.TelemetryServicer):
    """Receives readings and counts them."""

    async def Report(self, request: pb.Reading, context: Any) -> pb.Ack:
        """Takes one."""
        return pb.Ack(received=1)

    async def ReportAll(self, requests: AsyncIterator[pb.Reading], context: Any) -> pb.Ack:
        """Takes a stream of them."""
        count = 0
        async for _ in requests:
            count += 1
        return pb.Ack(received=count)


class NoOpUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """The least that an interceptor can do."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Goes on."""
        return await continuation(client_call_details, request)


class MarkingUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """The least that an interceptor can do which adds the metadata that dpmesh's contract asks for."""

    marks = (("dpmesh-policy", "protected"), ("grpc-internal-encoding-request", "identity"))

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Goes on, with the same metadata for every RPC."""
        details = changed(client_call_details, client_call_details.timeout, self.marks)
        return await continuation(details, request)


class NoOpStream(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    """The same for streams of requests."""

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Goes on."""
        return await continuation(client_call_details, request_iterator)


class NoOpServer(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The same on a server."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Goes on."""
        return await continuation(handler_call_details)


def record() -> Callable[[], None]:
    """Installs OpenTelemetry's SDK with in-memory exporters; returns what empties them."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))

    def empty() -> None:
        tracers.force_flush()
        reader.get_metrics_data()
        if not exporter.get_finished_spans():
            raise RuntimeError("no span was recorded")
        exporter.clear()

    return empty


async def interceptors(variant: str, folder: str, stack: AsyncExitStack) -> tuple[Any, Any]:
    """The client's and the server's interceptors of a variant."""
    if variant == "no-op":
        return [NoOpUnary(), NoOpStream()], [NoOpServer()]
    if variant == "no-op that marks":
        return [MarkingUnary(), NoOpStream()], [NoOpServer()]
    if variant.startswith("dpmesh"):
        config = {**CONFIG, "ledger": {"url": f"sqlite:///{folder}/{variant}.db"}}
        mesh = await stack.enter_async_context(dpmesh.open(config))
        return aio_client_interceptors(mesh), aio_server_interceptors(mesh)
    if variant == "opentelemetry":
        from opentelemetry.instrumentation.grpc import aio_client_interceptors as client
        from opentelemetry.instrumentation.grpc import aio_server_interceptor as server

        return client(), [server()]  # type: ignore[no-untyped-call]
    return None, None


async def unary_seconds(stub: Any) -> float:
    """Seconds per RPC, at the concurrency above."""
    left = iter(range(CALLS))

    async def work(number: int) -> None:
        message = reading(f"sensor-{number}")
        for _ in left:
            await stub.Report(message)

    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*[work(number) for number in range(CONCURRENCY)])
    return (time.perf_counter() - start) / CALLS


async def stream_seconds(stub: Any) -> float:
    """Seconds per message of one client-streaming RPC."""

    async def messages() -> AsyncIterator[pb.Reading]:
        message = reading("sensor-0")
        for _ in range(MESSAGES):
            yield message

    gc.collect()
    start = time.perf_counter()
    ack = await stub.ReportAll(messages())
    seconds = (time.perf_counter() - start) / MESSAGES
    if ack.received != MESSAGES:
        raise RuntimeError("the stream was cut")
    return seconds


async def serve(variant: str, folder: str, orders: Connection) -> None:
    """Runs client and server; measures when told to."""
    empty = record() if variant in ("dpmesh and SDK", "opentelemetry") else lambda: None
    async with AsyncExitStack() as stack:
        of_client, of_server = await interceptors(variant, folder, stack)
        server = grpc.aio.server(interceptors=of_server)
        telemetry_pb2_grpc.add_TelemetryServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=of_client)
        await stack.enter_async_context(channel)
        stub = telemetry_pb2_grpc.TelemetryStub(channel)  # type: ignore[no-untyped-call]
        await unary_seconds(stub)
        await stream_seconds(stub)
        orders.send("ready")
        while await asyncio.to_thread(orders.recv):
            orders.send((await unary_seconds(stub), await stream_seconds(stub)))
            empty()


def worker(variant: str, folder: str, orders: Connection) -> None:
    """A variant's process."""
    asyncio.run(serve(variant, folder, orders))


def measure() -> dict[str, list[tuple[float, float]]]:
    """(seconds per RPC, seconds per streamed message) of each round, by variant."""
    found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        running = []
        for variant in VARIANTS:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(variant, folder, theirs))
            process.start()
            theirs.close()  # So that a worker's end is noticed.
            ours.recv()
            running.append((variant, process, ours))
        for _ in range(ROUNDS):
            for variant, _, ours in running:
                ours.send(True)
                found[variant].append(ours.recv())
        for _, process, ours in running:
            ours.send(False)
            process.join()
    return found


def rows() -> list[Row]:
    """Measures all variants."""
    found = measure()
    bars = {
        ("dpmesh", 0): "at most 1.15",
        ("dpmesh and SDK", 0): "at most 1.30",
        ("dpmesh", 1): "at most 1.25",
        ("dpmesh and SDK", 1): "at most 1.25",
    }
    table = []
    for kind, name in enumerate((f"unary RPC, concurrency {CONCURRENCY}", "streamed message")):
        bare = [seconds[kind] for seconds in found["bare"]]
        table.append(Row(f"{name}, bare", statistics.median(bare) * 1e6, "us", ""))
        for variant in VARIANTS[1:]:
            ratios = [seconds[kind] / base for seconds, base in zip(found[variant], bare, strict=True)]
            bar = bars.get((variant, kind), "")
            table.append(Row(f"{name}, {variant}", statistics.median(ratios), "times bare", bar))
    return table
