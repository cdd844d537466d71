"""Descriptors: what protobuf's types and fields are, in the terms that rules need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

F = FieldDescriptor

# How deep messages, Anys and the values of policy files can be nested: the limit of protobuf's own parsers.
DEEPEST = 100

# Inclusive ranges of what a field can hold.
INTEGER_RANGES: dict[int, tuple[int, int]] = {
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), (0, 2**64 - 1)),
}
FLOAT_LIMITS: dict[int, float] = {F.TYPE_FLOAT: 3.4028234e38, F.TYPE_DOUBLE: 1.7976931348623157e308}


def is_number(field: FieldDescriptor) -> bool:
    """Whether the field holds an integer or a float, or repeated ones. Wrappers are messages."""
    return field.type in INTEGER_RANGES or field.type in FLOAT_LIMITS


def limits(field: FieldDescriptor) -> tuple[float, float]:
    """The smallest and the largest finite number that a field of numbers holds."""
    return INTEGER_RANGES.get(field.type) or (-FLOAT_LIMITS[field.type], FLOAT_LIMITS[field.type])


_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


def is_wrapper(field: FieldDescriptor) -> bool:
    """Whether the field is one of google.protobuf's wrappers (DoubleValue and so on)."""
    return field.message_type is not None and field.message_type.full_name in _WRAPPERS


REPORT = "dpmesh.v1.CategoryReport"


def is_report(field: FieldDescriptor) -> bool:
    """Whether the field is a dpmesh.v1.CategoryReport, a repeated one or a map of them."""
    if field.message_type is None:
        return False
    inside = inside_of(field)
    return inside is not None and inside.full_name == REPORT


def _message_type(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def scalar(field: FieldDescriptor) -> FieldDescriptor:
    """The field that holds the value: the wrapper's own, or the field itself."""
    return _message_type(field).fields_by_name["value"] if is_wrapper(field) else field


def oneof_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """The oneof of several members that a field belongs to, or None.

    A oneof of one member, such as that of a proto3 `optional` field, only tells whether its member is set.
    """
    oneof = field.containing_oneof
    return oneof if oneof is not None and len(oneof.fields) > 1 else None


# A field of such a name hides a method that protecting a message needs.
RESERVED_NAMES = frozenset(
    {
        "HasField",
        "WhichOneof",
        "SetInParent",
        "CopyFrom",
        "ListFields",
        "ClearExtension",
        "DiscardUnknownFields",
    }
    | {"IsInitialized", "__deepcopy__"}
)


def is_map_entry(message: Descriptor) -> bool:
    """Whether the message type is what protoc makes for the entries of a map."""
    return bool(message.GetOptions().map_entry)


def with_nested(messages: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Message types, each before those nested in it, without the entries of maps."""
    for message in messages:
        if not is_map_entry(message):
            yield message
            yield from with_nested(message.nested_types)


def extensions(message: Descriptor) -> list[FieldDescriptor]:
    """The extensions of a message type that this process knows."""
    return list(message.file.pool.FindAllExtensions(message)) if message.is_extendable else []


def may_extend(message: Descriptor) -> bool:
    """Whether a message of this type, or any within it, can have extensions."""
    seen: set[str] = set()
    todo = [message]
    while todo:
        at = todo.pop()
        if at.is_extendable:
            return True
        if at.full_name not in seen:
            seen.add(at.full_name)
            todo += [field.message_type for field in at.fields if field.message_type is not None]
    return False


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map<key, value>."""
    return field.message_type is not None and is_map_entry(field.message_type)


def inside_of(field: FieldDescriptor) -> Descriptor | None:
    """The message type that a field holds; of a map, that of its values."""
    return _message_type(field).fields_by_name["value"].message_type if is_map(field) else field.message_type


def mark(field: FieldDescriptor) -> str:
    """What follows a field's name in the paths of a plan."""
    return "{}" if is_map(field) else "[]" if field.is_repeated else ""


def type_name(field: FieldDescriptor) -> str:
    """How a .proto file spells the field's type."""
    if is_map(field):
        return "a map"
    label = "repeated " if field.is_repeated else ""
    if field.message_type is not None:
        return label + field.message_type.full_name
    if field.enum_type is not None:
        return label + field.enum_type.full_name
    name = FieldDescriptorProto.Type.DESCRIPTOR.values_by_number[field.type].name
    return label + name.removeprefix("TYPE_").lower()
