"""Findings: asks the rulebook, remembers what it answered, and collects what is wrong instead of stopping at it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from dpmesh.errors import AnnotationError
from dpmesh.policy.problem import BadRuleError, Problem, Severity
from dpmesh.policy.rules import UNANNOTATED, Rulebook, Ruling
from dpmesh.policy.types import extensions, is_map_entry
from dpmesh.v1 import privacy_pb2 as pb

_EMPTY: tuple[tuple[type, Any], ...] = (
    (Descriptor, pb.MessageRules()),
    (FieldDescriptor, pb.FieldRules()),
    (OneofDescriptor, pb.OneofRules()),
)


def is_protected(message: Descriptor, book: Rulebook) -> bool:
    """Whether any field reachable from a message type is to be noised, replaced or suppressed; extensions too.

    Raises:
        AnnotationError: A rule was written by a newer schema.
    """
    seen: set[str] = set()
    todo = [message]
    while todo:
        at = todo.pop()
        if at.full_name in seen:
            continue
        seen.add(at.full_name)
        if is_map_entry(at):
            # Nobody can rule for an entry, only for the map and for what it holds.
            todo += [entry.message_type for entry in at.fields if entry.message_type is not None]
            continue
        drops = book.message(at).rules.unannotated != pb.MessageRules.PASS
        for entry in (*at.fields, *extensions(at)):
            kind = book.field(entry).rules.WhichOneof("kind")
            if kind not in (None, "public") or (kind is None and drops):
                return True
            if kind is None and entry.message_type is not None:
                todo.append(entry.message_type)
    return False


class Findings:
    """What one compilation asked and what it found.

    Args:
        book: The rules that hold.

    Attributes:
        problems: Everything found, each once.
    """

    def __init__(self, book: Rulebook) -> None:
        self.problems: list[Problem] = []
        self._book = book
        self._asked: dict[str, bytes] = {}
        # A type is met at many places, and parsing its options takes longer than all else that is done there.
        self._known: dict[str, Ruling] = {}
        self._holding: dict[str, bool] = {}

    def version(self) -> str:
        """A digest of every rule that was looked at, 16 hex digits."""
        digest = hashlib.sha256(b"dpmesh.v1.Plan\0")
        for name in sorted(self._asked):
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(self._asked[name]), self._asked[name]))
        return digest.hexdigest()[:16]

    def field(self, field: FieldDescriptor) -> Ruling:
        """The FieldRules of a field."""
        return self._ask(self._book.field, field)

    def message(self, message: Descriptor) -> Ruling:
        """The MessageRules of a message type."""
        return self._ask(self._book.message, message)

    def oneof(self, oneof: OneofDescriptor) -> Ruling:
        """The OneofRules of a oneof."""
        return self._ask(self._book.oneof, oneof)

    def kind(self, field: FieldDescriptor) -> str | None:
        """The kind of a field's rule, if it has one."""
        kind: str | None = self.field(field).rules.WhichOneof("kind")
        return kind

    def holds_rules(self, field: FieldDescriptor) -> bool:
        """Whether the field is a message with something to protect in it."""
        inside = field.message_type
        if inside is None:
            return False
        found = self._holding.get(inside.full_name)
        if found is None:
            try:
                found = is_protected(inside, self._book)
            except AnnotationError as error:
                self.refused(error)
                found = False
            self._holding[inside.full_name] = found
        return found

    def changes(self, field: FieldDescriptor) -> bool:
        """Whether the field leaves otherwise than as it is."""
        kind = self.kind(field)
        return kind != "public" if kind else self.holds_rules(field)

    def _ask(self, ask: Callable[[Any], Ruling], element: Any) -> Ruling:
        # Protobuf allows no two elements of one name.
        known = self._known.get(element.full_name)
        if known is None:
            known = self._known[element.full_name] = self._answer(ask, element)
        return known

    def _answer(self, ask: Callable[[Any], Ruling], element: Any) -> Ruling:
        try:
            ruling = ask(element)
        except AnnotationError as error:
            self.refused(error)
            return Ruling(next(rules for kind, rules in _EMPTY if isinstance(element, kind)), UNANNOTATED)
        if ruling:
            self._asked[element.full_name] = ruling.rules.SerializeToString(deterministic=True)
        return ruling

    def error(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Something that keeps the message from being released."""
        self._add(Problem(Severity.ERROR, rule, element, text, fix))

    def warn(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Something worth a look."""
        self._add(Problem(Severity.WARNING, rule, element, text, fix))

    def bad(self, element: str, bad: BadRuleError) -> None:
        """A rule that contradicts itself or its field."""
        self.error(element, bad.rule, bad.text, bad.fix)

    def refused(self, error: AnnotationError) -> None:
        """A rule that can't be read."""
        text = str(error).removeprefix(f"{error.element}: ").split(f" [{error.rule}]")[0]
        self.error(error.element, error.rule, text, error.fix)

    def _add(self, problem: Problem) -> None:
        # A type that occurs at two places has each of its problems once.
        if problem not in self.problems:
            self.problems.append(problem)
