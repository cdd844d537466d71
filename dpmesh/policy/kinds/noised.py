"""NoisedKind: a kind whose values leave with noise, and which is charged for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, ClassVar

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.policy.codegen import steps
from dpmesh.policy.codegen.steps import Step, Transform
from dpmesh.policy.compile.fragment import Fragment, cut_from
from dpmesh.policy.descriptors import is_map, oneof_of
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import memoize
from dpmesh.policy.kinds.kind import FieldKind, FieldSite
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import Size, of_values


class NoisedKind(FieldKind):
    """A kind that draws noise. Its plan has a mechanism, a cost and a model; its rules have an `epsilon`.

    Attributes:
        aggregate_rule: The name of the rule that makes a value an aggregate.
    """

    aggregate_rule: ClassVar[str] = "sensitivity"

    @override
    def needs_share(self, rules: Any) -> bool:
        return not rules.HasField("epsilon")

    @override
    def add(self, fragment: Fragment, site: FieldSite, rules: Any) -> None:
        try:
            plan = self.plan(site, rules)
            if site.memoize is not None:
                plan = memoize.memoized(plan, site, site.memoize)
        except BadRuleError as bad:
            site.bad_rule(bad)
            return
        except ValueError as error:
            # The samplers have limits of their own, which only extreme resolutions and epsilons reach.
            site.error("resolution", str(error), "use a coarser resolution")
            return
        except ArithmeticError:
            # Norms, sensitivities and regions of extreme size reach what floats can't hold.
            text = "has numbers so large, or so near to each other, that its noise can't be computed"
            site.error("bounds", text, "use a norm, bounds or a region of usual size")
            return
        if site.public_length and self._takes_length(site.field):
            plan = dataclasses.replace(plan, public_lengths=(site.path,))
            fragment.cuts.append(cut_from(site.field.name, plan.repeats))
            fragment.shows_presence.append(
                f"the number of elements of {site.field.full_name} leaves as it is"
            )
        if plan.cost == Cost.ZERO:
            site.error("cost", f"{self} draws noise and costs nothing", "report this as a bug of dpmesh")
        if self.hides_near_values_only(plan):
            fragment.shows_presence.append(
                f"{site.field.full_name} hides only values that are near each other"
            )
        fragment.fields.append(plan)
        fragment.values += self.values(plan)
        fragment.size += self.size(site, plan)
        if plan.memo is not None:
            memoize.add(fragment, site, plan, self.transform(plan))
            return
        if plan.model is Model.CENTRAL:
            fragment.central += plan.cost
            self._require(fragment, site, plan)
        else:
            fragment.local += plan.cost
        fragment.steps.append(self.step(site, plan))

    def noised_plan(
        self,
        site: FieldSite,
        *,
        model: Model,
        epsilon: Fraction | None,
        cost: Cost,
        mechanism_name: str,
        payload: Any,
        repeats: int = 1,
        rho: Fraction | None = None,
        delta: float = 0.0,
    ) -> FieldPlan:
        """The plan of a field of this kind; `dpmesh.policy.plan.FieldPlan` explains the arguments."""
        return FieldPlan(
            path=site.path,
            name=site.field.full_name,
            kind=self,
            origin=site.origin,
            model=model,
            epsilon=epsilon,
            rho=rho,
            delta=delta,
            repeats=repeats,
            instances=site.instances,
            cost=cost,
            mechanism_name=mechanism_name,
            payload=payload,
        )

    def _takes_length(self, field: FieldDescriptor) -> bool:
        """Whether the number of a field's elements may be public."""
        # A step of a kind's own may know nothing of it.
        own_step = type(self).step is not NoisedKind.step
        return field.is_repeated and not is_map(field) and self.elementwise and not own_step

    def hides_near_values_only(self, plan: FieldPlan) -> bool:
        """Whether values that are far apart can be told from each other, and so from what an absent one counts as."""
        return False

    def values(self, plan: FieldPlan) -> int:
        """How many values of the field one message instance shows."""
        return plan.repeats

    def size_with(self, site: FieldSite, plan: FieldPlan, values: Iterable[Any]) -> Size:
        """The size of a field each of whose values is one of these: see `sizes.of_values`."""
        return of_values(site.field, values, 0 if site.public_length else plan.repeats, plan.repeats)

    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        """What writes the field of a protected message. Kinds on messages and maps override it."""
        if site.field.is_repeated:
            return steps.repeated(site.field, self.transform(plan), plan.repeats, fill=not site.public_length)
        return steps.single(site.field, self.transform(plan))

    def transform(self, plan: FieldPlan) -> Transform:
        """What is done to each value, as text that becomes part of the message's generated function."""
        raise NotImplementedError(f"{type(self).__name__} has neither a transform nor a step of its own")

    def _require(self, fragment: Fragment, site: FieldSite, plan: FieldPlan) -> None:
        """Refuses messages without an aggregate: its sensitivity covers what one unit changes, but no absence."""
        field = site.field
        if site.owned:
            site.warn(
                "unit-aggregate",
                f"is an aggregate, because {self.aggregate_rule} is set: global budgets pay for it, and the unit does "
                "not",
                f"remove {self.aggregate_rule} if the value is the unit's own",
            )
        if field.is_repeated:
            if self.elementwise and not site.public_length:
                fragment.steps.append(steps.require_items(field, plan.repeats))
        elif field.has_presence:
            fragment.steps.append(steps.require_set(field))
            if not field.is_required and oneof_of(field) is None:
                site.warn(
                    "aggregate-absent",
                    "is an aggregate, and a message without it is refused: its sensitivity does not cover absence",
                    "always set it (a count of nothing is 0), or make it a field without presence",
                )
