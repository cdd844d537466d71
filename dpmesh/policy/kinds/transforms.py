"""Transforms: one value in, one protected value out. The hot path of every protected field.

A transform is the text of a few statements, so that those of all fields of a message become one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dpmesh.errors import ProtectionError
from dpmesh.noise.draws import Draws
from dpmesh.policy.codegen.source import drawing_function
from dpmesh.policy.plan import FieldPlan, Grid

# In the names that a transform's text refers to: what tells it from others in the same function.
_MARK = "@"


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """What a field's plan does to each of its values.

    Attributes:
        codes: The randomness that one value takes; None where nothing is drawn.
        text: Python statements from a `value`, a `code` (where something is drawn) and the `alias` function to what
            leaves, `out`.
        known: What they refer to, by names that end in "@".
        reads: The statements use the value; otherwise the field is not even read.
    """

    codes: Draws | None
    text: str
    known: Mapping[str, Any]
    reads: bool = True

    def marked(self, mark: str) -> tuple[str, dict[str, Any]]:
        """The text, and what it refers to, with names that end in `mark`."""
        return self.text.replace(_MARK, mark), {
            name.replace(_MARK, mark): held for name, held in self.known.items()
        }

    def function(self) -> Callable[[Any], Any]:
        """The same as a function of the value alone."""
        assert self.codes is not None
        text, known = self.marked("")
        stock = self.codes.pool()
        made: Callable[[Any], Any] = drawing_function(stock, "transform", "value", "code", text, "out", known)
        return made


def of(plan: FieldPlan) -> Transform:
    """The transform of a numeric or categorical field."""
    return numeric(plan) if plan.domain is None else categorical(plan)


def numeric(plan: FieldPlan) -> Transform:
    """Clamps to the bounds, rounds to the grid, takes the code in, and goes back to the field's units."""
    assert plan.grid is not None
    assert plan.mechanism is not None
    grid, codes = plan.grid, plan.mechanism.codes
    lower, upper, step = (_number(grid, held) for held in (grid.lower, grid.upper, grid.step))
    nearest = f"(value - {lower} + {int(grid.step) // 2}) // {step}"
    if not grid.integral:
        nearest = f"int((value - {lower}) / {step} + 0.5)"
    # The last point may lie above the upper bound, which an output IN_RANGE may not pass.
    clamp = plan.in_range and grid.value(grid.size) > grid.upper
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
    x = {"refuse@()" if plan.refuses_nan else grid.size // 2}
{codes.decode}
out = {lower} + y * {step}
{f"if out > {upper}: out = {upper}" if clamp else ""}"""
    return Transform(codes, text, {"refuse@": _refusal(plan.name)} if plan.refuses_nan else {})


def _number(grid: Grid, value: float) -> str:
    """A number as Python reads it: of a grid of integers, an integer."""
    return f"({(int(value) if grid.integral else float(value))!r})"


def _refusal(name: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise ProtectionError("NOT_A_NUMBER", name, "is NaN, which is refused")

    return refuse


def categorical(plan: FieldPlan) -> Transform:
    """Randomizes over the domain; what is outside of it counts as its first value."""
    assert plan.domain is not None
    assert plan.mechanism is not None
    codes = plan.mechanism.codes
    index = "index_of@(value, 0)"
    if isinstance(plan.domain[0], str):
        # Looking a text up takes time in proportion to its length, which the domain bounds.
        index += f" if len(value) <= {max(map(len, plan.domain))} else 0"
    text = f"x = {index}\n{codes.decode}\nout = values@[y]"
    indexes = {value: index for index, value in enumerate(plan.domain)}
    return Transform(codes, text, {"index_of@": indexes.get, "values@": plan.domain})
