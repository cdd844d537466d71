"""Bad input through real RPCs: a clear error or an ordinary release; never a leak, never the end of a server."""

from __future__ import annotations

import math

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

VALUES = [
    *[{"temperature": value} for value in (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308, -1e308, 1e9)],
    *[{"exact": value} for value in (math.inf, -math.inf, -0.0, 1e-45, 3e38)],
    {"state": 77},
    {"state": -5},
    {"levels": []},
    {"levels": [2**31 - 1, -(2**31)] * 5_000},
    {"note": "x" * 100_000},
    {"station": "x" * 10_000},
]


@pytest.mark.parametrize("fields", VALUES, ids=lambda fields: next(iter(fields)))
async def test_odd_values_are_released_like_any_other(mesh, serve, connect, fields):
    seen = rig.Seen()

    async def ask(request, context):
        return reading(**fields)

    stub = await connect(await serve(mesh=mesh, handlers={**seen.handlers(), "Ask": ask}), mesh)
    await stub.Report(reading(**fields))
    await stub.ReportAll(stream(reading(**fields)))
    released = [*seen, await stub.Ask(pb.Plain())]
    for message in released:
        assert is_protected(message)
        assert 0 <= message.temperature <= 100
        assert 0 <= message.exact <= 1
        assert message.state in (0, 1, 2)
        assert all(-10 <= level <= 10 for level in message.levels)


async def test_not_a_number_under_reject_is_refused_and_the_server_lives(mesh, serve, connect):
    async def ask(request, context):
        return reading(exact=math.nan)

    seen = rig.Seen()
    stub = await connect(await serve(mesh=mesh, handlers={**seen.handlers(), "Ask": ask}), mesh)
    for call in (stub.Report(reading(exact=math.nan)), stub.Ask(pb.Plain())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        found = rig.status(caught.value)
        assert found.code == grpc.StatusCode.FAILED_PRECONDITION
        assert found.info.reason == "NOT_A_NUMBER"
        assert found.info.metadata["field"].endswith("Reading.exact")
    assert not seen
    await stub.Report(reading())


async def test_empty_messages_and_bytes_that_are_no_message(mesh, serve, connect):
    async def ask(request, context):
        return pb.Reading()

    seen = rig.Seen()
    target = await serve(mesh=mesh, handlers={**seen.handlers(), "Ask": ask})
    stub = await connect(target, mesh)
    for call in (stub.Report(pb.Reading()), stub.Ask(pb.Plain())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert rig.status(caught.value).info.reason == "MISSING_UNIT"
    bare = (await connect(target)).channel.unary_unary(rig.PREFIX + "Ask")
    with pytest.raises(grpc.aio.AioRpcError):
        await bare(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError):
        await (await connect(target)).channel.unary_unary(rig.PREFIX + "Report")(b"\xff\xff\xff")
    await stub.Report(reading())
    assert len(seen) == 1


async def test_fields_that_this_version_does_not_know_do_not_pass(mesh, serve, connect):
    newer = pb.Reading.FromString(reading().SerializeToString() + b"\xfa\x01\x0541.77")
    seen = rig.Seen()

    async def ask(request, context):
        return newer

    stub = await connect(await serve(mesh=mesh, handlers={**seen.handlers(), "Ask": ask}), mesh)
    await stub.Report(newer)
    for message in (seen[0], await stub.Ask(pb.Plain())):
        assert b"41.77" not in message.SerializeToString()


async def test_one_message_with_everything_wrong_does_not_stop_the_others(mesh, serve, connect):
    seen = rig.Seen()
    stub = await connect(await serve(mesh=mesh, handlers=seen.handlers()), mesh)
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ReportAll(stream(reading(), rig.BAD))
        assert (await stub.Report(reading())).text
