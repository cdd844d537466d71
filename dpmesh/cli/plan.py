"""`dpmesh plan`: what leaves with each RPC, at what loss and error, and how long the budgets last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmesh.cli import inputs
from dpmesh.cli.console import FOUND, OK, InputError, print_json

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from dpmesh.cli.comparing import MessageChange
    from dpmesh.cli.planning import MessageReport, Planner
    from dpmesh.cli.sources import Sources
    from dpmesh.ledger import Budget
    from dpmesh.policy import Policy

HELP = (
    "Show what leaves with each RPC: fields, mechanisms, loss, expected error, and how long the budgets last."
)
EPILOG = (
    "Example: dpmesh plan protos/acme/fleet.proto --config dpmesh.toml --rate 30/h --against old/fleet.proto"
)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_RATE = re.compile(r"(\d+(?:\.\d+)?)/([smhd])")


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method and what it carries.

    Attributes:
        method: "/package.Service/Method".
        request: The request type's name.
        response: The response type's name.
        client_streaming: The request is a stream.
        server_streaming: The response is a stream.
    """

    method: str
    request: str
    response: str
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """All that `dpmesh plan` shows.

    Attributes:
        rate: As the user wrote it.
        config: The configuration file, or None for the embedded defaults.
        budgets: What pays.
        rpcs: The methods of all services, in order.
        messages: Reports by name: of what the methods carry, or without services of all protected message types.
        changes: What differs from OLD, or None when nothing is compared.
    """

    rate: str
    config: str | None
    budgets: tuple[Budget, ...]
    rpcs: tuple[Rpc, ...]
    messages: dict[str, MessageReport]
    changes: list[MessageChange] | None


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
            help="Messages per second, minute, hour or day: of one unit, or of all for a global budget.",
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
    as_json: inputs.AsJson = False,
) -> None:
    """Prints the outlook; exit code 1 when a message type can't be released."""
    from dpmesh import config as configuration
    from dpmesh.cli import comparing, plan_text
    from dpmesh.cli.planning import Planner
    from dpmesh.policy import Policy

    per_second = _per_second(rate)
    path = inputs.config_file(config_file)
    settings = configuration.load(path)
    budgets = tuple(configuration.budgets(settings))
    policy_path = policy_file or (Path(settings.policy.file) if settings.policy.file else None)
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    planner = Planner(_policy(policy_path, sources), budgets, per_second)
    reports = _reports(sources, planner)
    changes = None
    if against is not None:
        is_policy = against.suffix in (".yaml", ".yml", ".json")
        old_sources = sources if is_policy else _old_sources(against, sources, includes or protos or ())
        old_planner = Planner(Policy(against if is_policy else policy_path), budgets, per_second)
        names = dict.fromkeys(
            message.full_name for side in (sources, old_sources) for message in _carried(side)
        )
        old, new = _named(names, old_sources, old_planner), _named(names, sources, planner)
        changes = comparing.compare(old, new)
    outlook = Outlook(rate, str(path) if path else None, budgets, tuple(_rpcs(sources)), reports, changes)
    if as_json:
        print_json(_document(outlook))
    else:
        plan_text.write(outlook)
    raise typer.Exit(FOUND if any(report.refused for report in reports.values()) else OK)


def _per_second(rate: str) -> float:
    match = _RATE.fullmatch(rate.strip())
    count = float(match[1]) if match else 0.0
    if match is None or count <= 0:
        raise InputError(
            f"--rate {rate!r}: write a number above 0 and a unit, such as 10/s, 1/m, 30/h or 200/d"
        )
    return count / _SECONDS[match[2]]


def _policy(path: Path | None, sources: Sources) -> Policy:
    """The policy in force, all of whose overlays must mean something here."""
    from dpmesh.policy import Policy

    policy = Policy(path)
    stray = policy.stray(sources.pool)
    if stray:
        raise InputError(f"{path}: no proto has {', '.join(stray)}; dpmesh check says where")
    return policy


def _old_sources(path: Path, new: Sources, beside: Sequence[Path]) -> Sources:
    """The state before: a .proto file with imports like those of the new one, or the same files of a descriptor set."""
    from dpmesh.cli import include, sources

    if path.suffix == ".proto":
        roots = [entry if entry.is_dir() else include.root_of(entry) for entry in (path, *beside)]
        return sources.from_protos([path], roots)
    old = sources.from_descriptor_sets([path])
    named = {file.name for file in new.files}
    return replace(old, files=tuple(file for file in old.files if file.name in named) or old.files)


def _named(names: Iterable[str], sources: Sources, planner: Planner) -> dict[str, MessageReport]:
    """Reports on the message types of these names that there are."""
    found = {}
    for name in names:
        try:
            found[name] = planner.report(sources.pool.FindMessageTypeByName(name))
        except KeyError:
            continue
    return found


def _reports(sources: Sources, planner: Planner) -> dict[str, MessageReport]:
    """Reports by name; a type that several RPCs carry is there once."""
    named = {message.full_name: message for message in _carried(sources)}
    reports = {name: planner.report(message) for name, message in named.items()}
    if any(sources.services()):
        return reports
    return {name: report for name, report in reports.items() if report.protected}


def _carried(sources: Sources) -> Iterable[Descriptor]:
    services = list(sources.services())
    if not services:
        return sources.messages()
    methods = [method for service in services for method in service.methods]
    return [message for method in methods for message in (method.input_type, method.output_type)]


def _rpcs(sources: Sources) -> Iterator[Rpc]:
    for service in sources.services():
        for method in service.methods:
            yield Rpc(
                f"/{service.full_name}/{method.name}",
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )


def _document(outlook: Outlook) -> dict[str, Any]:
    """The outlook for JSON."""
    document: dict[str, Any] = {
        "rate": outlook.rate,
        "config": outlook.config,
        "budgets": [_budget(budget) for budget in outlook.budgets],
        "rpcs": [asdict(rpc) for rpc in outlook.rpcs],
        "messages": [asdict(report) for report in outlook.messages.values()],
    }
    if outlook.changes is not None:
        document["changes"] = [asdict(change) for change in outlook.changes]
    return document


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "name": budget.name,
        "key": budget.key,
        "accounting": str(budget.accounting),
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "cap": budget.cap / 1e9,
        "window_seconds": budget.window,
    }
