"""Anys: where a message can hold a google.protobuf.Any, and what of a message's content only its release can judge.

The type of what an Any packs is known at release only. So nobody can say of a message type that reaches an Any that it
has nothing to protect: each message tells. The same holds for extendable types, because an extension can hold an Any
and can have a rule, and the module that declares it can be imported at any time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.errors import AnnotationError, ProtectionError
from dpmesh.policy.descriptors import extensions, inside_of, is_map, is_map_entry, mark
from dpmesh.policy.rulebook import Rulebook
from dpmesh.v1 import privacy_pb2 as pb

ANY = "google.protobuf.Any"
# How many messages can lie in each other, and how many Anys: what protobuf's own parsers take.
DEEPEST = 100

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

FATES: dict[int, str] = {
    pb.MessageRules.PASS: "leave as they are",
    pb.MessageRules.SUPPRESS: "are dropped",
    pb.MessageRules.REJECT: "are refused",
}


class Found(NamedTuple):
    """An Any in a message.

    Attributes:
        any: The Any.
        holder: The message that holds it; the Any itself where no message does.
        field: The holder's field; None where no message holds it.
        key: Its index in a repeated field, or its key in a map.
        rule: The `unannotated` that holds for packed types without rules.
        units: The ids of all units around it within the message, the nearest first: each pays for what is packed.
        strict: It lies in a protected message, of which unknown fields and extensions never leave.
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


class _Way(NamedTuple):
    """A field that can lead to an Any.

    Attributes:
        field: The field.
        name: Its full name.
        inside: The message type that it holds.
        contents: From a message to the messages in the field, each with its index or key.
        rule: Of a field that holds Anys: its `unannotated`.
    """

    field: FieldDescriptor
    name: str
    inside: Descriptor
    contents: Callable[[Any], Iterable[tuple[Any, Any]]]
    rule: int | None


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


def refuse_ruled(message: Descriptor, book: Rulebook) -> None:
    """Refuses rules for the fields of Any itself: what an Any packs has rules of its own.

    Raises:
        AnnotationError: There is one.
    """
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
        The type of either pool. A message whose pool knows no annotations is judged by those of the default pool.

    Raises:
        ProtectionError: It names nothing that could be a message type.
    """
    name = type_url.rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise ProtectionError("WRONG_TYPE", field, "holds an Any whose type_url names no message type")
    found: list[Descriptor] = []
    default = descriptor_pool.Default()
    for place in (pool,) if pool is default else (pool, default):
        try:
            found.append(place.FindMessageTypeByName(name))
        except KeyError:
            continue
        if is_map_entry(found[-1]):
            raise ProtectionError("WRONG_TYPE", field, "holds an Any of a map's entry, which has no rules")
    return found


def directly(field: FieldDescriptor, rule: int) -> Find:
    """Finds the Anys of one field of a protected message."""
    contents, name = _contents(field), field.full_name

    def find(message: Any, _strict: bool) -> Iterator[Found]:
        for key, inner in contents(message):
            yield Found(inner, message, field, key, rule, (), True, name)

    return find


def within(enter: Callable[[Any], Iterable[Any]], find: Find) -> Find:
    """Finds the Anys in messages within a message."""
    return lambda message, strict: (found for inner in enter(message) for found in find(inner, strict))


def owned_by(read: Callable[[Any], bytes], find: Find) -> Find:
    """Finds the same Anys, around which the message's unit stands too."""

    def owning(message: Any, strict: bool) -> Iterator[Found]:
        for found in find(message, strict):
            yield found._replace(units=(*found.units, read(message)))

    return owning


def together(finds: Sequence[Find]) -> Find:
    """Finds what all of them find, in their order."""
    return lambda message, strict: (found for find in finds for found in find(message, strict))


class Loose:
    """Walks messages of types without rules, of whatever shape: types may hold themselves.

    Args:
        book: The rules: a `public` field leaves as it is, on purpose, with all that is in it.
    """

    def __init__(self, book: Rulebook) -> None:
        self._book = book
        self._open: dict[tuple[Descriptor, bool], bool] = {}
        self._followed: dict[Descriptor, tuple[_Way, ...]] = {}
        self._ways: dict[FieldDescriptor, _Way | None] = {}
        self._rules: dict[Descriptor, int] = {}

    def rule_of(self, field: FieldDescriptor, unannotated: int = pb.MessageRules.PASS) -> int:
        """What becomes of packed types without rules: the stricter of what the holder says and what Any itself says.

        Args:
            field: A field that holds Anys, or one of Any's own.
            unannotated: What the message that holds the Any says.
        """
        inside = inside_of(field)
        return self._rule(field.containing_type if inside is None else inside, unannotated)

    def _rule(self, message: Any, unannotated: int = pb.MessageRules.PASS) -> int:
        known = self._rules.get(message)
        if known is None:
            known = self._rules[message] = int(self._book.message(message).rules.unannotated)
        return max(unannotated, known)

    def reaches(self, message: Descriptor, *, strict: bool = False) -> bool:
        """Whether a message of this type can hold an Any, or an extension, which can hold one.

        Args:
            message: The type.
            strict: It stands in a protected one, whose extensions never leave.
        """
        known = self._open.get((message, strict))
        if known is None:
            types = self._types(message, strict=strict)
            found = any(is_any(at) or (at.is_extendable and not strict) for at in types)
            known = self._open[message, strict] = found
        return known

    def extendable(self, message: Descriptor) -> tuple[Descriptor, ...]:
        """All extendable types that the type reaches, also by the extensions that this process knows."""
        return tuple(at for at in self._types(message) if at.is_extendable)

    def around(self, message: Descriptor, *, strict: bool = False) -> tuple[set[str], set[str]]:
        """The names and the labels of the types in which an Any can lie, the type itself included.

        Args:
            message: The type.
            strict: It stands in a protected one.
        """
        types = [at for at in self._types(message, strict=strict) if self.reaches(at, strict=strict)]
        labels = {label for at in types for label in self._book.message(at).rules.labels}
        return {message.full_name, *(at.full_name for at in types)}, labels

    def places(self, message: Descriptor, path: str) -> Iterator[tuple[str, FieldDescriptor]]:
        """Each field within a type that holds Anys, once, with its path.

        Args:
            message: The type.
            path: What comes before the names of its fields.
        """
        seen, todo = {message.full_name}, [(message, path)]
        for at, before in todo:
            for field in (*at.fields, *extensions(at)):
                inside = inside_of(field)
                if inside is None or self._way(field) is None:
                    continue
                here = before + (f"({field.full_name})" if field.is_extension else field.name)
                if is_any(inside):
                    yield here, field
                elif inside.full_name not in seen:
                    seen.add(inside.full_name)
                    todo.append((inside, f"{here}{mark(field)}."))

    def find(self, message: Any, strict: bool) -> Iterator[Found]:
        """Finds the Anys in a message.

        Args:
            message: The message.
            strict: It lies in a protected one, whose extensions never leave and so need no look.

        Raises:
            ProtectionError: More messages lie in each other than protobuf can send.
        """
        kind = message.DESCRIPTOR
        if is_any(kind):
            yield Found(message, message, None, None, self._rule(kind), (), strict, ANY)
            return
        todo = [(message, kind, 1)]
        while todo:
            at, kind, depth = todo.pop()
            if depth > DEEPEST:
                text = f"more than {DEEPEST} messages lie in each other"
                raise ProtectionError("WRONG_TYPE", kind.full_name, text)
            ways = self._followed.get(kind) or self._follow(kind)
            if kind.is_extendable and not strict:
                ways += tuple(self._extended(at))
            for field, name, inside, contents, rule in ways:
                if rule is not None:
                    for key, inner in contents(at):
                        yield Found(inner, at, field, key, rule, (), strict, name)
                else:
                    todo += [(inner, inside, depth + 1) for _, inner in contents(at)]

    def find_strictly(self, message: Any, _strict: bool) -> Iterator[Found]:
        """Finds the Anys in a message that lies in a protected one."""
        return self.find(message, True)

    def _follow(self, message: Descriptor) -> tuple[_Way, ...]:
        """The fields of a type that can lead to an Any."""
        ways = tuple(way for field in message.fields if (way := self._way(field)) is not None)
        self._followed[message] = ways
        return ways

    def _extended(self, message: Any) -> Iterator[_Way]:
        """The extensions of a message that can lead to an Any."""
        for field, _ in message.ListFields():
            if not field.is_extension:
                continue
            if self._kind(field) not in (None, "public"):  # Its module was imported a moment ago.
                raise ProtectionError("INTERNAL", field.full_name, "has a rule that was not in force yet")
            way = self._way(field)
            if way is not None:
                yield way

    def _way(self, field: FieldDescriptor) -> _Way | None:
        """How a field of a message leads to Anys; None if it can't."""
        if field not in self._ways:
            inside, way = inside_of(field), None
            if inside is not None and self._kind(field) is None and self.reaches(inside):
                rule = self._rule(inside) if is_any(inside) else None
                way = _Way(field, field.full_name, inside, _contents(field), rule)
            self._ways[field] = way
        return self._ways[field]

    def _types(self, message: Descriptor, *, strict: bool = False) -> list[Descriptor]:
        """All types that the type reaches, itself included, but for those below `public`."""
        seen, todo = {message.full_name}, [message]
        for at in todo:
            for field in (*at.fields, *(() if strict else extensions(at))):
                inside = inside_of(field)
                if inside is None or inside.full_name in seen or self._kind(field) is not None:
                    continue
                seen.add(inside.full_name)
                todo.append(inside)
        return todo

    def _kind(self, field: FieldDescriptor) -> str | None:
        kind: str | None = self._book.field(field).rules.WhichOneof("kind")
        return kind


def _value(message: Any, field: FieldDescriptor) -> Any:
    return message.Extensions[field] if field.is_extension else getattr(message, field.name)


def _contents(field: FieldDescriptor) -> Callable[[Any], Iterable[tuple[Any, Any]]]:
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
