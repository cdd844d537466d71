"""Oneofs: which member is set is data too, so it is randomized, or public on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.policy.codegen import steps
from dpmesh.policy.codegen.steps import Run
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.diagnostics import BadRuleError, Diagnostics
from dpmesh.policy.kinds.loss import checked_epsilon
from dpmesh.policy.kinds.oneof import KIND as ONEOF
from dpmesh.policy.rulebook import ResolvedRule

Member = tuple[FieldDescriptor, Fragment]


def add(
    fragment: Fragment,
    oneof: OneofDescriptor,
    members: Sequence[Member],
    *,
    path: str,
    instances: int,
    share: Fraction | None,
    lookup: RuleLookup,
) -> None:
    """Adds a oneof, whose members are compiled already, to the fragment of its message."""
    resolved = lookup.oneof(oneof)
    fragment.add_oneof([part for _, part in members])
    if resolved.rules.public and resolved.rules.HasField("epsilon"):
        lookup.diagnostics.error(
            oneof.full_name, "oneof-choice", "is public and has an epsilon", "choose one of the two"
        )
    if not any(lookup.changes(field) for field, _ in members):
        refuse_idle(oneof, resolved, lookup)
        for _, part in members:
            fragment.steps += part.steps
            fragment.blank_steps += part.blank_steps
    elif resolved.rules.public:
        fragment.shows_presence.append(f"the choice of {oneof.full_name} leaves as it is")
        runs = [(field.name, steps.run_all(part.steps)) for field, part in members if part.steps]
        fragment.steps.append(steps.open_choice(oneof.name, runs))
        blank_runs = [
            (field.name, steps.run_all(part.blank_steps)) for field, part in members if part.blank_steps
        ]
        fragment.blank_steps += [steps.open_choice(oneof.name, blank_runs)] if blank_runs else []
    else:
        epsilon = _epsilon(oneof, resolved, share, lookup)
        if epsilon is not None:
            _randomize(fragment, oneof, members, epsilon, path, instances, resolved, lookup)


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


def _randomize(
    fragment: Fragment,
    oneof: OneofDescriptor,
    members: Sequence[Member],
    epsilon: Fraction,
    path: str,
    instances: int,
    resolved: ResolvedRule,
    lookup: RuleLookup,
) -> None:
    """Randomizes the choice: k-ary randomized response over the members and "none"."""
    runs = [(field.name, _run(field, part, lookup.diagnostics)) for field, part in members]
    names = [name for name, _ in runs]
    plan = ONEOF.plan_choice(path + oneof.name, oneof.full_name, resolved.origin, names, epsilon, instances)
    blank = GetMessageClass(oneof.containing_type)()
    fragment.steps.append(steps.choice(oneof.name, runs, plan.payload.mechanism.codes, blank))
    fragment.local += plan.cost
    fragment.fields.append(plan)


def _run(field: FieldDescriptor, part: Fragment, diagnostics: Diagnostics) -> Run:
    refusals = [refused for plan in part.fields if (refused := plan.kind.refuses(plan)) is not None]
    if part.units:
        diagnostics.error(
            field.full_name, "oneof-choice", "holds a unit, so its oneof must be {public: true}"
        )
    elif part.central != Cost.ZERO:
        diagnostics.error(
            field.full_name,
            "oneof-choice",
            "holds an aggregate, whose sensitivity does not cover the default that leaves where it was not chosen",
            "make the oneof {public: true}, or move the field out of it; "
            "or remove sensitivity if the value is a unit's own",
        )
    elif part.shows_presence:
        diagnostics.error(
            field.full_name,
            "oneof-choice",
            "leaves (partly) as it is, which would show the choice that its oneof hides",
            "protect or suppress it, or make the oneof {public: true}",
        )
    elif refusals:
        values, instead = refusals[0]
        diagnostics.error(
            field.full_name,
            "oneof-choice",
            f"refuses {values}, and a refusal would show the choice that its oneof hides",
            f"{instead}, or make the oneof {{public: true}}",
        )
    elif (
        not part.steps
        and field.message_type
        and any(inner.is_required for inner in field.message_type.fields)
    ):
        diagnostics.error(
            field.full_name, "required", "would leave without its required fields", "protect these"
        )
    return steps.run_all(part.steps) if part.steps else steps.emptied(field)
