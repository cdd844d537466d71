"""Transforms: one value in, one protected value out. The hot path of every protected field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpmesh.errors import ProtectionError
from dpmesh.policy.plan import FieldPlan, Grid

Draw = Callable[[int], int]
Transform = Callable[[Any], Any]


def of(plan: FieldPlan) -> Transform:
    """What a field's plan does to each of its values."""
    return numeric(plan) if plan.domain is None else categorical(plan)


def numeric(plan: FieldPlan) -> Transform:
    """Clamps to the bounds, rounds to the grid, draws, and goes back to the field's units."""
    assert plan.grid is not None
    assert plan.mechanism is not None
    grid, draw, field_name = plan.grid, plan.mechanism.draw, plan.name
    in_range, refuse_nan = plan.in_range, plan.refuses_nan
    if grid.integral:
        return _integers(grid, draw, in_range=in_range)
    lower, upper, step, size = grid.lower, grid.upper, grid.step, grid.size
    middle = size // 2
    # The last point may lie above the upper bound, which an output IN_RANGE may not pass.
    clamp = in_range and grid.value(size) > upper

    def transform(value: float) -> float:
        if lower < value < upper:
            index = int((value - lower) / step + 0.5)
            if index > size:
                index = size
        elif value <= lower:
            index = 0
        elif value >= upper:
            index = size
        elif refuse_nan:
            raise ProtectionError("NOT_A_NUMBER", field_name, "is NaN, which its rule refuses")
        else:
            index = middle
        out = lower + draw(index) * step
        return upper if clamp and out > upper else out

    return transform


def _integers(grid: Grid, draw: Draw, *, in_range: bool) -> Transform:
    lower, upper, step, size = int(grid.lower), int(grid.upper), int(grid.step), grid.size
    half = step // 2
    clamp = in_range and lower + size * step > upper

    def transform(value: int) -> int:
        if lower < value < upper:
            index = (value - lower + half) // step
        else:
            index = 0 if value <= lower else size
        out = lower + draw(index) * step
        return upper if clamp and out > upper else out

    return transform


def categorical(plan: FieldPlan) -> Transform:
    """Randomizes over the domain; what is outside of it counts as its first value."""
    assert plan.domain is not None
    assert plan.mechanism is not None
    domain, draw = plan.domain, plan.mechanism.draw
    index_of = {value: index for index, value in enumerate(domain)}.get
    values = tuple(domain)

    def transform(value: Any) -> Any:
        return values[draw(index_of(value, 0))]

    return transform
