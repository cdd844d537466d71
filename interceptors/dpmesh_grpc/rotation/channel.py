"""Rotating channel: a grpc.aio channel whose client certificate changes under way, without a failed RPC.

gRPC for Python can't reload a client certificate, so there is a whole channel for each identity. The next one is made
and connected while the one in force serves; then new RPCs go to it, and those under way end where they began.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from dpmesh.errors import ConfigError, IdentityError
from dpmesh.identity import Identity
from dpmesh.identity.rotation.rotating_identity import RotatingIdentity
from dpmesh_grpc.aio.arities import ARITIES, refuse_twice
from dpmesh_grpc.aio.internals import interceptor_list
from dpmesh_grpc.rotation.identity_channel import IdentityChannel, NoChannel
from dpmesh_grpc.rotation.linkable_metadata import LINKING, stripping_interceptors
from dpmesh_grpc.rotation.multicallables import StreamStream, StreamUnary, UnaryStream, UnaryUnary

log = logging.getLogger("dpmesh.grpc")

# Seconds after which a channel that does not get ready is made anew: gRPC itself waits ever longer between attempts.
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
    UNAVAILABLE, also those that would wait for a connection. What a channel says of itself is gRPC's default, the
    same for all devices: `options` must not make it tell them apart (grpc.primary_user_agent). The connections' source
    address and their timing stay what they are.

    Args:
        target: The server's address.
        identity: An opened identity, open for longer than the channel.
        server_name: The DNS name in the server's certificate; by default the identity's trust domain.
        options: More channel arguments.
        compression: See grpc.aio.secure_channel.
        interceptors: See grpc.aio.secure_channel. They are shared by all identities' channels.
        drain: Seconds for which RPCs may go on after their identity was replaced; then they end with UNAVAILABLE. The
            old connection ends at a random moment within them, so that its end does not point at the new one.
        keep: Metadata keys that leave although they may tie identities together: `("traceparent",)` for a trace that
            goes on at the server. All others in `dpmesh_grpc.rotation.linkable_metadata.LINKING` are taken out.

    Raises:
        IdentityError: The identity is not open, or over.
        ConfigError: The options or the drain would link identities.
        RuntimeError: No event loop is running.
    """
    linking = LINKING - {key.lower() for key in keep}
    return RotatingChannel(target, identity, server_name, options, compression, interceptors, drain, linking)


class RotatingChannel(grpc.aio.Channel):  # type: ignore[misc]
    """See `rotating_channel`."""

    def __init__(
        self,
        target: str,
        identity: RotatingIdentity,
        server_name: str | None,
        options: Sequence[tuple[str, Any]] | None,
        compression: grpc.Compression | None,
        interceptors: Iterable[Any] | None,
        drain: float,
        linking: frozenset[str],
    ) -> None:
        self._target = target
        self._identity = identity
        self._server_name = server_name
        self._options = _checked(options or ())
        self._compression = compression
        self._linking = linking
        others = tuple(interceptors or ())
        refuse_twice(others)
        # What interceptors add is taken out by one more; without any, a channel has none, and costs what it did.
        self._interceptors = (*others, *stripping_interceptors(linking)) if others else None
        if not 0 <= drain < float("inf"):
            raise ConfigError("drain must be a number of seconds, 0 or more")
        self._drain = drain
        self._refusal = NoChannel(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        self._closed = False
        loop = asyncio.get_running_loop()
        first = self._connect()
        for name in map(interceptor_list, ARITIES):  # For `dpmesh_grpc.check_channel`.
            setattr(self, name, getattr(first.channel, name))
        self._link: IdentityChannel | NoChannel = first
        self._in_force: Identity | None = first.identity
        self._replaced = asyncio.Event()
        self._drains: dict[IdentityChannel, asyncio.Task[None]] = {}
        # In an empty context: what makes a channel may run inside of a trace.
        self._rotation = loop.create_task(self._rotate(), context=contextvars.Context())

    # -- RPCs ----------------------------------------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryUnaryMultiCallable:
        """See grpc.aio.Channel."""
        return UnaryUnary(
            self._live,
            (method, request_serializer, response_deserializer, _registered_method),
            self._linking,
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryStreamMultiCallable:
        """See grpc.aio.Channel."""
        return UnaryStream(
            self._live,
            (method, request_serializer, response_deserializer, _registered_method),
            self._linking,
        )

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamUnaryMultiCallable:
        """See grpc.aio.Channel."""
        return StreamUnary(
            self._live,
            (method, request_serializer, response_deserializer, _registered_method),
            self._linking,
        )

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamStreamMultiCallable:
        """See grpc.aio.Channel."""
        return StreamStream(
            self._live,
            (method, request_serializer, response_deserializer, _registered_method),
            self._linking,
        )

    # -- the channel itself --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Ends all channels; RPCs under way have `grace` seconds. See grpc.aio.Channel.

        Raises:
            ValueError: The grace is negative.
        """
        if grace is not None and grace < 0:
            raise ValueError("grace must be 0 or more")
        if self._closed:
            return
        self._closed = True
        links = [*self._drains, self._link]
        self._replace(NoChannel(grpc.ChannelConnectivity.SHUTDOWN, closed=True))
        tasks = [self._rotation, *self._drains.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(link.channel.close(grace) for link in links))
        await asyncio.gather(*tasks, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The state of the channel in force; TRANSIENT_FAILURE while there is none."""
        return self._live().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until the state is another one, whether it changed or the channel was replaced."""
        while True:
            replaced = asyncio.ensure_future(self._replaced.wait())
            changed = asyncio.ensure_future(self._live().channel.wait_for_state_change(last_observed_state))
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

    def _live(self) -> IdentityChannel | NoChannel:
        """What new RPCs begin on."""
        try:
            if self._identity.current is self._in_force:
                return self._link
        except IdentityError:
            return self._link if self._closed else self._refusal
        # The newest identity's channel is not connected yet.
        return self._link if self._closed or self._left() > 0 else self._refusal

    def _left(self) -> float:
        """Seconds until the identity in force is over; 0 when it is, or when there is none."""
        if self._in_force is None:
            return 0.0
        left = max(self._in_force.not_after - time.time(), 0.0)
        try:
            # While it is the newest, the identity's own clocks decide: asked again a second later.
            return left or (1.0 if self._identity.current is self._in_force else 0.0)
        except IdentityError:
            return 0.0

    def _connect(self) -> IdentityChannel:
        """A channel under the newest identity, not connected yet.

        Raises:
            IdentityError: There is none.
        """
        generation, identity = self._identity.generation, self._identity.current
        credentials = grpc.ssl_channel_credentials(identity.trust_bundle, identity.key, identity.certificates)
        name = (_NAME, self._server_name or identity.trust_domain)
        channel = grpc.aio.secure_channel(
            self._target,
            credentials,
            options=(*self._options, name, (_POOL, 1)),
            compression=self._compression,
            interceptors=self._interceptors,
        )
        return IdentityChannel(channel, identity, generation)

    async def _rotate(self) -> None:
        generation = self._link.generation
        while True:
            try:
                async with asyncio.timeout(self._left() if self._in_force else None):
                    await self._identity.wait(generation)
            except TimeoutError:
                if not self._left():
                    self._replace(self._refusal)
                continue
            except IdentityError:  # The identity was closed before the channel.
                self._replace(self._refusal)
                return
            generation = self._identity.generation
            try:
                generation = await self._follow()
            except Exception as error:
                # What is in force stays so until it is over; the next identity may do better.
                log.warning("no channel could be made under the new identity (%s)", type(error).__name__)

    async def _follow(self) -> int:
        """Puts the newest identity in force, once its channel is connected or the identity in force is over.

        Returns:
            Its generation.

        Raises:
            IdentityError: There is none.
        """
        while True:
            link = self._connect()
            try:
                async with asyncio.timeout(min(CONNECT, self._left())):
                    await link.channel.channel_ready()
            except TimeoutError:
                if self._left():
                    log.warning("no connection under the new identity yet; the old one stays in force")
                    await link.channel.close()
                    continue
            except BaseException:
                await link.channel.close()
                raise
            self._replace(link)
            return link.generation

    def _replace(self, link: IdentityChannel | NoChannel) -> None:
        """Puts a link in force between two RPCs, and lets the old one end."""
        old, self._link = self._link, link
        self._in_force = link.identity if isinstance(link, IdentityChannel) else None
        self._replaced.set()
        self._replaced = asyncio.Event()
        if isinstance(old, IdentityChannel) and not self._closed:
            drain = asyncio.get_running_loop().create_task(old.drain(self._drain))
            self._drains[old] = drain
            drain.add_done_callback(lambda _: self._drains.pop(old, None))


def _checked(options: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Channel arguments without those that this module sets, which must not contradict them.

    Raises:
        ConfigError: One of them would link identities.
    """
    kept = tuple(options)
    for name, value in kept:
        if name == _CACHE or (name == _POOL and not value):
            raise ConfigError(f"channel argument {name} would let identities share a session or a connection")
        if name == _NAME:
            raise ConfigError("give the name in the server's certificate as server_name")
    return tuple(pair for pair in kept if pair[0] != _POOL)
