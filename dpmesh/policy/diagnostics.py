"""Problem: one thing wrong with an annotation, collected rather than raised, so that a user sees all at once."""

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
    """One finding.

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
        """The exception that this problem is when it is met at start."""
        return AnnotationError(self.rule, self.element, self.text, self.fix)


class BadRuleError(Exception):
    """Ends the compilation of one field; the compiler turns it into a Problem."""

    def __init__(self, rule: str, text: str, fix: str = "") -> None:
        super().__init__(text)
        self.rule = rule
        self.text = text
        self.fix = fix
