"""What `dpmesh check` reports: all findings about some sources, and whether anything is protected at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpmesh.policy import Policy
from dpmesh.report import findings
from dpmesh.report.findings import Finding
from dpmesh.report.sources import SourceLocation, Sources
from dpmesh.report.wording import count


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check.

    Attributes:
        findings: In order of file and line, each once.
        message_types: How many message types were examined.
        protected_types: How many of them, and of those that an overlay names, protect something.
    """

    findings: Sequence[Finding]
    message_types: int = 0
    protected_types: int = 0

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(entry.severity == "error" for entry in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return len(self.findings) - self.errors

    @property
    def unprotected(self) -> str:
        """A sentence that warns that nothing is protected; "" if something is, or an error may be the reason."""
        if self.protected_types or self.errors:
            return ""
        if not self.message_types:
            return "Nothing is protected: there are no message types."
        anys = any(entry.rule == "any" for entry in self.findings)
        but = ", but for what their Anys pack" if anys else ""
        types = count(self.message_types, "message type")
        return f"Nothing is protected: all fields of {types} leave as they are{but}."

    @property
    def summary(self) -> str:
        """All of it in one line."""
        where = f" in {count(self.message_types, 'message type')}" if self.message_types else ""
        if not self.findings:
            return self.unprotected or f"No findings{where}."
        counts = f"{count(self.errors, 'error')}, {count(self.warnings, 'warning')}{where}."
        return f"{counts} {self.unprotected}".rstrip()


def check(sources: Sources, policy: Policy, overlays: Mapping[str, SourceLocation]) -> CheckReport:
    """Examines the message types of the files that were asked for, and those that the policy names.

    Args:
        sources: The descriptors.
        policy: The rules.
        overlays: Where the policy's entries are written, by the names that they overlay.
    """
    return CheckReport(
        findings.of_sources(sources, policy, overlays),
        sum(1 for _ in sources.messages()),
        findings.protected_types(sources, policy),
    )
