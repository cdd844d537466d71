"""Slots of RPCs: `slot_cover` is for streams of requests, `PacedSender` for single ones. See docs/wire.md."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh import method_name
from dpmesh.errors import ConfigError, DpmeshError, ProtectionError
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.slots import Slots
from dpmesh_grpc import status

log = logging.getLogger("dpmesh.grpc")

_COVER: ContextVar[Any] = ContextVar("dpmesh_slot_cover", default=None)
_TURN: ContextVar[Turn | None] = ContextVar("dpmesh_slot_turn", default=None)


@contextmanager
def slot_cover(cover: Any) -> Iterator[None]:
    """Names the cover of the streams of requests that begin in this context, on methods with `send_slot`.

        with slot_cover(Position(device="d7")):
            call = stub.Track(positions())

    Args:
        cover: A request in which nothing is set but its unit, and what all requests of the stream have in common.

    Raises:
        ConfigError: The cover is no protobuf message.
    """
    if not isinstance(cover, Message):
        raise ConfigError("cover: has to be a request of the method, as a protobuf message")
    token = _COVER.set(_copy(cover))
    try:
        yield
    finally:
        _COVER.reset(token)


def current_cover() -> Any:
    """The cover of a stream of requests that begins now; None if none was named."""
    return _COVER.get()


class Turn:
    """The one request that a PacedSender sends at one slot.

    Attributes:
        over: The request has left, or nothing leaves at this slot.
        refusal: Why the message was refused; a cover may have left instead.
    """

    def __init__(self, method: str, slots: Slots, cover: Any) -> None:
        self.over = asyncio.Event()
        self.refusal: DpmeshError | None = None
        self._method = method
        self._slots = slots
        self._cover = cover
        self._taken = False

    def take(self, method: str) -> bool:
        """Whether an RPC of a method is the one of this turn: the first one."""
        mine = method == self._method and not self._taken
        self._taken |= mine
        return mine

    async def protect(self, flow: Flow, request: Any) -> tuple[Any, Any]:
        """Releases the request, or the cover if it is refused, because an empty slot would show that.

        Returns:
            What was released, and what leaves instead of it.

        Raises:
            DpmeshError: The cover was refused, too, or can't be released at all.
        """
        flow.check_cover(self._cover)
        try:
            return request, await flow.protect(request, in_slot=True)
        except DpmeshError as error:
            self.refusal = error.with_traceback(None)
            if request is self._cover:
                raise
        return self._cover, await flow.protect(self._cover, in_slot=True)

    async def end(self) -> None:
        """Waits for the slot, unless the turn is over."""
        if not self.over.is_set():
            try:
                await self._slots.next()
            finally:
                self.over.set()


def take_turn(method: str) -> Turn | None:
    """The turn of an RPC that begins now; None if no PacedSender sends it."""
    turn = _TURN.get()
    return turn if turn is not None and turn.take(method) else None


class PacedSender:
    """Sends single requests in the slots of a method with `send_slot`, and a cover at each slot without a request.

        async with PacedSender(mesh, channel, "/fleet.v1.Fleet/Track", Position(device="d7")) as sender:
            ack = await sender.send(position)

    Entered, it sends at every slot. Left, it sends what waits, each at its slot, and then ends. Left by an exception,
    it ends at once. Where the method has no `send_slot`, or in observe mode, it sends at once, and no covers.

    Args:
        mesh: Protects the channel.
        channel: Sends the requests.
        method: "/package.Service/Method", with one request and one response.
        cover: A request in which nothing is set but its unit, and what all requests of this sender have in common.
        queue: How many requests may wait.
        timeout: How many seconds an RPC may take, and what it waits for the ledger.

    Raises:
        ConfigError: The channel is not protected, no loaded proto has such a method, the cover is no request of it, or
            the queue holds no request.
    """

    def __init__(
        self,
        mesh: Mesh,
        channel: grpc.aio.Channel,
        method: str,
        cover: Any,
        *,
        queue: int = 64,
        timeout: float = 30.0,
    ) -> None:
        from dpmesh_grpc.protection.coverage import check_channel

        check_channel(channel)
        declared = method_name.find(method)
        if declared is None or declared.client_streaming or declared.server_streaming:
            raise ConfigError(f"method: no loaded proto has {method} with one request and one response")
        request = GetMessageClass(declared.input_type)
        if type(cover) is not request:
            raise ConfigError(f"cover: has to be a {declared.input_type.full_name}")
        if type(queue) is not int or queue < 1:
            raise ConfigError("queue: has to be a whole number of at least 1")
        self._mesh = mesh
        self._method = method
        self._cover = _copy(cover)
        self._call = channel.unary_unary(
            method, request.SerializeToString, GetMessageClass(declared.output_type).FromString
        )
        self._queue = queue
        self._timeout = timeout
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._rpcs: set[asyncio.Task[None]] = set()
        self._slots: Slots | None = None
        self._open = self._failed = False

    async def __aenter__(self) -> PacedSender:
        """Begins.

        Raises:
            ProtectionError: The cover can't be released.
        """
        slot = None if self._mesh.observing else self._mesh.snapshot.send_slot(self._method)
        if slot is not None:
            self._mesh.snapshot.check_cover(self._method, self._cover)
        self._open = True
        if slot is not None:
            self._slots = Slots(slot)
            self._running = asyncio.create_task(self._run(self._slots))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._slots is None:
            return
        try:
            if kind is None:
                await self._running
                while self._rpcs:
                    await asyncio.wait(self._rpcs)
        finally:
            tasks = (self._running, *self._rpcs)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, message: Any) -> Any:
        """Sends a request at the next free slot, and returns the response.

        Raises:
            ProtectionError: It is refused without a charge: too many requests wait, or the sender is not open.
            grpc.aio.AioRpcError: The RPC failed, or the request was refused, as of any RPC.
        """
        if not self._open:
            raise self._closed()
        if self._slots is None:
            return await self._call(message, timeout=self._timeout)
        if len(self._waiting) >= self._queue:
            text = f"{self._queue} requests wait for a slot already"
            raise ProtectionError("SLOT_QUEUE_FULL", self._method, text)
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((message, answer))
        return await answer

    async def _run(self, slots: Slots) -> None:
        """Sends at every slot."""
        try:
            while self._open or self._waiting:
                message, answer = self._next()
                turn = Turn(self._method, slots, self._cover)
                rpc = asyncio.create_task(self._send(message, answer, turn))
                self._rpcs.add(rpc)
                rpc.add_done_callback(self._rpcs.discard)
                await turn.over.wait()
        finally:
            self._open = False
            for _, answer in self._waiting:
                if not answer.done():
                    answer.set_exception(self._closed())

    def _next(self) -> tuple[Any, asyncio.Future[Any] | None]:
        """The next message, and who waits for its response; the cover if nobody does."""
        while self._waiting:
            message, answer = self._waiting.popleft()
            if not answer.done():  # Otherwise its sender was cancelled.
                return message, answer
        return self._cover, None

    async def _send(self, message: Any, answer: asyncio.Future[Any] | None, turn: Turn) -> None:
        """One RPC."""
        _TURN.set(turn)
        response: Any = None
        error: BaseException | None = None
        try:
            response = await self._call(message, timeout=self._timeout)
        except Exception as failed:
            error = failed
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                turn.over.set()
                if answer is not None:
                    answer.cancel()
                raise
            error = cancelled  # gRPC has cancelled the RPC: its channel closes.
        finally:
            await turn.end()
        if turn.refusal is not None:
            error = status.rpc_error(status.refusal(turn.refusal))
        if answer is None:
            self._report(error)
        elif not answer.done():
            answer.set_result(response) if error is None else answer.set_exception(error)

    def _report(self, error: BaseException | None) -> None:
        """Logs the first failure of a cover, which nobody waits for."""
        if error is not None and not self._failed:
            self._failed = True
            why = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
            log.warning("%s: a cover was not sent, or its RPC failed: %s", self._method, why)

    def _closed(self) -> ProtectionError:
        return ProtectionError("SLOT_SENDER_CLOSED", self._method, "its paced sender is not open")


def _copy(cover: Any) -> Any:
    copied = type(cover)()
    copied.CopyFrom(cover)
    return copied
