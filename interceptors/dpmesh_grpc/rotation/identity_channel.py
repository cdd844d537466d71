"""Identity channel: a gRPC channel of one identity, and what stands in its place while no identity is valid."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import weakref
from typing import Any, Final

import grpc.aio
from typing_extensions import override

from dpmesh.identity import Identity
from dpmesh_grpc.aio.arities import Arity
from dpmesh_grpc.aio.calls import CallEnd
from dpmesh_grpc.aio.internals import active_calls
from dpmesh_grpc.status import Failure, rpc_error

_random = secrets.SystemRandom()

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
OUTLIVED: Final = Failure(
    _UNAVAILABLE, "the channel's identity was replaced, and this RPC outlived its drain"
)
EXPIRED: Final = Failure(_UNAVAILABLE, "the channel has no identity that is valid now")


class IdentityChannel(CallEnd):
    """A gRPC channel that has one identity to its end."""

    def __init__(self, channel: Any, identity: Identity, generation: int) -> None:
        self.channel = channel
        self.identity = identity
        self.generation = generation
        # A second set of calls, beside gRPC's own, would cost as much as all the rest here.
        calls = active_calls(channel)
        self._adds_calls = calls is None
        self._calls: weakref.WeakSet[Any] = weakref.WeakSet() if calls is None else calls
        self._cut_off: frozenset[Any] = frozenset()

    def bind(self, arity: Arity, arguments: tuple[Any, ...]) -> Any:
        """The multicallable that gRPC has for a method."""
        return getattr(self.channel, arity.name)(*arguments)

    def hold(self, call: Any, arity: Arity) -> Any:
        """The call as the caller gets it: if it outlives its drain, it ends with the status `OUTLIVED`."""
        if self._adds_calls:
            self._calls.add(call)
        return arity.guarded(call, self)

    @override
    def failure(self, call: Any) -> Failure | None:
        return OUTLIVED if call in self._cut_off else None

    async def drain(self, seconds: float) -> None:
        """Lets the RPCs under way go on for at most so many seconds, then cuts them off.

        The channel closes at a random moment within that time. If it closed when the next one connects, it would show
        that both belong to the same device.

        gRPC's own grace is not used: RPCs that still wait in an interceptor would find the channel closed.
        """
        loop = asyncio.get_running_loop()
        moment = loop.time() + _random.uniform(0, seconds)
        open_calls = [call for call in self._calls if not call.done()]
        if open_calls:
            # These are not cancelled: that would cancel an interceptor's task. They end with their calls.
            ends = [asyncio.ensure_future(_end(call)) for call in open_calls]
            await asyncio.wait(ends, timeout=seconds)
        self._cut_off = frozenset(call for call in open_calls if not call.done())
        for call in self._cut_off:  # When grpc.aio 1.80 closes, it finds only some of them.
            call.cancel()
        await asyncio.sleep(max(0.0, moment - loop.time()))
        await self.channel.close()


async def _end(call: Any) -> None:
    with contextlib.suppress(Exception):  # An interceptor's exception; the caller sees it too.
        await call.code()


class NoChannel:
    """Stands in the place of a channel while there is none: RPCs end before they begin.

    Args:
        state: The channel's state.
        closed: The rotating channel is closed, so that an RPC is a mistake of its caller.
    """

    def __init__(self, state: grpc.ChannelConnectivity, *, closed: bool = False) -> None:
        self.channel = self
        self.generation = 0
        self._state = state
        self._closed = closed

    def bind(self, arity: Arity, arguments: tuple[Any, ...]) -> Any:
        """A multicallable that refuses all RPCs of a method."""

        def refuse(*_: Any, **__: Any) -> Any:
            if self._closed:
                raise grpc.aio.UsageError("Channel is closed.")
            return arity.refused(rpc_error(EXPIRED))

        return refuse

    def hold(self, call: Any, arity: Arity) -> Any:
        """The call as it is, because it has ended."""
        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state that it was made with."""
        return self._state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits for ever: the caller is cancelled when a channel takes this place.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        if last_observed_state == self._state:
            await asyncio.Event().wait()

    async def close(self, grace: float | None = None) -> None:
        """There is nothing to close."""
