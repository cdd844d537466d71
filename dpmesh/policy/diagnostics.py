"""Diagnostics: what is wrong with annotations, collected rather than raised, so that a user sees all of it at once."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dpmesh.errors import AnnotationError


class Severity(enum.StrEnum):
    """ERROR: the message type can't be released. WARNING: it can, but look."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong with an annotation, or worth a look.

    Attributes:
        severity: Whether messages of this type can be released at all.
        rule: A stable id, such as "bounds".
        element: The full name of the field, oneof or message at fault.
        text: What is wrong.
        fix: What to write instead.
    """

    severity: Severity
    rule: str
    element: str
    text: str
    fix: str = ""

    def error(self) -> AnnotationError:
        """The exception that refuses the message type at start."""
        return AnnotationError(self.rule, self.element, self.text, self.fix)


class BadRuleError(Exception):
    """Ends the compilation of one field; the compiler turns it into a Diagnostic."""

    def __init__(self, rule: str, text: str, fix: str = "") -> None:
        super().__init__(text)
        self.rule = rule
        self.text = text
        self.fix = fix


class Diagnostics:
    """The diagnostics of one message type.

    Attributes:
        found: In the order of discovery, each once: a type that occurs at two sites would report everything twice.
    """

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    @property
    def has_errors(self) -> bool:
        """Whether the message type can't be released."""
        return any(entry.severity is Severity.ERROR for entry in self.found)

    def error(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Adds what keeps the message type from being released."""
        self._add(Diagnostic(Severity.ERROR, rule, element, text, fix))

    def warn(self, element: str, rule: str, text: str, fix: str = "") -> None:
        """Adds what is worth a look."""
        self._add(Diagnostic(Severity.WARNING, rule, element, text, fix))

    def bad_rule(self, element: str, bad: BadRuleError) -> None:
        """Adds a rule that contradicts itself or its field."""
        self.error(element, bad.rule, bad.text, bad.fix)

    def unreadable(self, error: AnnotationError) -> None:
        """Adds a rule that can't be read."""
        text = str(error).removeprefix(f"{error.element}: ").split(f" [{error.rule}]")[0]
        self.error(error.element, error.rule, text, error.fix)

    def _add(self, entry: Diagnostic) -> None:
        if entry not in self.found:
            self.found.append(entry)
