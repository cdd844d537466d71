"""A server's health follows its ledger, and a server that is told to end returns what it holds."""

import asyncio
import os
import signal
import sqlite3
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import dpmesh
from dpmesh.accounting import AMOUNT
from dpmesh.errors import LedgerError
from dpmesh.ledger import inspect
from dpmesh.ledger.postgres_books import PostgresBooks
from dpmesh_grpc import report_health, serve
from tests.support.postgres import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
BUDGET = {"name": "all", "key": "global", "epsilon": 10.0, "accounting": "pure", "window": "lifetime"}


def config(url):
    return {"ledger": {"url": url}, "budget": [BUDGET]}


async def until(stub, status, service=""):
    async with asyncio.timeout(20):
        while (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status != status:
            await asyncio.sleep(0.05)


async def asked(server):
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    return channel, health_pb2_grpc.HealthStub(channel)


async def test_a_ledger_that_takes_no_charge_is_not_serving_until_it_does(tmp_path):
    path = tmp_path / "ledger.db"
    async with dpmesh.open(config(f"sqlite:///{path}")) as mesh:
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
        await PostgresBooks(url).migrate()
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
        async with asyncio.timeout(30):
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
