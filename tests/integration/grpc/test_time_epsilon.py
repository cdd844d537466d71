"""What leaves of times through real RPCs shows the promised epsilon and no more.

A device's times are at one end of their range in one world and at the other end in the other; those of `within` are as far
apart as their largest shift. A lower bound on epsilon is ln(p / q) for an event with Clopper-Pearson bounds p (from
below, first world) and q (from above, second world), each wrong with probability ALPHA / 2. The events are those that
the mechanisms' laws tell apart best, known before any message is sent: a time at or above the upper one.

False alarms: a bound above epsilon is at most ALPHA = 2e-4 for any law, and below 1e-6 for these, because p and q have to
be off together. A bound below 0.9 epsilon is below 1e-6: its expectation lies 5 standard errors above.
"""

import math

import grpc
import numpy as np
import pytest
from scipy.stats import beta

import dpmesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors
from tests.support.protos import compiled

ALPHA, MESSAGES, BATCH, EPSILON = 2e-4, 60_000, 50, 1.0
TIME = "(dpmesh.v1.field).time"
DAY, FIRST = 86_400, 1_767_225_600
BOUNDS = 'earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z" epsilon: 1'
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    google.protobuf.Timestamp at = 2 [{TIME} = {{{BOUNDS}}}];
    google.protobuf.Duration took = 3 [{TIME} = {{earliest: "0s" latest: "5s" epsilon: 1}}];
    int64 within = 4 [{TIME} = {{{BOUNDS} step: HOUR largest_shift: {{seconds: 7200}}}}]; }}
    message Batch {{ repeated M each = 1 [(dpmesh.v1.field).max_items = 50]; }}
    message Ack {{ int32 n = 1; }}"""
)
MIDDLE = FIRST // 3600 + 360
WORLDS = (
    {"at": {"seconds": FIRST + 30 * DAY}, "took": {"seconds": 5}, "within": MIDDLE + 2},
    {"at": {"seconds": FIRST}, "took": {}, "within": MIDDLE},
)


async def received(world: dict, config: dict) -> np.ndarray:
    """Sends the messages of one world over a real channel; returns what the handler got."""
    got = []

    async def report(requests, context):
        async for batch in requests:
            for message in batch.each:
                took = message.took.seconds + message.took.nanos / 1e9
                got.append((message.at.seconds, took, message.within))
        return TYPES.Ack(n=len(got))

    handler = grpc.stream_unary_rpc_method_handler(
        report, request_deserializer=TYPES.Batch.FromString, response_serializer=TYPES.Ack.SerializeToString
    )
    async with dpmesh.open(config) as mesh:
        server = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
        generic = grpc.method_handlers_generic_handler("test.Times", {"Report": handler})
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        interceptors = aio_client_interceptors(mesh)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
            call = channel.stream_unary(
                "/test.Times/Report", TYPES.Batch.SerializeToString, TYPES.Ack.FromString
            )
            batch = TYPES.Batch(each=[TYPES.M(id="device", **world)] * BATCH)
            await call(batch for _ in range(MESSAGES // BATCH))
        await server.stop(None)
    assert len(got) == MESSAGES
    return np.array(got, dtype=float)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> list[np.ndarray]:
    import asyncio

    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    return [asyncio.run(received(world, config)) for world in WORLDS]


@pytest.mark.parametrize(
    ("column", "upper"), [(0, FIRST + 30 * DAY), (1, 5.0), (2, MIDDLE + 2)], ids=["at", "took", "within"]
)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, column, upper):
    hits, misses = (int((world[:, column] >= upper).sum()) for world in worlds)
    p = beta.ppf(ALPHA / 2, hits, MESSAGES - hits + 1)
    q = beta.ppf(1 - ALPHA / 2, misses + 1, MESSAGES - misses)
    bound = math.log(p / q)
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= 0.9 * EPSILON, "more noise was added than was promised"
