"""Memoized fields: answers that are drawn once for each unit, epoch and value.

What is drawn is a table for each unit and epoch, with one answer to each value that the field can have. The first
message of the unit in the epoch pays for the whole table, so that no cost depends on the data. Each message shows the
entry of its value. Between two histories of values that repeat themselves at the same places, what leaves has a
likelihood ratio of at most e^(states * epsilon), because each entry is drawn once, by a mechanism of epsilon. Where
values change is not hidden. RAPPOR's permanent response is such a table (Erlingsson, Pihur and Korolova 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dpmesh.noise.draws import Draws
from dpmesh.policy.codegen.steps import Transform
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import oneof_of, type_name
from dpmesh.policy.diagnostics import BadRuleError, Diagnostics
from dpmesh.policy.kinds import epochs
from dpmesh.policy.plan import FieldPlan, Memo
from dpmesh.v1 import privacy_pb2 as pb

if TYPE_CHECKING:
    from dpmesh.policy.kinds.kind import FieldSite

STATES_LIMIT = 64
"""The most values that a memoized field can have: the first message pays for an answer to each."""

_RULE = "memoize"
_WHERE = "memoize single fields of a message that names a unit and is sent by itself"


def memoized(plan: FieldPlan, site: FieldSite, rules: pb.Memoize) -> FieldPlan:
    """The plan of a field, memoized: its cost becomes that of all answers of one unit and epoch.

    Raises:
        BadRuleError: Answers of such a field can't be memoized.
    """
    field, states = site.field, plan.kind.states(plan)
    if states is None:
        text = f"is {plan.kind} with {plan.mechanism_name}, whose answers can't be memoized"
        raise BadRuleError(_RULE, text, "remove memoize; it is for a unit's own categories and numbers")
    if field.is_repeated or field.message_type is not None or oneof_of(field) is not None:
        raise BadRuleError(_RULE, f"does not fit {type_name(field)} here", _WHERE)
    if not site.owned or site.path != field.name:
        raise BadRuleError(_RULE, "is not in the message that names the unit and is sent by itself", _WHERE)
    if states > STATES_LIMIT:
        text = f"has {states:,} values, and the first message would pay for an answer to each"
        raise BadRuleError(
            _RULE, text, f"use a resolution that leaves at most {STATES_LIMIT}, or a smaller domain"
        )
    epoch = epochs.checked_seconds(rules)
    return replace(plan, memo=Memo(epoch, states), cost=plan.cost.times(states))


def add(fragment: Fragment, site: FieldSite, plan: FieldPlan, transform: Transform) -> None:
    """Adds a memoized field to the fragment of its message.

    Args:
        fragment: Receives the field's step. Its cost is no part of a message's cost.
        site: The field.
        plan: Its plan, from `memoized`.
        transform: What would be done to its value with fresh noise.
    """
    text = "shows when its value changes, because it is memoized"
    site.warn(
        "memoize-changes",
        text,
        "remove memoize if changes are to be hidden; each message then costs its epsilon",
    )
    step = site.field.name, _answered(plan, transform)
    fragment.memoized.append(plan)
    fragment.steps.append(step)
    fragment.replay_steps.append(step)


def _answered(plan: FieldPlan, transform: Transform) -> Transform:
    """The transform with the memoized code of the value's index in place of a fresh one."""
    draws = transform.draws
    assert draws is not None
    assert transform.text.count(draws.decode) == 1, "a transform takes its code in once"
    before, decode, after = transform.text.partition(draws.decode)
    text = f"{before}code = recall@(alias, x)\n{decode}{after}"
    return Transform(None, text, {**transform.global_names, "recall@": _recall(plan, draws)}, transform.reads)


def _recall(plan: FieldPlan, draws: Draws) -> Any:
    assert plan.memo is not None
    label, states = label_of(plan), plan.memo.states
    return lambda alias, x: alias.codes(label, draws, states)[x]


def label_of(plan: FieldPlan) -> str:
    """Tells a field's answers from all others of its message, and from those under another law."""
    assert plan.memo is not None
    reading = plan.kind.reading(plan)
    # The rules do not say which values an enum has, or which grid a field's type gives.
    values = reading.domain if hasattr(reading, "domain") else reading.grid
    return f"{plan.path} {plan.mechanism_name} {plan.epsilon} {plan.memo.states} {values}"


def check(fragment: Fragment, diagnostics: Diagnostics) -> None:
    """Reports what keeps a message type with memoized fields from being released."""
    plans: Sequence[FieldPlan] = fragment.memoized
    if not plans:
        return
    if len({plan.memo.epoch for plan in plans if plan.memo is not None}) > 1:
        text = "has another epoch than another memoized field of its message"
        diagnostics.error(plans[-1].name, _RULE, text, "give all memoized fields of a message one epoch")
    if fragment.anys:
        text = "stands in a message that can hold google.protobuf.Any"
        diagnostics.error(plans[0].name, _RULE, text, "suppress the Any, or remove memoize")
