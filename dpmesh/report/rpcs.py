"""PlanReport, all that `dpmesh plan` shows: the budgets, the RPCs, and what each RPC carries at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor

from dpmesh import method_name
from dpmesh.accounting import AMOUNT
from dpmesh.ledger import Budget
from dpmesh.report.plan import FieldReport, MessageReport, Planner
from dpmesh.report.sources import Sources


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that leaves in another way than before.

    Attributes:
        path: From the root message.
        old: How it left; None if there was no such field.
        new: How it leaves; None if there is no such field.
    """

    path: str
    old: FieldReport | None
    new: FieldReport | None


@dataclass(frozen=True, slots=True)
class MessageChange:
    """One message type that leaves in another way than before.

    Attributes:
        message: Its full name.
        old: The report before; None if there was no such type.
        new: The report now; None if there is no such type.
        fields: The fields that differ.
    """

    message: str
    old: MessageReport | None
    new: MessageReport | None
    fields: tuple[FieldChange, ...]


def compare(old: Mapping[str, MessageReport], new: Mapping[str, MessageReport]) -> list[MessageChange]:
    """All message types that differ, those of the new state first.

    Args:
        old: Reports by message name, before the change.
        new: Reports by message name, after the change.
    """
    changes = []
    for name in dict.fromkeys((*new, *old)):
        before, after = old.get(name), new.get(name)
        fields = _fields(before.fields if before else (), after.fields if after else ())
        whole = [side and (side.refused, side.pad_to) for side in (before, after)]
        if fields or whole[0] != whole[1]:
            changes.append(MessageChange(name, before, after, tuple(fields)))
    return changes


def _fields(old: Sequence[FieldReport], new: Sequence[FieldReport]) -> list[FieldChange]:
    before = {entry.path: entry for entry in old}
    after = {entry.path: entry for entry in new}
    pairs = [
        FieldChange(path, before.get(path), after.get(path)) for path in dict.fromkeys((*after, *before))
    ]
    return [pair for pair in pairs if pair.old != pair.new]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method and what it carries.

    Attributes:
        method: "/package.Service/Method".
        request: The request type's name.
        response: The response type's name.
        client_streaming: The request is a stream.
        server_streaming: The response is a stream.
        trust_boundary: No trace goes on over its requests.
        send_slot: The seconds between two slots, in which alone its requests leave; None where they leave at once.
    """

    method: str
    request: str
    response: str
    client_streaming: bool
    server_streaming: bool
    trust_boundary: bool
    send_slot: float | None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """All that `dpmesh plan` shows.

    Attributes:
        rate: As the user wrote it.
        config: The configuration file, or None for the embedded defaults.
        budgets: What pays.
        rpcs: The methods of all services, in order.
        reports: By message name, method and direction. Files with services: what their methods carry. Files without:
            all protected message types, under the method "".
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
        first: dict[str, MessageReport] = {}
        for (name, _, _), report in self.reports.items():
            first.setdefault(name, report)
        return first

    @property
    def refused(self) -> bool:
        """Whether a message type can't be released."""
        return any(report.refused for report in self.reports.values())

    def of(self, rpc: Rpc, direction: str) -> MessageReport:
        """The report on what an RPC carries in one direction ("request" or "response")."""
        return self.reports[rpc.request if direction == "request" else rpc.response, rpc.method, direction]

    def document(self) -> dict[str, Any]:
        """The report for JSON."""
        document: dict[str, Any] = {
            "rate": self.rate,
            "config": self.config,
            "budgets": [_budget(budget) for budget in self.budgets],
            "rpcs": [
                {
                    **asdict(rpc),
                    "pays": {each: _payments(self.of(rpc, each)) for each in ("request", "response")},
                }
                for rpc in self.rpcs
            ],
            "messages": [asdict(report) for report in self.messages.values()],
        }
        if self.changes is not None:
            document["changes"] = [asdict(change) for change in self.changes]
        return document


def rpcs(sources: Sources, planner: Planner) -> tuple[Rpc, ...]:
    """The methods of all services, in order."""
    return tuple(
        Rpc(
            method_name.name_of(method),
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
            planner.is_trust_boundary(method),
            planner.send_slot(method),
        )
        for service in sources.services()
        for method in service.methods
    )


def reports(sources: Sources, planner: Planner) -> dict[tuple[str, str, str], MessageReport]:
    """Reports by message name, method and direction, as PlanReport.reports has them."""
    slots = {
        method_name.name_of(method): planner.send_slot(method)
        for service in sources.services()
        for method in service.methods
    }
    found = {}
    for message, method, direction in _carried(sources):
        slot = slots.get(method) if direction == "request" else None
        found[message.full_name, method, direction] = planner.report(message, method, direction, slot)
    if any(sources.services()):
        return found
    return {key: report for key, report in found.items() if report.protected}


def generated(sources: Sources, planner: Planner) -> dict[str, str]:
    """The generated code of each message type that has some, by the type's name."""
    found = {message.full_name: planner.source(message) for message, _, _ in _carried(sources)}
    return {name: source for name, source in found.items() if source}


def changes(old: Sources, old_planner: Planner, new: Sources, planner: Planner) -> list[MessageChange]:
    """How loss and error of all message types differ between two states.

    Args:
        old: The state before.
        old_planner: Reports on it.
        new: The state now.
        planner: Reports on it.
    """
    names = dict.fromkeys(message.full_name for side in (new, old) for message, _, _ in _carried(side))
    return compare(_by_name(names, old, old_planner), _by_name(names, new, planner))


def _by_name(names: Iterable[str], sources: Sources, planner: Planner) -> dict[str, MessageReport]:
    """Reports on the message types of these names, as far as they exist, each as the first RPC carries it."""
    carriers = {message.full_name: carrier for message, *carrier in reversed(list(_carried(sources)))}
    found = {}
    for name in names:
        try:
            message = sources.pool.FindMessageTypeByName(name)
            found[name] = planner.report(message, *carriers.get(name, ()))
        except KeyError:
            continue
    return found


def _carried(sources: Sources) -> Iterator[tuple[Descriptor, str, str]]:
    """Message types with the method and direction that carry them; without services all, under the method ""."""
    services = list(sources.services())
    if not services:
        yield from ((message, "", "request") for message in sources.messages())
    for method in (method for service in services for method in service.methods):
        yield method.input_type, method_name.name_of(method), "request"
        yield method.output_type, method_name.name_of(method), "response"


def _payments(report: MessageReport) -> dict[str, Any]:
    """Who pays for a message on one RPC, and which budget is spent first, for every consumer and for some."""
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
        "cap": budget.cap / AMOUNT,
        "window_seconds": budget.window,
        "under": budget.under,
        "consumers": budget.consumers,
        **asdict(budget.match),
    }
