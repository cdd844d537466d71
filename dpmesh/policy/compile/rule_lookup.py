"""RuleLookup: which rule holds for an element of one compilation, and a digest of all rules that were looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from dpmesh.errors import AnnotationError
from dpmesh.policy.compile.protected_types import protected_types
from dpmesh.policy.descriptors import inside_of
from dpmesh.policy.diagnostics import Diagnostics
from dpmesh.policy.kinds.kind import FieldKind
from dpmesh.policy.kinds.registry import kind_of
from dpmesh.policy.rulebook import UNANNOTATED, ResolvedRule, Rulebook
from dpmesh.v1 import privacy_pb2 as pb

# What stands for rules that can't be read. Nothing is released by it, and fields report nothing more.
_EMPTY: tuple[tuple[type, Any], ...] = (
    (Descriptor, pb.MessageRules()),
    (FieldDescriptor, pb.FieldRules(suppress=pb.Suppress())),
    (OneofDescriptor, pb.OneofRules()),
)


# Increased whenever an equal rule gets another law, such as another mechanism for AUTO: reports under two laws must not
# look as if they were of one. Since 2, AUTO takes the optimized Piecewise mechanism. Since 3, a place outside of a
# region counts as the nearest one in it, and PRIV_UNIT_G has fewer directions for vectors of up to 16 coordinates.
LAWS = 3


class RuleLookup:
    """Asks the rulebook for one compilation, and remembers the answers.

    Args:
        book: The rules that hold.
        around: What asks for the message around, if this asks for messages in a place of their own.

    Attributes:
        diagnostics: What is wrong so far, rules included that can't be read.
    """

    def __init__(self, book: Rulebook, around: RuleLookup | None = None) -> None:
        self.diagnostics: Diagnostics = Diagnostics() if around is None else around.diagnostics
        self._book = book
        self._serialized: dict[str, bytes] = {} if around is None else around._serialized
        self._protected: dict[tuple[str, Rulebook], bool] = {} if around is None else around._protected
        self._places: dict[Rulebook, RuleLookup] = {} if around is None else around._places
        self._places[book] = self
        # A type occurs at many sites, and parsing its options takes longer than everything else that is done there.
        self._rules: dict[Any, ResolvedRule] = {}

    def inside(self, field: FieldDescriptor) -> RuleLookup:
        """What asks for the messages in a field."""
        book = self._book.inside(field)
        return self._places.get(book) or RuleLookup(book, self)

    def version(self) -> str:
        """A digest of all that decides the law of what leaves; 16 hex digits.

        It is made of every rule that was looked up, of what of the schema decides what the rule does, and of what this
        version of dpmesh makes of it.
        """
        digest = hashlib.sha256(b"dpmesh.v1.Plan\0%d\0" % LAWS)
        for name, rules in sorted(self._serialized.items()):
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(rules), rules))
        return digest.hexdigest()[:16]

    def field(self, field: FieldDescriptor) -> ResolvedRule:
        """The FieldRules of a field."""
        return self._look_up(self._book.field, field)

    def message(self, message: Descriptor) -> ResolvedRule:
        """The MessageRules of a message type."""
        return self._look_up(self._book.message, message)

    def oneof(self, oneof: OneofDescriptor) -> ResolvedRule:
        """The OneofRules of a oneof."""
        return self._look_up(self._book.oneof, oneof)

    def kind(self, field: FieldDescriptor) -> FieldKind | None:
        """The kind of a field's rule, if it has one."""
        return kind_of(self.field(field).rules)

    def name(self, field: FieldDescriptor) -> str:
        """What to call a field in diagnostics: the overlay's path if one decides about it, or its full name."""
        return self.field(field).path or field.full_name

    def holds_rules(self, field: FieldDescriptor) -> bool:
        """Whether the field holds messages with something to protect in them."""
        inside = inside_of(field)
        if inside is None:
            return False
        book = self._book.inside(field)
        at = inside.full_name, book
        if at not in self._protected:
            try:
                self._protected.update(protected_types(inside, book))
            except AnnotationError as error:
                self.diagnostics.unreadable(error)
                self._protected[at] = False
        return self._protected[at]

    def refuse_idle_paths(self, field: FieldDescriptor) -> None:
        """Refuses overlays by path without effect in a field that leaves as it is."""
        for path in self._book.protective_paths(field):
            self.diagnostics.error(
                path,
                "path",
                f"protects nothing, because {field.full_name} leaves with all that is in it",
                "write rules for the fields at its end, or remove it",
            )

    def changes(self, field: FieldDescriptor) -> bool:
        """Whether the field leaves otherwise than as it is."""
        kind = self.kind(field)
        return self.holds_rules(field) if kind is None else not kind.passes

    def _look_up(self, ask: Callable[[Any], ResolvedRule], element: Any) -> ResolvedRule:
        resolved = self._rules.get(element)
        if resolved is None:
            resolved = self._rules[element] = self._ask(ask, element)
        return resolved

    def _ask(self, ask: Callable[[Any], ResolvedRule], element: Any) -> ResolvedRule:
        try:
            resolved = ask(element)
        except AnnotationError as error:
            self.diagnostics.unreadable(error)
            empty = next(rules for descriptor, rules in _EMPTY if isinstance(element, descriptor))
            return ResolvedRule(empty, UNANNOTATED)
        if resolved:
            rules = resolved.rules.SerializeToString(deterministic=True)
            self._serialized[resolved.path or element.full_name] = rules + _shape(element, resolved.rules)
        return resolved


def _shape(element: Any, rules: Any) -> bytes:
    """What of an element's schema decides the law of what leaves: the members of an enum, for example.

    Of fields that leave as they are, or not at all, it is nothing.
    """
    if isinstance(element, OneofDescriptor):
        return repr([member.name for member in element.fields]).encode()
    if not isinstance(element, FieldDescriptor) or rules.HasField("public") or rules.HasField("suppress"):
        return b""
    inside, enum = inside_of(element), element.enum_type
    members = () if enum is None else [(value.name, value.number) for value in enum.values]
    fields = () if inside is None else [(field.name, field.type) for field in inside.fields]
    shape = (element.type, element.is_repeated, element.has_presence, element.default_value, members, fields)
    return repr(shape).encode()
