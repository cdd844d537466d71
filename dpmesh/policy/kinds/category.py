"""Category: what the kinds have in common whose values are of a set, and how sets are declared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from dpmesh.accounting import Cost
from dpmesh.noise.categorical import CategoricalMechanism
from dpmesh.policy.codegen.steps import Transform
from dpmesh.policy.descriptors import INTEGER_RANGES, F, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.plan import FieldPlan, Model

# The error that `dpmesh plan` shows is that of a share estimated from so many reports.
_REPORTS = 10_000


@dataclass(frozen=True, slots=True)
class CategoricalPayload:
    """What leaves of a category, and how it is drawn.

    Attributes:
        domain: All values, in order: enum numbers, bools, strings or integers. Empty where any text is one.
        mechanism: What draws, by indexes in the domain, or by fingerprints of texts.
        absent: The value that an absent one counts as.
        enum: The enum whose numbers these are, if they are.
    """

    domain: tuple[Any, ...]
    mechanism: CategoricalMechanism
    absent: Any
    enum: EnumDescriptor | None = None

    @property
    def labels(self) -> Mapping[Any, str]:
        """The names of enum numbers; empty for everything else, which is its own label."""
        numbers = {} if self.enum is None else self.enum.values_by_number
        return {number: value.name for number, value in numbers.items()}


class Category(NoisedKind):
    """A kind whose plans have a CategoricalPayload."""

    name = "categorical"

    def planned(
        self, site: FieldSite, payload: CategoricalPayload, total: Fraction, repeats: int
    ) -> FieldPlan:
        """The plan of a field.

        Args:
            site: The field.
            payload: What leaves of each of its values.
            total: The loss of all its values together.
            repeats: How many values it holds.
        """
        return self.noised_plan(
            site,
            model=Model.LOCAL,
            epsilon=total,
            repeats=repeats,
            cost=Cost.pure(payload.mechanism.epsilon).times(repeats),
            mechanism_name=str(payload.mechanism.kind),
            payload=payload,
        )

    def described(self, plan: FieldPlan, output: str) -> Description:
        """What `dpmesh plan` shows, with the error of what the receiver learns.

        Args:
            plan: The field's plan.
            output: What leaves, in words.
        """
        mechanism = plan.payload.mechanism
        deviation = math.sqrt(mechanism.variance() / _REPORTS)
        return Description(
            f"{output}; sd of a rare share {deviation:.2%} on {_REPORTS:,} reports", truth=mechanism.truth
        )


def transform_of(domain: tuple[Any, ...], mechanism: CategoricalMechanism, result: str) -> Transform:
    """What maps a value to its index in the domain, and draws.

    Args:
        domain: All values. What is none of them counts as the first.
        mechanism: What draws.
        result: A statement from what was drawn, `y`, and the domain, `values@`, to `out`.
    """
    index = "index_of@(value, 0)"
    if isinstance(domain[0], str):
        # Looking a text up takes time in proportion to its length, which the domain bounds.
        index += f" if len(value) <= {max(map(len, domain))} else 0"
    text = f"x = {index}\n{mechanism.draws.decode}\n{result}"
    indexes = {value: index for index, value in enumerate(domain)}
    return Transform(mechanism.draws, text, {"index_of@": indexes.get, "values@": domain})


def filler_of(field: FieldDescriptor) -> Any:
    """What stands for a missing element of a repeated field: its type's default."""
    return "" if scalar(field).type == F.TYPE_STRING else 0


def absent_of(field: FieldDescriptor, domain: tuple[Any, ...]) -> Any:
    """The value that an absent one counts as: the field's default, or the domain's first."""
    default = filler_of(field) if field.is_repeated else scalar(field).default_value
    return default if default in domain else domain[0]


def domain_of(field: FieldDescriptor, names: tuple[str, ...]) -> tuple[Any, ...]:
    """All values of a field, by its type and by what its rule declares.

    Raises:
        BadRuleError: The type has no categories, or the declared ones are not of it.
    """
    holder = scalar(field)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise BadRuleError("domain", f"has a value twice: {twice[0]!r}", "remove one of them")
    parse = _DOMAIN_PARSERS.get(holder.type) or (_integers if holder.type in INTEGER_RANGES else None)
    if parse is None:
        raise BadRuleError("kind-type", f"categorical does not fit {type_name(field)}")
    domain = parse(holder, names)
    if len(domain) < 2:
        raise BadRuleError("domain", "needs at least two values", "list every value that may leave")
    return domain


def _integers(holder: FieldDescriptor, names: tuple[str, ...]) -> tuple[Any, ...]:
    low, high = INTEGER_RANGES[holder.type]
    try:
        values = tuple(int(name) for name in names)
    except ValueError:
        raise BadRuleError("domain", "of an integer field must be whole numbers, in quotes") from None
    if len(set(values)) != len(values) or not all(low <= value <= high for value in values):
        raise BadRuleError("domain", f"has a value twice, or one that {type_name(holder)} can't hold")
    return values


def _enum(holder: FieldDescriptor, names: tuple[str, ...]) -> tuple[Any, ...]:
    assert holder.enum_type is not None
    # Aliases share a number: by number, each counts once.
    numbers = {value.name: value.number for value in holder.enum_type.values}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise BadRuleError("domain", f"{holder.enum_type.full_name} has no value {unknown[0]}")
    return tuple(dict.fromkeys(numbers[name] for name in names or numbers))


def _bool(_holder: FieldDescriptor, names: tuple[str, ...]) -> tuple[Any, ...]:
    if names:
        raise BadRuleError("domain", "a bool brings its own", "remove it")
    return (False, True)


_DOMAIN_PARSERS: dict[int, Callable[[FieldDescriptor, tuple[str, ...]], tuple[Any, ...]]] = {
    F.TYPE_ENUM: _enum,
    F.TYPE_BOOL: _bool,
    F.TYPE_STRING: lambda _holder, names: names,
}
