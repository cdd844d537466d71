"""Flow: decides what may leave on one direction of one method, for all kinds of RPC.

How it works:
    A transport looks a method up in its FlowTable, by name, and finds two flows: requests and responses.
    A flow decides by the class of each message whether it has to be released, and remembers the decision.
    `passes` says that a message leaves as it is. `protect` gives what leaves instead, or raises why nothing may.
    All decisions are made under one policy. Once the mesh has another, the table gives other flows:

    | what is under way   | decides under                                         |
    |---------------------|-------------------------------------------------------|
    | a single message    | the policy with which its flow was looked up          |
    | a request stream    | the policy with which it began, which it attests      |
    | a response stream   | the mesh's policy at each message                     |
    | what is withheld    | all of these and the mesh's: any of them withholds    |
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from dpmesh.bounded import BoundedTable
from dpmesh.errors import AnnotationError, DpmeshError, ProtectionError
from dpmesh.mesh.attested_policy import attestation
from dpmesh.mesh.receipt import Direction
from dpmesh.mesh.refusals import Refusal
from dpmesh.mesh.request_metadata import RequestMetadata
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.mesh.stream import ReleaseStream

if TYPE_CHECKING:
    from dpmesh.mesh.flow_table import FlowTable

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

_CONSUMERS_KEPT = 1024
# Applications can make message classes as they go, one for each RPC.
CLASSES_KEPT = 1024


class Flow:
    """What leaves a sender on one direction of one method.

    Args:
        table: The table that it is in.
        snapshot: The policy under which it decides.
        method: "/package.Service/Method".
        direction: Which way the messages go.
        declared: The type that the method declares, or None for a method that no loaded proto has.
        consumer: Who receives the messages, for quotas and pseudonyms.

    Attributes:
        protected: Whether the declared type has anything to protect. None where each message decides: there is no
            declared type, or it can hold google.protobuf.Any or extensions. Each message is judged by its own type in
            any case.
        request_metadata: What may leave of the metadata of the method's requests.
        attestation: What a sender says of its policy in the metadata of protected requests.
        send_slot: The seconds between two slots, in which alone messages leave; None where they leave at once.
        by_consumer: It matters who receives the messages: quotas count them, or pseudonyms may be in them.
    """

    def __init__(
        self,
        table: FlowTable,
        snapshot: PolicySnapshot,
        method: str,
        direction: Direction,
        declared: Descriptor | None,
        consumer: str = "",
    ) -> None:
        boundary = snapshot.is_trust_boundary(method)
        self.request_metadata = RequestMetadata(table.mesh, method, boundary, table.dropped_keys)
        self.method = method
        self.snapshot = snapshot
        self.protected = None if declared is None else _protected(snapshot, declared)
        required = snapshot.required_policy(method) if direction == "request" else None
        self.attestation = attestation(required, snapshot.policy.document.epoch)
        slotted = direction == "request" and not table.mesh.observing
        self.send_slot = snapshot.send_slot(method) if slotted else None
        self.by_consumer = snapshot.has_quotas or _by_consumer(snapshot, self.protected, declared)
        self._table = table
        self._mesh = table.mesh
        self._direction = direction
        self._declared = declared
        self._consumer = consumer
        # By message class: whether it has to be released. Shared by the copies for other consumers, and so is whether
        # a protected message came that the method does not declare, or that a later policy protected.
        self._needs_release: BoundedTable[type, bool] = BoundedTable(CLASSES_KEPT)
        self._other_protected = [False]
        self._by_consumer: BoundedTable[str, Flow] = BoundedTable(_CONSUMERS_KEPT)

    def for_consumer(self, consumer: str) -> Flow:
        """The same flow to another consumer."""
        if consumer == self._consumer:
            return self
        flow = self._by_consumer.get(consumer)
        if flow is None:
            flow = copy.copy(self)
            flow._consumer = consumer
            self._by_consumer[consumer] = flow
        return flow

    def stream(self) -> ReleaseStream:
        """What releases the messages of one RPC that is a stream in this direction."""
        return self._mesh.stream(
            method=self.method,
            direction=self._direction,
            consumer=self._consumer,
            snapshot=self.snapshot if self._direction == "request" else None,
        )

    def sensitive(self) -> bool:
        """Whether what goes along with messages (errors, metadata, their compressed size) may tell what they say.

        It may if messages are protected: because the method declares a protected type, or because a protected message
        came that it does not declare. Where that is unknown, it may as soon as any rule is in force. In observe mode
        nothing is withheld.
        """
        if self._mesh.observing:
            return False
        if self._other_protected[0] or self._may_protect():
            return True
        return self._outdated() and self._current().sensitive()

    def observes(self) -> bool:
        """Whether messages that would be protected leave as they are, because the mode is observe."""
        return self._mesh.observing and self._may_protect()

    def attests(self) -> bool:
        """Whether a stream says in its metadata that its sender protects it, which is settled before its messages."""
        return self._declared is not None and self.protected is not False

    def passes(self, kind: type) -> bool:
        """Whether a message of this class may leave as it is; otherwise it has to go through `protect`."""
        try:
            needs = self._needs_release[kind]
        except KeyError:
            try:
                needs = self.needs_release(kind)
            except Exception:
                return False  # `protect` raises it again.
        return not needs and self._mesh.snapshot is self.snapshot

    def needs_release(self, kind: type) -> bool:
        """Whether a message of this class has to be released; otherwise it may leave as it is.

        Raises:
            ProtectionError: The method declares another, protected type, or no rule can be found for such an object.
            AnnotationError: The type's annotations are bad.
        """
        needs = self._needs_release.get(kind)
        if needs is None:
            needs = self._judge(kind)
            if needs is None:
                return False
            if needs and self.protected is False:
                self._other_protected[0] = True
            self._needs_release[kind] = needs
        return needs

    def protect_now(self, message: Any) -> Any:
        """What `protect` gives for a single message, or None if that has to wait for the ledger.

        Raises:
            DpmeshError: Nothing may leave. In observe mode the message leaves anyway.
        """
        try:
            if not self._is_to_be_released(message, None, in_slot=False):
                return message
            receipt = self._mesh.release_now(
                message,
                method=self.method,
                direction=self._direction,
                consumer=self._consumer,
                snapshot=self.snapshot,
            )
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:  # Its text may quote a value.
            failed = type(error).__name__
        else:
            return None if receipt is None else receipt.message
        # Raised outside of the handler, so that the original is not even its context.
        raise self._internal_error(failed)

    async def protect(
        self, message: Any, stream: ReleaseStream | None = None, *, in_slot: bool = False
    ) -> Any:
        """What may leave instead of `message`: without waiting if a held lease pays for it, or else once it is charged.

        Args:
            message: What the application wants to send.
            stream: The stream that the message is part of, made by `stream()`; None for a single message.
            in_slot: What is given leaves in a slot of its own. Where `send_slot` is set, all else is refused.

        Raises:
            DpmeshError: Nothing may leave. In observe mode the message leaves anyway.
        """
        if stream is not None and self._direction == "response" and self._outdated():
            current = self._current()
            try:
                return await current.protect(message, stream)
            finally:  # A third policy may protect nothing, but it must not let out what this one withholds.
                self._other_protected[0] |= current.sensitive()
        try:
            if not self._is_to_be_released(message, stream, in_slot=in_slot):
                return message
            if stream is not None:
                return (await stream.release(message)).message
            receipt = await self._mesh.release(
                message,
                method=self.method,
                direction=self._direction,
                consumer=self._consumer,
                snapshot=self.snapshot,
            )
        except DpmeshError as error:
            if not self._mesh.observing:
                raise
            return self._observed(message, error)
        except Exception as error:
            failed = type(error).__name__
        else:
            return receipt.message
        raise self._internal_error(failed)

    def _is_to_be_released(self, message: Any, stream: ReleaseStream | None, *, in_slot: bool) -> bool:
        """Whether a message has to be released; otherwise it may leave as it is.

        Raises:
            DpmeshError: It is refused, as `needs_release` says or because it would leave outside of a slot. The refusal
                is recorded.
        """
        if self.send_slot is not None and not in_slot:
            self._refuse_outside_slot(stream)
        kind = type(message)
        needs = self._needs_release.get(kind)
        return self._check(kind, stream) if needs is None else needs

    def refuse_intercepted_twice(self, message: Any, stream: ReleaseStream | None) -> None:
        """Refuses a message that a second of dpmesh's interceptors would protect too, unless it needs no protection.

        Raises:
            ProtectionError: It is refused.
        """
        if self.passes(type(message)):
            return
        text = "two of dpmesh's interceptors would protect and charge for a message; give them once"
        error = ProtectionError("INTERCEPTED_TWICE", self.method, text)
        self._record(error, stream)
        try:
            raise error
        finally:
            del error  # It holds this frame, and so the message.

    def check_cover(self, cover: Any, stream: ReleaseStream | None = None) -> None:
        """Refuses a cover that can't be released, as PolicySnapshot.check_cover does, and records that.

        Raises:
            ProtectionError: It is refused.
        """
        try:
            self.snapshot.check_cover(self.method, cover)
        except DpmeshError as error:
            self._record(error, stream)
            raise

    def _refuse_outside_slot(self, stream: ReleaseStream | None) -> None:
        how = (
            "send it through dpmesh_grpc.PacedSender"
            if stream is None
            else "begin the RPC within dpmesh_grpc.slot_cover"
        )
        error = ProtectionError("SEND_SLOT", self.method, f"its requests leave in slots (send_slot): {how}")
        self._record(error, stream)
        try:
            raise error
        finally:
            del error  # It holds this frame.

    def record_refused_rpc(self, refusal: Refusal) -> None:
        """Records that an RPC is refused as a whole, before any message of this direction."""
        self._record(ProtectionError(refusal.reason, self.method, refusal.text), None)

    def _record(self, error: DpmeshError, stream: ReleaseStream | None) -> None:
        if stream is None:
            self._mesh.refused(error, method=self.method, direction=self._direction)
        else:
            stream.refused(error)

    def _may_protect(self) -> bool:
        return self.snapshot.has_rules() if self.protected is None else self.protected

    def _outdated(self) -> bool:
        """Whether the mesh has another policy by now."""
        return self._mesh.snapshot is not self.snapshot

    def _current(self) -> Flow:
        """This flow under the policy that the mesh has now."""
        method = self._table[self.method]
        flow = method.request if self._direction == "request" else method.response
        return flow.for_consumer(self._consumer)

    def _check(self, kind: type, stream: ReleaseStream | None) -> bool:
        """Does what `needs_release` does, and records a refusal."""
        try:
            return self.needs_release(kind)
        except DpmeshError as error:
            failed: DpmeshError = error
        except Exception as error:  # Classes of the application are asked for their descriptors.
            failed = self._internal_error(type(error).__name__)
        self._record(failed, stream)
        try:
            raise failed
        finally:
            del failed  # It holds this frame.

    def _observed(self, message: Any, error: DpmeshError) -> Any:
        if self._mesh.observed is not None:
            self._mesh.observed.note(log, self.method, error)
        return message

    def _internal_error(self, kind: str) -> ProtectionError:
        return ProtectionError("INTERNAL", self.method, f"a message could not be protected ({kind})")

    def _judge(self, kind: type) -> bool | None:
        """Decides whether messages of a class have to be released; None if not as long as no rule is in force."""
        if kind is type(None) and (self._direction == "response" or not self.protected):
            return False  # None is no message; the transport says so.
        descriptor = _descriptor(kind)
        if self.protected and self._declared is not None and descriptor is not self._declared:
            name = self._declared.full_name
            raise ProtectionError("WRONG_TYPE", name, f"{self.method} was given something else to send")
        if descriptor is not None:
            return self.snapshot.protection(kind) is not False
        if self.protected is False:
            return False  # Nothing of what the method declares is protected.
        if not self.snapshot.has_rules():
            return None
        if self._table.lets_untyped_pass(self.method):
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


def _protected(snapshot: PolicySnapshot, declared: Descriptor) -> bool | None:
    try:
        return snapshot.protection(message_factory.GetMessageClass(declared))
    except AnnotationError:
        return True  # Releasing a message says what is wrong with it.


def _by_consumer(snapshot: PolicySnapshot, protected: bool | None, declared: Descriptor | None) -> bool:
    """Whether pseudonyms may be in the messages of a flow: of any type, where the declared one is not protected."""
    if not protected or declared is None:
        return True
    try:
        return snapshot.pseudonymises(message_factory.GetMessageClass(declared))
    except AnnotationError:
        return True
