"""A server's health follows its ledger, and a server that is told to end returns what it holds."""

import asyncio
import os
import signal
import sqlite3
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, inspect
from dpmesh.ledger.postgres.admin import PostgresAdmin
from dpmesh.ledger.sqlite.store import SQLiteStore
from dpmesh_grpc import report_health, serve
from tests.support.meshes import assembled
from tests.support.postgres import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
BUDGET = {"name": "all", "key": "global", "epsilon": 10.0, "accounting": "pure", "window": "lifetime"}


def config(url):
    return {"ledger": {"url": url}, "budget": [BUDGET]}


async def until(stub, status, service=""):
    async with asyncio.timeout(60):
        while (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status != status:
            await asyncio.sleep(0.05)


async def asked(server):
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    return channel, health_pb2_grpc.HealthStub(channel)


async def test_a_ledger_that_takes_no_charge_is_not_serving_until_it_does(tmp_path):
    path = tmp_path / "ledger.db"
    store = SQLiteStore(path, busy_timeout=0.3)  # how long it waits while somebody else has the file locked
    async with assembled(config(f"sqlite:///{path}"), store=store) as mesh:
        server = grpc.aio.server()
        async with report_health(server, mesh, ["fleet.v1.Collector"]):
            channel, stub = await asked(server)
            async with channel:
                await until(stub, SERVING)
                await until(stub, SERVING, "fleet.v1.Collector")
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("BEGIN IMMEDIATE")
                try:
                    await mesh.ledger.charge([(0, b"", 1)])
                except LedgerError:
                    pass
                else:
                    raise AssertionError("the ledger was not locked")
                await until(stub, NOT_SERVING)
                await until(stub, NOT_SERVING, "fleet.v1.Collector")
                other.execute("ROLLBACK")
                other.close()
                await until(stub, SERVING)
                await mesh.ledger.charge([(0, b"", 1)])
        await server.stop(None)


async def test_a_database_that_is_down_is_not_serving_until_it_is_back():
    with Server() as postgres:
        url = postgres.url(postgres.create_database())
        await PostgresAdmin(url).migrate()
        async with dpmesh.open(config(url)) as mesh:
            server = grpc.aio.server()
            async with report_health(server, mesh):
                channel, stub = await asked(server)
                async with channel:
                    await until(stub, SERVING)
                    postgres.kill()
                    await until(stub, NOT_SERVING)
                    postgres.start()
                    await until(stub, SERVING)
                    await mesh.ledger.charge([(0, b"", 1)])
            await server.stop(None)


async def test_it_says_not_serving_while_it_drains(tmp_path):
    async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
        server = grpc.aio.server()
        async with report_health(server, mesh):
            channel, stub = await asked(server)
            await until(stub, SERVING)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        await channel.close()
        await server.stop(None)


PROGRAM = """
import asyncio, sys
import grpc, dpmesh
from dpmesh_grpc import serve

async def main():
    budget = {"name": "all", "key": "global", "epsilon": 10.0, "accounting": "pure", "window": "lifetime"}
    async with dpmesh.open({"ledger": {"url": sys.argv[1]}, "budget": [budget]}) as mesh:
        for _ in range(50):
            await mesh.ledger.charge([(0, b"", 10**7)])
        server = grpc.aio.server()
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await serve(server, mesh, grace=5)

asyncio.run(main())
"""


async def test_a_server_that_is_terminated_returns_its_leases(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, url, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    try:
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                await channel.channel_ready()
                await until(stub, SERVING)
            (held,) = inspect(url).accounts
            assert held.spent > 50 * AMOUNT // 100  # with what it has set aside
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    (account,) = inspect(url).accounts
    assert account.spent == account.lifetime == 50 * AMOUNT // 100


async def test_serving_ends_when_it_is_cancelled(tmp_path):
    async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        task = asyncio.create_task(serve(server, mesh, grace=0))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            await until(health_pb2_grpc.HealthStub(channel), SERVING)
            task.cancel()
            await asyncio.wait({task})
        assert task.cancelled()


async def test_who_watches_hears_the_end_and_does_not_hold_it_up(tmp_path):
    async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
        server = grpc.aio.server()
        heard = []

        async def watch(stub):
            try:
                async for response in stub.Watch(health_pb2.HealthCheckRequest()):
                    heard.append(response.status)
            except grpc.aio.AioRpcError:
                pass

        async with report_health(server, mesh):
            channel, stub = await asked(server)
            watching = asyncio.create_task(watch(stub))
            async with asyncio.timeout(60):
                while SERVING not in heard:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(30):  # far less than the grace
            await server.stop(300)
            await watching
        assert heard[-1] == NOT_SERVING
        await channel.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("secret")])
async def test_whoever_can_not_tell_does_not_serve(tmp_path, caplog, error):
    raised = []

    class Unable(Ledger):
        async def check(self):
            if raised:
                raise raised[0]
            await super().check()

    async with assembled(config(f"sqlite:///{tmp_path}/ledger.db"), ledger=Unable) as mesh:
        server = grpc.aio.server()
        async with report_health(server, mesh):
            channel, stub = await asked(server)
            await until(stub, SERVING)
            raised.append(error)
            await until(stub, NOT_SERVING)
            raised.clear()
            await until(stub, SERVING)
            await channel.close()
        await server.stop(None)
    assert "secret" not in caplog.text


async def test_a_second_signal_ends_rpcs_and_still_returns_leases(tmp_path):
    """An RPC that would last for ever holds the server up for its whole grace, unless somebody hurries."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    program = PROGRAM.replace(
        "server = grpc.aio.server()",
        "server = grpc.aio.server()\n"
        "        async def hang(request, context):\n"
        "            await asyncio.Event().wait()\n"
        "        handler = grpc.unary_unary_rpc_method_handler(hang)\n"
        "        handlers = grpc.method_handlers_generic_handler('a.B', {'C': handler})\n"
        "        server.add_generic_rpc_handlers((handlers,))",
    ).replace("grace=5", "grace=300")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, url, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    try:
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await channel.channel_ready()
                call = channel.unary_unary("/a.B/C")(b"")
                watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                while (await watching.read()).status != SERVING:
                    pass
                process.send_signal(signal.SIGTERM)
                # Two signals are one to a process that has not got round to the first.
                while (told := await watching.read()) is not grpc.aio.EOF and told.status == SERVING:
                    pass
                await asyncio.sleep(0.5)
                assert process.returncode is None
                process.send_signal(signal.SIGTERM)
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    (account,) = inspect(url).accounts
    assert account.spent == 50 * AMOUNT // 100


async def test_cancelled_while_it_drains_it_stops_at_once(tmp_path):
    async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
        server = grpc.aio.server()
        began = asyncio.Event()

        async def hang(request, context):
            began.set()
            await asyncio.Event().wait()

        handler = grpc.unary_unary_rpc_method_handler(hang)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        task = asyncio.create_task(serve(server, mesh, grace=300))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(60):
            call = channel.unary_unary("/a.B/C")(b"")
            await began.wait()
            task.cancel()
            await asyncio.sleep(0.5)
            assert not task.done()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            with pytest.raises(grpc.aio.AioRpcError):
                await call


async def test_serving_needs_the_main_thread(tmp_path):
    async def elsewhere():
        async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
            server = grpc.aio.server()
            with pytest.raises(RuntimeError, match="report_health"):
                await serve(server, mesh)

    await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_server_that_does_not_start_leaves_no_handler(tmp_path):
    async with dpmesh.open(config(f"sqlite:///{tmp_path}/ledger.db")) as mesh:
        server = grpc.aio.server()
        await server.start()
        await server.stop(None)
        with pytest.raises(Exception, match=r"."):
            await serve(server, mesh, grace=0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
