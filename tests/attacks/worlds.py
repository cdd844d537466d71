"""Meshes and servers for attacks: the product as it is, and the same without protection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

import dpmesh
from dpmesh_grpc import aio_client_interceptors, aio_server_interceptors

NUM = "(dpmesh.v1.field).numeric"
CAT = "(dpmesh.v1.field).categorical"
UNIT = "(dpmesh.v1.field).unit"
HIDDEN = f"[{UNIT} = {{form: SUPPRESSED}}]"
ITEMS = "(dpmesh.v1.field).max_items"
ENFORCE, OBSERVE = "enforce", "observe"


def config(epsilon: float = 1e6, mode: str = ENFORCE, url: str = "memory:") -> dict:
    """A budget for each unit that never renews; OBSERVE lets all messages leave as they are."""
    epsilon = epsilon if mode == ENFORCE else 1e6
    budget = {"name": "unit", "key": "unit", "epsilon": epsilon, "accounting": "pure", "window": "lifetime"}
    return {"ledger": {"url": url}, "budget": [budget], "mode": mode}


async def received(mesh: dpmesh.Mesh, message, **kwargs):
    """What a receiver reads of a message, and how many bytes it is."""
    data = (await mesh.release(message, **kwargs)).message.SerializeToString()
    return type(message).FromString(data), len(data)


@asynccontextmanager
async def served(service: str, handlers: dict, mesh: dpmesh.Mesh | None) -> AsyncIterator[grpc.aio.Channel]:
    """A real server and a channel to it; with dpmesh's interceptors on both if there is a mesh."""
    server = grpc.aio.server(interceptors=aio_server_interceptors(mesh) if mesh else [])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    interceptors = aio_client_interceptors(mesh) if mesh else []
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
            yield channel
    finally:
        await server.stop(None)


def unary(handle: Callable, request, response) -> grpc.RpcMethodHandler:
    """A handler of single requests of a type, with single responses of another one."""
    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=request.FromString, response_serializer=response.SerializeToString
    )
