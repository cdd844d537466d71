"""One field's rule, checked and turned into a FieldPlan: all decisions about a number or category in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.accounting import AMOUNT, Cost, epsilon_delta_to_rho, exact
from dpmesh.noise import categorical, numeric
from dpmesh.policy.descriptors import FLOAT_LIMITS, INTEGER_RANGES, F, is_map, scalar, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.plan import FieldPlan, Grid, Kind, Model
from dpmesh.v1 import privacy_pb2 as pb

# e^64 to one is no protection; whoever wants none writes `public`.
EPSILON_LIMIT = 64.0
# A thousand times what ledgers can count.
EPSILON_FLOOR = 1e-6
# Repeated fields are filled up to max_items in every message.
ITEMS_LIMIT = 100_000
_GRID_LIMIT = 2**40
_DEFAULT_CELLS = 10_000

_NUMERIC_KINDS = {
    pb.Numeric.DISCRETE_LAPLACE: numeric.NumericKind.DISCRETE_LAPLACE,
    pb.Numeric.DISCRETE_GAUSSIAN: numeric.NumericKind.DISCRETE_GAUSSIAN,
    pb.Numeric.DUCHI: numeric.NumericKind.DUCHI,
    pb.Numeric.PIECEWISE: numeric.NumericKind.PIECEWISE,
    pb.Numeric.HYBRID: numeric.NumericKind.HYBRID,
}
# These have no outputs IN_RANGE: see numeric.make.
_NEVER_IN_RANGE = {pb.Numeric.DISCRETE_GAUSSIAN, pb.Numeric.PIECEWISE, pb.Numeric.HYBRID}
_LOCAL_ONLY = {pb.Numeric.DUCHI, pb.Numeric.PIECEWISE, pb.Numeric.HYBRID}


@dataclass(frozen=True, slots=True)
class FieldSite:
    """Where a field stands: what its rule can't know by itself.

    Attributes:
        field: Its descriptor.
        path: From the root message.
        origin: Who made the rule.
        share: Its part of the message's epsilon, if the message set one.
        max_items: The public length of a repeated field, 0 when none was set.
        instances: How often its message occurs in one root message.
    """

    field: FieldDescriptor
    path: str
    origin: str
    share: Fraction | None
    max_items: int
    instances: int

    def repeats(self) -> int:
        """How many elements one message instance shows."""
        if is_map(self.field):
            raise BadRuleError("kind-type", "maps of plain values are not protected yet", "use suppress")
        if not self.field.is_repeated:
            if self.max_items:
                raise BadRuleError("max-items", "max_items is for repeated fields and maps", "remove it")
            return 1
        return checked_items(self.max_items)


def checked_items(max_items: int) -> int:
    """The public length of a repeated field.

    Raises:
        BadRuleError: It is missing or beyond ITEMS_LIMIT.
    """
    if not 1 <= max_items <= ITEMS_LIMIT:
        raise BadRuleError(
            "max-items",
            "the length of a repeated field is data too, so it needs a public one",
            f"set max_items, between 1 and {ITEMS_LIMIT}",
        )
    return max_items


def checked_epsilon(value: float) -> Fraction:
    """An epsilon that means something.

    Raises:
        BadRuleError: It is not a number from EPSILON_FLOOR to EPSILON_LIMIT.
    """
    if not EPSILON_FLOOR <= value <= EPSILON_LIMIT:
        raise BadRuleError(
            "epsilon",
            f"epsilon must be from {EPSILON_FLOOR:g} to {EPSILON_LIMIT:g}, not {value:g}",
            "0.1 to 4 is usual; a field that needs no protection is `public`",
        )
    return exact(value)


def split(epsilon: Fraction, parts: int) -> Fraction:
    """One of several equal parts of a loss, in whole ledger amounts: so that all of them cost no more than it.

    Raises:
        BadRuleError: A part would be less than ledgers can count.
    """
    amount = int(epsilon * AMOUNT / parts)
    if amount < 1:
        raise BadRuleError("epsilon", f"{float(epsilon):g} is too little for {parts} parts", "raise it")
    return Fraction(amount, AMOUNT)


def field_epsilon(rules: Any, share: Fraction | None) -> Fraction:
    """The field's own epsilon, or its share of the message's.

    Raises:
        BadRuleError: Neither is set, or it is out of range.
    """
    if rules.HasField("epsilon"):
        return checked_epsilon(rules.epsilon)
    if share is None:
        raise BadRuleError(
            "epsilon", "has no epsilon", "set it here, or on the message to share it over its fields"
        )
    return share


def plan_numeric(place: FieldSite, rules: pb.Numeric) -> FieldPlan:
    """Compiles a numeric rule.

    Raises:
        BadRuleError: The rule contradicts itself, the field's type or what is implemented.
    """
    holder = scalar(place.field)
    if holder.type not in INTEGER_RANGES and holder.type not in FLOAT_LIMITS:
        raise BadRuleError("kind-type", f"numeric does not fit {type_name(place.field)}", "use it on numbers")
    repeats = place.repeats()
    grid = _grid(holder, rules)
    local = not rules.HasField("sensitivity")
    sensitivity = grid.size if local else _sensitivity(rules.sensitivity, grid)
    in_range = rules.output == pb.Numeric.IN_RANGE
    mechanism, epsilon, rho, cost = _draws(place, rules, grid, sensitivity, repeats)
    if not in_range:
        _fits(holder, grid, mechanism)
    return FieldPlan(
        path=place.path,
        name=place.field.full_name,
        kind=Kind.NUMERIC,
        origin=place.origin,
        model=Model.LOCAL if local else Model.CENTRAL,
        epsilon=epsilon,
        rho=rho,
        delta=rules.delta if rho is not None else 0.0,
        repeats=repeats,
        instances=place.instances,
        cost=cost,
        grid=grid,
        in_range=in_range,
        # An aggregate's sensitivity does not cover the jump from a number to the middle of the range.
        refuses_nan=rules.nan == pb.Numeric.REJECT or not local,
        mechanism=mechanism,
    )


def _draws(
    place: FieldSite, rules: pb.Numeric, grid: Grid, sensitivity: int, repeats: int
) -> tuple[numeric.NumericMechanism, Fraction | None, Fraction | None, Cost]:
    """The mechanism of one element, and the loss and cost of all of them."""
    local = not rules.HasField("sensitivity")
    in_range = rules.output == pb.Numeric.IN_RANGE
    chosen = rules.mechanism
    if in_range and chosen in _NEVER_IN_RANGE:
        raise BadRuleError(
            "mechanism",
            "this mechanism can't stay IN_RANGE",
            "use DISCRETE_LAPLACE or DUCHI, or output: UNBIASED",
        )
    if not local and chosen in _LOCAL_ONLY:
        raise BadRuleError(
            "mechanism",
            "this mechanism is for a unit's own value, and sensitivity says that this is an aggregate",
            "use DISCRETE_LAPLACE or DISCRETE_GAUSSIAN",
        )
    total = field_epsilon(rules, place.share)
    each = split(total, repeats)
    if chosen == pb.Numeric.DISCRETE_GAUSSIAN:
        rho = Fraction(epsilon_delta_to_rho(float(total), _delta(rules)))
        draws = numeric.make(
            numeric.NumericKind.DISCRETE_GAUSSIAN,
            grid.size,
            sensitivity,
            each,
            rho=rho / repeats,
            in_range=False,
        )
        return draws, None, rho, Cost.gaussian(rho)
    if rules.HasField("delta"):
        raise BadRuleError(
            "delta", "only the discrete Gaussian uses delta", "remove it, or set the mechanism"
        )
    if chosen == pb.Numeric.AUTO:
        kind = numeric.best(grid.size, sensitivity, each, in_range=in_range, local=local)
    else:
        kind = _NUMERIC_KINDS[chosen]
    draws = numeric.make(kind, grid.size, sensitivity, each, rho=None, in_range=in_range)
    return draws, total, None, Cost.pure(each).times(repeats)


def _delta(rules: pb.Numeric) -> float:
    if not 0 < rules.delta < 1:
        raise BadRuleError("delta", "the discrete Gaussian needs a delta between 0 and 1", "1e-6 is usual")
    return rules.delta


def _grid(holder: FieldDescriptor, rules: pb.Numeric) -> Grid:
    if not (rules.HasField("lower") and rules.HasField("upper")):
        raise BadRuleError("bounds", "has no lower and upper", "set the range that values can take")
    span = rules.upper - rules.lower
    if not (math.isfinite(span) and span > 0):
        raise BadRuleError(
            "bounds", f"lower {rules.lower:g} and upper {rules.upper:g} are not a finite range"
        )
    integral = holder.type in INTEGER_RANGES
    finest = _finest(holder, max(abs(rules.lower), abs(rules.upper)))
    step = rules.resolution if rules.HasField("resolution") else max(finest, _default_step(span, integral))
    if not (math.isfinite(step) and 0 < step <= span):
        raise BadRuleError("resolution", f"must be above 0 and at most the range {span:g}, not {step:g}")
    if span / step > _GRID_LIMIT:
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
        # Computed as transforms.numeric computes the index of a value, so that the upper bound is where its
        # neighbours are: a last point of its own would be further from them than the sensitivity tells.
        return Grid(rules.lower, rules.upper, step, int(span / step + 0.5), integral=False)
    if not all(float(x).is_integer() for x in (rules.lower, rules.upper, step)):
        raise BadRuleError("bounds", "lower, upper and resolution of an integer field must be whole numbers")
    lower, upper, whole = int(rules.lower), int(rules.upper), int(step)
    _within(holder, lower, upper)
    return Grid(lower, upper, whole, (upper - lower + whole // 2) // whole, integral=True)


def _finest(holder: FieldDescriptor, largest: float) -> float:
    """The distance of neighbours among the largest numbers of a field: a finer grid would not survive in it."""
    if holder.type in INTEGER_RANGES:
        return 1.0
    return math.ulp(largest) * (2.0**29 if holder.type == F.TYPE_FLOAT else 1.0)


def _default_step(span: float, integral: bool) -> float:
    """A power of two, so that scaling is exact, between a ten- and a twenty-thousandth of the range."""
    step = 2.0 ** math.floor(math.log2(span / _DEFAULT_CELLS)) if span / _DEFAULT_CELLS > 0 else 0.0
    return max(1.0, step) if integral else step


def _within(holder: FieldDescriptor, low: float, high: float) -> None:
    limits = INTEGER_RANGES.get(holder.type) or (-FLOAT_LIMITS[holder.type], FLOAT_LIMITS[holder.type])
    if low < limits[0] or high > limits[1]:
        raise BadRuleError("bounds", f"lower and upper must fit {type_name(holder)}")


def _sensitivity(declared: float, grid: Grid) -> int:
    """In grid steps: how far apart the indexes of two values can be that are `declared` apart.

    Whole numbers d apart have indexes at most ceil(d / step) apart. Floats may have one more, because rounding to
    the nearest point is computed with an error, three roundings each of numbers up to the grid's size: what is
    within it of the next step counts as the next step (Casacuberta et al. 2022 attack what leaves it out).
    """
    if not (math.isfinite(declared) and declared > 0):
        raise BadRuleError("sensitivity", f"must be a finite number above 0, not {declared:g}")
    exact = Fraction(declared) / Fraction(grid.step)
    rounding = Fraction(grid.size + 1, 2**50)
    steps = math.ceil(exact) if grid.integral else math.floor(exact + rounding) + 1
    return min(steps, grid.size)


def _fits(holder: FieldDescriptor, grid: Grid, mechanism: numeric.NumericMechanism) -> None:
    """Refuses an output range that the field can't hold: a clamped or wrapped output would not be unbiased."""
    low, high = grid.value(mechanism.low), grid.value(mechanism.high)
    limits = INTEGER_RANGES.get(holder.type) or (-FLOAT_LIMITS[holder.type], FLOAT_LIMITS[holder.type])
    if low < limits[0] or high > limits[1]:
        raise BadRuleError(
            "output-range",
            f"unbiased outputs reach from {low:.6g} to {high:.6g}, which {type_name(holder)} can't hold",
            "set output: IN_RANGE, or use a wider signed type",
        )


def plan_categorical(place: FieldSite, rules: pb.Categorical) -> FieldPlan:
    """Compiles a categorical rule.

    Raises:
        BadRuleError: The rule contradicts itself, the field's type or what is implemented.
    """
    if rules.mechanism == pb.Categorical.SUBSET_SELECTION:
        raise BadRuleError("kind-not-available", "SUBSET_SELECTION does not work yet", "use AUTO")
    repeats = place.repeats()
    domain = _domain(scalar(place.field), tuple(rules.domain), place.field)
    total = field_epsilon(rules, place.share)
    each = split(total, repeats)
    return FieldPlan(
        path=place.path,
        name=place.field.full_name,
        kind=Kind.CATEGORICAL,
        origin=place.origin,
        model=Model.LOCAL,
        epsilon=total,
        repeats=repeats,
        instances=place.instances,
        cost=Cost.pure(each).times(repeats),
        domain=domain,
        mechanism=categorical.make(len(domain), each),
    )


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
