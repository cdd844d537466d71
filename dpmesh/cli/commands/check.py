"""`dpmesh check`: findings with file and line, like a linter."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.console import FOUND, OK, print_github, print_json, say, stdout
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from dpmesh.cli.commands.findings import Finding

HELP = (
    "Find what is wrong with annotations and overlays; exit code 1 if a message type could not be released."
)
EPILOG = "Example: dpmesh check protos/acme/fleet.proto -I protos --policy policy.yaml"


class Format(enum.StrEnum):
    """How findings are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def check(
    protos: inputs.Protos = None,
    includes: inputs.Includes = None,
    descriptor_sets: inputs.DescriptorSets = None,
    reflect: inputs.Reflect = "",
    policy_file: inputs.PolicyFile = None,
    config_file: inputs.ConfigFile = None,
    style: Annotated[
        Format, typer.Option("--format", help="text, json, or github (annotations on a pull request).")
    ] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Prints all findings and a summary; says so when nothing is protected."""
    from dpmesh import config as configuration
    from dpmesh.cli.commands import findings
    from dpmesh.cli.descriptors.protoc import CompileError
    from dpmesh.policy import Policy

    path = inputs.policy_file(policy_file, configuration.load(inputs.config_file(config_file)))
    policy = Policy(path)
    try:
        sources = inputs.load(protos, includes, descriptor_sets, reflect)
    except CompileError as error:
        checked = Checked(findings.of_compiler(error), 0, 0)
    else:
        checked = Checked(
            findings.of_sources(sources, policy, path),
            sum(1 for _ in sources.messages()),
            findings.protected_types(sources, policy),
        )
    _WRITERS[Format.JSON if as_json else style](checked)
    raise typer.Exit(FOUND if checked.errors else OK)


@dataclass(frozen=True, slots=True)
class Checked:
    """What check found.

    Attributes:
        found: The findings.
        looked: How many message types were looked at.
        protected: How many of them, and of those that an overlay names, have something protected in them.
    """

    found: Sequence[Finding]
    looked: int
    protected: int

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(entry.severity == "error" for entry in self.found)

    @property
    def unprotected(self) -> str:
        """The sentence that says that nothing is protected; "" where something is, or may have been meant to be."""
        if self.protected or self.errors:
            return ""
        if not self.looked:
            return "Nothing is protected: there are no message types."
        anys = any(entry.rule == "any" for entry in self.found)
        but = ", but for what their Anys pack" if anys else ""
        return f"Nothing is protected: all fields of {_count(self.looked, 'message type')} leave as they are{but}."


def _summary(checked: Checked) -> str:
    warnings = len(checked.found) - checked.errors
    where = f" in {_count(checked.looked, 'message type')}" if checked.looked else ""
    if not checked.found:
        return checked.unprotected or f"No findings{where}."
    counts = f"{_count(checked.errors, 'error')}, {_count(warnings, 'warning')}{where}."
    return f"{counts} {checked.unprotected}".rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(checked: Checked) -> None:
    from rich.text import Text

    console = stdout()
    for entry in checked.found:
        colour = "red" if entry.severity == "error" else "yellow"
        line = Text.assemble(
            (f"{entry.place}: ", "bold"),
            (str(entry.severity), colour),
            f" [{entry.rule}] ",
            (entry.element + ": " if entry.element else "", "bold"),
            entry.text,
        )
        console.print(line, soft_wrap=True)
        if entry.fix:
            console.print(Text(f"    fix: {entry.fix}", "dim"), soft_wrap=True)
    console.print(Text(_summary(checked), "yellow" if checked.unprotected else ""), soft_wrap=True)


def _json(checked: Checked) -> None:
    summary = {
        "errors": checked.errors,
        "warnings": len(checked.found) - checked.errors,
        "message_types": checked.looked,
        "protected_types": checked.protected,
    }
    print_json({"findings": [entry.document() for entry in checked.found], "summary": summary})


def _github(checked: Checked) -> None:
    for entry in checked.found:
        properties = {"file": entry.place.file}
        if entry.place.line:
            properties |= {"line": str(entry.place.line), "col": str(entry.place.column or 1)}
        properties["title"] = f"dpmesh {entry.rule}"
        text = f"{entry.element}: {entry.text}" if entry.element else entry.text
        if entry.fix:
            text += f"\nFix: {entry.fix}"
        print_github(str(entry.severity), properties.items(), text)
    if checked.unprotected:
        print_github("warning", [("title", "dpmesh")], checked.unprotected)
    say(_summary(checked))


_WRITERS = {Format.TEXT: _text, Format.JSON: _json, Format.GITHUB: _github}
