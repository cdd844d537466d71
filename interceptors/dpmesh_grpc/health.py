"""Health: a server is SERVING while its messages can be released; `serve` ends a server without wasting budget."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from typing_extensions import override

from dpmesh.errors import ConfigError, LedgerError
from dpmesh.mesh.mesh import Mesh
from dpmesh_grpc.protection.coverage import count_interceptors
from dpmesh_grpc.protection.server import INTERCEPTED_TWICE

log = logging.getLogger("dpmesh.grpc")

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PERIOD = 1.0  # seconds from one look at the ledger to the next
_LAST_WORD = 0.1  # seconds in which watching clients hear that the server ends
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.asynccontextmanager
async def report_health(server: Any, mesh: Mesh, services: Sequence[str] = ()) -> AsyncIterator[None]:
    """Adds grpc.health.v1.Health: SERVING while the ledger can take a charge and the policy is not expired.

    Otherwise it is NOT_SERVING. So it is for good at the end: load balancers look elsewhere while the server drains.

    Args:
        server: A grpc.aio server that is not started yet.
        mesh: An opened mesh, whose ledger and policy are checked.
        services: Names of services with a status of their own; the server as a whole ("") always has one.

    Raises:
        ConfigError: The server has dpmesh's interceptors twice.
    """
    if isinstance(server, grpc.aio.Server) and count_interceptors(server) > 1:
        raise ConfigError(INTERCEPTED_TWICE)
    servicer = _Health()
    names = ("", *services)
    await _set_status(servicer, names, _NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    watching = asyncio.create_task(_watch(servicer, names, mesh))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await servicer.enter_graceful_shutdown()
        await servicer.end_watches()


async def serve(server: Any, mesh: Mesh, *, services: Sequence[str] = (), grace: float = 10.0) -> None:
    """Starts a server, reports its health, and serves until SIGTERM, SIGINT or cancellation; then lets RPCs finish.

    A second signal, or cancellation, ends the RPCs that are still under way. Leave the mesh afterwards (`async with`):
    its unspent leases go back to the ledger, so that nothing is wasted.

    Args:
        server: A grpc.aio server that is not started yet.
        mesh: An opened mesh, whose ledger is checked.
        services: Names of services with a status of their own, as in report_health.
        grace: How many seconds RPCs under way may go on.

    Raises:
        RuntimeError: This is not the main thread, which alone gets signals: use report_health.
    """
    loop, ended, hurried = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurried if ended.is_set() else ended).set()

    try:
        for each in _SIGNALS:
            loop.add_signal_handler(each, signalled)
    except (ValueError, RuntimeError):
        raise RuntimeError("serve needs the main thread, which gets the signals: use report_health") from None
    try:
        try:
            async with report_health(server, mesh, services):
                await server.start()
                await ended.wait()
        finally:
            await _stop(server, grace, hurried)
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


async def _stop(server: Any, grace: float, hurried: asyncio.Event) -> None:
    """Stops a server within the grace period, or at once if `hurried` is set. It always ends stopped."""
    stopping = asyncio.ensure_future(server.stop(grace))
    hurrying = asyncio.ensure_future(hurried.wait())
    try:
        await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurrying.cancel()
        if not stopping.done():
            # Shielded: a cancelled server is stopped, too, before the cancellation goes on.
            await asyncio.shield(server.stop(None))


class _Health(health.HealthServicer):  # type: ignore[misc]
    """The servicer of grpcio-health-checking, but its watches end with the server and not only after its grace."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0
        self._ended = asyncio.Event()

    @override
    async def Watch(self, request: Any, context: Any) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self._ended.wait())
        self._watches += 1
        try:
            await asyncio.wait({watch, ended}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                await watch
        finally:
            self._watches -= 1
            watch.cancel()
            ended.cancel()

    async def end_watches(self) -> None:
        """Ends all watches, once their clients had time to hear that the server ends."""
        if self._watches:
            await asyncio.sleep(_LAST_WORD)
        self._ended.set()


async def _watch(servicer: Any, names: Sequence[str], mesh: Mesh) -> None:
    """Checks ledger and policy from time to time and sets the status. When this ends, the status is NOT_SERVING."""
    try:
        serving = None
        while True:
            why = await _refusal(mesh)
            if (why is None) is not serving:
                if why is not None:
                    log.warning("not serving: %s", why)
                elif serving is False:
                    log.info("serving again")
                serving = why is None
                await _set_status(servicer, names, _SERVING if serving else _NOT_SERVING)
            await asyncio.sleep(_PERIOD)
    finally:
        await _set_status(servicer, names, _NOT_SERVING)


async def _refusal(mesh: Mesh) -> str | None:
    """Why nothing could be released, or None if something could."""
    if mesh.is_expired:
        return "the policy is expired"
    task = asyncio.current_task()
    try:
        await mesh.ledger.check()
    except asyncio.CancelledError:
        if task is not None and task.cancelling():
            raise
        return "the event loop that owns the ledger has ended"
    except LedgerError as error:
        return str(error)
    except Exception as error:  # A server whose ledger can't be checked does not serve.
        return type(error).__name__
    return None


async def _set_status(servicer: Any, names: Sequence[str], status: Any) -> None:
    for name in names:
        await servicer.set(name, status)
