"""CategoryReportKind: a dpmesh.v1.CategoryReport, whose text leaves as a noisy hash."""

from __future__ import annotations

from typing import Any

from google.protobuf.message_factory import GetMessageClass
from typing_extensions import override

from dpmesh.noise import categorical
from dpmesh.noise.local_hashing import fingerprint
from dpmesh.policy.codegen.steps import Step, Transform
from dpmesh.policy.descriptors import inside_of
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.category import CategoricalPayload, Category
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, split
from dpmesh.policy.plan import FieldPlan, Pseudonymise
from dpmesh.policy.sizes import Size
from dpmesh.v1 import privacy_pb2 as pb


class CategoryReportKind(Category):
    """The text of each report by optimized local hashing, the empty text where there is none."""

    @override
    def plan(self, site: FieldSite, rules: pb.Categorical) -> FieldPlan:
        if rules.mechanism not in (pb.Categorical.AUTO, pb.Categorical.OPTIMIZED_LOCAL_HASHING):
            raise BadRuleError(
                "mechanism", "a CategoryReport carries OPTIMIZED_LOCAL_HASHING and nothing else", "use AUTO"
            )
        if rules.domain:
            raise BadRuleError(
                "domain",
                "a CategoryReport holds any text, so no domain limits it",
                "remove it; the receiver names the texts as candidates",
            )
        repeats = site.repeats()
        total = field_epsilon(rules, site.share)
        mechanism = categorical.make_hashing(split(total, repeats))
        return self.planned(site, CategoricalPayload((), mechanism, ""), total, repeats)

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        draws = plan.payload.mechanism.draws
        text = f"x = fingerprint@(value)\n{draws.decode}\nout = y"
        return Transform(draws, text, {"fingerprint@": fingerprint})

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        name, items = site.field.name, plan.repeats
        protect = self.transform(plan).function()
        if site.field.is_repeated:

            def repeated(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
                values = [report.value for report in getattr(source, name)[:items]]
                values += [""] * (items - len(values))
                into = getattr(target, name)
                for value in values:
                    seed, noisy = protect(value)
                    into.add(seed=seed, hash=noisy)

            return repeated

        def single(source: Any, target: Any, _pseudonymise: Pseudonymise) -> None:
            report = getattr(target, name)
            report.seed, report.hash = protect(getattr(source, name).value)
            report.SetInParent()

        return single

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        last, inside = plan.payload.mechanism.size - 1, inside_of(site.field)
        assert inside is not None
        new: Any = GetMessageClass(inside)
        reports = [new(seed=seed, hash=hash) for seed, hash in ((0, 0), (1, last))]
        return self.size_with(site, plan, reports)

    @override
    def describe(self, plan: FieldPlan) -> Description:
        return self.described(plan, f"a seed and one of {plan.payload.mechanism.size} hashes")


KIND = CategoryReportKind()
