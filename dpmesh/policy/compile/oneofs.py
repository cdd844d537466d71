"""Choices: which member of a oneof is set is data too, so it is randomized, or public on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor
from google.protobuf.message_factory import GetMessageClass

from dpmesh.accounting import Cost
from dpmesh.noise import categorical
from dpmesh.policy.codegen import steps
from dpmesh.policy.codegen.steps import Run
from dpmesh.policy.compile.findings import Diagnostics
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.fields import checked_epsilon
from dpmesh.policy.plan import FieldPlan, Kind, Model
from dpmesh.policy.rulebook import ResolvedRule

Member = tuple[FieldDescriptor, Fragment]


def add(
    node: Fragment,
    oneof: OneofDescriptor,
    members: Sequence[Member],
    *,
    path: str,
    instances: int,
    share: Fraction | None,
    findings: Diagnostics,
) -> None:
    """Adds a oneof, whose members are compiled already, to the node of its message."""
    ruling = findings.oneof(oneof)
    node.adopt([part for _, part in members])
    if ruling.rules.public and ruling.rules.HasField("epsilon"):
        findings.error(
            oneof.full_name, "oneof-choice", "is public and has an epsilon", "choose one of the two"
        )
    if not any(findings.changes(field) for field, _ in members):
        refuse_idle(oneof, ruling, findings)
        for _, part in members:
            node.steps += part.steps
            node.bare += part.bare
    elif ruling.rules.public:
        node.shown.append(f"the choice of {oneof.full_name} leaves as it is")
        runs = [(field.name, steps.run_all(part.steps)) for field, part in members if part.steps]
        node.steps.append(steps.open_choice(oneof.name, runs))
        bare = [(field.name, steps.run_all(part.bare)) for field, part in members if part.bare]
        node.bare += [steps.open_choice(oneof.name, bare)] if bare else []
    else:
        epsilon = _epsilon(oneof, ruling, share, findings)
        if epsilon is not None:
            _hide(node, oneof, members, epsilon, path, instances, ruling, findings)


def refuse_idle(oneof: OneofDescriptor, ruling: ResolvedRule, findings: Diagnostics) -> None:
    """Refuses an epsilon for a choice that is not randomized: somebody meant to protect it."""
    if ruling.rules.HasField("epsilon"):
        findings.error(
            oneof.full_name,
            "oneof-choice",
            "has an epsilon, but there is no choice to be protected",
            "annotate the fields, or remove it",
        )


def _epsilon(
    oneof: OneofDescriptor, ruling: ResolvedRule, share: Fraction | None, findings: Diagnostics
) -> Fraction | None:
    try:
        epsilon = checked_epsilon(ruling.rules.epsilon) if ruling.rules.HasField("epsilon") else share
    except BadRuleError as bad:
        findings.bad(oneof.full_name, bad)
        return None
    if epsilon is None:
        findings.error(
            oneof.full_name,
            "oneof-choice",
            "which member is set is data too",
            "option (dpmesh.v1.oneof) = {epsilon: ...}, or {public: true} if it may be seen",
        )
    return epsilon


def _hide(
    node: Fragment,
    oneof: OneofDescriptor,
    members: Sequence[Member],
    epsilon: Fraction,
    path: str,
    instances: int,
    ruling: ResolvedRule,
    findings: Diagnostics,
) -> None:
    """Randomizes the choice: k-ary randomized response over the members and "none"."""
    runs = [(field.name, _run(field, part, findings)) for field, part in members]
    mechanism = categorical.make(len(runs) + 1, epsilon)
    blank = GetMessageClass(oneof.containing_type)()
    node.steps.append(steps.choice(oneof.name, runs, mechanism.codes, blank))
    cost = Cost.pure(epsilon)
    node.local += cost
    node.fields.append(
        FieldPlan(
            path=path + oneof.name,
            name=oneof.full_name,
            kind=Kind.ONEOF,
            origin=ruling.origin,
            model=Model.LOCAL,
            epsilon=epsilon,
            instances=instances,
            cost=cost,
            domain=(*(name for name, _ in runs), "none"),
            mechanism=mechanism,
        )
    )


def _run(field: FieldDescriptor, part: Fragment, findings: Diagnostics) -> Run:
    if part.units:
        findings.error(field.full_name, "oneof-choice", "holds a unit, so its oneof must be {public: true}")
    elif part.central != Cost.ZERO:
        findings.error(
            field.full_name,
            "oneof-choice",
            "holds an aggregate, whose sensitivity does not cover the default that leaves where it was not chosen",
            "make the oneof {public: true}, or move the field out of it; "
            "or remove sensitivity if the value is a unit's own",
        )
    elif part.shown:
        findings.error(
            field.full_name,
            "oneof-choice",
            "leaves (partly) as it is, which would show the choice that its oneof hides",
            "protect or suppress it, or make the oneof {public: true}",
        )
    elif any(plan.refuses_nan for plan in part.fields):
        findings.error(
            field.full_name,
            "oneof-choice",
            "refuses NaN, and a refusal would show the choice that its oneof hides",
            "use nan: MIDDLE, or make the oneof {public: true}",
        )
    elif (
        not part.steps
        and field.message_type
        and any(inner.is_required for inner in field.message_type.fields)
    ):
        findings.error(
            field.full_name, "required", "would leave without its required fields", "protect these"
        )
    return steps.run_all(part.steps) if part.steps else steps.emptied(field)
