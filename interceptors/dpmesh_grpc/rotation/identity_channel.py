"""Links: one gRPC channel under one identity, what stands for it when there is none, and the calls of both."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final

import grpc.aio

from dpmesh.identity import Identity
from dpmesh_grpc.aio.calls import (
    GuardedStreamStreamCall,
    GuardedStreamUnaryCall,
    Outcome,
    RefusedUnaryStreamCall,
    RefusedUnaryUnaryCall,
    _GuardedCall,
    _RefusedCall,
    _Responses,
)
from dpmesh_grpc.status import Failure, rpc_error

_random = secrets.SystemRandom()

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
OUTLIVED: Final = Failure(
    _UNAVAILABLE, "the channel's identity was replaced, and this RPC outlived its drain"
)
EXPIRED: Final = Failure(_UNAVAILABLE, "the channel has no identity that is valid now")


class IdentityChannel:
    """A gRPC channel that was made with one identity and keeps it to its end.

    Args:
        channel: The channel.
        identity: What it was made with.
        generation: The identity's number.
    """

    def __init__(self, channel: Any, identity: Identity, generation: int) -> None:
        self.channel = channel
        self.identity = identity
        self.generation = generation
        # grpc.aio keeps the calls under way in newer versions; a second set would cost as much as all the rest here.
        calls = getattr(channel, "_active_calls", None)
        self._keeps = calls is None
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet() if calls is None else calls
        self._ended: frozenset[Any] = frozenset()

    def bind(self, arity: str, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The multicallable that gRPC has for a method."""
        multicallable: Callable[..., Any] = getattr(self.channel, arity)(*arguments)
        return multicallable

    def hold(self, call: Any, kind: Callable[[Any, IdentityChannel], Any]) -> Any:
        """A call that ends with a status, should it outlive the link."""
        if self._keeps:
            self._calls.add(call)
        return kind(call, self)

    def ended(self, call: Any) -> Failure | None:
        """Why a call was cut off, or None if it ended by itself."""
        return OUTLIVED if call in self._ended else None

    async def drain(self, seconds: float) -> None:
        """Lets the RPCs under way go on for at most so many seconds, and closes the channel at a random moment in them.

        A connection that ended whenever another begins would show which one follows it.

        gRPC's own grace is not used: with it, RPCs that still wait in an interceptor would find the channel closed.
        """
        loop = asyncio.get_running_loop()
        moment = loop.time() + _random.uniform(0, seconds)
        open_calls = [call for call in self._calls if not call.done()]
        if open_calls:
            # Not cancelled afterwards: that would reach an interceptor's task. They end with their calls.
            ends = [asyncio.ensure_future(_end(call)) for call in open_calls]
            await asyncio.wait(ends, timeout=seconds)
        self._ended = frozenset(call for call in open_calls if not call.done())
        for call in self._ended:  # grpc.aio 1.80 finds only some of them when it closes.
            call.cancel()
        await asyncio.sleep(max(0.0, moment - loop.time()))
        await self.channel.close()


async def _end(call: Any) -> None:
    with contextlib.suppress(Exception):  # An interceptor's: it is the caller's to see.
        await call.code()


class NoChannel:
    """What stands for a channel that has none: RPCs end before they begin.

    Args:
        state: The channel's state.
        closed: For good: RPCs are a mistake then, as they are on any closed channel.
    """

    def __init__(self, state: grpc.ChannelConnectivity, *, closed: bool = False) -> None:
        self.channel = self
        self.generation = 0
        self._state = state
        self._closed = closed

    def bind(self, arity: str, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """What refuses all RPCs of a method."""
        kind = _REFUSED[arity]

        def refuse(*_: Any, **__: Any) -> Any:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            return kind(rpc_error(EXPIRED))

        return refuse

    def hold(self, call: Any, kind: Any) -> Any:
        """The call as it is: it is over."""
        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self._state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until it is replaced, and so cancelled.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        if last_observed_state == self._state:
            await asyncio.Event().wait()

    async def close(self, grace: float | None = None) -> None:
        """There is nothing to close."""


class _Ending(Outcome):
    """The outcome of a call on a link: cut off by the link's end, or its own."""

    def __init__(self, link: IdentityChannel, call: Any = None) -> None:
        self.call = call
        self._link = link

    @property
    def failure(self) -> Failure | None:  # type: ignore[override]
        return self._link.ended(self.call)


class HeldUnaryUnaryCall(_GuardedCall, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """A call on a link, with one request and one response."""

    def __init__(self, call: Any, link: IdentityChannel) -> None:
        self._call = call
        self._link = link

    @property
    def _outcome(self) -> Outcome:  # type: ignore[override]
        return _Ending(self._link, self._call)  # Seldom asked for.

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except BaseException:
            with self._outcome:
                raise


class HeldUnaryStreamCall(_Responses, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """A call on a link, with one request and a stream of responses."""

    def __init__(self, call: Any, link: IdentityChannel) -> None:
        super().__init__(call, _Ending(link))


class HeldStreamUnaryCall(GuardedStreamUnaryCall):
    """A call on a link, with a stream of requests and one response."""

    def __init__(self, call: Any, link: IdentityChannel) -> None:
        super().__init__(call, _Ending(link))


class HeldStreamStreamCall(GuardedStreamStreamCall):
    """A call on a link, with streams both ways."""

    def __init__(self, call: Any, link: IdentityChannel) -> None:
        super().__init__(call, _Ending(link))


class _RefusedRequests:
    """What the refused calls with a stream of requests share. The requests are never asked for."""

    _error: grpc.aio.AioRpcError
    _done_writing_flag = True  # gRPC's own calls ask for it.

    async def write(self, request: Any) -> None:
        raise self._error

    async def done_writing(self) -> None:
        pass


class RefusedStreamUnaryCall(_RefusedRequests, _RefusedCall, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """A refused call with a stream of requests and one response."""

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        raise self._error


class RefusedStreamStreamCall(_RefusedRequests, _RefusedCall, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """A refused call with streams both ways."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        raise self._error
        yield

    async def read(self) -> Any:
        """There is nothing to read."""
        raise self._error


_REFUSED: dict[str, Any] = {
    "unary_unary": RefusedUnaryUnaryCall,
    "unary_stream": RefusedUnaryStreamCall,
    "stream_unary": RefusedStreamUnaryCall,
    "stream_stream": RefusedStreamStreamCall,
}
HELD: Final[dict[str, Callable[[Any, IdentityChannel], Any]]] = {
    "unary_unary": HeldUnaryUnaryCall,
    "unary_stream": HeldUnaryStreamCall,
    "stream_unary": HeldStreamUnaryCall,
    "stream_stream": HeldStreamStreamCall,
}
