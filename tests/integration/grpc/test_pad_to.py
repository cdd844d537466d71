"""`pad_to` over real RPCs: what reaches the peer has one size, in both directions and all arities."""

from __future__ import annotations

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading, stream

from dpmesh.v1 import policy_pb2

SIZE = 4096


@pytest.fixture
async def mesh(open_mesh):
    policy = policy_pb2.Policy()
    rules = policy.messages["dpmesh.test.stations.v1.Reading"]
    rules.epsilon = 1.0
    rules.pad_to.append(SIZE)
    return await open_mesh(policy=policy)


def readings():
    return [reading(payload=bytes(number)) for number in (0, 1, 120, 130, 4000)]


async def test_all_requests_have_the_same_size(mesh, serve, connect):
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    for each in readings():
        await stub.Report(each)
        assert len([response async for response in stub.ReportWatch(each)]) == 3
    await stub.ReportAll(stream(*readings()))
    assert len([response async for response in stub.ReportChat(stream(*readings()))]) == 5
    assert [request.ByteSize() for request in seen] == [SIZE] * 20


async def test_so_have_all_responses(mesh, serve, connect):
    waiting = readings()

    async def ask(request, context):
        return waiting.pop()

    async def chat(requests, context):
        for each in readings():
            yield each

    stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask, "Chat": chat}))
    assert [(await stub.Ask(pb.Plain())).ByteSize() for _ in readings()] == [SIZE] * 5
    assert [response.ByteSize() async for response in stub.Chat(stream())] == [SIZE] * 5


async def test_a_request_that_is_too_long_is_refused(mesh, serve, connect):
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading(payload=bytes(SIZE)))
    assert rig.status(caught.value).info.reason == "SIZE"
    assert seen == []
