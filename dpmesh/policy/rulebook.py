"""Which rule holds for an element: its annotation, or the overlay that replaces it."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, OneofDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from typing_extensions import override

from dpmesh import method_name
from dpmesh.bounded import BoundedTable
from dpmesh.errors import AnnotationError
from dpmesh.policy import overlay_paths
from dpmesh.policy.descriptors import inside_of
from dpmesh.v1 import policy_pb2, privacy_pb2

_Options = TypeVar("_Options", bound=Message)

# Compiling a type asks several times for each of its elements, and parsing their options takes longest.
_REMEMBERED = 1024

ANNOTATION = "annotation"
OVERLAY = "overlay"
PATH_OVERLAY = "overlay by path"
UNANNOTATED = "unannotated"


@dataclass(frozen=True, slots=True)
class ResolvedRule:
    """A rule and who made it.

    Attributes:
        rules: FieldRules, MessageRules, OneofRules or MethodRules; the empty message where there is no rule.
        origin: ANNOTATION, OVERLAY, PATH_OVERLAY or UNANNOTATED.
        path: The overlay's name, if it is a path; "" otherwise.
    """

    rules: Any
    origin: str
    path: str = ""

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
        canonical = _rules_alone(self.overlay).SerializeToString(deterministic=True)
        self.digest = hashlib.sha256(b"dpmesh.v1.Policy\0" + canonical).hexdigest()
        # By the element's descriptor. What twins say is not kept: another module may bring one.
        self._resolved: BoundedTable[Any, ResolvedRule] = BoundedTable(_REMEMBERED)
        self._beginnings = overlay_paths.by_beginning(self.overlay)
        self._placed: dict[Any, Rulebook] = {}

    def inside(self, field: FieldDescriptor) -> Rulebook:
        """The rules that hold for the messages in a field: these, but for overlays whose path leads through it."""
        return self._inside(field, {})

    def protective_paths(self, field: FieldDescriptor) -> list[str]:
        """The overlays whose path leads through a field, and which are meant to protect something in it."""
        place = self.inside(field)
        if not isinstance(place, PlacedRulebook):
            return []
        rules = ((name, getattr(self.overlay, section)[name]) for (section, _), name in place.ahead.items())
        return sorted(name for name, each in rules if _means_protection(each))

    def _inside(self, field: FieldDescriptor, ahead: overlay_paths.Ahead) -> Rulebook:
        """The rules inside a field.

        Args:
            field: The field.
            ahead: What is left, after the field, of paths that begin further outside. They win over one that begins
                at this field.
        """
        inside = inside_of(field)
        if inside is None or field.is_extension:
            return self
        ahead = {**self._beginnings.get(field.full_name, {}), **ahead}
        if not ahead:
            return self
        # One for each of these, so that a type that holds itself leads to no more than finitely many.
        key = inside.full_name, frozenset(ahead.items())
        if key not in self._placed:
            self._placed[key] = PlacedRulebook(self, inside.full_name, ahead)
        return self._placed[key]

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


def _rules_alone(policy: policy_pb2.Policy) -> policy_pb2.Policy:
    """A policy without what has no influence on the values that leave."""
    rules = policy_pb2.Policy()
    rules.CopyFrom(policy)
    for name in ("version", "epoch", "mode", "budgets", "quotas"):
        rules.ClearField(name)
    return rules


class PlacedRulebook(Rulebook):
    """The rules that hold for a message type in one place, where overlays by path hold, too.

    Args:
        everywhere: The rules without a place.
        message: The full name of the type.
        ahead: What is left of the paths that lead into its messages.

    Attributes:
        ahead: What it was made with.
    """

    def __init__(self, everywhere: Rulebook, message: str, ahead: overlay_paths.Ahead) -> None:
        self.overlay = everywhere.overlay
        self.digest = everywhere.digest
        self._everywhere = everywhere
        self._message = message
        self.ahead = ahead
        self._entered = overlay_paths.entered(ahead)

    @override
    def inside(self, field: FieldDescriptor) -> Rulebook:
        ahead = self._entered.get(field.name, {}) if self._is_here(field) else {}
        return self._everywhere._inside(field, ahead)

    @override
    def field(self, field: FieldDescriptor) -> ResolvedRule:
        rest = field.name if self._is_here(field) else None
        return self._place("fields", rest, self._everywhere.field(field))

    @override
    def message(self, message: Descriptor) -> ResolvedRule:
        rest, everywhere = (
            "" if message.full_name == self._message else None,
            self._everywhere.message(message),
        )
        placed = self._place("messages", rest, everywhere)
        if set(placed.rules.labels) != set(everywhere.rules.labels):
            raise AnnotationError(
                "path-labels",
                placed.path,
                f"has other labels than {message.full_name}, and budgets choose by the type of a message",
                "set its labels under the full name of the type",
            )
        return placed

    @override
    def oneof(self, oneof: OneofDescriptor) -> ResolvedRule:
        rest = oneof.name if oneof.containing_type.full_name == self._message else None
        return self._place("oneofs", rest, self._everywhere.oneof(oneof))

    def _is_here(self, field: FieldDescriptor) -> bool:
        holder = field.containing_type
        return not field.is_extension and holder is not None and holder.full_name == self._message

    def _place(self, section: str, rest: str | None, everywhere: ResolvedRule) -> ResolvedRule:
        """The overlay by path, if one ends at an element; otherwise the rule that holds for it everywhere."""
        path = None if rest is None else self.ahead.get((section, rest))
        if path is None:
            return everywhere
        rules = getattr(self.overlay, section)[path]
        _refuse_unusable(rules, path)
        # Padding is for messages that leave by themselves, which those in one place do not.
        _refuse_dropped(everywhere.rules, rules, path, _PROTECTIVE - {"pad_to"})
        return ResolvedRule(rules, PATH_OVERLAY, path)


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


def _means_protection(rules: Message) -> bool:
    """Whether a rule of a field, message or oneof would be a mistake where it has no effect."""
    if isinstance(rules, privacy_pb2.FieldRules):
        return not rules.HasField("public")
    if isinstance(rules, privacy_pb2.MessageRules) and (rules.pad_to or rules.unannotated):
        return True
    return isinstance(rules, (privacy_pb2.MessageRules, privacy_pb2.OneofRules)) and rules.HasField("epsilon")


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
_PROTECTIVE = frozenset(
    {"kind", "unannotated", "require", "require_policy", "trust_boundary", "labels", "pad_to", "send_slot"}
)


def _refuse_dropped(
    annotation: Message, overlay: Message, name: str, protective: Set[str] = _PROTECTIVE
) -> None:
    """Refuses an overlay that would remove a protective part of the annotation by saying nothing about it."""
    dropped = sorted((_settings(annotation) & protective) - _settings(overlay))
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
