"""Numeric: a number, clamped to public bounds, rounded to a public grid, and released with noise on that grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.errors import ProtectionError
from dpmesh.noise import numeric, numeric_choice
from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.codegen.steps import Transform
from dpmesh.policy.descriptors import is_number, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.grid import Grid, check_outputs, grid_of, steps_of
from dpmesh.policy.kinds.kind import Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, gaussian_rho, refuse_delta, split
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.kinds.words import number
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import Size, shortest_and_longest
from dpmesh.v1 import privacy_pb2 as pb

_MECHANISMS = {
    pb.Numeric.DISCRETE_LAPLACE: numeric.NumericKind.DISCRETE_LAPLACE,
    pb.Numeric.DISCRETE_GAUSSIAN: numeric.NumericKind.DISCRETE_GAUSSIAN,
    pb.Numeric.DUCHI: numeric.NumericKind.DUCHI,
    pb.Numeric.PIECEWISE: numeric.NumericKind.PIECEWISE,
    pb.Numeric.HYBRID: numeric.NumericKind.HYBRID,
    pb.Numeric.OPTIMIZED_PIECEWISE: numeric.NumericKind.OPTIMIZED_PIECEWISE,
}
# These have no outputs IN_RANGE: see numeric.make.
_NEVER_IN_RANGE = {pb.Numeric.DISCRETE_GAUSSIAN, pb.Numeric.PIECEWISE, pb.Numeric.HYBRID}
_LOCAL_ONLY = {
    pb.Numeric.DUCHI,
    pb.Numeric.PIECEWISE,
    pb.Numeric.HYBRID,
    pb.Numeric.OPTIMIZED_PIECEWISE,
}


@dataclass(frozen=True, slots=True)
class NumericPayload:
    """What leaves of a number, and how it is drawn.

    Attributes:
        grid: The points on which it leaves.
        mechanism: What draws, by indexes in the grid.
        in_range: No output leaves the bounds.
        refuses_nan: A message whose value is NaN is refused; of an aggregate always.
    """

    grid: Grid
    mechanism: NumericMechanism
    in_range: bool = False
    refuses_nan: bool = False

    @property
    def deviation(self) -> float | None:
        """The worst-case standard deviation, in the field's own units; None if it is beyond what a float holds."""
        deviation = math.sqrt(self.mechanism.worst_variance) * self.grid.step
        return deviation if math.isfinite(deviation) else None

    @property
    def outputs(self) -> tuple[float, float]:
        """The smallest and the largest output; the grid's last point may lie above the upper bound."""
        if self.in_range:
            return self.grid.lower, self.grid.upper
        return self.grid.value(self.mechanism.low), self.grid.value(self.mechanism.high)


class Numeric(NoisedKind):
    """Clamps to the bounds, rounds to the grid, and draws on the grid."""

    name = "numeric"

    @override
    def plan(self, site: FieldSite, rules: pb.Numeric) -> FieldPlan:
        holder = scalar(site.field)
        if not is_number(holder):
            raise BadRuleError(
                "kind-type", f"{self} does not fit {type_name(site.field)}", "use it on numbers"
            )
        repeats = site.repeats()
        grid = grid_of(holder, rules)
        local = not rules.HasField("sensitivity")
        sensitivity = grid.size if local else steps_of(rules.sensitivity, grid)
        in_range = rules.output == pb.Numeric.IN_RANGE
        mechanism, epsilon, rho, cost = _mechanism(site, rules, grid, sensitivity, repeats)
        if not in_range:
            check_outputs(holder, grid, mechanism)
        # An aggregate's sensitivity does not cover the jump from a number to the middle of the range.
        refuses_nan = rules.nan == pb.Numeric.REJECT or not local
        return self.noised_plan(
            site,
            model=Model.LOCAL if local else Model.CENTRAL,
            epsilon=epsilon,
            rho=rho,
            delta=rules.delta if rho is not None else 0.0,
            repeats=repeats,
            cost=cost,
            mechanism_name=str(mechanism.kind),
            payload=NumericPayload(grid, mechanism, in_range, refuses_nan),
        )

    @override
    def transform(self, plan: FieldPlan) -> Transform:
        grid, draws = plan.payload.grid, plan.payload.mechanism.draws
        lower, upper, step = (_literal(grid, value) for value in (grid.lower, grid.upper, grid.step))
        nearest = f"(value - {lower} + {int(grid.step) // 2}) // {step}"
        if not grid.integral:
            nearest = f"int((value - {lower}) / {step} + 0.5)"
        # The last point may lie above the upper bound, which an output IN_RANGE may not pass.
        clamp = plan.payload.in_range and grid.value(grid.size) > grid.upper
        text = f"""\
if {lower} < value < {upper}:
    x = {nearest}
    if x > {grid.size}:
        x = {grid.size}
elif value <= {lower}:
    x = 0
elif value >= {upper}:
    x = {grid.size}
else:
    x = {"refuse@()" if plan.payload.refuses_nan else grid.size // 2}
{draws.decode}
out = {lower} + y * {step}
{f"if out > {upper}: out = {upper}" if clamp else ""}"""
        return Transform(draws, text, {"refuse@": _refusal(plan.name)} if plan.payload.refuses_nan else {})

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        return self.size_with(site, plan, encoded_ends(scalar(site.field), plan.payload))

    @override
    def describe(self, plan: FieldPlan) -> Description:
        low, high = plan.payload.outputs
        words = f"{number(low)} to {number(high)}"
        return Description(words, error=plan.payload.deviation, low=low, high=high)

    @override
    def refuses(self, plan: FieldPlan) -> tuple[str, str] | None:
        return ("NaN", "use nan: MIDDLE") if plan.payload.refuses_nan else None

    @override
    def states(self, plan: FieldPlan) -> int | None:
        if plan.epsilon is None or plan.model is Model.CENTRAL:
            return None
        states: int = plan.payload.grid.size + 1
        return states


KIND = Numeric()


def encoded_ends(holder: FieldDescriptor, payload: NumericPayload) -> list[float]:
    """Those outputs that are encoded shortest and longest."""
    return shortest_and_longest(holder, *payload.outputs, payload.grid.step)


def _literal(grid: Grid, value: float) -> str:
    """A number as Python reads it: of a grid of integers, an integer."""
    return f"({(int(value) if grid.integral else float(value))!r})"


def _refusal(name: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise ProtectionError("NOT_A_NUMBER", name, "is NaN, which is refused")

    return refuse


def _mechanism(
    site: FieldSite, rules: pb.Numeric, grid: Grid, sensitivity: int, repeats: int
) -> tuple[NumericMechanism, Fraction | None, Fraction | None, Cost]:
    """The mechanism of one element, and the loss and cost of all of them."""
    local = not rules.HasField("sensitivity")
    in_range = rules.output == pb.Numeric.IN_RANGE
    chosen = rules.mechanism
    if in_range and chosen in _NEVER_IN_RANGE:
        raise BadRuleError(
            "mechanism",
            "this mechanism can't stay IN_RANGE",
            "use OPTIMIZED_PIECEWISE, or output: UNBIASED",
        )
    if not local and chosen in _LOCAL_ONLY:
        raise BadRuleError(
            "mechanism",
            "this mechanism is for a unit's own value, and sensitivity says that this is an aggregate",
            "use DISCRETE_LAPLACE or DISCRETE_GAUSSIAN",
        )
    total = field_epsilon(rules, site.share)
    each = split(total, repeats)
    if chosen == pb.Numeric.DISCRETE_GAUSSIAN:
        rho = gaussian_rho(total, rules)
        gaussian = numeric.NumericKind.DISCRETE_GAUSSIAN
        mechanism = numeric.make(gaussian, grid.size, sensitivity, each, rho=rho / repeats, in_range=False)
        return mechanism, None, rho, Cost.gaussian(rho)
    refuse_delta(rules)
    if chosen == pb.Numeric.AUTO:
        kind = numeric_choice.best(grid.size, sensitivity, each, in_range=in_range, local=local)
    else:
        kind = _MECHANISMS[chosen]
    mechanism = numeric.make(kind, grid.size, sensitivity, each, rho=None, in_range=in_range)
    return mechanism, total, None, Cost.pure(each).times(repeats)
