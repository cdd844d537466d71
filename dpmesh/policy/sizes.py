"""Sizes: how long a protected message can be when it is encoded, from what each of its fields can hold.

Protobuf itself measures the values: it knows how its types are encoded, which zeros take no room, and what is packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from dpmesh.policy.descriptors import DEEPEST, INTEGER_RANGES, F, is_wrapper


@dataclass(frozen=True, slots=True)
class Size:
    """How many bytes a field or message takes.

    Attributes:
        smallest: No fewer than these.
        largest: No more than these; None where nothing bounds them.
        unbounded: The path of a field that has no bound; "" where there is one.
    """

    smallest: int = 0
    largest: int | None = 0
    unbounded: str = ""

    def __add__(self, other: Size) -> Size:
        largest = None if self.largest is None or other.largest is None else self.largest + other.largest
        return Size(self.smallest + other.smallest, largest, self.unbounded or other.unbounded)


NOTHING = Size()


def unbounded(path: str) -> Size:
    """The size of a field that may be absent or of any length."""
    return Size(0, None, path)


def one_of(sizes: Iterable[Size]) -> Size:
    """The size of at most one of several fields."""
    largest = 0
    for size in sizes:
        if size.largest is None:
            return unbounded(size.unbounded)
        largest = max(largest, size.largest)
    return Size(0, largest)


def of_values(field: FieldDescriptor, values: Iterable[Any], least: int = 1, most: int = 1) -> Size:
    """The size of a field that always leaves, and holds some of a few values.

    Args:
        field: It is no map.
        values: All values that it can hold, or those that are encoded shortest and longest. A wrapper's are plain.
        least: How many of them it holds at least, if it is repeated.
        most: How many of them it holds at most, if it is repeated.
    """
    if not field.is_repeated:
        sizes = [_measured(field, [value]) for value in values]
        return Size(min(sizes), max(sizes))
    widths = [width_in(field, value) for value in values]
    return Size(of_widths(field, [min(widths)] * least), of_widths(field, [max(widths)] * most))


def width_in(field: FieldDescriptor, value: Any) -> int:
    """How many bytes another element of a repeated field takes."""
    return _measured(field, [value, value]) - _measured(field, [value])


def of_widths(field: FieldDescriptor, widths: Sequence[int]) -> int:
    """The size of a repeated field whose elements take so many bytes each."""
    total = sum(widths)
    if not total or not field.is_packed:
        return total
    # All elements share one tag.
    return _varint(field.number << 3) + _varint(total) + total


def nested(field: FieldDescriptor, inner: Size, least: int = 1, most: int = 1) -> Size:
    """The size of a field that holds messages of some size, `least` to `most` of them."""
    smallest = _framed(field, inner.smallest) * least
    if inner.largest is None:
        return Size(smallest, None, inner.unbounded)
    return Size(smallest, _framed(field, inner.largest) * most)


def of_map(field: FieldDescriptor, keys: Sequence[Any], values: Sequence[Any]) -> Size:
    """The size of a map that holds all of some keys, each with a number that is one of a few values."""
    new, sizes = _holder(field), []
    for value in values:
        message = new()
        getattr(message, field.name).update(dict.fromkeys(keys, value))
        sizes.append(len(message.SerializePartialToString()))
    return Size(min(sizes), max(sizes))


def entries(field: FieldDescriptor, inner: Size, most: int, path: str) -> Size:
    """The size of a map from keys to messages of some size, with `most` entries or fewer.

    Args:
        field: The map.
        inner: The size of one message.
        most: How many there are at most; 0 if any number.
        path: Of the map.
    """
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    if not most or key.type not in (*INTEGER_RANGES, F.TYPE_BOOL):
        return unbounded(path)
    sizes = []
    for held in INTEGER_RANGES.get(key.type, (0, 1)):
        message = _holder(field)()
        getattr(message, field.name)[held].SetInParent()
        # Less the entry's own tag and length, and those of the empty message in it.
        sizes.append(
            len(message.SerializePartialToString()) - _varint(field.number << 3) - 1 - _framed(value, 0)
        )
    return Size(
        0, nested(field, nested(value, inner) + Size(0, max(sizes)), most=most).largest, inner.unbounded
    )


def shortest_and_longest(field: FieldDescriptor, low: float, high: float, step: float = 1) -> list[float]:
    """Those numbers from `low` to `high`, in steps, that are encoded shortest and longest.

    Whole numbers are longer the further they are from 0, and negative ones can be longer than all others. Of floats,
    only 0 has a length of its own.
    """
    if not low <= 0 <= high:
        return [low, high]
    if field.type not in INTEGER_RANGES:
        return [low, high, 0.0]
    first = low - low // step * step
    return [low, high, min(first, high), max(first - step, low)]


def public(field: FieldDescriptor, path: str) -> Size:
    """The size of a field that leaves as it is.

    Args:
        field: It may be absent.
        path: From the root message.
    """
    return Size(0, *_most(field, path, {}, 0))


def _most(
    field: FieldDescriptor, path: str, known: dict[Descriptor, tuple[int | None, str]], depth: int
) -> tuple[int | None, str]:
    """The largest size of a public field, and which field has none."""
    inside = field.message_type
    if field.is_repeated or field.type in (F.TYPE_STRING, F.TYPE_BYTES) or depth > DEEPEST:
        return None, path
    if inside is None:
        values: Iterable[Any] = INTEGER_RANGES.get(field.type) or (1,)
        if field.enum_type is not None:
            values = list(field.enum_type.values_by_number) if field.enum_type.is_closed else (-1,)
        return of_values(field, values).largest, ""
    if inside not in known:
        known[inside] = None, path
        sizes = []
        for oneof in (None, *inside.oneofs):
            members = [each for each in inside.fields if each.containing_oneof == oneof]
            most = []
            for each in members:
                largest, name = _most(each, f"{path}.{each.name}", known, depth + 1)
                if largest is None:
                    known[inside] = None, name
                    return None, name
                most.append(largest)
            sizes.append(sum(most) if oneof is None else max(most))
        known[inside] = sum(sizes), ""
    largest, name = known[inside]
    return (None, name) if largest is None else (_framed(field, largest), "")


def _framed(field: FieldDescriptor, length: int) -> int:
    """The size of a field that holds a message of so many bytes."""
    tag = _varint(field.number << 3)
    return length + tag + (tag if field.type == F.TYPE_GROUP else _varint(length))


def _varint(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _holder(field: FieldDescriptor) -> Any:
    """The class of the messages that have the field."""
    assert field.containing_type is not None
    return GetMessageClass(field.containing_type)


def _measured(field: FieldDescriptor, values: Sequence[Any]) -> int:
    """The size of a message that holds one or more values in one field, and nothing else."""
    message = _holder(field)()
    held = getattr(message, field.name) if field.is_repeated or field.message_type is not None else None
    for value in values:
        if held is None:
            setattr(message, field.name, value)
        elif field.message_type is None:
            held.append(value)
        else:
            _write(held.add() if field.is_repeated else held, value, field)
    return len(message.SerializePartialToString())


def _write(target: Any, value: Any, field: FieldDescriptor) -> None:
    target.SetInParent()
    if is_wrapper(field):
        target.value = value
    else:
        assert isinstance(value, Message)
        target.MergeFrom(value)
