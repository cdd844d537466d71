"""Which rule holds for an element: its annotation, or the overlay that replaces it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from dpmesh import method_name
from dpmesh.bounded import BoundedTable
from dpmesh.errors import AnnotationError
from dpmesh.v1 import policy_pb2, privacy_pb2

_Options = TypeVar("_Options", bound=Message)

# Compiling a type asks several times for each of its elements, and parsing their options takes longest.
_REMEMBERED = 1024

ANNOTATION = "annotation"
OVERLAY = "overlay"
UNANNOTATED = "unannotated"


@dataclass(frozen=True, slots=True)
class ResolvedRule:
    """A rule and who made it.

    Attributes:
        rules: FieldRules, MessageRules, OneofRules or MethodRules; the empty message where there is no rule.
        origin: ANNOTATION, OVERLAY or UNANNOTATED.
    """

    rules: Any
    origin: str

    def __bool__(self) -> bool:
        return self.origin is not UNANNOTATED


class Rulebook:
    """Annotations and overlays behind one question: which rule holds for this element?

    A message class can come from another descriptor pool, which may have lost the annotations (by reflection, or from
    a descriptor set). So an element without a rule takes the rule of its twin in protobuf's default pool.

    Args:
        overlay: The policy file, or None for annotations alone.
    """

    def __init__(self, overlay: policy_pb2.Policy | None = None) -> None:
        self.overlay = policy_pb2.Policy()
        if overlay is not None:
            self.overlay.CopyFrom(overlay)
        canonical = self.overlay.SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(b"dpmesh.v1.Policy\0" + canonical).hexdigest()
        # By the element's descriptor. What twins say is not kept: another module may bring one.
        self._resolved: BoundedTable[Any, ResolvedRule] = BoundedTable(_REMEMBERED)

    def field(self, field: FieldDescriptor) -> ResolvedRule:
        """The FieldRules of a field."""
        own = self._resolve(
            field, field.full_name, self.overlay.fields, descriptor_pb2.FieldOptions, privacy_pb2.field
        )
        twins = () if own else _field_twins(field)
        return next((rule for twin in twins if (rule := self.field(twin))), own)

    def message(self, message: Descriptor) -> ResolvedRule:
        """The MessageRules of a message type."""
        names = self.overlay.messages
        own = self._resolve(
            message, message.full_name, names, descriptor_pb2.MessageOptions, privacy_pb2.message
        )
        twin = None if own else default_twin(message)
        return own if twin is None else self.message(twin)

    def oneof(self, oneof: OneofDescriptor) -> ResolvedRule:
        """The OneofRules of a oneof."""
        own = self._resolve(
            oneof, oneof.full_name, self.overlay.oneofs, descriptor_pb2.OneofOptions, privacy_pb2.oneof
        )
        message = None if own else default_twin(oneof.containing_type)
        twin = None if message is None else message.oneofs_by_name.get(oneof.name)
        return own if twin is None else self.oneof(twin)

    def method(self, method: MethodDescriptor) -> ResolvedRule:
        """The MethodRules of a method."""
        path = method_name.name_of(method)
        return self._resolve(
            method, path, self.overlay.methods, descriptor_pb2.MethodOptions, privacy_pb2.method
        )

    def _resolve(
        self, element: Any, name: str, overlays: Any, options: type[_Options], extension: Any
    ) -> ResolvedRule:
        resolved = self._resolved.get(element)
        if resolved is None:
            resolved = self._resolved[element] = self._parsed(element, name, overlays, options, extension)
        return resolved

    def _parsed(
        self, element: Any, name: str, overlays: Any, options: type[_Options], extension: Any
    ) -> ResolvedRule:
        if not element.has_options and name not in overlays:
            return ResolvedRule(options().Extensions[extension], UNANNOTATED)
        # The element may come from a descriptor pool that does not know the extension: parse its options again.
        parsed = options.FromString(element.GetOptions().SerializeToString())
        _refuse_uninterpreted(parsed, name)
        annotation = parsed.Extensions[extension]
        if name in overlays:
            rules = overlays[name]
            _refuse_unusable(rules, name)
            _refuse_dropped(annotation, rules, name)
            return ResolvedRule(rules, OVERLAY)
        if not parsed.HasExtension(extension):
            return ResolvedRule(annotation, UNANNOTATED)
        _refuse_unusable(annotation, name)
        return ResolvedRule(annotation, ANNOTATION)


def default_twin(message: Descriptor | None) -> Descriptor | None:
    """The type of the same name in protobuf's default pool, for a type of another pool."""
    pool = descriptor_pool.Default()
    if message is None or message.file.pool is pool:
        return None
    try:
        return pool.FindMessageTypeByName(message.full_name)
    except KeyError:
        return None


def _field_twins(field: FieldDescriptor) -> list[FieldDescriptor]:
    """The fields of the same name or number in protobuf's default pool, for a field of another pool."""
    message = default_twin(field.containing_type)
    if message is None:
        return []
    if field.is_extension:
        by_name = {each.full_name: each for each in message.file.pool.FindAllExtensions(message)}
        twins = [by_name.get(field.full_name)]
    else:
        twins = [message.fields_by_name.get(field.name), message.fields_by_number.get(field.number)]
    return [twin for twin in twins if twin is not None]


def says_nothing(rules: Message) -> bool:
    """Whether rules set nothing at all, so that they would count as absent."""
    return not rules.ByteSize()


def _refuse_unusable(rules: Message, name: str) -> None:
    _refuse_newer(rules, name)
    if says_nothing(rules):
        raise AnnotationError(
            "empty-rule", name, "has a rule that sets nothing", "say what it should do, or remove it"
        )


def _refuse_uninterpreted(options: Any, name: str) -> None:
    """Refuses options that a compiler left as text: protobuf would treat the element as not annotated."""
    for option in options.uninterpreted_option:
        if any(part.name_part.lstrip(".").startswith("dpmesh.v1.") for part in option.name):
            raise AnnotationError(
                "uninterpreted",
                name,
                "has an annotation that its compiler did not interpret",
                "compile the proto together with dpmesh/v1/privacy.proto",
            )


# What an overlay has to set if the annotation sets it: without it, the element would be open, or no budget that chooses
# by labels would pay.
_PROTECTIVE = {"kind", "unannotated", "require", "trust_boundary", "labels", "pad_to"}


def _refuse_dropped(annotation: Message, overlay: Message, name: str) -> None:
    """Refuses an overlay that would remove part of the annotation by saying nothing about it."""
    dropped = sorted((_settings(annotation) & _PROTECTIVE) - _settings(overlay))
    if dropped:
        raise AnnotationError(
            "overlay-drops",
            name,
            f"its overlay replaces the annotation as a whole, but leaves out its {' and '.join(dropped)}",
            f"set {' and '.join(dropped)} in the overlay",
        )


def _settings(rules: Message) -> set[str]:
    """What rules set, by name; `kind` for every kind, also one of a newer schema."""
    names = {
        field.containing_oneof.name
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        else field.name
        for field, _ in rules.ListFields()
    }
    if isinstance(rules, privacy_pb2.FieldRules) and len(UnknownFieldSet(rules)):
        names.add("kind")
    return names


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
