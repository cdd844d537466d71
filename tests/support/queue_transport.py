"""A made-up transport: an RPC is two queues of bytes with headers. It shows what a transport needs of dpmesh.mesh.

It serves streams both ways; a single message is a stream of one that is released by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from dpmesh.mesh.attestation import message_metadata, requirement, stream_metadata
from dpmesh.mesh.consumers import CertificateNames, consumer_of
from dpmesh.mesh.flow_table import FlowTable
from dpmesh.mesh.refusals import HANDLER_FAILED, Refusal, is_own, of
from dpmesh.mesh.response_policy import ResponsePolicy


class RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


@dataclass
class Call:
    """One RPC: what travels. None ends a queue; the last response is followed by an error text or a refusal, or None."""

    method: str
    headers: Any
    certificate: CertificateNames
    requests: asyncio.Queue = field(default_factory=asyncio.Queue)
    responses: asyncio.Queue = field(default_factory=asyncio.Queue)
    trailers: list = field(default_factory=list)


async def received(queue: asyncio.Queue, kind: Any) -> AsyncIterator[Any]:
    while isinstance(content := await queue.get(), bytes):
        yield kind.FromString(content)
    if content is not None:
        raise RefusedError(content) if isinstance(content, Refusal) else RuntimeError(content)


@dataclass
class Handler:
    request: Any
    function: Callable[[AsyncIterator[Any], Call], AsyncIterator[Any]]
    streams: bool = True


class Server:
    def __init__(self, mesh: Any, handlers: dict[str, Handler]) -> None:
        self._flows = FlowTable(mesh)
        self._handlers = handlers

    async def serve(self, call: Call) -> None:
        method, handler = self._flows[call.method], self._handlers[call.method]
        required = requirement(method)
        refusal = None if required is None else required.refusal(call.headers)
        if refusal is not None:
            method.request.record_refused_rpc(refusal)
            call.responses.put_nowait(refusal)
            return
        policy = ResponsePolicy.of(method, streams=handler.streams)
        flow = policy.flow.for_consumer(consumer_of(call.certificate)) if policy.by_consumer else policy.flow
        stream = flow.stream() if handler.streams else None
        end: Any = None
        try:
            async for response in handler.function(received(call.requests, handler.request), call):
                call.responses.put_nowait((await flow.protect(response, stream)).SerializeToString())
        except Exception as error:
            if is_own(error):
                end = of(error)
            else:
                end = HANDLER_FAILED if policy.masks_errors() else str(error)
                policy.log_failure(error)
        finally:
            if stream is not None:
                stream.close()
        call.trailers = policy.metadata(call.trailers)
        call.responses.put_nowait(end)


class Client:
    def __init__(
        self, server: Server, mesh: Any = None, consumer: str = "", **certificate: list[bytes]
    ) -> None:
        self._server = server
        self._flows = FlowTable(mesh, consumer) if mesh is not None else None
        self._certificate = CertificateNames(**certificate)

    async def ask(self, method: str, message: Any, answer: Any, headers: Any = ()) -> tuple[list[Any], Call]:
        """Makes an RPC with one request; gives its responses and what travelled."""
        protected = message
        if self._flows is not None:
            flow = self._flows[method].request
            protected = await flow.protect(message)
            headers = message_metadata(flow, message, protected, headers)
        call = Call(method, headers, self._certificate)
        call.requests.put_nowait(protected.SerializeToString())
        return await self._answered(call, answer), call

    async def send(
        self, method: str, messages: Any, answer: Any, headers: Any = ()
    ) -> tuple[list[Any], Call]:
        """Makes an RPC with a stream of requests; gives its responses and what travelled."""
        flow = self._flows[method].request
        stream = flow.stream()
        call = Call(method, stream_metadata(flow, headers), self._certificate)
        try:
            async for message in messages:
                call.requests.put_nowait((await flow.protect(message, stream)).SerializeToString())
        finally:
            stream.close()
        return await self._answered(call, answer), call

    async def _answered(self, call: Call, answer: Any) -> list[Any]:
        call.requests.put_nowait(None)
        serving = asyncio.create_task(self._server.serve(call))
        try:
            return [response async for response in received(call.responses, answer)]
        finally:
            await serving
