"""`dpmesh plan`: what leaves with each RPC, at what loss and error, and how long the budgets last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmesh.cli.console import FOUND, OK, InputError, print_json
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from dpmesh.report.sources import Sources

HELP = (
    "Show what leaves with each RPC: fields, mechanisms, loss, expected error, and how long the budgets last."
)
EPILOG = (
    "Example: dpmesh plan protos/acme/fleet.proto --config dpmesh.toml --rate 30/h --against old/fleet.proto"
)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_RATE = re.compile(r"(\d+(?:\.\d+)?)/([smhd])")


def plan(
    protos: inputs.Protos = None,
    includes: inputs.Includes = None,
    descriptor_sets: inputs.DescriptorSets = None,
    reflect: inputs.Reflect = "",
    policy_file: inputs.PolicyFile = None,
    config_file: inputs.ConfigFile = None,
    rate: Annotated[
        str,
        typer.Option(
            metavar="N/s|m|h|d",
            help="Messages per second, minute, hour or day: of one unit, or of all for a global budget; "
            "to one consumer for a quota. Requests of a method with send_slot leave at one each slot instead.",
        ),
    ] = "1/m",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="Show what changed since OLD: a .proto file, a descriptor set, or a policy file.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        bool, typer.Option("--source", help="Also show the Python code that protects each message type.")
    ] = False,
    as_json: inputs.AsJson = False,
) -> None:
    """Prints the report; exit code 1 when a message type can't be released."""
    from dpmesh import config as configuration
    from dpmesh.cli.commands import plan_text
    from dpmesh.policy import Policy
    from dpmesh.report.plan import Planner
    from dpmesh.report.rpcs import PlanReport, changes, generated, reports, rpcs

    per_second = _per_second(rate)
    path = inputs.config_file(config_file)
    settings = configuration.load(path)
    policy_path = inputs.policy_file(policy_file, settings)
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    policy = inputs.policy(policy_path, sources)
    budgets = tuple(configuration.budgets(configuration.with_policy(settings, policy.document)))
    planner = Planner(policy, budgets, per_second)
    changed = None
    if against is not None:
        is_policy = against.suffix in (".yaml", ".yml", ".json")
        old_sources = sources if is_policy else _old_sources(against, sources, includes or protos or ())
        old = Policy(against) if is_policy else policy
        old_budgets = configuration.budgets(configuration.with_policy(settings, old.document))
        old_planner = Planner(old, old_budgets, per_second)
        changed = changes(old_sources, old_planner, sources, planner)
    report = PlanReport(
        rate, str(path) if path else None, budgets, rpcs(sources, planner), reports(sources, planner), changed
    )
    code = generated(sources, planner) if source else {}
    if as_json:
        print_json({**report.document(), **({"sources": code} if source else {})})
    else:
        plan_text.write(report)
        plan_text.write_code(code)
    raise typer.Exit(FOUND if report.refused else OK)


def _per_second(rate: str) -> float:
    match = _RATE.fullmatch(rate.strip())
    count = float(match[1]) if match else 0.0
    if match is None or count <= 0:
        raise InputError(
            f"--rate {rate!r}: write a number above 0 and a unit, such as 10/s, 1/m, 30/h or 200/d"
        )
    return count / _SECONDS[match[2]]


def _old_sources(path: Path, new: Sources, beside: Sequence[Path]) -> Sources:
    """The state before: a .proto file with the new one's imports, or the same files of a descriptor set."""
    from dpmesh.cli.descriptors import include, sources

    if path.suffix == ".proto":
        roots = [entry if entry.is_dir() else include.root_of(entry) for entry in (path, *beside)]
        return sources.from_protos([path], roots)
    old = sources.from_descriptor_sets([path])
    named = {file.name for file in new.files}
    return replace(old, files=tuple(file for file in old.files if file.name in named) or old.files)
