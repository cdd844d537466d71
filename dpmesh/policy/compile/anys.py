"""Anys: finds the google.protobuf.Anys in a message at its release, where the types of what they pack are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy.descriptors import inside_of, is_map, is_map_entry
from dpmesh.policy.rulebook import Rulebook

ANY = "google.protobuf.Any"

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


class Found(NamedTuple):
    """An Any in a message.

    Attributes:
        any: The Any.
        holder: The message that holds it; the Any itself where it is the root message.
        field: The holder's field; None where the Any is the root message.
        key: Its index in a repeated field, or its key in a map.
        rule: The `unannotated` that holds for packed types without rules.
        units: The ids of all units around it within the message, the nearest first: each pays for what is packed.
        strict: It lies in a protected message, whose unknown fields and extensions never leave.
        name: The full name of the field, for errors.
    """

    any: Any
    holder: Any
    field: FieldDescriptor | None
    key: Any
    rule: int
    units: tuple[bytes, ...]
    strict: bool
    name: str

    def drop(self) -> None:
        """Takes the Any out of its holder. Of several in one field, the last one goes first."""
        if self.field is None:
            self.holder.Clear()
        elif self.key is not None:
            del _value(self.holder, self.field)[self.key]
        elif self.field.is_extension:
            self.holder.ClearExtension(self.field)
        else:
            self.holder.ClearField(self.field.name)


# Finds the Anys in a message. The flag says that the message lies in a protected one.
Find = Callable[[Any, bool], Iterable[Found]]


def is_any(message: Descriptor) -> bool:
    """Whether the type is google.protobuf.Any, of whatever pool."""
    return message.full_name == ANY


def holds_any(field: FieldDescriptor) -> bool:
    """Whether the field is an Any, a repeated Any or a map of Anys."""
    if field.message_type is None:
        return False
    inside = inside_of(field)
    return inside is not None and is_any(inside)


def refuse_rules_inside(message: Descriptor, book: Rulebook) -> None:
    """Refuses rules for the fields of google.protobuf.Any, and for an Any in one place: they would have no effect.

    Raises:
        AnnotationError: There is one.
    """
    if path := book.message(message).path:
        raise AnnotationError(
            "any",
            path,
            "ends at a google.protobuf.Any, whose messages take no rule for one place",
            "set `unannotated` on the message that holds it, or on google.protobuf.Any",
        )
    for field in message.fields:
        if book.field(field):
            raise AnnotationError(
                "any",
                field.full_name,
                "what an Any packs is protected by the rules of the packed type",
                "rule for the fields that hold an Any, or for google.protobuf.Any by `unannotated`",
            )


def find_types(type_url: str, pool: DescriptorPool, field: str) -> list[Descriptor]:
    """The message types that a type_url names.

    Args:
        type_url: What comes after the last "/" is the name.
        pool: Where to look first; then protobuf's default pool.
        field: The full name of the field that holds the Any.

    Returns:
        The type of each pool, because the annotations may be known to one of them only.

    Raises:
        ProtectionError: It can't be the name of a message type, or it names a map's entry.
    """
    name = type_url.rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise ProtectionError("WRONG_TYPE", field, "holds an Any whose type_url names no message type")
    found: list[Descriptor] = []
    default = descriptor_pool.Default()
    for each in (pool,) if pool is default else (pool, default):
        try:
            found.append(each.FindMessageTypeByName(name))
        except KeyError:
            continue
        if is_map_entry(found[-1]):
            raise ProtectionError("WRONG_TYPE", field, "holds an Any of a map's entry, which has no rules")
    return found


def directly(field: FieldDescriptor, rule: int) -> Find:
    """Finds the Anys of one field of a protected message."""
    contents, name = contents_of(field), field.full_name

    def find(message: Any, _strict: bool) -> Iterator[Found]:
        for key, inner in contents(message):
            yield Found(inner, message, field, key, rule, (), True, name)

    return find


def within(enter: Callable[[Any], Iterable[Any]], find: Find) -> Find:
    """Finds the Anys in messages within a message."""
    return lambda message, strict: (found for inner in enter(message) for found in find(inner, strict))


def owned_by(read: Callable[[Any], bytes], find: Find) -> Find:
    """Adds the message's own unit to those around each Any that is found."""

    def owning(message: Any, strict: bool) -> Iterator[Found]:
        for found in find(message, strict):
            yield found._replace(units=(*found.units, read(message)))

    return owning


def together(finds: Sequence[Find]) -> Find:
    """Finds the Anys that several functions find, in their order."""
    return lambda message, strict: (found for find in finds for found in find(message, strict))


def _value(message: Any, field: FieldDescriptor) -> Any:
    return message.Extensions[field] if field.is_extension else getattr(message, field.name)


def contents_of(field: FieldDescriptor) -> Callable[[Any], Iterable[tuple[Any, Any]]]:
    """From a message to the messages in one of its fields, each with its index or key."""
    name = field.name
    if is_map(field):

        def entries(message: Any) -> Iterable[tuple[Any, Any]]:
            held = getattr(message, name)
            return [(key, held[key]) for key in held]

        return entries
    if field.is_repeated:
        return lambda message: list(enumerate(_value(message, field)))
    if field.is_extension:
        return lambda message: [(None, message.Extensions[field])] if message.HasExtension(field) else ()
    return lambda message: [(None, getattr(message, name))] if message.HasField(name) else ()
