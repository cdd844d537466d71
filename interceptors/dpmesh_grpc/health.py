"""Health: whether a server can serve is whether its ledger can take a charge; and servers that end without waste."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from dpmesh.errors import LedgerError
from dpmesh.mesh import Mesh

log = logging.getLogger("dpmesh.grpc")

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PERIOD = 1.0  # seconds from one look at the ledger to the next


@contextlib.asynccontextmanager
async def report_health(server: Any, mesh: Mesh, services: Sequence[str] = ()) -> AsyncIterator[None]:
    """Adds grpc.health.v1.Health to a server: SERVING while the ledger can take a charge, NOT_SERVING while it can't.

    In the end it says NOT_SERVING for good, so that whoever balances load looks elsewhere while the server drains.

    Args:
        server: A grpc.aio server that is not started yet.
        mesh: Whose ledger counts, opened.
        services: Names of services that are asked for by themselves; the server as a whole ("") always can be.
    """
    servicer = health.HealthServicer()
    names = ("", *services)
    for name in names:
        await servicer.set(name, _NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    watching = asyncio.create_task(_watch(servicer, names, mesh))
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await servicer.enter_graceful_shutdown()


async def serve(server: Any, mesh: Mesh, *, services: Sequence[str] = (), grace: float = 10.0) -> None:
    """Starts a server, reports its health, and serves until SIGTERM, SIGINT or cancellation; then lets RPCs finish.

    Leave the mesh afterwards (`async with`), and its unspent leases go back to the ledger: nothing is wasted.

    Args:
        server: A grpc.aio server that is not started yet.
        mesh: Whose ledger counts, opened.
        services: As in report_health.
        grace: How long RPCs under way may go on, in seconds.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for each in signals:
        loop.add_signal_handler(each, ended.set)
    try:
        async with report_health(server, mesh, services):
            await server.start()
            await ended.wait()
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
        await server.stop(grace)


async def _watch(servicer: Any, names: Sequence[str], mesh: Mesh) -> None:
    """Looks at the ledger from time to time, and tells what changed."""
    serving = None
    while True:
        try:
            await mesh.ledger.check()
            now, why = True, ""
        except LedgerError as error:
            now, why = False, str(error)
        except Exception as error:  # Whatever it is: who can't tell does not serve.
            now, why = False, type(error).__name__
        if now is not serving:
            serving = now
            if why:
                log.warning("not serving: %s", why)
            for name in names:
                await servicer.set(name, _SERVING if now else _NOT_SERVING)
        await asyncio.sleep(_PERIOD)
