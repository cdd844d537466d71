"""`dpmesh check`: findings with file and line, like a linter."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli import inputs
from dpmesh.cli.console import FOUND, OK, print_github, print_json, say, stdout

if TYPE_CHECKING:
    from dpmesh.cli.findings import Finding

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
    style: Annotated[
        Format, typer.Option("--format", help="text, json, or github (annotations on a pull request).")
    ] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Prints all findings and a summary."""
    from dpmesh.cli import findings
    from dpmesh.cli.protoc import CompileError
    from dpmesh.policy import Policy

    policy = Policy(policy_file)
    try:
        sources = inputs.load(protos, includes, descriptor_sets, reflect)
    except CompileError as error:
        found, looked = findings.of_compiler(error), 0
    else:
        found, looked = findings.of_sources(sources, policy, policy_file), sum(1 for _ in sources.messages())
    _WRITERS[Format.JSON if as_json else style](found, looked)
    raise typer.Exit(FOUND if _errors(found) else OK)


def _errors(found: Sequence[Finding]) -> int:
    return sum(entry.severity == "error" for entry in found)


def _summary(found: Sequence[Finding], looked: int) -> str:
    errors = _errors(found)
    warnings = len(found) - errors
    where = f" in {_count(looked, 'message type')}" if looked else ""
    if not found:
        return f"No findings{where}."
    return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}{where}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(found: Sequence[Finding], looked: int) -> None:
    from rich.text import Text

    console = stdout()
    for entry in found:
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
    console.print(_summary(found, looked))


def _json(found: Sequence[Finding], looked: int) -> None:
    errors = _errors(found)
    summary = {"errors": errors, "warnings": len(found) - errors, "message_types": looked}
    print_json({"findings": [entry.document() for entry in found], "summary": summary})


def _github(found: Sequence[Finding], looked: int) -> None:
    for entry in found:
        properties = {"file": entry.place.file}
        if entry.place.line:
            properties |= {"line": str(entry.place.line), "col": str(entry.place.column or 1)}
        properties["title"] = f"dpmesh {entry.rule}"
        text = f"{entry.element}: {entry.text}" if entry.element else entry.text
        if entry.fix:
            text += f"\nFix: {entry.fix}"
        print_github(str(entry.severity), properties.items(), text)
    say(_summary(found, looked))


_WRITERS = {Format.TEXT: _text, Format.JSON: _json, Format.GITHUB: _github}
