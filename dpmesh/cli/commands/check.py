"""`dpmesh check`: findings with file and line, like a linter."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.console import FOUND, OK, print_github, print_json, say, stdout
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from dpmesh.report.findings import CheckReport

HELP = (
    "Find what is wrong with annotations and overlays; exit code 1 on errors. "
    "dpmesh plan shows whether budgets pay for what leaves."
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
    """Prints all findings and a summary, and warns if nothing is protected."""
    from dpmesh import config as configuration
    from dpmesh.cli.descriptors import source_locations
    from dpmesh.cli.descriptors.protoc import CompileError
    from dpmesh.policy import Policy, overlay_file
    from dpmesh.report import findings

    settings = configuration.load(inputs.config_file(config_file))
    path = inputs.policy_file(policy_file, settings)
    document, empty = overlay_file.load_for_check(path) if path else (None, ())
    policy = Policy(document)
    budgets = configuration.budgets(configuration.with_policy(settings, policy.document))
    overlays = source_locations.of_overlays(path) if path else {}
    try:
        sources = inputs.load(protos, includes, descriptor_sets, reflect)
    except CompileError as error:
        report = findings.CheckReport([*error.findings, *findings.of_empty_entries(empty, overlays)])
    else:
        report = findings.check(sources, policy, overlays, budgets, empty)
    _WRITERS[Format.JSON if as_json else style](report)
    raise typer.Exit(FOUND if report.errors else OK)


def _text(report: CheckReport) -> None:
    from rich.text import Text

    console = stdout()
    for entry in report.findings:
        colour = "red" if entry.severity == "error" else "yellow"
        line = Text.assemble(
            (f"{entry.location}: ", "bold"),
            (str(entry.severity), colour),
            f" [{entry.rule}] ",
            (entry.element + ": " if entry.element else "", "bold"),
            entry.text,
        )
        console.print(line, soft_wrap=True)
        if entry.fix:
            console.print(Text(f"    fix: {entry.fix}", "dim"), soft_wrap=True)
    console.print(Text(report.summary, "yellow" if report.unprotected else ""), soft_wrap=True)


def _json(report: CheckReport) -> None:
    summary = {
        "errors": report.errors,
        "warnings": report.warnings,
        "message_types": report.message_types,
        "protected_types": report.protected_types,
    }
    print_json({"findings": [entry.document() for entry in report.findings], "summary": summary})


def _github(report: CheckReport) -> None:
    for entry in report.findings:
        properties = {"file": entry.location.file}
        if entry.location.line:
            properties |= {"line": str(entry.location.line), "col": str(entry.location.column or 1)}
        properties["title"] = f"dpmesh {entry.rule}"
        text = f"{entry.element}: {entry.text}" if entry.element else entry.text
        if entry.fix:
            text += f"\nFix: {entry.fix}"
        print_github(str(entry.severity), properties.items(), text)
    if report.unprotected:
        print_github("warning", [("title", "dpmesh")], report.unprotected)
    say(report.summary)


_WRITERS = {Format.TEXT: _text, Format.JSON: _json, Format.GITHUB: _github}
