"""Findings: what is wrong with annotations and overlays, each with its place, each once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from dpmesh.cli.descriptors import source_locations
from dpmesh.cli.descriptors.protoc import CompileError
from dpmesh.cli.descriptors.source_locations import SourceLocation
from dpmesh.cli.descriptors.sources import Sources
from dpmesh.errors import AnnotationError
from dpmesh.policy import Diagnostic, Plan, Policy, Severity
from dpmesh.policy.descriptors import is_map
from dpmesh.policy.policy import SECTIONS, takes_rules
from dpmesh.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        place: The element at fault, or the overlay entry that decides about it.
        severity: ERROR or WARNING.
        rule: A stable id.
        element: A full name, or "" where the file could not be read.
        text: What is wrong.
        fix: What to write instead.
    """

    place: SourceLocation
    severity: Severity
    rule: str
    element: str
    text: str
    fix: str = ""

    def document(self) -> dict[str, Any]:
        """The finding for JSON: the place's parts beside the rest; line and column null when unknown."""
        entry = asdict(self)
        place = entry.pop("place")
        return {
            "file": place["file"],
            "line": place["line"] or None,
            "column": place["column"] or None,
            **entry,
            "severity": str(self.severity),
        }


def of_sources(sources: Sources, policy: Policy, policy_file: Path | None = None) -> list[Finding]:
    """All findings about the message types of the files asked for, and those that the policy names.

    Args:
        sources: The descriptors.
        policy: The rules.
        policy_file: Where the policy's overlays were read from.

    Returns:
        Findings in order of file and line, each once.
    """
    overlays = source_locations.of_overlays(policy_file) if policy_file else {}
    problems = dict.fromkeys(_problems(sources, policy))
    found = [Finding(_place(problem.element, sources, overlays), *_parts(problem)) for problem in problems]
    found += [Finding(place, *_parts(problem)) for place, problem in sources.duplicates]
    return sorted(found, key=lambda entry: (entry.place, entry.rule))


def protected_types(sources: Sources, policy: Policy) -> int:
    """How many of the message types that `of_sources` looks at can be released and have something protected in them.

    What their Anys pack does not count: only a release can tell what it is.
    """
    policy = _without(policy, policy.unresolved_overlays(sources.pool))
    plans = [_plan(message, policy) for message in _messages(sources, policy)]
    return sum(plan is not None and not plan.is_open for plan in plans)


def _plan(message: Descriptor, policy: Policy) -> Plan | None:
    """The plan of a message type; None also where it has an error, of which a finding tells."""
    try:
        return policy.plan(message)
    except AnnotationError:
        return None


def of_compiler(error: CompileError) -> list[Finding]:
    """What a .proto compiler complained about."""
    return [Finding(entry.place, Severity.ERROR, "syntax", "", entry.text) for entry in error.complaints]


def _parts(problem: Diagnostic) -> tuple[Severity, str, str, str, str]:
    return problem.severity, problem.rule, problem.element, problem.text, problem.fix


def _place(element: str, sources: Sources, overlays: Mapping[str, SourceLocation]) -> SourceLocation:
    return overlays.get(element) or sources.source_locations.get(element) or SourceLocation(element)


def _problems(sources: Sources, policy: Policy) -> Iterator[Diagnostic]:
    overlay = policy.rules.overlay
    for section in SECTIONS:
        for name in sorted(getattr(overlay, section)):
            if not takes_rules(section, name, sources.pool):
                yield _stray(section, name, sources)
    policy = _without(policy, policy.unresolved_overlays(sources.pool))
    book = policy.rules
    for message in _messages(sources, policy):
        # Of a type that is protected only where an Any in it is, only the RPCs that carry it are worth a finding.
        plan = _plan(message, policy)
        is_open = plan is not None and plan.is_open
        yield from (entry for entry in policy.diagnostics(message) if not (is_open and entry.rule == "any"))
        # The compiler stops at the first rule that can't be read, and does not look into what leaves as it is.
        yield from _unreadable(book.message, (message,))
        yield from _unreadable(book.oneof, message.oneofs)
        yield from _unreadable(book.field, (*message.fields, *message.extensions))
    for file in sources.files:
        yield from _unreadable(book.field, file.extensions_by_name.values())
    asked = {message.full_name for message in sources.messages()}
    for service in sources.services():
        yield from _unreadable(book.method, service.methods)
        for method in service.methods:
            yield from _spellings(policy, method)
            for way, message in (("request", method.input_type), ("response", method.output_type)):
                yield from _anys(asked, policy, method, way, message)


def _anys(
    asked: Container[str], policy: Policy, method: MethodDescriptor, way: str, message: Descriptor
) -> Iterator[Diagnostic]:
    """The Anys that an RPC reaches: on their fields, or on the method where those are in files of others.

    Args:
        asked: The names of the message types in the files asked for.
        policy: The rules.
        method: The RPC's.
        way: "request" or "response".
        message: The type that goes this way.
    """
    for entry in policy.diagnostics(message):
        if entry.rule != "any" or entry.severity is not Severity.WARNING:
            continue
        if entry.element.rpartition(".")[0] not in asked:
            name = f"/{method.containing_service.full_name}/{method.name}"
            text = f"its {way} reaches {entry.element}, which {entry.text}"
            entry = Diagnostic(entry.severity, entry.rule, name, text, entry.fix)
        yield entry


def _stray(section: str, name: str, sources: Sources) -> Diagnostic:
    """An overlay that no element is found for, with the nearest name that there is one for."""
    text = "no proto has this, so its overlay protects nothing"
    other = next((known for known in SECTIONS if takes_rules(known, name, sources.pool)), None)
    fix = "write its full name, as in package.Message.field"
    if other is not None:
        text, fix = f"is not one of the {section}, so its overlay protects nothing", f"move it to `{other}`"
    elif name in sources.source_locations:
        text = "no rule is ever looked up under this name, so its overlay protects nothing"
        held = _map_of(name, sources)
        fix = f"write a rule for the map, {held}" if held else "extensions of a protected message never leave"
    else:
        known = [place for place in sources.source_locations if takes_rules(section, place, sources.pool)]
        close = difflib.get_close_matches(name, known, n=1)
        if close:
            fix = f"did you mean {close[0]}?"
    return Diagnostic(Severity.ERROR, "stray", name, text, fix)


def _map_of(name: str, sources: Sources) -> str:
    """The map whose entry, or whose entry's key or value, has this name; "" if it is none."""
    for entry in (name, name.rpartition(".")[0]):
        try:
            fields = sources.pool.FindMessageTypeByName(entry.rpartition(".")[0]).fields
        except KeyError:
            continue
        for field in fields:
            if field.message_type is not None and field.message_type.full_name == entry and is_map(field):
                return field.full_name
    return ""


def _without(policy: Policy, stray: Sequence[str]) -> Policy:
    """The policy with only those overlays that mean something."""
    kept = policy_pb2.Policy()
    kept.CopyFrom(policy.rules.overlay)
    for section in (kept.fields, kept.messages, kept.methods, kept.oneofs):
        for name in stray:
            section.pop(name, None)
    return Policy(kept)


def _unreadable(ask: Callable[[Any], object], elements: Iterable[Any]) -> Iterator[Diagnostic]:
    """The elements whose rules can't be read, or set nothing."""
    for element in elements:
        try:
            ask(element)
        except AnnotationError as error:
            yield Diagnostic(Severity.ERROR, error.rule, error.element, error.text, error.fix)


def _spellings(policy: Policy, method: MethodDescriptor) -> Iterator[Diagnostic]:
    """Units in responses: a server that answers about ids in requests may send a peer's spelling of an id back."""
    plan = _plan(method.output_type, policy)
    for entry in plan.fields if plan is not None else ():
        if not entry.kind.is_unit:
            continue
        field = method.output_type.file.pool.FindFieldByName(entry.name)
        if field.type == field.TYPE_STRING and not policy.rules.field(field).rules.unit.normalize:
            yield Diagnostic(
                Severity.WARNING,
                "unit-spelling",
                entry.name,
                "is a unit in responses: its spelling may be a client's, and each spelling has a budget of its own",
                "normalize: [NFC, CASE_FOLD, STRIP], or normalize: AS_IS if the server writes the ids itself",
            )


def _messages(sources: Sources, policy: Policy) -> Iterator[Descriptor]:
    """The message types asked for, those that their services use, then those that only an overlay names."""
    methods = [method for service in sources.services() for method in service.methods]
    used = [message for method in methods for message in (method.input_type, method.output_type)]
    named = list({message.full_name: message for message in (*sources.messages(), *used)}.values())
    yield from named
    overlay = policy.rules.overlay
    names = set(overlay.messages)
    names |= {name.rpartition(".")[0] for section in (overlay.fields, overlay.oneofs) for name in section}
    for name in sorted(names - {message.full_name for message in named}):
        try:
            yield sources.pool.FindMessageTypeByName(name)
        except KeyError:
            continue
