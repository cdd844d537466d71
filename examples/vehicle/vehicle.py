"""A vehicle publishes its signals to a data broker (Eclipse Kuksa VAL v2) through a channel that adds noise.

    python examples/vehicle/vehicle.py [--broker HOST:PORT]

Without a broker it starts a stand-in, which prints what it receives.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import val_pb2 as pb
import val_pb2_grpc

import dpmesh
from dpmesh_grpc import aio_client_interceptors

# protoc writes the stubs without types.
services: Any = val_pb2_grpc
POLICY = Path(__file__).with_name("policy.yaml")
# The ledger is the vehicle's own, so its global budget is the vehicle's.
CONFIG = {
    "ledger": {"url": "memory:"},
    "budget": [{"name": "vehicle-day", "key": "global", "epsilon": 24.0, "accounting": "pure"}],
}
SIGNALS: dict[str, dict[str, Any]] = {
    "Vehicle.Speed": {"float": 87.5},
    "Vehicle.CurrentLocation.Latitude": {"double": 48.1374},
    "Vehicle.CurrentLocation.Longitude": {"double": 11.5755},
    "Vehicle.Driver.Identifier.Subject": {"string": "ada"},
}


class Broker(services.VALServicer):  # type: ignore[misc]
    """Stands in for a databroker.

    Attributes:
        received: The requests, in the order of their arrival.
    """

    def __init__(self) -> None:
        self.received: list[Any] = []

    async def PublishValue(self, request: Any, context: Any) -> Any:
        """Keeps a value."""
        self.received.append(request)
        return pb.PublishValueResponse()


async def publish(mesh: dpmesh.Mesh, broker: str, signals: Mapping[str, Mapping[str, Any]]) -> None:
    """Publishes each signal once.

    Args:
        mesh: With the vehicle's policy and ledger.
        broker: Where to.
        signals: By path; each value by the name of its type in VAL.
    """
    async with grpc.aio.insecure_channel(broker, interceptors=aio_client_interceptors(mesh)) as channel:
        stub = services.VALStub(channel)
        for path, value in signals.items():
            point = pb.Datapoint(value=pb.Value(**value))
            point.timestamp.GetCurrentTime()
            await stub.PublishValue(
                pb.PublishValueRequest(signal_id=pb.SignalID(path=path), data_point=point)
            )


async def main() -> None:
    """Reads the arguments and publishes the signals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--broker")
    broker, stand_in, server = parser.parse_args().broker, Broker(), grpc.aio.server()
    if broker is None:
        services.add_VALServicer_to_server(stand_in, server)
        broker = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
    async with dpmesh.open(CONFIG, policy=POLICY) as mesh:
        await publish(mesh, broker, SIGNALS)
    for request in stand_in.received:
        print(request.signal_id.path, request.data_point or "nothing")
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
