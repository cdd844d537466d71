"""Rotating channel: a grpc.aio channel whose client certificate is replaced while it is used, without a failed RPC.

How it works: gRPC for Python can't reload a client certificate, so each identity has a gRPC channel of its own. One of
them is in force, and new RPCs begin on it. An RPC stays on the channel that it began on.

| state      | in force                                    | new RPCs                       |
|------------|---------------------------------------------|--------------------------------|
| SERVING    | the channel of the newest identity          | begin on it                    |
| FOLLOWING  | the channel of an older, valid identity     | begin on it                    |
| NO IDENTITY| nothing                                     | end with UNAVAILABLE           |
| CLOSED     | nothing                                     | raise UsageError               |

| from        | event                                        | to                                           |
|-------------|----------------------------------------------|----------------------------------------------|
| SERVING     | the identity rotates                         | FOLLOWING; the new channel connects          |
| SERVING     | the identity ends                            | NO IDENTITY                                  |
| FOLLOWING   | the new channel is connected                 | SERVING; the old channel drains              |
| FOLLOWING   | it is not connected after `CONNECT` seconds  | FOLLOWING, with another new channel          |
| FOLLOWING   | the older identity ends                      | SERVING on the new channel, connected or not |
| NO IDENTITY | there is a new identity                      | SERVING on its channel, connected or not     |
| any         | `close`                                      | CLOSED                                       |

Draining: RPCs under way may go on for `drain` seconds and are then cut off. The old connection closes at a random
moment within that time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.aio.arities import ARITIES, refuse_twice
from dpmesh_grpc.aio.arities import interceptors as arity_interceptors
from dpmesh_grpc.aio.internals import interceptor_list
from dpmesh_grpc.rotation.identity_channel import IdentityChannel, NoChannel
from dpmesh_grpc.rotation.linkable_metadata import LINKING, Stripping
from dpmesh_grpc.rotation.multicallables import StreamStream, StreamUnary, UnaryStream, UnaryUnary

log = logging.getLogger("dpmesh.grpc")

# Seconds after which a channel that is not connected is made anew. gRPC itself waits ever longer between attempts.
CONNECT: Final = 10.0

_POOL: Final = "grpc.use_local_subchannel_pool"
_NAME: Final = "grpc.ssl_target_name_override"
_CACHE: Final = "grpc.ssl_session_cache"


def rotating_channel(
    target: str,
    identity: RotatingIdentity,
    *,
    server_name: str | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Iterable[Any] | None = None,
    drain: float = 30.0,
    keep: Collection[str] = (),
) -> grpc.aio.Channel:
    """A secure grpc.aio channel that follows an identity's rotation. It is used and closed like any other.

    No two identities ever share a TCP connection or a TLS session. While no identity is valid, RPCs end at once with
    UNAVAILABLE, also those with `wait_for_ready`. All devices send gRPC's default user agent; `options` must not
    change that, because it would tell devices apart (grpc.primary_user_agent). The channel does not hide the source
    address and the timing of its connections.

    Args:
        target: The server's address.
        identity: An opened identity, open for longer than the channel.
        server_name: The DNS name in the server's certificate; by default the identity's trust domain.
        options: More channel arguments.
        compression: As for grpc.aio.secure_channel.
        interceptors: As for grpc.aio.secure_channel. The channels of all identities share them.
        drain: Seconds for which RPCs may go on after their identity was replaced; then they end with UNAVAILABLE. The
            old connection closes at a random moment within that time, so that its end does not point at the new one.
        keep: Metadata keys that are sent although they may link identities: `("traceparent",)` for a trace that
            goes on at the server. All others in `dpmesh_grpc.rotation.linkable_metadata.LINKING` are removed.

    Raises:
        IdentityError: The identity is not open, or has ended.
        ConfigError: The options or the drain would link identities.
        RuntimeError: No event loop is running.
    """
    linking = LINKING - {key.lower() for key in keep}
    given_options, others = _checked(options or ()), tuple(interceptors or ())
    refuse_twice(others)
    # One more interceptor removes what the others add. Without others there is none, because it costs time.
    all_interceptors = (*others, *arity_interceptors(Stripping(linking))) if others else None
    if not 0 <= drain < float("inf"):
        raise ConfigError("drain must be a number of seconds, 0 or more")

    def connect() -> IdentityChannel:
        generation, current = identity.generation, identity.current
        credentials = grpc.ssl_channel_credentials(current.trust_bundle, current.key, current.certificates)
        name = (_NAME, server_name or current.trust_domain)
        channel = grpc.aio.secure_channel(
            target,
            credentials,
            options=(*given_options, name, (_POOL, 1)),
            compression=compression,
            interceptors=all_interceptors,
        )
        return IdentityChannel(channel, current, generation)

    return RotatingChannel(identity, connect, drain, linking)


def _multicallables(kind: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a channel by which stubs get the multicallables of one arity."""

    def multicallable(
        self: RotatingChannel,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return kind(self.usable, arguments, self._linking)

    return multicallable


class RotatingChannel(grpc.aio.Channel):  # type: ignore[misc]
    """The channel that `rotating_channel` returns.

    Args:
        identity: An opened identity, open for longer than the channel.
        connect: Makes a channel with the newest identity, or raises IdentityError. It is not connected yet.
        drain: Seconds for which RPCs may go on after their identity was replaced.
        linking: The metadata keys that are removed.
    """

    def __init__(
        self,
        identity: RotatingIdentity,
        connect: Callable[[], IdentityChannel],
        drain: float,
        linking: frozenset[str],
    ) -> None:
        self._identity = identity
        self._connect = connect
        self._linking = linking
        self._drain = drain
        self._no_identity = NoChannel(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        self._closed = False
        loop = asyncio.get_running_loop()
        first = self._connect()
        for name in map(interceptor_list, ARITIES):  # For `dpmesh_grpc.check_channel`.
            setattr(self, name, getattr(first.channel, name))
        self._in_force: IdentityChannel | NoChannel = first
        self._identity_in_force: Identity | None = first.identity
        self._replaced = asyncio.Event()
        self._drains: dict[IdentityChannel, asyncio.Task[None]] = {}
        # In an empty context: the channel may be made inside of a trace, which would otherwise go on.
        self._rotation = loop.create_task(self._rotate(), context=contextvars.Context())

    # -- RPCs ----------------------------------------------------------------------------------------------------------

    unary_unary = _multicallables(UnaryUnary)
    unary_stream = _multicallables(UnaryStream)
    stream_unary = _multicallables(StreamUnary)
    stream_stream = _multicallables(StreamStream)

    # -- the channel itself --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes the channels of all identities; RPCs under way may go on for `grace` seconds.

        Raises:
            ValueError: The grace is negative.
        """
        if grace is not None and grace < 0:
            raise ValueError("grace must be 0 or more")
        if self._closed:
            return
        self._closed = True
        channels = [*self._drains, self._in_force]
        self._replace(NoChannel(grpc.ChannelConnectivity.SHUTDOWN, closed=True))
        tasks = [self._rotation, *self._drains.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(each.channel.close(grace) for each in channels))
        await asyncio.gather(*tasks, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of the channel in force; TRANSIENT_FAILURE while there is none."""
        return self.usable().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until the state has changed, also because another channel is in force."""
        while True:
            replaced = asyncio.ensure_future(self._replaced.wait())
            changed = asyncio.ensure_future(self.usable().channel.wait_for_state_change(last_observed_state))
            try:
                await asyncio.wait((replaced, changed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                replaced.cancel()
                changed.cancel()
            if changed.done() and not changed.cancelled():
                changed.result()
                return
            if self.get_state() != last_observed_state:
                return

    async def channel_ready(self) -> None:
        """Waits until the channel in force is connected."""
        state = self.get_state(try_to_connect=True)
        while state != grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)
            state = self.get_state(try_to_connect=True)

    # -- rotation ------------------------------------------------------------------------------------------------------

    def usable(self) -> IdentityChannel | NoChannel:
        """The channel that new RPCs begin on. It is asked at each RPC, because time alone can end an identity."""
        try:
            if self._identity.current is self._identity_in_force:
                return self._in_force
        except IdentityError:
            return self._in_force if self._closed else self._no_identity
        # FOLLOWING: the newest identity's channel is not connected yet.
        return self._in_force if self._closed or self._seconds_left() > 0 else self._no_identity

    def _seconds_left(self) -> float:
        """Seconds until the identity in force ends; 0 when it has ended, or when there is none."""
        if self._identity_in_force is None:
            return 0.0
        left = max(self._identity_in_force.not_after - time.time(), 0.0)
        try:
            # While it is the newest, its own clocks decide whether it has ended. Ask again a second later.
            return left or (1.0 if self._identity.current is self._identity_in_force else 0.0)
        except IdentityError:
            return 0.0

    async def _rotate(self) -> None:
        """Follows the identity until it or the channel is closed."""
        generation = self._in_force.generation
        while True:
            try:
                async with asyncio.timeout(self._seconds_left() if self._identity_in_force else None):
                    await self._identity.wait(generation)
            except TimeoutError:
                if not self._seconds_left():
                    self._replace(self._no_identity)
                continue
            except IdentityError:  # The identity was closed before the channel.
                self._replace(self._no_identity)
                return
            generation = self._identity.generation
            try:
                generation = await self._follow()
            except Exception as error:
                # The channel in force stays until its identity ends; the next identity may do better.
                log.warning("no channel could be made under the new identity (%s)", type(error).__name__)

    async def _follow(self) -> int:
        """Puts the newest identity in force, once its channel is connected or the identity in force has ended.

        Returns:
            The generation of the newest identity.

        Raises:
            IdentityError: There is none.
        """
        while True:
            new = self._connect()
            try:
                async with asyncio.timeout(min(CONNECT, self._seconds_left())):
                    await new.channel.channel_ready()
            except TimeoutError:
                if self._seconds_left():
                    log.warning("no connection under the new identity yet; the old one stays in force")
                    await new.channel.close()
                    continue
            except BaseException:
                await new.channel.close()
                raise
            self._replace(new)
            return new.generation

    def _replace(self, new: IdentityChannel | NoChannel) -> None:
        """Puts a channel in force between two RPCs, and drains the old one."""
        old, self._in_force = self._in_force, new
        self._identity_in_force = new.identity if isinstance(new, IdentityChannel) else None
        self._replaced.set()
        self._replaced = asyncio.Event()
        if isinstance(old, IdentityChannel) and not self._closed:
            drain = asyncio.get_running_loop().create_task(old.drain(self._drain))
            self._drains[old] = drain
            drain.add_done_callback(lambda _: self._drains.pop(old, None))


def _checked(options: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """The channel arguments, without those that this module sets itself; ConfigError if one would link identities."""
    kept = tuple(options)
    for name, value in kept:
        if name == _CACHE or (name == _POOL and not value):
            raise ConfigError(f"channel argument {name} would let identities share a session or a connection")
        if name == _NAME:
            raise ConfigError("give the name in the server's certificate as server_name")
    return tuple(pair for pair in kept if pair[0] != _POOL)
