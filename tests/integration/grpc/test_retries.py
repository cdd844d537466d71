"""A client's retry policy retries no refusal but one that is over soon: each attempt runs the handler again."""

from __future__ import annotations

import json

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading

ATTEMPTS = 4
POLICY = {
    "maxAttempts": ATTEMPTS,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.05s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "FAILED_PRECONDITION", "INTERNAL"],
}
CONFIG = {"methodConfig": [{"name": [{}], "retryPolicy": POLICY}]}
OPTIONS = (("grpc.service_config", json.dumps(CONFIG)),)


class Station:
    """Handlers of every kind that count how often they run."""

    def __init__(self):
        self.runs = 0

    def response(self, message):
        self.runs += 1
        return message

    def handlers(self, message):
        async def ask(request, context):
            return self.response(message)

        def sync_ask(request, context):
            return self.response(message)

        async def watch(request, context):
            yield self.response(message)

        async def write(request, context):
            await context.write(self.response(message))

        def sync_watch(request, context):
            yield self.response(message)

        return {"Ask": [ask, sync_ask], "Watch": [watch, write, sync_watch]}


KINDS = [("Ask", 0), ("Ask", 1), ("Watch", 0), ("Watch", 1), ("Watch", 2)]


async def refused(stub, method):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call = getattr(stub, method)(pb.Plain(), timeout=30)
        await (call if method == "Ask" else call.read())
    return caught.value


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_a_spent_budget_is_not_asked_again(open_mesh, serve, connect, method, kind):
    station = Station()
    mesh = await open_mesh(epsilon=1.0)
    await mesh.release(reading())
    handler = station.handlers(reading())[method][kind]
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}), options=OPTIONS)
    error = await refused(stub, method)
    assert rig.status(error).info.reason == "PRIVACY_BUDGET_EXHAUSTED"
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert station.runs == 1


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_a_message_that_can_not_be_protected_is_not_asked_for_again(mesh, serve, connect, method, kind):
    station = Station()
    handler = station.handlers(rig.BAD)[method][kind]
    stub = await connect(await serve(mesh=mesh, handlers={method: handler}), options=OPTIONS)
    error = await refused(stub, method)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert station.runs == 1


async def test_requests_that_no_sender_has_protected_are_not_sent_again(mesh, serve, connect):
    asked = []

    class Counting(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, handler_call_details):
            asked.append(handler_call_details.method)
            return await continuation(handler_call_details)

    target = await serve(mesh=mesh, handlers=rig.Seen().handlers(), before=[Counting()])
    stub = await connect(target, options=OPTIONS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Strict(reading(), timeout=30)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len(asked) == 1


async def test_a_ledger_that_can_not_answer_may_be_asked_again(open_mesh, serve, connect):
    """That is over soon, and the policy of the client works: the tests above could fail."""
    station = Station()
    mesh = await open_mesh()
    handlers = {"Ask": station.handlers(reading())["Ask"][0]}
    stub = await connect(await serve(mesh=mesh, handlers=handlers), options=OPTIONS)
    await mesh.__aexit__(None, None, None)
    error = await refused(stub, "Ask")
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert station.runs == ATTEMPTS


async def test_a_refusal_on_the_client_sends_nothing(open_mesh, serve, connect):
    mesh = await open_mesh(epsilon=1.0)
    seen = rig.Seen()
    stub = await connect(await serve(handlers=seen.handlers()), mesh, options=OPTIONS)
    await stub.Report(reading())
    for call in (stub.Report(reading()), stub.ReportAll(rig.stream(reading()))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(seen) == 1
    (account,) = await mesh.ledger.accounts()
    assert account.spent == 10**9
