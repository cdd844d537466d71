"""Oneofs: which member is set is data too, so it is randomized, or public on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.policy.codegen import nested_steps, steps
from dpmesh.policy.codegen.steps import Run
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.diagnostics import BadRuleError, Diagnostics
from dpmesh.policy.kinds.loss import checked_epsilon
from dpmesh.policy.kinds.oneof import KIND as ONEOF
from dpmesh.policy.rulebook import ResolvedRule
from dpmesh.policy.sizes import NOTHING, Size, nested, of_values, one_of

if TYPE_CHECKING:
    from dpmesh.policy.compile.walk import MessageSite

Member = tuple[FieldDescriptor, Fragment]


def add(
    fragment: Fragment,
    oneof: OneofDescriptor,
    members: Sequence[Member],
    site: MessageSite,
    lookup: RuleLookup,
) -> None:
    """Adds a oneof, whose members are compiled already, to the fragment of its message, which stands at a site."""
    resolved = lookup.oneof(oneof)
    fragment.add_oneof([part for _, part in members])
    hidden = any(lookup.changes(field) for field, _ in members) and not resolved.rules.public
    fragment.size += one_of(_size(field, part, hidden=hidden) for field, part in members)
    if resolved.rules.public and resolved.rules.HasField("epsilon"):
        lookup.diagnostics.error(
            oneof.full_name, "oneof-choice", "is public and has an epsilon", "choose one of the two"
        )
    if not any(lookup.changes(field) for field, _ in members):
        refuse_idle(oneof, resolved, lookup)
        for _, part in members:
            fragment.steps += part.steps
            fragment.add_blank_steps(part.blank_steps)
    elif resolved.rules.public:
        fragment.shows_presence.append(f"the choice of {oneof.full_name} leaves as it is")
        runs = [(field.name, steps.run_all(part.steps)) for field, part in members if part.steps]
        fragment.steps.append(nested_steps.open_choice(oneof.name, runs))
        blank_runs = [
            (field.name, steps.run_all(part.blank_steps)) for field, part in members if part.blank_steps
        ]
        if blank_runs:
            fragment.add_blank_steps([nested_steps.open_choice(oneof.name, blank_runs)])
    else:
        epsilon = _epsilon(oneof, resolved, site.share, lookup)
        if epsilon is None:
            return
        runs = [(field.name, _run(field, part, lookup.diagnostics)) for field, part in members]
        names, path = [name for name, _ in runs], site.path + oneof.name
        plan = ONEOF.plan_choice(path, oneof.full_name, resolved.origin, names, epsilon, site.instances)
        blank = GetMessageClass(oneof.containing_type)()
        fragment.steps.append(nested_steps.choice(oneof.name, runs, plan.payload.mechanism.draws, blank))
        fragment.local += plan.cost
        fragment.fields.append(plan)


def _size(field: FieldDescriptor, part: Fragment, *, hidden: bool) -> Size:
    """The size of a member that leaves. One that is suppressed leaves empty where the choice is hidden."""
    if part.steps or not hidden:
        return part.size
    return of_values(field, [field.default_value]) if field.message_type is None else nested(field, NOTHING)


def refuse_idle(oneof: OneofDescriptor, resolved: ResolvedRule, lookup: RuleLookup) -> None:
    """Refuses an epsilon for a choice that is not randomized: it shows that protection was meant."""
    if resolved.rules.HasField("epsilon"):
        lookup.diagnostics.error(
            oneof.full_name,
            "oneof-choice",
            "has an epsilon, but there is no choice to be protected",
            "annotate the fields, or remove it",
        )


def _epsilon(
    oneof: OneofDescriptor, resolved: ResolvedRule, share: Fraction | None, lookup: RuleLookup
) -> Fraction | None:
    try:
        epsilon = checked_epsilon(resolved.rules.epsilon) if resolved.rules.HasField("epsilon") else share
    except BadRuleError as bad:
        lookup.diagnostics.bad_rule(oneof.full_name, bad)
        return None
    if epsilon is None:
        lookup.diagnostics.error(
            oneof.full_name,
            "oneof-choice",
            "which member is set is data too",
            "option (dpmesh.v1.oneof) = {epsilon: ...}, or {public: true} if it may be seen",
        )
    return epsilon


def _run(field: FieldDescriptor, part: Fragment, diagnostics: Diagnostics) -> Run:
    refusals = [refused for plan in part.fields if (refused := plan.kind.refuses(plan)) is not None]
    text = fix = ""
    if part.units:
        text = "holds a unit, so its oneof must be {public: true}"
    elif part.central != Cost.ZERO:
        text = "holds an aggregate, whose sensitivity does not cover the default that leaves where it was not chosen"
        fix = "make the oneof {public: true}, or move the field out of it; "
        fix += "or remove sensitivity if the value is a unit's own"
    elif part.shows_presence:
        text = "leaves (partly) as it is, which would show the choice that its oneof hides"
        fix = "protect or suppress it, or make the oneof {public: true}"
    elif refusals:
        values, instead = refusals[0]
        text = f"refuses {values}, and a refusal would show the choice that its oneof hides"
        fix = f"{instead}, or make the oneof {{public: true}}"
    elif not part.steps and field.message_type and any(e.is_required for e in field.message_type.fields):
        diagnostics.error(
            field.full_name, "required", "would leave without its required fields", "protect these"
        )
    if text:
        diagnostics.error(field.full_name, "oneof-choice", text, fix)
    return steps.run_all(part.steps) if part.steps else steps.emptied(field)
