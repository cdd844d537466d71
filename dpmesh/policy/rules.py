"""Which rule holds for an element: its annotation, or the overlay that replaces it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dpmesh.errors import AnnotationError
from dpmesh.v1 import policy_pb2, privacy_pb2

_Options = TypeVar("_Options", bound=Message)

ANNOTATION = "annotation"
OVERLAY = "overlay"
UNANNOTATED = "unannotated"


@dataclass(frozen=True, slots=True)
class Ruling:
    """A rule and who made it.

    Attributes:
        rules: FieldRules, MessageRules, OneofRules or MethodRules; the empty message when nobody ruled.
        origin: ANNOTATION, OVERLAY or UNANNOTATED.
    """

    rules: Any
    origin: str

    def __bool__(self) -> bool:
        return self.origin is not UNANNOTATED


class Rulebook:
    """Annotations and overlays behind one question: what holds for this element?

    Args:
        overlay: The policy file, or None for annotations alone.
    """

    def __init__(self, overlay: policy_pb2.Policy | None = None) -> None:
        self.overlay = policy_pb2.Policy()
        if overlay is not None:
            self.overlay.CopyFrom(overlay)
        canonical = self.overlay.SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(b"dpmesh.v1.Policy\0" + canonical).hexdigest()

    def field(self, field: FieldDescriptor) -> Ruling:
        """The FieldRules of a field."""
        return self._ruling(
            field, field.full_name, self.overlay.fields, descriptor_pb2.FieldOptions, privacy_pb2.field
        )

    def message(self, message: Descriptor) -> Ruling:
        """The MessageRules of a message type."""
        names = self.overlay.messages
        return self._ruling(
            message, message.full_name, names, descriptor_pb2.MessageOptions, privacy_pb2.message
        )

    def oneof(self, oneof: OneofDescriptor) -> Ruling:
        """The OneofRules of a oneof."""
        return self._ruling(
            oneof, oneof.full_name, self.overlay.oneofs, descriptor_pb2.OneofOptions, privacy_pb2.oneof
        )

    def method(self, method: MethodDescriptor) -> Ruling:
        """The MethodRules of a method."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        return self._ruling(
            method, path, self.overlay.methods, descriptor_pb2.MethodOptions, privacy_pb2.method
        )

    def _ruling(
        self, element: Any, name: str, overlays: Any, options: type[_Options], extension: Any
    ) -> Ruling:
        if name in overlays:
            rules = overlays[name]
            _refuse_newer(rules, name)
            return Ruling(rules, OVERLAY)
        # The element may come from a descriptor pool that does not know the extension: parse its options again.
        parsed = options.FromString(element.GetOptions().SerializeToString())
        if not parsed.HasExtension(extension):
            return Ruling(parsed.Extensions[extension], UNANNOTATED)
        rules = parsed.Extensions[extension]
        _refuse_newer(rules, name)
        return Ruling(rules, ANNOTATION)


def _refuse_newer(rules: Message, name: str) -> None:
    """Refuses rules that a newer schema wrote: a kind this version can't read must not count as absent."""
    if len(UnknownFieldSet(rules)):
        raise AnnotationError(
            "newer-schema",
            name,
            "uses an annotation that this version of dpmesh does not know",
            "upgrade dpmesh",
        )
    for field, value in rules.ListFields():
        for each in value if field.is_repeated else (value,):
            if field.type == FieldDescriptor.TYPE_ENUM and not _knows(field, each):
                raise AnnotationError("newer-schema", name, f"has an unknown {field.name}", "upgrade dpmesh")
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                _refuse_newer(each, name)


def _knows(field: FieldDescriptor, number: int) -> bool:
    assert field.enum_type is not None
    return number in field.enum_type.values_by_number
