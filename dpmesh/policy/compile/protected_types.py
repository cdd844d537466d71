"""Which message types hold something to protect, in their own fields or in those of messages within."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from dpmesh.policy.compile.anys import is_any, refuse_rules_inside
from dpmesh.policy.descriptors import extensions, inside_of, is_map_entry
from dpmesh.policy.kinds.registry import kind_of
from dpmesh.policy.rulebook import Rulebook
from dpmesh.v1 import privacy_pb2 as pb


def is_protected(message: Descriptor, book: Rulebook) -> bool:
    """Whether any field reachable from a message type is to be noised, replaced or suppressed; extensions too.

    What an Any packs does not count: only a release can tell what it is.

    Raises:
        AnnotationError: A rule was written by a newer schema, or is for a field of google.protobuf.Any.
    """
    return protected_types(message, book)[message.full_name, book]


def protected_types(message: Descriptor, book: Rulebook) -> dict[tuple[str, Rulebook], bool]:
    """For each type that a message type reaches, itself included: whether it has something to protect.

    Each type is looked at once for all places where the same rules hold, however many fields lead to it.

    Returns:
        By the type's name and the rules that hold for it.

    Raises:
        AnnotationError: A rule was written by a newer schema.
    """
    seen = {(message.full_name, book)}
    holders: dict[tuple[str, Rulebook], list[tuple[str, Rulebook]]] = {}
    protected: set[tuple[str, Rulebook]] = set()
    todo = [(message, book)]
    while todo:
        at, rules = todo.pop()
        for field, has_rule in _fields(at, rules):
            inside = inside_of(field)
            if has_rule:
                protected.add((at.full_name, rules))
            elif inside is not None:
                inner = inside.full_name, rules.inside(field)
                holders.setdefault(inner, []).append((at.full_name, rules))
                if inner not in seen:
                    seen.add(inner)
                    todo.append((inside, inner[1]))
    new = list(protected)
    while new:
        above = [name for name in holders.get(new.pop(), ()) if name not in protected]
        protected.update(above)
        new += above
    return {each: each in protected for each in seen}


def _fields(message: Descriptor, book: Rulebook) -> Iterator[tuple[FieldDescriptor, bool]]:
    """The fields of a type but for public ones, each with whether a rule protects it."""
    if is_any(message):
        refuse_rules_inside(message, book)  # What it packs is protected at release.
        return
    if is_map_entry(message):
        # An entry takes no rules: the map does, and what it holds.
        yield from ((field, False) for field in message.fields)
        return
    drops = book.message(message).rules.unannotated != pb.MessageRules.PASS
    for field in (*message.fields, *extensions(message)):
        kind = kind_of(book.field(field).rules)
        if kind is None or not kind.passes:
            yield field, drops or kind is not None


def is_strict(message: Descriptor, book: Rulebook) -> bool:
    """Whether a message type, or one that leaves within it, lets no field pass that has no annotation.

    Unknown fields have none, so they never leave, even where every known field is public.

    Raises:
        AnnotationError: A rule was written by a newer schema.
    """
    seen, todo = {(message.full_name, book)}, [(message, book)]
    for at, rules in todo:
        has_rules = not is_any(at) and not is_map_entry(at)
        if has_rules and rules.message(at).rules.unannotated != pb.MessageRules.PASS:
            return True
        for field, _ in _fields(at, rules):
            inside, within = inside_of(field), rules.inside(field)
            if inside is not None and (inside.full_name, within) not in seen:
                seen.add((inside.full_name, within))
                todo.append((inside, within))
    return False
