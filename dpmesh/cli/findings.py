"""Findings: what is wrong with annotations and overlays, each with its place, each once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from dpmesh.cli import places
from dpmesh.cli.places import Place
from dpmesh.cli.protoc import CompileError
from dpmesh.cli.sources import Sources
from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy, Problem, Severity
from dpmesh.policy.plan import Kind
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

    place: Place
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
    overlays = places.of_overlays(policy_file) if policy_file else {}
    problems = dict.fromkeys(_problems(sources, policy))
    found = [Finding(_place(problem.element, sources, overlays), *_parts(problem)) for problem in problems]
    return sorted(found, key=lambda entry: (entry.place, entry.rule))


def of_compiler(error: CompileError) -> list[Finding]:
    """What a .proto compiler complained about."""
    return [Finding(entry.place, Severity.ERROR, "syntax", "", entry.text) for entry in error.complaints]


def _parts(problem: Problem) -> tuple[Severity, str, str, str, str]:
    return problem.severity, problem.rule, problem.element, problem.text, problem.fix


def _place(element: str, sources: Sources, overlays: Mapping[str, Place]) -> Place:
    return overlays.get(element) or sources.places.get(element) or Place(element)


def _problems(sources: Sources, policy: Policy) -> Iterator[Problem]:
    stray = policy.stray(sources.pool)
    for name in stray:
        close = difflib.get_close_matches(name, sources.places, n=1)
        fix = f"did you mean {close[0]}?" if close else "write its full name, as in package.Message.field"
        yield Problem(
            Severity.ERROR, "stray", name, "no proto has this, so its overlay protects nothing", fix
        )
    policy = _without(policy, stray)
    for message in _messages(sources, policy):
        yield from policy.problems(message)
    for service in sources.services():
        for method in service.methods:
            yield from _of_method(policy, method)
            yield from _spellings(policy, method)


def _without(policy: Policy, stray: Sequence[str]) -> Policy:
    """The policy with only those overlays that mean something."""
    kept = policy_pb2.Policy()
    kept.CopyFrom(policy.rules.overlay)
    for section in (kept.fields, kept.messages, kept.methods, kept.oneofs):
        for name in stray:
            section.pop(name, None)
    return Policy(kept)


def _of_method(policy: Policy, method: MethodDescriptor) -> Iterator[Problem]:
    try:
        policy.requires(method)
    except AnnotationError as error:
        text = str(error).removeprefix(f"{error.element}: ").split(f" [{error.rule}]")[0]
        yield Problem(Severity.ERROR, error.rule, error.element, text, error.fix)


def _spellings(policy: Policy, method: MethodDescriptor) -> Iterator[Problem]:
    """Units in responses: a server that answers about ids in requests may send a peer's spelling of an id back."""
    try:
        plan = policy.plan(method.output_type)
    except AnnotationError:
        return  # A finding about the message type says so.
    for entry in plan.fields if plan is not None else ():
        if entry.kind is not Kind.UNIT:
            continue
        field = method.output_type.file.pool.FindFieldByName(entry.name)
        if field.type == field.TYPE_STRING and not policy.rules.field(field).rules.unit.normalize:
            yield Problem(
                Severity.WARNING,
                "unit-spelling",
                entry.name,
                "is a unit in responses: its spelling may be a client's, and each spelling has a budget of its own",
                "normalize: [NFC, CASE_FOLD, STRIP], or normalize: AS_IS if the server writes the ids itself",
            )


def _messages(sources: Sources, policy: Policy) -> Iterator[Descriptor]:
    """The message types asked for, then those that only an overlay names."""
    named = list(sources.messages())
    yield from named
    overlay = policy.rules.overlay
    names = set(overlay.messages)
    names |= {name.rpartition(".")[0] for section in (overlay.fields, overlay.oneofs) for name in section}
    for name in sorted(names - {message.full_name for message in named}):
        try:
            yield sources.pool.FindMessageTypeByName(name)
        except KeyError:
            continue
