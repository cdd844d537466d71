"""Categorical: one of a public, finite set of values, released by k-ary randomized response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.noise import categorical
from dpmesh.noise.categorical import CategoricalMechanism
from dpmesh.policy.codegen.steps import Transform
from dpmesh.policy.descriptors import INTEGER_RANGES, F, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, split
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.v1 import privacy_pb2 as pb

MECHANISM_NAME = "k_randomized_response"


@dataclass(frozen=True, slots=True)
class CategoricalPayload:
    """What leaves of a category, and how it is drawn.

    Attributes:
        domain: All values that may leave, in order: enum numbers, bools, strings or integers.
        mechanism: What draws, by indexes in the domain.
        enum: The enum whose numbers these are, if they are.
    """

    domain: tuple[Any, ...]
    mechanism: CategoricalMechanism
    enum: EnumDescriptor | None = None

    @property
    def labels(self) -> Mapping[Any, str]:
        """The names of enum numbers; empty for everything else, which is its own label."""
        numbers = {} if self.enum is None else self.enum.values_by_number
        return {number: value.name for number, value in numbers.items()}


class Categorical(NoisedKind):
    """Randomizes over the domain; what is outside of it counts as its first value."""

    name = "categorical"

    @override
    def plan(self, site: FieldSite, rules: pb.Categorical) -> FieldPlan:
        if rules.mechanism == pb.Categorical.SUBSET_SELECTION:
            raise BadRuleError("kind-not-available", "SUBSET_SELECTION does not work yet", "use AUTO")
        repeats = site.repeats()
        holder = scalar(site.field)
        domain = _domain(holder, tuple(rules.domain), site.field)
        total = field_epsilon(rules, site.share)
        each = split(total, repeats)
        return FieldPlan(
            path=site.path,
            name=site.field.full_name,
            kind=self,
            origin=site.origin,
            model=Model.LOCAL,
            epsilon=total,
            repeats=repeats,
            instances=site.instances,
            cost=Cost.pure(each).times(repeats),
            mechanism_name=MECHANISM_NAME,
            payload=CategoricalPayload(domain, categorical.make(len(domain), each), holder.enum_type),
        )

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        domain, draws = plan.payload.domain, plan.payload.mechanism.draws
        index = "index_of@(value, 0)"
        if isinstance(domain[0], str):
            # Looking a text up takes time in proportion to its length, which the domain bounds.
            index += f" if len(value) <= {max(map(len, domain))} else 0"
        text = f"x = {index}\n{draws.decode}\nout = values@[y]"
        indexes = {value: index for index, value in enumerate(domain)}
        return Transform(draws, text, {"index_of@": indexes.get, "values@": domain})

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description(f"one of {len(plan.payload.domain)}", truth=plan.payload.mechanism.truth)

    @override
    def states(self, plan: FieldPlan) -> int:
        return len(plan.payload.domain)

    @override
    def as_category(self, plan: FieldPlan) -> CategoricalPayload:
        payload: CategoricalPayload = plan.payload
        return payload


KIND = Categorical()


def _domain(holder: FieldDescriptor, names: tuple[str, ...], field: FieldDescriptor) -> tuple[Any, ...]:
    if len(set(names)) != len(names):
        raise BadRuleError("domain", "has a value twice")
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
