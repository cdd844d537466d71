"""Links: one gRPC channel under one identity, what stands for it when there is none, and the calls of both."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import weakref
from collections.abc import Callable
from typing import Any, Final

import grpc.aio

from dpmesh.identity import Identity
from dpmesh_grpc.aio.arities import Arity
from dpmesh_grpc.aio.internals import active_calls
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
        calls = active_calls(channel)
        self._keeps = calls is None
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet() if calls is None else calls
        self._ended: frozenset[Any] = frozenset()

    def bind(self, arity: Arity, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The multicallable that gRPC has for a method."""
        multicallable: Callable[..., Any] = getattr(self.channel, arity.name)(*arguments)
        return multicallable

    def hold(self, call: Any, arity: Arity) -> Any:
        """A call that ends with a status if it outlives the channel."""
        if self._keeps:
            self._calls.add(call)
        return arity.guarded(call, self)

    def failure(self, call: Any) -> Failure | None:
        """The status of a call that was cut off; None if it ended by itself."""
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

    def bind(self, arity: Arity, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """What refuses all RPCs of a method."""

        def refuse(*_: Any, **__: Any) -> Any:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            return arity.refused(rpc_error(EXPIRED))

        return refuse

    def hold(self, call: Any, arity: Arity) -> Any:
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
