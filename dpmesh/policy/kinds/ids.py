"""Fields that hold ids, and the pseudonym of an id in a field's own type."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.policy.descriptors import INTEGER_RANGES, F


def fits(field: FieldDescriptor) -> bool:
    """Whether a field can hold an id: string, bytes or integer."""
    return field.type in INTEGER_RANGES or field.type in (F.TYPE_STRING, F.TYPE_BYTES)


def is_short(field: FieldDescriptor) -> bool:
    """Whether a field is so short that pseudonyms of different ids collide."""
    return INTEGER_RANGES.get(field.type, (0, 2**63))[1] < 2**33


def encoded_ends(field: FieldDescriptor) -> list[str | bytes | int]:
    """Those pseudonyms in a field's type that are encoded shortest and longest."""
    if field.type == F.TYPE_STRING:
        return ["0" * 32]
    return [bytes(16)] if field.type == F.TYPE_BYTES else [1, INTEGER_RANGES[field.type][1]]


def in_type(field: FieldDescriptor, pseudonym: str) -> str:
    """The expression of a pseudonym in a field's type: hex digits, bytes, or as many low bits as fit above 0.

    Args:
        field: The field that holds it, which fits.
        pseudonym: The expression of its 16 bytes.
    """
    if field.type == F.TYPE_STRING:
        return f"{pseudonym}.hex()"
    if field.type == F.TYPE_BYTES:
        return pseudonym
    # 0 would read as absent.
    return f"int.from_bytes({pseudonym}, 'big') & {INTEGER_RANGES[field.type][1]} or 1"
