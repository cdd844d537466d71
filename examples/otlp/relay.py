"""OTLP relay: takes a device's metrics from any OpenTelemetry exporter, and sends them on with noise.

    python examples/otlp/relay.py --listen 127.0.0.1:4317 --collector collector:4317

OpenTelemetry's own exporter for Python makes its channel itself, and other languages have exporters of their own: none
of them takes dpmesh's interceptors. So the exporter sends to this relay, on its own device, and the relay's channel to
the collector has the interceptors.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc

import dpmesh
from dpmesh_grpc import aio_client_interceptors

# protoc writes the stubs without types.
services: Any = metrics_service_pb2_grpc
POLICY = Path(__file__).with_name("policy.yaml")
CONFIG = Path(__file__).with_name("dpmesh.toml")


class Relay(services.MetricsServiceServicer):  # type: ignore[misc]
    """Forwards each export.

    Args:
        channel: To the collector, with dpmesh's interceptors.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._collector = services.MetricsServiceStub(channel)

    async def Export(
        self, request: pb.ExportMetricsServiceRequest, context: Any
    ) -> pb.ExportMetricsServiceResponse:
        """Sends what the policy lets leave.

        Exporters don't send again what is answered as rejected: each attempt would be a release with a charge of its
        own. For that charge, gRPC waits until the collector can be reached.
        """
        response = pb.ExportMetricsServiceResponse()
        try:
            await self._collector.Export(request, timeout=10, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            logging.warning("not sent: %s", error.code().name)
            # The exporter gets the code alone: the collector's words are not for it.
            response.partial_success.error_message = f"not sent: {error.code().name}"
            response.partial_success.rejected_data_points = count_data_points(request)
        return response


def count_data_points(request: pb.ExportMetricsServiceRequest) -> int:
    """How many data points an export holds, of metrics of all types."""
    metrics = (
        metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
    return sum(
        len(getattr(metric, kind).data_points) for metric in metrics if (kind := metric.WhichOneof("data"))
    )


def descriptor_set() -> FileDescriptorSet:
    """OTLP's schema for `dpmesh check --descriptor-set`: the wheel has the generated code only."""
    files: dict[str, FileDescriptorProto] = {}
    todo: list[Any] = [pb.DESCRIPTOR]
    while todo:
        file = todo.pop()
        if file.name not in files:
            files[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
            todo += file.dependencies
    return FileDescriptorSet(file=reversed(files.values()))


async def serve(mesh: dpmesh.Mesh, listen: str, collector: str) -> tuple[grpc.aio.Server, int]:
    """Starts the relay.

    Args:
        mesh: With the policy and the ledger of this device.
        listen: Where the device's exporters send; an address of the device itself.
        collector: Where the protected metrics go.

    Returns:
        The server, and its port.
    """
    channel = grpc.aio.insecure_channel(collector, interceptors=aio_client_interceptors(mesh))
    server = grpc.aio.server()
    services.add_MetricsServiceServicer_to_server(Relay(channel), server)
    port = server.add_insecure_port(listen)
    await server.start()
    return server, port


async def main() -> None:
    """Reads the arguments and serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:4317")
    parser.add_argument("--collector", default="127.0.0.1:4319")
    parser.add_argument("--config", type=Path, default=CONFIG, help="budgets and policy")
    parser.add_argument("--descriptor-set", type=Path, help="write OTLP's schema to this file, and end")
    arguments = parser.parse_args()
    if arguments.descriptor_set:
        arguments.descriptor_set.write_bytes(descriptor_set().SerializeToString())
        return
    async with dpmesh.open(arguments.config) as mesh:
        server, _ = await serve(mesh, arguments.listen, arguments.collector)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
