"""`dpmesh plan`: what leaves with each RPC, at what loss and error, and how long the budgets last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmesh.cli.console import FOUND, OK, InputError, print_json
from dpmesh.cli.options import inputs

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from dpmesh.cli.descriptors.sources import Sources
    from dpmesh.ledger import Budget
    from dpmesh.policy import Policy
    from dpmesh.report.comparison import MessageChange
    from dpmesh.report.plan import MessageReport, Planner

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
class PlanReport:
    """All that `dpmesh plan` shows.

    Attributes:
        rate: As the user wrote it.
        config: The configuration file, or None for the embedded defaults.
        budgets: What pays.
        rpcs: The methods of all services, in order.
        reports: By message name, method and direction: of what the methods carry, or without services of all
            protected message types, under no method.
        changes: What differs from OLD, or None when nothing is compared.
    """

    rate: str
    config: str | None
    budgets: tuple[Budget, ...]
    rpcs: tuple[Rpc, ...]
    reports: dict[tuple[str, str, str], MessageReport]
    changes: list[MessageChange] | None

    @property
    def messages(self) -> dict[str, MessageReport]:
        """Reports by message name: each as the first RPC carries it."""
        found: dict[str, MessageReport] = {}
        for (name, _, _), report in self.reports.items():
            found.setdefault(name, report)
        return found

    def of(self, rpc: Rpc, direction: str) -> MessageReport:
        """The report on what an RPC carries in one direction."""
        return self.reports[rpc.request if direction == "request" else rpc.response, rpc.method, direction]


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
            "to one consumer for a quota.",
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
    from dpmesh.cli.commands import plan_text
    from dpmesh.policy import Policy
    from dpmesh.report import comparison
    from dpmesh.report.plan import Planner

    per_second = _per_second(rate)
    path = inputs.config_file(config_file)
    settings = configuration.load(path)
    budgets = tuple(configuration.budgets(settings))
    policy_path = inputs.policy_file(policy_file, settings)
    sources = inputs.load(protos, includes, descriptor_sets, reflect)
    _refuse_duplicates(sources)
    planner = Planner(_policy(policy_path, sources), budgets, per_second)
    reports = _reports(sources, planner)
    changes = None
    if against is not None:
        is_policy = against.suffix in (".yaml", ".yml", ".json")
        old_sources = sources if is_policy else _old_sources(against, sources, includes or protos or ())
        old_planner = Planner(Policy(against if is_policy else policy_path), budgets, per_second)
        names = dict.fromkeys(
            message.full_name for side in (sources, old_sources) for message, _, _ in _carried(side)
        )
        old, new = _named(names, old_sources, old_planner), _named(names, sources, planner)
        changes = comparison.compare(old, new)
    outlook = PlanReport(rate, str(path) if path else None, budgets, tuple(_rpcs(sources)), reports, changes)
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


def _refuse_duplicates(sources: Sources) -> None:
    """Refuses annotations that are set twice: the plan would show only the last of them."""
    for place, problem in sources.duplicates:
        raise InputError(f"{place}: {problem.error()}")


def _policy(path: Path | None, sources: Sources) -> Policy:
    """The policy in force, all of whose overlays must mean something here."""
    from dpmesh.policy import Policy

    policy = Policy(path)
    unresolved = policy.unresolved_overlays(sources.pool)
    if unresolved:
        raise InputError(f"{path}: no proto has {', '.join(unresolved)}; dpmesh check says where")
    return policy


def _old_sources(path: Path, new: Sources, beside: Sequence[Path]) -> Sources:
    """The state before: a .proto file with imports like those of the new one, or the same files of a descriptor set."""
    from dpmesh.cli.descriptors import include, sources

    if path.suffix == ".proto":
        roots = [entry if entry.is_dir() else include.root_of(entry) for entry in (path, *beside)]
        return sources.from_protos([path], roots)
    old = sources.from_descriptor_sets([path])
    named = {file.name for file in new.files}
    return replace(old, files=tuple(file for file in old.files if file.name in named) or old.files)


def _named(names: Iterable[str], sources: Sources, planner: Planner) -> dict[str, MessageReport]:
    """Reports on the message types of these names that there are."""
    carriers = {message.full_name: carrier for message, *carrier in reversed(list(_carried(sources)))}
    found = {}
    for name in names:
        try:
            message = sources.pool.FindMessageTypeByName(name)
            found[name] = planner.report(message, *carriers.get(name, ()))
        except KeyError:
            continue
    return found


def _reports(sources: Sources, planner: Planner) -> dict[tuple[str, str, str], MessageReport]:
    """Reports by message name, method and direction."""
    reports = {
        (message.full_name, method, direction): planner.report(message, method, direction)
        for message, method, direction in _carried(sources)
    }
    if any(sources.services()):
        return reports
    return {key: report for key, report in reports.items() if report.protected}


def _carried(sources: Sources) -> Iterator[tuple[Descriptor, str, str]]:
    """Message types with the method and direction that carry them; without services all, under no method."""
    services = list(sources.services())
    if not services:
        yield from ((message, "", "request") for message in sources.messages())
    for method in (method for service in services for method in service.methods):
        name = f"/{method.containing_service.full_name}/{method.name}"
        yield method.input_type, name, "request"
        yield method.output_type, name, "response"


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


def _document(outlook: PlanReport) -> dict[str, Any]:
    """The outlook for JSON."""
    document: dict[str, Any] = {
        "rate": outlook.rate,
        "config": outlook.config,
        "budgets": [_budget(budget) for budget in outlook.budgets],
        "rpcs": [
            {**asdict(rpc), "pays": {way: _terms(outlook.of(rpc, way)) for way in ("request", "response")}}
            for rpc in outlook.rpcs
        ],
        "messages": [asdict(report) for report in outlook.messages.values()],
    }
    if outlook.changes is not None:
        document["changes"] = [asdict(change) for change in outlook.changes]
    return document


def _terms(report: MessageReport) -> dict[str, Any]:
    """Who pays for a message on one RPC, and who of them is spent first, for every consumer and for some."""
    tightest, some = report.tightest, report.tightest_for_some
    return {
        "refused": report.refused,
        "payments": [asdict(payment) for payment in report.payments],
        "tightest": None if tightest is None else tightest.budget,
        "seconds": None if tightest is None else tightest.seconds,
        "tightest_for_some": None if some is None else some.budget,
        "seconds_for_some": None if some is None else some.seconds,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "name": budget.name,
        "key": budget.key,
        "accounting": str(budget.accounting),
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "cap": budget.cap / 1e9,
        "window_seconds": budget.window,
        "under": budget.under,
        "consumers": budget.consumers,
        **asdict(budget.match),
    }
