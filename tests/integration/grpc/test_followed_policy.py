"""A policy file that is edited all the time while RPCs of all arities are under way, and then is gone."""

import asyncio

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from stations import stations_pb2 as pb
from stations.rig import reading
from test_swaps import COSTS, POLICIES, Handlers, protected_by, several

import dpmesh
from dpmesh.policy import loaded_types
from dpmesh_grpc import report_health
from tests.support.mutual_tls import until

EDITS = 12
RPCS = 12
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def file(tmp_path, monkeypatch):
    # As in an application. A swap also compiles what the other tests of this process have imported.
    monkeypatch.setattr(loaded_types, "_imported", lambda: iter([pb.DESCRIPTOR]))
    path = tmp_path / "policy.json"
    edit(path, POLICIES[0].document)
    return path


def edit(path, document):
    other = path.with_suffix(".new")
    other.write_text(json_format.MessageToJson(document))
    other.replace(path)


def settings(file, **more):
    budget = {"name": "station", "epsilon": 1e6, "accounting": "pure", "window": "lifetime"}
    followed = {"source": str(file), "poll": "0.1s", "cache": str(file.parent / "cache"), **more}
    return {"ledger": {"url": "memory:"}, "budget": [budget], "policy": followed}


async def test_no_message_leaves_under_a_policy_that_is_neither_the_old_one_nor_the_new_one(
    serve, connect, file
):
    handlers, done = Handlers(), asyncio.Event()
    functions = {
        "Report": handlers.report,
        "ReportAll": handlers.report_all,
        "Watch": handlers.watch,
        "Chat": handlers.chat,
    }

    async def call(stub, worker):
        station = f"s{worker}"
        calls = [
            lambda: stub.Report(reading(station)),
            lambda: stub.ReportAll(several(lambda: reading(station))),
            lambda: stub.Watch(pb.Plain(text=station)),
            lambda: stub.Chat(several(lambda: pb.Plain(text=station))),
        ]
        while not done.is_set():
            answer = calls[worker % len(calls)]()
            received = [each async for each in answer] if hasattr(answer, "__aiter__") else [await answer]
            for each in received:
                if isinstance(each, pb.Reading):
                    handlers.left[protected_by(each)] += 1

    async with dpmesh.open(settings(file)) as mesh:
        stub = await connect(await serve(mesh=mesh, handlers=functions), mesh)
        async with asyncio.TaskGroup() as tasks:
            for worker in range(RPCS):
                tasks.create_task(call(stub, worker))
            for number in range(1, EDITS + 1):
                policy = POLICIES[number % 2]
                edit(file, policy.document)
                mesh.follower.poke()
                await until(lambda policy=policy: mesh.policy_digest == policy.digest)
            done.set()
        assert mesh.policy_status.refused == ""
    assert set(handlers.left) == set(COSTS)


async def test_an_expired_policy_refuses_rpcs_with_a_reason_and_the_server_serves_again_with_the_source(
    serve, connect, file
):
    handlers = {"Report": Handlers().report}
    async with dpmesh.open(settings(file, max_offline="0.5s")) as mesh:
        stub = await connect(await serve(mesh=mesh, handlers=handlers), mesh)
        await stub.Report(reading("a"))
        server = grpc.aio.server()
        async with report_health(server, mesh):
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                while (await watch.read()).status != SERVING:
                    pass
                file.unlink()
                while (await watch.read()).status != NOT_SERVING:
                    pass
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Report(reading("a"))
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                assert "POLICY_EXPIRED" in str(rpc_status.from_call(caught.value))
                edit(file, POLICIES[0].document)
                while (await watch.read()).status != SERVING:
                    pass
                await stub.Report(reading("a"))
                watch.cancel()
        await server.stop(None)
