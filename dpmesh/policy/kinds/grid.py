"""Grid: the public points on which a number leaves, worked out from its rule and its field's type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.noise.numeric import NumericMechanism
from dpmesh.policy.descriptors import INTEGER_RANGES, F, limits, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.checks import above_zero
from dpmesh.v1 import privacy_pb2 as pb

GRID_LIMIT = 2**40
_DEFAULT_CELLS = 10_000
_STEPS_OF_SENSITIVITY = 32


@dataclass(frozen=True, slots=True)
class Grid:
    """The public grid of a numeric field: lower + i * step for i = 0..size.

    Attributes:
        lower: The value of index 0, in the field's own units.
        upper: The declared upper bound; the last point is the nearest to it, above or below.
        step: The distance of two neighbours, in the field's own units.
        size: The index of the last point.
        integral: The field holds integers, so all points are integers.
    """

    lower: float
    upper: float
    step: float
    size: int
    integral: bool

    def value(self, index: int) -> float:
        """The value of a grid index (which may lie outside 0..size)."""
        return self.lower + index * self.step

    def index(self, value: float) -> int:
        """The index nearest to a value, clamped to 0..size; the middle for NaN."""
        if value != value:
            return self.size // 2
        if value <= self.lower:
            return 0
        if value >= self.upper:
            return self.size
        return min(int((value - self.lower) / self.step + 0.5), self.size)


def grid_of(holder: FieldDescriptor, rules: pb.Numeric) -> Grid:
    """The grid that a numeric rule asks for, or the default one.

    Args:
        holder: The field that holds the number; of a wrapper, its inner one.
        rules: The rule.

    Raises:
        BadRuleError: The rule contradicts itself or the field's type.
    """
    if not (rules.HasField("lower") and rules.HasField("upper")):
        raise BadRuleError("bounds", "has no lower and upper", "set the range that values can take")
    span = rules.upper - rules.lower
    if not (math.isfinite(span) and span > 0):
        raise BadRuleError(
            "bounds", f"lower {rules.lower:g} and upper {rules.upper:g} are not a finite range"
        )
    integral = holder.type in INTEGER_RANGES
    finest = _finest(holder, max(abs(rules.lower), abs(rules.upper)))
    step = rules.resolution if rules.HasField("resolution") else max(finest, _default_step(rules, integral))
    if not (math.isfinite(step) and 0 < step <= span):
        raise BadRuleError("resolution", f"must be above 0 and at most the range {span:g}, not {step:g}")
    if span / step > GRID_LIMIT:
        raise BadRuleError(
            "resolution", f"{step:g} is too fine for the range {span:g}", f"{span / 2**20:.2g} will do"
        )
    if step < finest:
        raise BadRuleError(
            "resolution",
            f"{type_name(holder)} can't tell values {step:g} apart near its bounds",
            f"{finest:g} will do, or a field that holds more digits",
        )
    if not integral:
        _within(holder, rules.lower, rules.upper)
        # Computed as Numeric.transform computes the index of a value, so that the upper bound is where its
        # neighbours are: a last point of its own would be further from them than the sensitivity tells.
        return Grid(rules.lower, rules.upper, step, int(span / step + 0.5), integral=False)
    if not all(float(x).is_integer() for x in (rules.lower, rules.upper, step)):
        raise BadRuleError("bounds", "lower, upper and resolution of an integer field must be whole numbers")
    lower, upper, width = int(rules.lower), int(rules.upper), int(step)
    _within(holder, lower, upper)
    return Grid(lower, upper, width, (upper - lower + width // 2) // width, integral=True)


def _finest(holder: FieldDescriptor, largest: float) -> float:
    """The distance of neighbours among the largest numbers of a field: a finer grid would not survive in it."""
    if holder.type in INTEGER_RANGES:
        return 1.0
    return math.ulp(largest) * (2.0**29 if holder.type == F.TYPE_FLOAT else 1.0)


def _default_step(rules: pb.Numeric, integral: bool) -> float:
    """A power of two, so that scaling is exact, between a ten- and a twenty-thousandth of the range.

    That of an aggregate is also at most a 32nd of its sensitivity, or 1 in an integer: noise hides at least one
    step, so a wider step would make it larger.
    """
    span = rules.upper - rules.lower
    widest = span / _DEFAULT_CELLS
    if math.isfinite(rules.sensitivity) and rules.sensitivity > 0:
        widest = max(min(widest, rules.sensitivity / _STEPS_OF_SENSITIVITY), 2 * span / GRID_LIMIT)
    step = 2.0 ** math.floor(math.log2(widest)) if widest > 0 else 0.0
    return max(1.0, step) if integral else step


def _within(holder: FieldDescriptor, low: float, high: float) -> None:
    smallest, largest = limits(holder)
    if low < smallest or high > largest:
        raise BadRuleError("bounds", f"lower and upper must fit {type_name(holder)}")


def steps_of(declared: float, grid: Grid) -> int:
    """A sensitivity in grid steps: how far apart the indexes of two values can be that are `declared` apart.

    Whole numbers d apart have indexes at most ceil(d / step) apart. Floats may have one more, because rounding to
    the nearest point is computed with an error, three roundings each of numbers up to the grid's size: what is
    within it of the next step counts as the next step (Casacuberta et al. 2022 attack what leaves it out).

    Raises:
        BadRuleError: It is not a finite number above 0.
    """
    exact = Fraction(above_zero(declared, "sensitivity")) / Fraction(grid.step)
    rounding = Fraction(grid.size + 1, 2**50)
    steps = math.ceil(exact) if grid.integral else math.floor(exact + rounding) + 1
    return min(steps, grid.size)


def outputs_fit(grid: Grid, mechanism: NumericMechanism, within: tuple[float, float]) -> bool:
    """Whether all outputs of a mechanism lie within the limits of what holds them."""
    return within[0] <= grid.value(mechanism.low) and grid.value(mechanism.high) <= within[1]


def check_outputs(holder: FieldDescriptor, grid: Grid, mechanism: NumericMechanism) -> None:
    """Refuses an output range that the field can't hold: a clamped or wrapped output would not be unbiased.

    Raises:
        BadRuleError: The field can't hold all outputs.
    """
    if not outputs_fit(grid, mechanism, limits(holder)):
        low, high = grid.value(mechanism.low), grid.value(mechanism.high)
        raise BadRuleError(
            "output-range",
            f"unbiased outputs reach from {low:.6g} to {high:.6g}, which {type_name(holder)} can't hold",
            "set output: IN_RANGE, or use a wider signed type",
        )
