"""Findings: what is wrong with annotations and overlays, each with its location, each once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from dpmesh import method_name
from dpmesh.errors import AnnotationError
from dpmesh.ledger import Budget
from dpmesh.policy import Diagnostic, Plan, Policy, Severity, overlay_paths, send_slot
from dpmesh.policy.descriptors import is_map
from dpmesh.policy.policy import SECTIONS, takes_rules
from dpmesh.report.sources import SourceLocation, Sources
from dpmesh.report.wording import count
from dpmesh.v1 import policy_pb2


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        location: The element at fault, or the overlay entry that decides about it.
        severity: ERROR or WARNING.
        rule: A stable id.
        element: A full name, or "" where the file could not be read.
        text: What is wrong.
        fix: What to write instead.
    """

    location: SourceLocation
    severity: Severity
    rule: str
    element: str
    text: str
    fix: str = ""

    def document(self) -> dict[str, Any]:
        """The finding for JSON: the location's parts beside the rest; line and column are null when unknown."""
        entry = asdict(self)
        location = entry.pop("location")
        return {
            "file": location["file"],
            "line": location["line"] or None,
            "column": location["column"] or None,
            **entry,
            "severity": str(self.severity),
        }


def _plan(message: Descriptor, policy: Policy) -> Plan | None:
    """The plan of a message type; None if it has none, or an error, which is a finding of its own."""
    try:
        return policy.plan(message)
    except AnnotationError:
        return None


def _diagnostics(sources: Sources, policy: Policy) -> Iterator[Diagnostic]:
    book = policy.rules
    for message in _messages(sources, policy):
        # Anys in a type that protects nothing else are found below, where an RPC carries them.
        plan = _plan(message, policy)
        is_open = plan is not None and plan.is_open
        yield from (entry for entry in policy.diagnostics(message) if not (is_open and entry.rule == "any"))
        # The compiler stops at the first rule that it can't read, and skips messages that leave as they are.
        yield from _unreadable(book.message, (message,))
        yield from _unreadable(book.oneof, message.oneofs)
        yield from _unreadable(book.field, (*message.fields, *message.extensions))
    for file in sources.files:
        yield from _unreadable(book.field, file.extensions_by_name.values())
    requested = {message.full_name for message in sources.messages()}
    for service in sources.services():
        yield from _unreadable(book.method, service.methods)
        for method in service.methods:
            yield from _slots(policy, method)
            yield from _required_policy(policy, method)
            yield from _spellings(policy, method)
            for direction, message in (("request", method.input_type), ("response", method.output_type)):
                yield from _anys(requested, policy, method, direction, message)


def _unseen(sources: Sources, policy: Policy, budgets: Sequence[Budget]) -> Iterator[Diagnostic]:
    """Message types whose messages look alike with and without values, where a budget lets them leave without."""
    lenient = [budget for budget in budgets if budget.on_exhausted != "reject"]
    for message in _messages(sources, policy) if lenient else ():
        plan = _plan(message, policy)
        noised = (
            [] if plan is None else [each for each in plan.fields if each.mechanism_name and not each.memo]
        )
        if plan is None or not noised or not all(_is_plain(message, each.path) for each in noised):
            continue
        owners = {"unit" if scope.path else "global" for scope in plan.scopes}
        for budget in lenient:
            chosen = replace(budget.match, methods=(), directions=(), labels=())
            if budget.owner in owners and chosen.fits("", plan.messages, "", ()):
                yield Diagnostic(
                    Severity.WARNING,
                    "unseen",
                    message.full_name,
                    f"has only plain fields with noise, so receivers take the zeros that leave under on_exhausted = "
                    f'"{budget.on_exhausted}" of budget {budget.name} for values',
                    "make one protected field optional, which costs nothing",
                )


def _is_plain(message: Descriptor, path: str) -> bool:
    """Whether a path names a field in which a zero can't be told from no value."""
    field = message.fields_by_name.get(path)
    return field is not None and not field.is_repeated and not field.has_presence


def _anys(
    requested: Container[str], policy: Policy, method: MethodDescriptor, direction: str, message: Descriptor
) -> Iterator[Diagnostic]:
    """The Anys that an RPC reaches: findings on their fields, or on the method if another file has the field."""
    for entry in policy.diagnostics(message):
        if entry.rule != "any" or entry.severity is not Severity.WARNING:
            continue
        if entry.element.rpartition(".")[0] not in requested:
            text = f"its {direction} reaches {entry.element}, which {entry.text}"
            entry = Diagnostic(entry.severity, entry.rule, method_name.name_of(method), text, entry.fix)
        yield entry


def _unresolved(section: str, name: str, sources: Sources) -> Diagnostic:
    """The finding about an overlay that names no element of its section; its fix suggests the nearest name."""
    text = "no proto has this, so its overlay protects nothing"
    other = next((each for each in SECTIONS if takes_rules(each, name, sources.pool)), None)
    fix = "write its full name, as in package.Message.field"
    if other is not None:
        text, fix = f"is not one of the {section}, so its overlay protects nothing", f"move it to `{other}`"
    elif name in sources.source_locations:
        text = "no rule is ever looked up under this name, so its overlay protects nothing"
        map_field = _map_of(name, sources)
        fix = (
            f"write a rule for the map, {map_field}"
            if map_field
            else "extensions of a protected message never leave"
        )
    else:
        above = name.rpartition(".")[0]
        place = overlay_paths.message_at(above, sources.pool)
        names = [each for each in sources.source_locations if takes_rules(section, each, sources.pool)]
        close: Sequence[str]
        if place is not None and place.full_name == "google.protobuf.Any":
            fix, close = "a path ends at an Any: set `unannotated` on the message that holds it", ()
        elif place is not None:
            elements = place.oneofs if section == "oneofs" else place.fields
            close = difflib.get_close_matches(name, [f"{above}.{element.name}" for element in elements], n=1)
        else:
            # What is misspelt may be the head of a path whose other names are right.
            close = _with_another_head(section, name, names, sources) or difflib.get_close_matches(
                name, names, n=1
            )
        if close:
            fix = f"did you mean {close[0]}?"
    return Diagnostic(Severity.ERROR, "stray", name, text, fix)


def _with_another_head(section: str, name: str, names: Sequence[str], sources: Sources) -> list[str]:
    """The path that a name is if its beginning, the full name of a field, is misspelt; [] if there is none."""
    words, paths = name.split("."), []
    for length in range(2, len(words)):
        head, tail = ".".join(words[:length]), ".".join(words[length:])
        paths += [f"{near}.{tail}" for near in difflib.get_close_matches(head, names, n=3)]
    fitting = [path for path in paths if takes_rules(section, path, sources.pool)]
    return difflib.get_close_matches(name, fitting, n=1)


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


def _without(policy: Policy, overlays: Sequence[str]) -> Policy:
    kept = policy_pb2.Policy()
    kept.CopyFrom(policy.rules.overlay)
    for section in (kept.fields, kept.messages, kept.methods, kept.oneofs):
        for name in overlays:
            section.pop(name, None)
    return Policy(kept)


def _unreadable(read_rule: Callable[[Any], object], elements: Iterable[Any]) -> Iterator[Diagnostic]:
    """The elements whose rules can't be read, or set nothing."""
    for element in elements:
        try:
            read_rule(element)
        except AnnotationError as error:
            yield Diagnostic(Severity.ERROR, error.rule, error.element, error.text, error.fix)


def _slots(policy: Policy, method: MethodDescriptor) -> Iterator[Diagnostic]:
    """What is wrong with the slots in which a method's requests leave; bad rules are found elsewhere."""
    try:
        if policy.send_slot(method) is None:
            return
    except AnnotationError as error:
        if error.rule == "send-slot":
            yield Diagnostic(Severity.ERROR, error.rule, error.element, error.text, error.fix)
        return
    plan = policy.plan(method.input_type)
    if plan is not None:
        yield from send_slot.cover_warnings(method, plan)


def _required_policy(policy: Policy, method: MethodDescriptor) -> Iterator[Diagnostic]:
    """What is wrong with a method's `require_policy`; other bad rules are found elsewhere."""
    try:
        policy.required_policy(method)
    except AnnotationError as error:
        if error.rule == "require-policy":
            yield Diagnostic(Severity.ERROR, error.rule, error.element, error.text, error.fix)


def _spellings(policy: Policy, method: MethodDescriptor) -> Iterator[Diagnostic]:
    """Units in responses: a server may send back the spelling of an id that its client used."""
    plan = _plan(method.output_type, policy)
    for entry in plan.fields if plan is not None else ():
        if not entry.kind.is_unit:
            continue
        field = method.output_type.file.pool.FindFieldByName(entry.name)
        chosen = entry.payload.normalize or policy.rules.field(field).rules.unit.normalize
        if field.type == field.TYPE_STRING and not chosen:
            yield Diagnostic(
                Severity.WARNING,
                "unit-spelling",
                entry.name,
                "is a unit in responses: its spelling may be a client's, and each spelling has a budget of its own",
                "normalize: [NFC, CASE_FOLD, STRIP], or normalize: AS_IS if the server writes the ids itself",
            )


def _messages(sources: Sources, policy: Policy) -> Iterator[Descriptor]:
    """The message types of the files, those that their services use, then those that only an overlay names."""
    methods = [method for service in sources.services() for method in service.methods]
    used = [message for method in methods for message in (method.input_type, method.output_type)]
    requested = {message.full_name: message for message in (*sources.messages(), *used)}
    yield from requested.values()
    overlay = policy.rules.overlay
    names = set(overlay.messages)
    for name in {*overlay.fields, *overlay.oneofs, *overlay.messages}:
        begin = overlay_paths.beginning_of(name, sources.pool)
        names.add(name.rpartition(".")[0] if begin is None else begin.full_name.rpartition(".")[0])
    for name in sorted(names - requested.keys()):
        try:
            yield sources.pool.FindMessageTypeByName(name)
        except KeyError:
            continue


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check.

    Attributes:
        findings: In order of file and line, each once.
        message_types: How many message types were examined.
        protected_types: How many of them, and of those that an overlay names, can be released and protect something.
            What their Anys pack does not count: only a release can tell what it is.
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


def of_empty_entries(names: Iterable[str], overlays: Mapping[str, SourceLocation]) -> list[Finding]:
    """The findings on entries of a policy file that set nothing.

    Args:
        names: What the entries overlay.
        overlays: Where they are written, by these names.
    """
    text, fix = "has an overlay that sets nothing", "say what it should do, or remove it"
    return [
        Finding(overlays.get(name) or SourceLocation(name), Severity.ERROR, "empty-rule", name, text, fix)
        for name in names
    ]


def check(
    sources: Sources,
    policy: Policy,
    overlays: Mapping[str, SourceLocation],
    budgets: Sequence[Budget] = (),
    empty: Sequence[str] = (),
) -> CheckReport:
    """Examines the message types of the files that were asked for, and those that the policy names.

    Args:
        sources: The descriptors.
        policy: The rules.
        overlays: Where the policy's entries are written, by the names that they overlay.
        budgets: What pays, quotas included.
        empty: The names of the policy's entries that set nothing, which `policy` lacks.
    """
    decisive = {name: at for name, at in overlays.items() if name not in empty}

    def location(element: str) -> SourceLocation:
        return decisive.get(element) or sources.source_locations.get(element) or SourceLocation(element)

    unresolved = [
        _unresolved(section, name, sources)
        for section in SECTIONS
        for name in sorted(getattr(policy.rules.overlay, section))
        if not takes_rules(section, name, sources.pool)
    ]
    policy = _without(policy, [entry.element for entry in unresolved])
    diagnostics = dict.fromkeys(
        (*unresolved, *_diagnostics(sources, policy), *_unseen(sources, policy, budgets))
    )
    findings = of_empty_entries(empty, overlays) + [
        Finding(at, entry.severity, entry.rule, entry.element, entry.text, entry.fix)
        for at, entry in (*((location(entry.element), entry) for entry in diagnostics), *sources.duplicates)
    ]
    plans = [_plan(message, policy) for message in _messages(sources, policy)]
    return CheckReport(
        sorted(findings, key=lambda entry: (entry.location, entry.rule)),
        sum(1 for _ in sources.messages()),
        sum(plan is not None and not plan.is_open for plan in plans),
    )
