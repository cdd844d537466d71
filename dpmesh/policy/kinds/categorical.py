"""Categorical: one of a public, finite set of values, or any text in a CategoryReport."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from dpmesh.noise import categorical
from dpmesh.policy.codegen.steps import Transform
from dpmesh.policy.compile.fragment import Fragment
from dpmesh.policy.descriptors import is_map, is_report, scalar
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.category import CategoricalPayload, Category, absent_of, domain_of, transform_of
from dpmesh.policy.kinds.category_report import KIND as REPORT
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, split
from dpmesh.policy.kinds.subset import KIND as SUBSET
from dpmesh.policy.plan import FieldPlan
from dpmesh.policy.sizes import Size
from dpmesh.v1 import privacy_pb2 as pb


class Categorical(Category):
    """Each value by k-ary randomized response. Subsets and reports have kinds of their own, to which it hands over."""

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        if is_report(site.field):
            REPORT.add(fragment, site, rules)
        elif rules.mechanism == pb.Categorical.SUBSET_SELECTION:
            SUBSET.add(fragment, site, rules)
        else:
            super().add(fragment, site, rules)

    @override
    def plan(self, site: FieldSite, rules: pb.Categorical) -> FieldPlan:
        if rules.mechanism == pb.Categorical.OPTIMIZED_LOCAL_HASHING:
            text = "only a dpmesh.v1.CategoryReport can carry OPTIMIZED_LOCAL_HASHING"
            raise BadRuleError("mechanism", text, "use AUTO")
        if site.field.is_repeated and not is_map(site.field) and not site.max_items:
            raise BadRuleError(
                "max-items",
                "does not say whether it holds a list of values, whose length is data too, or one value",
                "set max_items for a list, or mechanism: SUBSET_SELECTION for one value",
            )
        repeats = site.repeats()
        domain = domain_of(site.field, tuple(rules.domain))
        total = field_epsilon(rules, site.share)
        mechanism = categorical.make(len(domain), split(total, repeats))
        absent = absent_of(site.field, domain)
        payload = CategoricalPayload(domain, mechanism, absent, scalar(site.field).enum_type)
        return self.planned(site, payload, total, repeats)

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        return transform_of(plan.payload.domain, plan.payload.mechanism, "out = values@[y]")

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        return self.size_with(site, plan, plan.payload.domain)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return Description(f"one of {len(plan.payload.domain)}", truth=plan.payload.mechanism.truth)

    @override
    def states(self, plan: FieldPlan) -> int:
        return len(plan.payload.domain)


KIND = Categorical()
