"""An attacker's view: what leaves through real RPCs, in the worst pair of worlds, shows the promised epsilon and no more.

A device's every field is at one end of its range in one world and at the other end in the other. A lower bound on
epsilon is ln(p / q) for an event with Clopper-Pearson bounds p (from below, first world) and q (from above, second
world), each wrong with probability ALPHA / 2. The events are those that the mechanisms' laws tell apart best, known
before any message is sent: a number with discrete Laplace noise at or above the upper bound, one of the optimized
Piecewise mechanism (`auto`) above the middle, a category that is the first world's own.

False alarms: a bound above epsilon, at most ALPHA = 2e-4 for each of four fields whatever the law, and below 8e-7 for
these: p and q have to be off together, by 4.8 standard errors of ln(p / q). A bound below the floor, at most 1.3e-6: its
expectation is at least 4.7 deviations above that.
"""

import math
from collections.abc import Callable, Sequence

import grpc
import numpy as np
import pytest
from scipy.stats import beta

import dpmesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors
from tests.support.protos import compiled

ALPHA = 2e-4
SMALL, LARGE = (50_000, 0.89), (150_000, 0.94)
"""How many messages there are of a world, and what each bound reaches at least, as a share of epsilon."""
EPSILON = 1.0
NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
TYPES = compiled(
    f"""message M {{ string id = 1 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    double number = 2 [{NUM} = {{lower: 0 upper: 1 epsilon: 1 mechanism: DISCRETE_LAPLACE}}];
    Color color = 3 [{CAT} = {{epsilon: 1}}]; bool flag = 4 [{CAT} = {{epsilon: 1}}];
    double auto = 5 [{NUM} = {{lower: 0 upper: 1 epsilon: 1}}]; }}
    enum Color {{ RED = 0; GREEN = 1; BLUE = 2; VIOLET = 3; }}
    message Ack {{ int32 n = 1; }}"""
)
WORLDS = (
    {"number": 1.0, "color": 1, "flag": True, "auto": 1.0},
    {"number": 0.0, "color": 0, "flag": False, "auto": 0.0},
)
# From which value on, or at which one, the first world is the likelier.
EVENTS = {
    "number": (np.greater_equal, 1.0),
    "color": (np.equal, 1),
    "flag": (np.equal, True),
    "auto": (np.greater_equal, 0.5),
}
METHOD = "/test.Empirical/Report"


async def received(world: dict, count: int, config: dict) -> list:
    """Sends `count` messages of one world over a real channel; returns what the handler got."""
    got = []

    async def report(requests, context):
        async for request in requests:
            got.append([getattr(request, name) for name in EVENTS])
        return TYPES.Ack(n=len(got))

    handler = grpc.stream_unary_rpc_method_handler(
        report, request_deserializer=TYPES.M.FromString, response_serializer=TYPES.Ack.SerializeToString
    )
    async with dpmesh.open(config) as mesh:
        server = grpc.aio.server(interceptors=aio_server_interceptors(mesh))
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Empirical", {"Report": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        target = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh)) as channel:
            call = channel.stream_unary(METHOD, TYPES.M.SerializeToString, TYPES.Ack.FromString)
            message = TYPES.M(id="device", **world)
            ack = await call(message for _ in range(count))
        await server.stop(None)
    assert ack.n == count
    return got


def lower_bound(event: Callable, value: float, one: np.ndarray, other: np.ndarray) -> float:
    """The Clopper-Pearson lower bound on epsilon that an event gives."""
    n = len(one)
    hits, misses = int(event(one, value).sum()), int(event(other, value).sum())
    p = beta.ppf(ALPHA / 2, hits, n - hits + 1)
    q = beta.ppf(1 - ALPHA / 2, misses + 1, n - misses)
    return math.log(p / q)


@pytest.fixture(scope="module")
def size(pytestconfig) -> tuple[int, float]:
    return LARGE if pytestconfig.getoption("--full") else SMALL


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, size) -> Sequence[np.ndarray]:
    import asyncio

    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    return [np.array(asyncio.run(received(world, size[0], config)), dtype=float) for world in WORLDS]


@pytest.mark.parametrize("field", EVENTS)
def test_the_worst_pair_shows_epsilon_and_no_more(worlds, size, field):
    one, other = (world[:, list(EVENTS).index(field)] for world in worlds)
    event, value = EVENTS[field]
    bound = lower_bound(event, value, one, other)
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= size[1] * EPSILON, "more noise was added than was promised"
