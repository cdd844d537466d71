"""Shares: how a message's epsilon is split over the fields and choices that set none."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from google.protobuf.descriptor import Descriptor

from dpmesh.policy.compile.findings import Diagnostics
from dpmesh.policy.descriptors import choice_of
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.fields import checked_epsilon, split


def share(message: Descriptor, findings: Diagnostics) -> Fraction | None:
    """The part of the message's epsilon for each that takes one; None if the message sets none.

    The members of a oneof take one part together, because only one of them leaves; its choice takes another.
    """
    rules = findings.message(message).rules
    if not rules.HasField("epsilon"):
        return None
    takers = set(_takers(message, findings))
    if not takers:
        findings.warn(message.full_name, "epsilon", "no field takes a part of this epsilon", "remove it")
        return None
    try:
        return split(checked_epsilon(rules.epsilon), len(takers))
    except BadRuleError as bad:
        findings.bad(message.full_name, bad)
        return None


def _takers(message: Descriptor, findings: Diagnostics) -> Iterator[str]:
    for field in message.fields:
        rules = findings.field(field).rules
        kind = rules.WhichOneof("kind")
        oneof = choice_of(field)
        if kind in ("numeric", "categorical") and not getattr(rules, kind).HasField("epsilon"):
            yield f"a member of {oneof.name}" if oneof else field.name
        if oneof and findings.changes(field):
            choice = findings.oneof(oneof).rules
            if not choice.public and not choice.HasField("epsilon"):
                yield f"the choice of {oneof.name}"
