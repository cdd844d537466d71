"""Lanes: one for each direction of each method. What may leave on it is decided here, for all arities alike."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from dpmesh.errors import AnnotationError, DpmeshError, ProtectionError
from dpmesh.mesh import Direction, Mesh, Receipt, ReleaseStream

log = logging.getLogger("dpmesh.grpc")

Release = Callable[[Any], Awaitable[Receipt]]

# Peers choose the names of methods where a generic handler serves any: the table must not grow for ever.
METHODS_KEPT = 4096
_CONSUMERS_KEPT = 1024


class Lane:
    """What leaves a sender on one direction of one method.

    Args:
        mesh: Who releases.
        method: "/package.Service/Method".
        direction: Which way the messages go.
        declared: The type that the method declares, or None for a method that no loaded proto has.
        consumer: Who receives it, for quotas.

    Attributes:
        protected: Whether the declared type has anything to protect. None where each message decides: there is no
            declared type, or it can hold google.protobuf.Any or extensions.
        release: Releases one message on its own. Messages of a stream share a `stream()`.
    """

    def __init__(
        self,
        mesh: Mesh,
        method: str,
        direction: Direction,
        declared: Descriptor | None,
        consumer: str = "",
    ) -> None:
        self.method = method
        self.protected = None if declared is None else _protected(mesh, declared)
        self._mesh = mesh
        self._direction = direction
        self._declared = declared
        self._guarded: dict[type, bool] = {}
        self._others: dict[str, Lane] = {}
        self._lead(consumer)

    def _lead(self, consumer: str) -> None:
        """Sets where the lane leads."""
        self._consumer = consumer
        self.release: Release = functools.partial(
            self._mesh.release, method=self.method, direction=self._direction, consumer=consumer
        )

    def to(self, consumer: str) -> Lane:
        """The same lane to another consumer."""
        lane = self._others.get(consumer)
        if lane is None:
            if len(self._others) >= _CONSUMERS_KEPT:
                self._others.clear()
            lane = copy.copy(self)
            lane._lead(consumer)
            self._others[consumer] = lane
        return lane

    def stream(self) -> ReleaseStream:
        """What releases the messages of one RPC that is a stream in this direction."""
        return self._mesh.stream(method=self.method, direction=self._direction, consumer=self._consumer)

    def guards(self, kind: type) -> bool:
        """Whether a message of this class has to be released; otherwise it passes.

        Raises:
            ProtectionError: The lane is for another, protected type.
            AnnotationError: The type's annotations are bad.
        """
        guarded = self._guarded.get(kind)
        if guarded is None:
            guarded = self._guarded[kind] = self._judge(kind)
        return guarded

    def passes(self, kind: type) -> bool:
        """Whether a message of this class can go as it is, without being looked at any further."""
        try:
            return not self.guards(kind)
        except DpmeshError:
            return False

    def protect_now(self, message: Any) -> Any:
        """What `protect` gives for a message on its own, or None where only `protect` can tell."""
        try:
            if not self.guards(type(message)):
                return message
            receipt = self._mesh.release_now(
                message, method=self.method, direction=self._direction, consumer=self._consumer
            )
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:  # Whatever it is, its text stays here.
            kind = type(error).__name__
        else:
            return None if receipt is None else receipt.message
        # Raised outside of the handler, so that the original is not even its context.
        raise self._failed(kind)

    async def protect(self, message: Any, release: Release) -> Any:
        """What may leave instead of `message`.

        Args:
            message: What the application wants to send.
            release: The lane's `release`, or that of one of its streams.

        Raises:
            DpmeshError: Nothing may leave. In observe mode the message leaves all the same.
        """
        try:
            return (await release(message)).message if self.guards(type(message)) else message
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:
            kind = type(error).__name__
        raise self._failed(kind)

    def _observed(self, message: Any, error: DpmeshError) -> Any:
        log.warning("observe mode: a message of %s would have been refused: %s", self.method, str(error))
        return message

    def _failed(self, kind: str) -> ProtectionError:
        return ProtectionError("INTERNAL", self.method, f"a message could not be protected ({kind})")

    def _judge(self, kind: type) -> bool:
        if (
            self.protected
            and self._declared is not None
            and getattr(kind, "DESCRIPTOR", None) is not self._declared
        ):
            if kind is type(None) and self._direction == "response":
                return False  # A handler's None is no message, and gRPC says so.
            name = self._declared.full_name
            raise ProtectionError("WRONG_TYPE", name, f"{self.method} was given something else to send")
        return issubclass(kind, Message) and self._mesh.protects(kind)


def _protected(mesh: Mesh, declared: Descriptor) -> bool | None:
    try:
        return mesh.protection(message_factory.GetMessageClass(declared))
    except AnnotationError:
        return True  # Releasing a message says what is wrong with it.


class Method:
    """The two lanes of a method.

    Args:
        mesh: Who releases.
        name: "/package.Service/Method".
        consumer: Who receives requests, for quotas.

    Attributes:
        name: The same.
        request: What clients send.
        response: What servers send.
        requires: Servers refuse requests that no dpmesh sender has protected.
    """

    def __init__(self, mesh: Mesh, name: str, consumer: str = "") -> None:
        found = _find(name)
        self.name = name
        self.request = Lane(mesh, name, "request", None if found is None else found.input_type, consumer)
        self.response = Lane(mesh, name, "response", None if found is None else found.output_type)
        self.requires = mesh.requires(name)


class Methods(dict[str | bytes, Method]):
    """All methods that were seen, by name as gRPC gives it; decided at the first RPC and kept.

    Args:
        mesh: Who releases.
        consumer: Who receives requests, for quotas.
    """

    def __init__(self, mesh: Mesh, consumer: str = "") -> None:
        super().__init__()
        self._mesh = mesh
        self._consumer = consumer

    def __missing__(self, key: str | bytes) -> Method:
        if len(self) >= METHODS_KEPT:
            self.clear()
        method = self[key] = Method(
            self._mesh, key.decode() if isinstance(key, bytes) else key, self._consumer
        )
        return method


def _find(name: str) -> MethodDescriptor | None:
    try:
        return descriptor_pool.Default().FindMethodByName(name.lstrip("/").replace("/", "."))
    except KeyError:
        return None
