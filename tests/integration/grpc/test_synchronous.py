"""Synchronous gRPC is not supported and says so; synchronous handlers on grpc.aio don't outlive their server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from stations import rig
from stations import stations_pb2 as pb
from stations.rig import reading

from dpmesh.errors import ConfigError
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

HERE = Path(__file__).parent


async def test_a_synchronous_server_does_not_take_the_interceptors(mesh):
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match=r"for grpc\.aio.*not supported yet"):
        grpc.server(pool, interceptors=aio_server_interceptors(mesh))


async def test_a_synchronous_server_that_took_them_in_a_list_refuses_at_once(mesh, caplog):
    def answer():
        def ask(request, context):
            return reading()

        with ThreadPoolExecutor(2) as pool:
            server = grpc.server(pool, interceptors=[*aio_server_interceptors(mesh)])
            rig.add_handlers(server, {"Ask": ask})
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    with pytest.raises(grpc.RpcError) as caught:
                        rig.stations_pb2_grpc.StationsStub(channel).Ask(pb.Plain(), timeout=60)
                    return caught.value
            finally:
                server.stop(None).wait()

    error = await asyncio.to_thread(answer)
    assert error.code() is grpc.StatusCode.UNKNOWN, "and no deadline that the caller runs into"
    assert "not supported yet" in caplog.text


async def test_a_synchronous_channel_does_not_take_the_interceptors(mesh):
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        for ours in aio_client_interceptors(mesh):
            with pytest.raises(ConfigError, match=r"for grpc\.aio.*not supported yet"):
                grpc.intercept_channel(channel, ours)
        with pytest.raises(ConfigError, match=r"for grpc\.aio.*not supported yet"):
            grpc.intercept_channel(channel, *aio_client_interceptors(mesh))

        class Theirs(grpc.UnaryUnaryClientInterceptor):
            def intercept_unary_unary(self, continuation, details, request):
                return continuation(details, request)

        grpc.intercept_channel(channel, Theirs())
        with pytest.raises(TypeError):
            grpc.intercept_channel(channel, object())


# A server whose loop ends while a handler in its executor is still at work; argv: where the stations are, and the arity.
OUTLIVING = """
import asyncio, sys, threading
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[1])
import grpc
from stations import rig, stations_pb2 as pb
import dpmesh
from dpmesh_grpc import aio_server_interceptors

entered, over = threading.Event(), threading.Event()

def one(request, context):
    entered.set()
    over.wait()
    return rig.reading()

def many(request, context):
    yield one(request, context)

async def main():
    budget = {"name": "station", "epsilon": 1e6, "accounting": "pure", "window": "24h"}
    mesh = await dpmesh.open({"ledger": {"url": "memory:"}, "budget": [budget]}).__aenter__()
    server = grpc.aio.server(ThreadPoolExecutor(2), interceptors=aio_server_interceptors(mesh))
    rig.add_handlers(server, {"Ask": one, "Watch": many})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    stub = rig.stations_pb2_grpc.StationsStub(channel)
    call = stub.Ask(pb.Plain()) if sys.argv[2] == "Ask" else stub.Watch(pb.Plain())
    running = asyncio.ensure_future(call.wait_for_connection())
    await asyncio.to_thread(entered.wait)
    running.cancel()

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(main())
if sys.argv[3] == "closed":
    loop.close()
over.set()
print("over", flush=True)
"""


# gRPC's own thread waits for ever where a generator's loop has stopped and was not closed, with or without dpmesh.
@pytest.mark.parametrize(("method", "loop"), [("Ask", "stopped"), ("Ask", "closed"), ("Watch", "closed")])
def test_a_process_ends_though_a_synchronous_handler_outlives_its_loop(method, loop):
    command = [sys.executable, "-c", OUTLIVING, str(HERE), method, loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.stdout == "over\n", done.stderr
    assert rig.SECRET not in done.stderr
