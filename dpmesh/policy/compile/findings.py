"""Findings: asks the rulebook, remembers what it answered, and collects what is wrong instead of stopping at it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from dpmesh.errors import AnnotationError
from dpmesh.policy.compile.anys import is_any, refuse_ruled
from dpmesh.policy.descriptors import extensions, is_map_entry
from dpmesh.policy.diagnostics import BadRuleError, Diagnostic, Severity
from dpmesh.policy.rulebook import UNANNOTATED, ResolvedRule, Rulebook
from dpmesh.v1 import privacy_pb2 as pb

_EMPTY: tuple[tuple[type, Any], ...] = (
    (Descriptor, pb.MessageRules()),
    (FieldDescriptor, pb.FieldRules()),
    (OneofDescriptor, pb.OneofRules()),
)


def is_protected(message: Descriptor, book: Rulebook) -> bool:
    """Whether any field reachable from a message type is to be noised, replaced or suppressed; extensions too.

    What an Any packs does not count: only a release can tell what it is.

    Raises:
        AnnotationError: A rule was written by a newer schema, or is for a field of google.protobuf.Any.
    """
    return judged(message, book)[message.full_name]


def judged(message: Descriptor, book: Rulebook) -> dict[str, bool]:
    """For the name of each type that a message type reaches, itself included: whether it has something to protect.

    Each type is looked at once, whatever the number of ways to it.

    Raises:
        AnnotationError: A rule was written by a newer schema.
    """
    seen: set[str] = {message.full_name}
    holders: dict[str, list[str]] = {}
    found: set[str] = set()
    todo = [message]
    while todo:
        at = todo.pop()
        for entry, ruled in _fields(at, book):
            if ruled:
                found.add(at.full_name)
            elif entry.message_type is not None:
                inside = entry.message_type
                holders.setdefault(inside.full_name, []).append(at.full_name)
                if inside.full_name not in seen:
                    seen.add(inside.full_name)
                    todo.append(inside)
    new = list(found)
    while new:
        above = [name for name in holders.get(new.pop(), ()) if name not in found]
        found.update(above)
        new += above
    return {name: name in found for name in seen}


def _fields(message: Descriptor, book: Rulebook) -> Iterator[tuple[FieldDescriptor, bool]]:
    """The fields of a type that do not leave as they are on purpose, and whether there is a rule to protect them."""
    if is_any(message):
        refuse_ruled(message, book)  # Its content is judged at release.
        return
    if is_map_entry(message):
        # Nobody can rule for an entry, only for the map and for what it holds.
        yield from ((entry, False) for entry in message.fields)
        return
    drops = book.message(message).rules.unannotated != pb.MessageRules.PASS
    for entry in (*message.fields, *extensions(message)):
        kind = book.field(entry).rules.WhichOneof("kind")
        if kind != "public":
            yield entry, drops or kind is not None


def is_strict(message: Descriptor, book: Rulebook) -> bool:
    """Whether a message type, or one that leaves within it, lets no field pass that has no annotation.

    Unknown fields have none, so they never leave, even where every known field is public.

    Raises:
        AnnotationError: A rule was written by a newer schema.
    """
    seen, todo = {message.full_name}, [message]
    for at in todo:
        has_rules = not is_any(at) and not is_map_entry(at)
        if has_rules and book.message(at).rules.unannotated != pb.MessageRules.PASS:
            return True
        for entry, _ in _fields(at, book):
            inside = entry.message_type
            if inside is not None and inside.full_name not in seen:
                seen.add(inside.full_name)
                todo.append(inside)
    return False


class Diagnostics:
    """What one compilation asked and what it found.

    Args:
        book: The rules that hold.

    Attributes:
        problems: Everything found, each once.
    """

    def __init__(self, book: Rulebook) -> None:
        self.problems: list[Diagnostic] = []
        self._book = book
        self._asked: dict[str, bytes] = {}
        # A type is met at many places, and parsing its options takes longer than all else that is done there.
        self._known: dict[str, ResolvedRule] = {}
        self._judged: dict[str, bool] = {}

    def version(self) -> str:
        """A digest of every rule that was looked at, 16 hex digits."""
        digest = hashlib.sha256(b"dpmesh.v1.Plan\0")
        for name in sorted(self._asked):
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(self._asked[name]), self._asked[name]))
        return digest.hexdigest()[:16]

    def field(self, field: FieldDescriptor) -> ResolvedRule:
        """The FieldRules of a field."""
        return self._ask(self._book.field, field)

    def message(self, message: Descriptor) -> ResolvedRule:
        """The MessageRules of a message type."""
        return self._ask(self._book.message, message)

    def oneof(self, oneof: OneofDescriptor) -> ResolvedRule:
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
        if inside.full_name not in self._judged:
            try:
                self._judged.update(judged(inside, self._book))
            except AnnotationError as error:
                self.refused(error)
                self._judged[inside.full_name] = False
        return self._judged[inside.full_name]

    def changes(self, field: FieldDescriptor) -> bool:
        """Whether the field leaves otherwise than as it is."""
        kind = self.kind(field)
        return kind != "public" if kind else self.holds_rules(field)

    def _ask(self, ask: Callable[[Any], ResolvedRule], element: Any) -> ResolvedRule:
        # Protobuf allows no two elements of one name.
        known = self._known.get(element.full_name)
        if known is None:
            known = self._known[element.full_name] = self._answer(ask, element)
        return known

    def _answer(self, ask: Callable[[Any], ResolvedRule], element: Any) -> ResolvedRule:
        try:
            ruling = ask(element)
        except AnnotationError as error:
            self.refused(error)
            return ResolvedRule(
                next(rules for kind, rules in _EMPTY if isinstance(element, kind)), UNANNOTATED
            )
        if ruling:
            self._asked[element.full_name] = ruling.rules.SerializeToString(deterministic=True)
        return ruling

    def error(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Something that keeps the message from being released."""
        self._add(Diagnostic(Severity.ERROR, rule, element, text, fix))

    def warn(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Something worth a look."""
        self._add(Diagnostic(Severity.WARNING, rule, element, text, fix))

    def bad(self, element: str, bad: BadRuleError) -> None:
        """A rule that contradicts itself or its field."""
        self.error(element, bad.rule, bad.text, bad.fix)

    def refused(self, error: AnnotationError) -> None:
        """A rule that can't be read."""
        text = str(error).removeprefix(f"{error.element}: ").split(f" [{error.rule}]")[0]
        self.error(error.element, error.rule, text, error.fix)

    def _add(self, problem: Diagnostic) -> None:
        # A type that occurs at two places has each of its problems once.
        if problem not in self.problems:
            self.problems.append(problem)
