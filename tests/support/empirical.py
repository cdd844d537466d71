"""Messages of one world over a real channel, and the epsilon that what arrives shows."""

import math
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from scipy.stats import beta

import dpmesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

ALPHA = 2e-4
METHOD = "/test.Empirical/Report"


async def send_often(
    message: Message, count: int, config: dict[str, Any], take: Callable[[Any], None]
) -> None:
    """Sends a message `count` times on one protected stream.

    Args:
        message: What the client sends.
        count: How often.
        config: The mesh's, as in dpmesh.toml. Client and server share one mesh.
        take: Gets each message as the server's handler receives it.
    """
    kind, arrived = type(message), 0

    async def report(requests: Any, _context: Any) -> Empty:
        nonlocal arrived
        async for request in requests:
            take(request)
            arrived += 1
        return Empty()

    handler = grpc.stream_unary_rpc_method_handler(
        report, request_deserializer=kind.FromString, response_serializer=Empty.SerializeToString
    )
    async with dpmesh.open(config) as mesh:
        server = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
        generic = grpc.method_handlers_generic_handler(METHOD.split("/")[1], {"Report": handler})
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        interceptors = aio_client_interceptors(mesh)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
            await channel.stream_unary(METHOD, kind.SerializeToString, Empty.FromString)(
                message for _ in range(count)
            )
        await server.stop(None)
    assert arrived == count


def lower_bound(first: tuple[int, int], second: tuple[int, int]) -> float:
    """A lower bound on epsilon, wrong with a probability of at most ALPHA.

    It is ln(p / q) with Clopper-Pearson bounds on an event's probability: p from below in the first world, and q from
    above in the second one, each wrong with probability ALPHA / 2.

    Args:
        first: How often the event was seen in the first world, and in how many draws.
        second: The two numbers of the second world.
    """
    (hits, n), (misses, m) = first, second
    p = beta.ppf(ALPHA / 2, hits, n - hits + 1)
    q = beta.ppf(1 - ALPHA / 2, misses + 1, m - misses)
    return math.log(p / q)
