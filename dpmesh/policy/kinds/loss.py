"""The epsilon of a field: from its own rule or from its message, checked, and split into equal parts."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import Descriptor

from dpmesh.accounting import AMOUNT, epsilon_delta_to_rho, exact
from dpmesh.policy.descriptors import oneof_of
from dpmesh.policy.diagnostics import BadRuleError

if TYPE_CHECKING:
    from dpmesh.policy.compile.rule_lookup import RuleLookup

# e^64 to one is no protection; a field that needs none is `public`.
EPSILON_LIMIT = 64.0
# A thousand times what ledgers can count.
EPSILON_FLOOR = 1e-6


def checked_epsilon(value: float) -> Fraction:
    """An epsilon that means something.

    Raises:
        BadRuleError: It is not a number from EPSILON_FLOOR to EPSILON_LIMIT.
    """
    if not EPSILON_FLOOR <= value <= EPSILON_LIMIT:
        raise BadRuleError(
            "epsilon",
            f"epsilon must be from {EPSILON_FLOOR:g} to {EPSILON_LIMIT:g}, not {value:g}",
            "0.1 to 4 is usual; a field that needs no protection is `public`",
        )
    return exact(value)


def split(epsilon: Fraction, parts: int) -> Fraction:
    """One of several equal parts of a loss, in whole ledger amounts: so that all of them cost no more than it.

    Raises:
        BadRuleError: A part would be less than ledgers can count.
    """
    amount = int(epsilon * AMOUNT / parts)
    if amount < 1:
        raise BadRuleError("epsilon", f"{float(epsilon):g} is too little for {parts} parts", "raise it")
    return Fraction(amount, AMOUNT)


def field_epsilon(rules: Any, share: Fraction | None) -> Fraction:
    """The field's own epsilon, or its share of the message's.

    Raises:
        BadRuleError: Neither is set, or it is out of range.
    """
    if rules.HasField("epsilon"):
        return checked_epsilon(rules.epsilon)
    if share is None:
        raise BadRuleError(
            "epsilon", "has no epsilon", "set it here, or on the message to share it over its fields"
        )
    return share


def gaussian_rho(epsilon: Fraction, rules: Any) -> Fraction:
    """The rho of a discrete Gaussian that keeps an epsilon and the rule's delta.

    Raises:
        BadRuleError: The delta is missing or out of range.
    """
    if not 0 < rules.delta < 1:
        raise BadRuleError("delta", "the discrete Gaussian needs a delta between 0 and 1", "1e-6 is usual")
    return Fraction(epsilon_delta_to_rho(float(epsilon), rules.delta))


def refuse_delta(rules: Any) -> None:
    """Refuses a delta in a rule whose mechanism is pure.

    Raises:
        BadRuleError: It has one.
    """
    if rules.HasField("delta"):
        fix = "remove it, or set the mechanism"
        raise BadRuleError("delta", "only the discrete Gaussian uses delta", fix)


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
        if kind is not None and kind.needs_share(getattr(rules, kind.name)):
            yield f"a member of {oneof.name}" if oneof else field.name
        if oneof and lookup.changes(field):
            choice = lookup.oneof(oneof).rules
            if not choice.public and not choice.HasField("epsilon"):
                yield f"the choice of {oneof.name}"
