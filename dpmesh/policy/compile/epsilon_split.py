"""The split of a message's epsilon over the fields and oneofs that set none."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from google.protobuf.descriptor import Descriptor

from dpmesh.policy.compile.rule_lookup import RuleLookup
from dpmesh.policy.descriptors import oneof_of
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.loss import checked_epsilon, split


def epsilon_share(message: Descriptor, lookup: RuleLookup) -> Fraction | None:
    """The part of the message's epsilon for each that takes one; None if the message sets none.

    The members of a oneof take one part together, because only one of them leaves; its choice takes another.
    """
    rules = lookup.message(message).rules
    if not rules.HasField("epsilon"):
        return None
    takers = set(_takers(message, lookup))
    if not takers:
        lookup.diagnostics.warn(
            message.full_name, "epsilon", "no field takes a part of this epsilon", "remove it"
        )
        return None
    try:
        return split(checked_epsilon(rules.epsilon), len(takers))
    except BadRuleError as bad:
        lookup.diagnostics.bad_rule(message.full_name, bad)
        return None


def _takers(message: Descriptor, lookup: RuleLookup) -> Iterator[str]:
    for field in message.fields:
        rules, kind = lookup.field(field).rules, lookup.kind(field)
        oneof = oneof_of(field)
        if kind is not None and kind.takes_share and not getattr(rules, kind.name).HasField("epsilon"):
            yield f"a member of {oneof.name}" if oneof else field.name
        if oneof and lookup.changes(field):
            choice = lookup.oneof(oneof).rules
            if not choice.public and not choice.HasField("epsilon"):
                yield f"the choice of {oneof.name}"
