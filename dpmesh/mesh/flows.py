"""Lanes: one for each direction of each method. What may leave on it is decided here, for all arities alike."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message

from dpmesh.errors import AnnotationError, ConfigError, DpmeshError, ProtectionError
from dpmesh.mesh.mesh import Mesh
from dpmesh.mesh.receipt import Direction, Receipt
from dpmesh.mesh.stream import ReleaseStream
from dpmesh.policy.policy import find_method

log = logging.getLogger("dpmesh.grpc")

Release = Callable[[Any], Awaitable[Receipt]]

# Peers choose the names of methods where a generic handler serves any: the table must not grow for ever.
METHODS_KEPT = 4096
_CONSUMERS_KEPT = 1024
# Applications can make message classes as they go, one for each RPC.
CLASSES_KEPT = 1024


class Unjudged:
    """Decides about objects that have no protobuf type, on methods that no loaded proto declares.

    No rule can be found for such an object, although its type may have some: objects of proto-plus and betterproto,
    or bytes that the application has serialized itself.

    Args:
        mesh: Whose configuration says what passes.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._globs = mesh.grpc.pass_unjudged
        self._warned: set[str] = set()

    def passes(self, method: str) -> bool:
        """Whether such an object may leave on a method; the first one on each method is logged.

        Args:
            method: "/package.Service/Method".
        """
        passes = any(fnmatchcase(method, glob) for glob in self._globs)
        if method not in self._warned:
            if len(self._warned) >= METHODS_KEPT:
                self._warned.clear()
            self._warned.add(method)
            if passes:
                text = "%s: objects that are no protobuf messages leave unprotected ([grpc] pass_unjudged)"
            elif self._mesh.observing:
                text = "observe mode: %s sends objects that are no protobuf messages, which would be refused"
            else:
                text = "%s: objects that are no protobuf messages are refused; [grpc] pass_unjudged lets them pass"
            log.warning(text, method)
        return passes


class Flow:
    """What leaves a sender on one direction of one method.

    Args:
        mesh: Who releases.
        method: "/package.Service/Method".
        direction: Which way the messages go.
        declared: The type that the method declares, or None for a method that no loaded proto has.
        unjudged: Decides about objects without a protobuf type.
        consumer: Who receives it, for quotas.

    Attributes:
        protected: Whether the declared type has anything to protect. None where each message decides: there is no
            declared type, or it can hold google.protobuf.Any or extensions. Each message is judged by its own type in
            any case.
    """

    def __init__(
        self,
        mesh: Mesh,
        method: str,
        direction: Direction,
        declared: Descriptor | None,
        unjudged: Unjudged,
        consumer: str = "",
    ) -> None:
        self.method = method
        self.protected = None if declared is None else _protected(mesh, declared)
        self._mesh = mesh
        self._direction = direction
        self._declared = declared
        self._unjudged = unjudged
        self._guarded: dict[type, bool] = {}
        # Whether a protected message came along although the method declares none; shared by the lane's copies.
        self._strays = [False]
        self._others: dict[str, Flow] = {}
        self._lead(consumer)

    def _lead(self, consumer: str) -> None:
        """Sets where the lane leads."""
        self._consumer = consumer
        self._release: Release = functools.partial(
            self._mesh.release, method=self.method, direction=self._direction, consumer=consumer
        )

    def to(self, consumer: str) -> Flow:
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

    def sensitive(self) -> bool:
        """Whether what goes along with messages (errors, metadata, their size when compressed) may tell what they said.

        It may where messages are protected: by what the method declares, or because one came along that it does not
        declare. Where it is not known whether they are, it may as soon as any rule is in force.
        """
        return self._mesh.has_rules() if self.protected is None else self.protected or self._strays[0]

    def attests(self) -> bool:
        """Whether a stream is marked as one of a sender that protects, which is settled before its first message."""
        return self._declared is not None and self.protected is not False

    def guards(self, kind: type) -> bool:
        """Whether a message of this class has to be released; otherwise it passes.

        Raises:
            ProtectionError: The lane is for another, protected type, or no rule can be found for such an object.
            AnnotationError: The type's annotations are bad.
        """
        guarded = self._guarded.get(kind)
        if guarded is None:
            guarded = self._judge(kind)
            if guarded is None:
                return False
            if guarded and self.protected is False:
                self._strays[0] = True
            if len(self._guarded) >= CLASSES_KEPT:
                self._guarded.clear()
            self._guarded[kind] = guarded
        return guarded

    def passes(self, kind: type) -> bool:
        """Whether a message of this class can go as it is, without being looked at any further."""
        guarded = self._guarded.get(kind)
        if guarded is not None:
            return not guarded
        try:
            return not self.guards(kind)
        except Exception:
            return False  # Whoever protects it says why it is refused.

    def protect_now(self, message: Any) -> Any:
        """What `protect` gives for a message on its own, or None where only `protect` can tell."""
        try:
            kind = type(message)
            if not (self._guarded.get(kind) or self._admits(kind, None)):
                return message
            receipt = self._mesh.release_now(
                message, method=self.method, direction=self._direction, consumer=self._consumer
            )
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:  # Whatever it is, its text stays here.
            failed = type(error).__name__
        else:
            return None if receipt is None else receipt.message
        # Raised outside of the handler, so that the original is not even its context.
        raise self._failed(failed)

    async def protect(self, message: Any, stream: ReleaseStream | None = None) -> Any:
        """What may leave instead of `message`.

        Args:
            message: What the application wants to send.
            stream: The one of the lane's streams that the message is part of, if it is.

        Raises:
            DpmeshError: Nothing may leave. In observe mode the message leaves all the same.
        """
        try:
            kind = type(message)
            if not (self._guarded.get(kind) or self._admits(kind, stream)):
                return message
            return (await (self._release if stream is None else stream.release)(message)).message
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:
            failed = type(error).__name__
        raise self._failed(failed)

    def refuse_twice(self, message: Any, stream: ReleaseStream | None) -> None:
        """Refuses a message that another of dpmesh's interceptors would protect too; what is not protected passes.

        Raises:
            ProtectionError: It is refused.
        """
        if not self.passes(type(message)):
            text = "two of dpmesh's interceptors would protect and charge for a message; give them once"
            error = ProtectionError("INTERCEPTED_TWICE", self.method, text)
            self._record(error, stream)
            try:
                raise error
            finally:
                del error  # It holds this frame, and so the message.

    def _record(self, error: DpmeshError, stream: ReleaseStream | None) -> None:
        if stream is None:
            self._mesh.refused(error, method=self.method, direction=self._direction)
        else:
            stream.refused(error)

    def _admits(self, kind: type, stream: ReleaseStream | None) -> bool:
        """What `guards` says; a refusal is recorded."""
        try:
            return self.guards(kind)
        except DpmeshError as error:
            failed: DpmeshError = error
        except Exception as error:  # Classes of the application are asked for their descriptors.
            failed = self._failed(type(error).__name__)
        self._record(failed, stream)
        try:
            raise failed
        finally:
            del failed  # It holds this frame.

    def _observed(self, message: Any, error: DpmeshError) -> Any:
        log.warning("observe mode: a message of %s would have been refused: %s", self.method, str(error))
        return message

    def _failed(self, kind: str) -> ProtectionError:
        return ProtectionError("INTERNAL", self.method, f"a message could not be protected ({kind})")

    def _judge(self, kind: type) -> bool | None:
        """The one place that decides about a class; None if it passes as long as no rule is in force."""
        if kind is type(None) and (self._direction == "response" or not self.protected):
            return False  # None is no message, and gRPC says so.
        descriptor = _descriptor(kind)
        if self.protected and self._declared is not None and descriptor is not self._declared:
            name = self._declared.full_name
            raise ProtectionError("WRONG_TYPE", name, f"{self.method} was given something else to send")
        if descriptor is not None:
            return self._mesh.protects(kind)
        if self.protected is False:
            return False  # Nothing of what the method declares is protected.
        if not self._mesh.has_rules():
            return None
        if self._unjudged.passes(self.method):
            return False
        raise ProtectionError(
            "NOT_JUDGED",
            self.method,
            "was given something to send that is no protobuf message, so no rule can be found for it; import the "
            "proto's _pb2 module and send its messages, or let the method pass with [grpc] pass_unjudged",
        )


def _descriptor(kind: type) -> Descriptor | None:
    """The descriptor of a protobuf message class; None for all other classes, also for those that look like one.

    A class of the application that derives from Message and borrows another type's descriptor can hold anything.
    """
    descriptor = getattr(kind, "DESCRIPTOR", None) if issubclass(kind, Message) else None
    if not isinstance(descriptor, Descriptor) or message_factory.GetMessageClass(descriptor) is not kind:
        return None
    return descriptor


def _protected(mesh: Mesh, declared: Descriptor) -> bool | None:
    try:
        return mesh.protection(message_factory.GetMessageClass(declared))
    except AnnotationError:
        return True  # Releasing a message says what is wrong with it.


class MethodFlows:
    """The two lanes of a method.

    Args:
        mesh: Who releases.
        name: "/package.Service/Method".
        found: What declares it, if a loaded proto does.
        unjudged: Decides about objects without a protobuf type.
        consumer: Who receives requests, for quotas.

    Attributes:
        name: The same.
        request: What clients send.
        response: What servers send.
        requires: Servers refuse requests that no dpmesh sender has protected.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        found: MethodDescriptor | None,
        unjudged: Unjudged,
        consumer: str = "",
    ) -> None:
        sent, answered = (None, None) if found is None else (found.input_type, found.output_type)
        self.name = name
        self.request = Flow(mesh, name, "request", sent, unjudged, consumer)
        self.response = Flow(mesh, name, "response", answered, unjudged)
        self.requires = mesh.requires(name)


class FlowTable(dict[str | bytes, MethodFlows]):
    """All methods that were seen, by name as gRPC gives it.

    A method that a loaded proto declares is decided at its first RPC and kept. All others are looked up again at each
    RPC, because their protos may have been loaded since.

    Args:
        mesh: Who releases.
        consumer: Who receives requests, for quotas.

    Raises:
        ConfigError: It is no mesh.
    """

    def __init__(self, mesh: Mesh, consumer: str = "") -> None:
        if not isinstance(mesh, Mesh):
            raise ConfigError(
                f"mesh: a {type(mesh).__name__} is no mesh; allowed: what dpmesh.open(...) returns"
            )
        super().__init__()
        self._mesh = mesh
        self._consumer = consumer
        self._unjudged = Unjudged(mesh)
        self._undeclared: dict[str | bytes, MethodFlows] = {}

    def __missing__(self, key: str | bytes) -> MethodFlows:
        name = key.decode() if isinstance(key, bytes) else key
        found = find_method(name)
        kept: dict[str | bytes, MethodFlows] = self._undeclared if found is None else self
        method = kept.get(key)
        if method is None:
            if len(kept) >= METHODS_KEPT:
                kept.clear()
            method = kept[key] = MethodFlows(self._mesh, name, found, self._unjudged, self._consumer)
        return method
