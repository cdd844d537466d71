"""Budgets on the wire: what a budget covers is released, and not one message more."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import is_protected, reading, stream

import dpmesh


def check_exhausted(error):
    found = rig.status(error)
    assert found.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (found.info.domain, found.info.reason) == ("dpmesh", "PRIVACY_BUDGET_EXHAUSTED")
    assert found.info.metadata["budget"] == "station"
    assert 0 < found.retry.retry_delay.ToSeconds() <= 24 * 3600


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_thousand_rpcs_against_a_budget_for_a_hundred(open_mesh, serve, connect, side):
    mesh = await open_mesh(epsilon=100.0)
    seen = rig.Seen()
    answers = []

    async def ask(request, context):
        return reading()

    if side == "client":
        stub = await connect(await serve(handlers=seen.handlers()), mesh)
        calls = [stub.Report(reading()) for _ in range(1000)]
    else:
        stub = await connect(await serve(mesh=mesh, handlers={"Ask": ask}))
        calls = [stub.Ask(pb.Plain()) for _ in range(1000)]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, grpc.aio.AioRpcError):
            check_exhausted(result)
        else:
            answers.append(result)
    assert len(answers) == 100
    released = seen if side == "client" else answers
    assert len(released) == 100
    assert all(is_protected(message) for message in released)
    (account,) = await mesh.ledger.accounts()
    assert account.spent == account.cap == 100 * 10**9


async def test_a_stream_ends_where_its_budget_does(open_mesh, serve, connect):
    mesh = await open_mesh(epsilon=5.0)
    seen = rig.Seen()

    async def watch(request, context):
        while True:
            yield reading("s2")

    stub = await connect(await serve(mesh=mesh, handlers={**seen.handlers(), "Watch": watch}), mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ReportAll(stream(*[reading()] * 9))
    check_exhausted(caught.value)
    assert len(seen) <= 5
    responses = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in stub.Watch(pb.Plain()):
            responses.append(response)
    check_exhausted(caught.value)
    assert len(responses) == 5


async def test_a_lifetime_budget_has_no_time_to_retry(stack, serve, connect, tmp_path):
    budget = {"name": "station", "epsilon": 1.0, "accounting": "pure", "window": "lifetime"}
    mesh = dpmesh.open({"ledger": {"url": f"sqlite:///{tmp_path}/once.db"}, "budget": [budget]})
    await stack.enter_async_context(mesh)
    stub = await connect(await serve(handlers=rig.Seen().handlers()), mesh)
    await stub.Report(reading())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading())
    found = rig.status(caught.value)
    assert found.info.reason == "PRIVACY_BUDGET_EXHAUSTED"
    assert found.retry is None


async def test_a_budget_that_suppresses_sends_blanks(open_mesh, serve, connect):
    budget = {"name": "station", "epsilon": 1.0, "accounting": "pure", "on_exhausted": "suppress"}
    mesh = await open_mesh(budget=[budget])
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    for _ in range(2):
        await stub.Report(reading())
    assert not seen[1].temperature
    assert not seen[1].note


async def test_a_ledger_that_does_not_answer_is_unavailable(open_mesh, serve, connect):
    mesh = await open_mesh(patience=0.3)
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh)
    with rig.stalled(mesh), pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Report(reading())
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")
    await asyncio.sleep(0.1)
    assert not seen


async def test_a_mesh_that_nobody_opened_says_so(serve, connect):
    """The ledger's own words would send its user to look for a fault of the ledger."""
    stub = await connect(
        await serve(handlers=rig.Seen().handlers()), dpmesh.open({"ledger": {"url": "memory:"}})
    )
    with pytest.raises(grpc.aio.AioRpcError, match=r"not open: use `async with dpmesh\.open") as caught:
        await stub.Report(reading())
    found = rig.status(caught.value)
    assert (found.code, found.info.reason) == (grpc.StatusCode.UNAVAILABLE, "LEDGER_UNAVAILABLE")


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_message_that_no_budget_could_ever_cover_is_a_bad_annotation(open_mesh, serve, connect, side):
    async def ask(request, context):
        return reading()

    mesh = await open_mesh(epsilon=0.5)
    seen = rig.Seen()
    guards = (mesh, None) if side == "client" else (None, mesh)
    stub = await connect(await serve(mesh=guards[1], handlers={**seen.handlers(), "Ask": ask}), guards[0])
    calls = (
        [stub.Report(reading()), stub.ReportAll(stream(reading()))]
        if side == "client"
        else [stub.Ask(pb.Plain())]
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        found = rig.status(caught.value)
        assert (found.code, found.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BAD_ANNOTATION")
        assert found.info.metadata["field"] == "dpmesh.test.stations.v1.Reading"
    assert not seen
