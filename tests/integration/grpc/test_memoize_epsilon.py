"""Memoized answers through real RPCs: two messages of a unit show what both answers cost, and no more.

A device has one value first and the other one then, and in the other world it has them the other way round: no other pair
of histories that change once is told apart better. Each of its fields is drawn by itself, so one device gives as many
samples as it has fields. The lower bound on epsilon is ln(p / q), with Clopper-Pearson bounds p (from below, first world)
and q (from above, second world) of the chance that both answers are the first world's own.

False alarms: a bound above epsilon, at most ALPHA = 4e-5 whatever the law, and below 3e-7 for this one: p and q have to
be off together, by 5 standard errors of ln(p / q). A bound below the floor, below 1e-8: its expectation is 5.8
deviations above that.
"""

from __future__ import annotations

import math

import grpc
import pytest
from scipy.stats import beta

import dpmesh
from dpmesh_grpc import aio_client_interceptors
from tests.support.protos import compiled

ALPHA = 4e-5
EPSILON = 2.0  # for the answers to both values
FIELDS, REPEATS = 250, 2
SMALL, LARGE = (40, 0.8), (160, 0.9)
"""How many devices there are, and what the bound reaches at least, as a share of epsilon."""
ANNOTATION = "(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}"
TYPES = compiled(
    "message M { string id = 1 [(dpmesh.v1.field).unit = {}]; "
    + "".join(f"bool f{n} = {n} [{ANNOTATION}]; " for n in range(2, FIELDS + 2))
    + "} message Ack { int32 n = 1; }"
)
METHOD = "/test.Memoized/Report"
NAMES = [f"f{n}" for n in range(2, FIELDS + 2)]


async def histories(first: bool, units: int) -> list[tuple[bool, bool]]:
    """What the handler gets of each field of each device: its answers to the first value and to the other one."""
    got: dict[str, list[list[bool]]] = {}

    async def report(requests, context):
        async for request in requests:
            got.setdefault(request.id, []).append([getattr(request, name) for name in NAMES])
        return TYPES.Ack(n=len(got))

    handler = grpc.stream_unary_rpc_method_handler(
        report, request_deserializer=TYPES.M.FromString, response_serializer=TYPES.Ack.SerializeToString
    )
    config = {
        "ledger": {"url": "memory:"},
        "budget": [{"name": "b", "epsilon": 1e3, "accounting": "pure", "window": "lifetime"}],
    }
    messages = (
        TYPES.M(id=f"device-{unit}", **dict.fromkeys(NAMES, value))
        for unit in range(units)
        for value in (first, not first) * REPEATS
    )
    async with dpmesh.open(config) as mesh:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Memoized", {"Report": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        target = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(target, interceptors=aio_client_interceptors(mesh)) as channel:
            call = channel.stream_unary(METHOD, TYPES.M.SerializeToString, TYPES.Ack.FromString)
            ack = await call(messages)
        await server.stop(None)
        accounts = await mesh.ledger.accounts()
    assert ack.n == units
    assert {account.lifetime / 1e9 for account in accounts} == {EPSILON * FIELDS}
    for rows in got.values():
        assert rows == rows[:2] * REPEATS, "a message of the same value shows another answer"
    return [pair for rows in got.values() for pair in zip(*rows[:2], strict=True)]


async def test_the_worst_pair_of_histories_shows_what_is_paid_and_no_more(pytestconfig):
    units, floor = LARGE if pytestconfig.getoption("--full") else SMALL
    one, other = [await histories(first, units) for first in (True, False)]
    n, event = len(one), (True, False)
    hits, misses = one.count(event), other.count(event)
    bound = math.log(
        beta.ppf(ALPHA / 2, hits, n - hits + 1) / beta.ppf(1 - ALPHA / 2, misses + 1, n - misses)
    )
    assert bound <= EPSILON, "more is lost than is paid"
    assert bound >= floor * EPSILON, "more noise was added than is paid for"
    assert one.count((True, True)) == pytest.approx(other.count((True, True)), abs=6 * math.sqrt(2 * n / 4))
