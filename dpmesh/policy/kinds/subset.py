"""Subset: a repeated field that is one value of a public set, released as a subset of the set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from dpmesh.noise import categorical
from dpmesh.policy.codegen.steps import Step, Transform
from dpmesh.policy.descriptors import is_map, is_wrapper, scalar
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.category import (
    CategoricalPayload,
    Category,
    absent_of,
    domain_of,
    filler_of,
    transform_of,
)
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon
from dpmesh.policy.plan import FieldPlan, Pseudonymise
from dpmesh.policy.sizes import Size, of_widths, width_in
from dpmesh.v1 import privacy_pb2 as pb


class Subset(Category):
    """The first element, or a default where there is none, by subset selection."""

    elementwise = False

    @override
    def plan(self, site: FieldSite, rules: pb.Categorical) -> FieldPlan:
        field = site.field
        if not field.is_repeated or is_map(field):
            raise BadRuleError(
                "mechanism",
                "SUBSET_SELECTION releases several values, and only a repeated field can carry them",
                "make the field repeated, or use AUTO",
            )
        if site.max_items:
            raise BadRuleError(
                "max-items",
                "SUBSET_SELECTION makes the whole field one value, and its subsets have a length of their own",
                "remove max_items; or use AUTO, by which each of max_items elements is a value",
            )
        domain = domain_of(field, tuple(rules.domain))
        if len(domain) > categorical.MOST_SYMBOLS_OF_SUBSETS:
            raise BadRuleError(
                "domain",
                f"has {len(domain):,} values, of which a subset would be a large message; "
                f"{categorical.MOST_SYMBOLS_OF_SUBSETS:,} are allowed",
                "use a dpmesh.v1.CategoryReport",
            )
        total = field_epsilon(rules, site.share)
        mechanism = categorical.make_subset(len(domain), total)
        payload = CategoricalPayload(domain, mechanism, absent_of(field, domain), scalar(field).enum_type)
        return self.planned(site, payload, total, 1)

    @override
    def values(self, plan: FieldPlan) -> int:
        size: int = plan.payload.mechanism.size
        return size

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        out = "out = list(map(values@.__getitem__, y))"
        return transform_of(plan.payload.domain, plan.payload.mechanism, out)

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        name, filler = site.field.name, filler_of(site.field)
        protect = self.transform(plan).function()
        if is_wrapper(site.field):

            def wrapped(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
                held = getattr(source, name)
                into = getattr(target, name)
                for value in protect(held[0].value if held else filler):
                    into.add(value=value)

            return wrapped

        def plain(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            held = getattr(source, name)
            getattr(target, name).extend(protect(held[0] if held else filler))

        return plain

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        field, count = site.field, plan.payload.mechanism.size
        widths = sorted(width_in(field, value) for value in plan.payload.domain)
        return Size(of_widths(field, widths[:count]), of_widths(field, widths[-count:]))

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return self.described(plan, f"{plan.payload.mechanism.size} of {len(plan.payload.domain)}")

    @override
    def received(self, value: Any) -> Iterator[tuple[Any, ...]]:
        # A message that left under on_exhausted = "suppress" holds no subset.
        if len(value):
            yield tuple(getattr(element, "value", element) for element in value)


KIND = Subset()
