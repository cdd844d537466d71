"""Compiler: a message type and the rules that hold for it become a Plan, once."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

from dpmesh.errors import AnnotationError
from dpmesh.policy.codegen.source import Source
from dpmesh.policy.compile import assembly
from dpmesh.policy.compile.protected_types import is_protected, is_strict
from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.compile.unannotated_types import UnannotatedTypes
from dpmesh.policy.compile.walk import Walk
from dpmesh.policy.diagnostics import Diagnostic
from dpmesh.policy.plan import Plan
from dpmesh.policy.rulebook import Rulebook


def compile_message(message: Descriptor, book: Rulebook) -> tuple[Plan | None, list[Diagnostic]]:
    """Compiles one message type.

    Args:
        message: The type.
        book: The rules that hold.

    Returns:
        The plan (None when nothing can ever be protected, or when a diagnostic is an error), and all diagnostics.
    """
    lookup, types = RuleLookup(book), UnannotatedTypes(book)
    diagnostics = lookup.diagnostics
    plan = None
    try:
        if not is_protected(message, book):
            _refuse_idle(message, lookup)
            if diagnostics.found or not is_strict(message, book):
                if not diagnostics.has_errors and types.reaches(message):
                    plan = assembly.open_plan(message, types, lookup)
                return plan, diagnostics.found
        # Kinds generate code while the walk plans their fields, too.
        with Source(message.full_name) as source:
            walk = Walk(lookup, types)
            fragment = walk.message(message, "", 1, ())
            if not diagnostics.has_errors:
                plan = assembly.plan(message, fragment, lookup.version(), walk, source)
    except AnnotationError as error:
        diagnostics.unreadable(error)
        return None, diagnostics.found
    return plan, diagnostics.found


def _refuse_idle(message: Descriptor, lookup: RuleLookup) -> None:
    """Refuses rules without effect in a type that leaves as it is: they show that protection was meant."""
    idle = [(message.full_name, "epsilon", lookup.message(message).rules.HasField("epsilon"))]
    idle += [(o.full_name, "oneof-choice", lookup.oneof(o).rules.HasField("epsilon")) for o in message.oneofs]
    idle += [(f.full_name, "max-items", lookup.field(f).rules.max_items > 0) for f in message.fields]
    for element, rule, is_set in idle:
        if is_set:
            lookup.diagnostics.error(
                element,
                rule,
                "has a rule, but nothing here is protected",
                "annotate the fields, or remove it",
            )
