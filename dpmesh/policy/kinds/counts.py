"""Counts: the grid of a histogram's numbers, and how far one unit moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.errors import ProtectionError
from dpmesh.noise.numeric import MAX_SIZE
from dpmesh.policy.descriptors import INTEGER_RANGES
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.checks import above_zero
from dpmesh.policy.kinds.grid import Grid
from dpmesh.v1 import privacy_pb2 as pb

# By default rounding adds at most this part to an aggregate's sensitivity.
_ROUNDING_PART = 32


def step_of(value: FieldDescriptor, rules: pb.Histogram, most: int) -> Any:
    """The grid's step of an aggregate: an integer for integers.

    Args:
        value: The field of the map's numbers.
        rules: The rule.
        most: How many keys one unit adds to.

    Raises:
        BadRuleError: The contribution or the resolution is missing or out of range.
    """
    if not rules.HasField("contribution"):
        fix = "set contribution, or lower and upper if the map is the unit's own"
        raise BadRuleError("contribution", "does not say how much one unit adds", fix)
    contribution = above_zero(rules.contribution, "contribution")
    step = rules.resolution
    if value.type in INTEGER_RANGES:
        step = step if rules.HasField("resolution") else 1.0
        if not (step.is_integer() and step >= 1):
            raise BadRuleError("resolution", "of integers must be a whole number above 0")
        return int(step)
    if not rules.HasField("resolution"):
        step = 2.0 ** math.floor(math.log2(contribution / _ROUNDING_PART / most))
    return above_zero(step, "resolution")


def steps_of_contribution(contribution: float, step: Any, most: int, *, integral: bool) -> int:
    """How far what one unit adds can move the indexes of all keys, in grid steps together.

    A value that changes by d moves its index by less than d/step + 1; where integers lie on a grid of step 1, by d. So
    `most` keys move by less than contribution/step + most together. For floats the computed index is off by another
    part: see `grid.steps_of`.

    Args:
        contribution: The most that one unit adds to all keys together, above 0.
        step: The grid's step, above 0.
        most: How many keys one unit adds to.
        integral: The values are integers, and so is the step.

    Raises:
        BadRuleError: It is more than the samplers can count.
    """
    exact = Fraction(contribution) / Fraction(step)
    if not integral:
        steps = math.floor(exact + Fraction(most * (MAX_SIZE + 1), 2**50)) + most
    else:
        steps = math.ceil(exact) + (most - 1 if step > 1 else 0)
    if steps > MAX_SIZE:
        raise BadRuleError("resolution", f"{step:g} is too fine for a contribution of {contribution:g}")
    return steps


def indexer(grid: Grid) -> Callable[[Any], int]:
    """What finds the grid index nearest to a number, exactly for integers, clamped to the grid."""
    if not grid.integral:
        return grid.index
    lower, upper, step, size = int(grid.lower), int(grid.upper), int(grid.step), grid.size
    half = step // 2

    def index(value: int) -> int:
        if value <= lower:
            return 0
        return size if value >= upper else min((value - lower + half) // step, size)

    return index


def refusing_nan(index: Callable[[Any], int], name: str) -> Callable[[Any], int]:
    """The index of a number in an aggregate, whose sensitivity does not cover what NaN would become."""

    def checked(value: Any) -> int:
        if value != value:
            raise ProtectionError("NOT_A_NUMBER", name, "holds NaN, which is refused")
        return index(value)

    return checked
