"""Steps of fields that hold plain values, or that leave as they are."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.errors import ProtectionError
from dpmesh.policy.codegen.steps.step import Run, Step
from dpmesh.policy.descriptors import F, is_map, is_wrapper, may_extend, scalar
from dpmesh.policy.kinds.transforms import Transform
from dpmesh.policy.plan import Pseudonymise

_ID_BYTES = 16


def single(field: FieldDescriptor, transform: Transform) -> Step:
    """Applies a transform to a field that is always emitted, whether it was set or not."""
    name = field.name
    if is_wrapper(field):
        protect = transform.function()

        def wrapped(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            box = getattr(target, name)
            box.value = protect(getattr(source, name).value)
            box.SetInParent()

        return wrapped

    return name, transform


def repeated(field: FieldDescriptor, transform: Transform, items: int) -> Step:
    """Applies a transform to each of exactly `items` elements: cut, or filled up with defaults."""
    name = field.name
    protect = transform.function()
    filler = "" if scalar(field).type == F.TYPE_STRING else 0
    if is_wrapper(field):

        def wrapped(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            values = [box.value for box in getattr(source, name)[:items]]
            values += [filler] * (items - len(values))
            into = getattr(target, name)
            for value in values:
                into.add(value=protect(value))

        return wrapped

    def plain(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
        values = getattr(source, name)[:items]
        values += [filler] * (items - len(values))
        getattr(target, name).extend([protect(value) for value in values])

    return plain


def require_set(field: FieldDescriptor) -> Step:
    """Refuses a message that lacks a field with an aggregate: no default may stand in for it."""
    name, full_name = field.name, field.full_name

    def step(source: Any, _target: Any, _pseudonymise: Pseudonymise) -> None:
        if not source.HasField(name):
            raise ProtectionError("MISSING_AGGREGATE", full_name, "is absent, and holds an aggregate: set it")

    return step


def require_items(field: FieldDescriptor, items: int) -> Step:
    """Refuses a message with fewer elements than it shows, where they hold aggregates."""
    name, full_name = field.name, field.full_name
    text = f"has fewer elements than its max_items of {items}, and they hold aggregates: fill it up"

    def step(source: Any, _target: Any, _pseudonymise: Pseudonymise) -> None:
        if len(getattr(source, name)) < items:
            raise ProtectionError("MISSING_AGGREGATE", full_name, text)

    return step


def emptied(field: FieldDescriptor) -> Run:
    """A suppressed member of a oneof whose choice is randomized: it shows as set, and holds nothing."""
    name = field.name
    if field.message_type is not None:
        return lambda _source, target, _pseudonymise: getattr(target, name).SetInParent()
    default = field.default_value
    return lambda _source, target, _pseudonymise: setattr(target, name, default)


def random_id(field: FieldDescriptor) -> Step:
    """Writes 128 bits from the operating system, whatever the source holds."""
    draw: Callable[[int], str | bytes] = (
        secrets.token_hex if field.type == F.TYPE_STRING else secrets.token_bytes
    )
    return field.name, Transform(None, f"out = draw@({_ID_BYTES})", {"draw@": draw}, reads=False)


def passed(field: FieldDescriptor) -> Step:
    """Copies a field as it is, but for extensions."""
    copy, name = _copied(field), field.name
    if isinstance(copy, tuple) or field.message_type is None or not may_extend(field.message_type):
        return copy

    def without_extensions(source: Any, target: Any, pseudonymise: Pseudonymise) -> None:
        copy(source, target, pseudonymise)
        drop_extensions(target, only=name)

    return without_extensions


def drop_extensions(message: Any, only: str = "") -> None:
    """Clears the extensions in a message and in all messages within; or only those within one field."""
    for field, value in message.ListFields():
        if only and field.name != only:
            continue
        if field.is_extension:
            message.ClearExtension(field)
        elif is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                for inner in value.values():
                    drop_extensions(inner)
        elif field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                drop_extensions(inner)


def _copied(field: FieldDescriptor) -> Step:
    """Copies a field with all that is in it."""
    name = field.name
    if field.is_repeated:
        return lambda source, target, _pseudonymise: getattr(target, name).MergeFrom(getattr(source, name))
    if field.message_type is not None:

        def message(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            if source.HasField(name):
                getattr(target, name).CopyFrom(getattr(source, name))

        return message
    if field.has_presence:

        def optional(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            if source.HasField(name):
                setattr(target, name, getattr(source, name))

        return optional
    return name, Transform(None, "out = value", {})
