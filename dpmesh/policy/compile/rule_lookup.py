"""RuleLookup: which rule holds for an element of one compilation, and a digest of all rules that were looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from dpmesh.errors import AnnotationError
from dpmesh.policy.compile.protected_types import protected_types
from dpmesh.policy.diagnostics import Diagnostics
from dpmesh.policy.kinds.kind import FieldKind
from dpmesh.policy.kinds.registry import kind_of
from dpmesh.policy.rulebook import UNANNOTATED, ResolvedRule, Rulebook
from dpmesh.v1 import privacy_pb2 as pb

_EMPTY: tuple[tuple[type, Any], ...] = (
    (Descriptor, pb.MessageRules()),
    (FieldDescriptor, pb.FieldRules()),
    (OneofDescriptor, pb.OneofRules()),
)


# Increased whenever an equal rule gets another law, such as another mechanism for AUTO: reports under two laws must not
# look as if they were of one. Since 2, AUTO takes the optimized Piecewise mechanism.
LAWS = 2


class RuleLookup:
    """Asks the rulebook for one compilation, and remembers the answers.

    Args:
        book: The rules that hold.

    Attributes:
        diagnostics: What is wrong so far, rules included that can't be read.
    """

    def __init__(self, book: Rulebook) -> None:
        self.diagnostics = Diagnostics()
        self._book = book
        self._serialized: dict[str, bytes] = {}
        # A type occurs at many sites, and parsing its options takes longer than everything else that is done there.
        self._rules: dict[Any, ResolvedRule] = {}
        self._protected: dict[str, bool] = {}

    def version(self) -> str:
        """A digest of every rule that was looked up, and of what this version of dpmesh makes of it; 16 hex digits."""
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

    def holds_rules(self, field: FieldDescriptor) -> bool:
        """Whether the field holds messages with something to protect in them."""
        inside = field.message_type
        if inside is None:
            return False
        if inside.full_name not in self._protected:
            try:
                self._protected.update(protected_types(inside, self._book))
            except AnnotationError as error:
                self.diagnostics.unreadable(error)
                self._protected[inside.full_name] = False
        return self._protected[inside.full_name]

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
            self._serialized[element.full_name] = resolved.rules.SerializeToString(deterministic=True)
        return resolved
