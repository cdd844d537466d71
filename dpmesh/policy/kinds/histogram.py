"""Histogram: a map from key to number, of which public keys leave with noise, or the keys that many units share.

Two sensitivities are in use. An aggregate changes by at most `contribution` in the sum over all keys (L1), so discrete
Laplace noise of scale contribution/epsilon on each key hides a unit, however many keys it adds to (Dwork et al. 2006).
A unit's own map may change as a whole: either each key takes a part of epsilon, or the sum of the values is bounded and
twice that is the sensitivity of all keys together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from typing_extensions import override

from dpmesh.accounting import Cost
from dpmesh.noise import numeric, numeric_choice
from dpmesh.noise.numeric import MAX_SIZE, NumericKind, NumericMechanism
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.descriptors import INTEGER_RANGES, F, is_map, is_number, limits, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds import key_selection
from dpmesh.policy.kinds.counts import indexer, refusing_nan, step_of, steps_of_contribution
from dpmesh.policy.kinds.grid import Grid, grid_of, outputs_fit
from dpmesh.policy.kinds.key_selection import SelectionPayload
from dpmesh.policy.kinds.kind import ITEMS_LIMIT, Description, FieldSite
from dpmesh.policy.kinds.loss import field_epsilon, split
from dpmesh.policy.kinds.noised import NoisedKind
from dpmesh.policy.kinds.numeric import NumericPayload, encoded_ends
from dpmesh.policy.kinds.words import number
from dpmesh.policy.plan import FieldPlan, Model
from dpmesh.policy.sizes import Size, of_map, unbounded
from dpmesh.v1 import privacy_pb2 as pb

_BOOLS = {"false": False, "true": True}


@dataclass(frozen=True, slots=True)
class HistogramPayload:
    """What leaves of a map, and how it is drawn.

    Attributes:
        keys: The keys that leave, in order.
        number: Each key's number. Its grid begins at 0 for an aggregate.
        total: Of a unit's own map whose sum is bounded: that bound in grid steps, else None.
    """

    keys: tuple[Any, ...]
    number: NumericPayload
    total: int | None = None


class Histogram(NoisedKind):
    """Noises each of the public keys, also those that the map does not hold; or selects keys by a noisy threshold."""

    name = "histogram"
    elementwise = False
    aggregate_rule = "contribution"

    @override
    def plan(self, site: FieldSite, rules: Any) -> FieldPlan:
        value = _value(site)
        epsilon = field_epsilon(rules, site.share)
        if not rules.keys:
            return self._plan_selection(site, value, rules, epsilon)
        keys = _keys(site, rules)
        if rules.HasField("lower") or rules.HasField("upper"):
            payload, cost = _own(value, keys, rules, epsilon)
            model = Model.LOCAL
        else:
            payload, cost = _aggregate(value, keys, rules, epsilon)
            model = Model.CENTRAL
        return self.noised_plan(
            site,
            model=model,
            epsilon=epsilon,
            repeats=len(keys),
            cost=cost,
            mechanism_name=str(payload.number.mechanism.kind),
            payload=payload,
        )

    def _plan_selection(
        self, site: FieldSite, value: FieldDescriptor, rules: pb.Histogram, epsilon: Fraction
    ) -> FieldPlan:
        payload = key_selection.select(value, rules, epsilon)
        return self.noised_plan(
            site,
            model=Model.CENTRAL,
            epsilon=epsilon,
            delta=rules.delta,
            cost=Cost.approximate(epsilon, Fraction(rules.delta)),
            mechanism_name=key_selection.MECHANISM_NAME,
            payload=payload,
        )

    @override
    def step(self, site: FieldSite, plan: FieldPlan) -> Step:
        if isinstance(plan.payload, SelectionPayload):
            return key_selection.selected_keys(site.field.name, plan.name, plan.payload)
        return _all_keys(site.field.name, plan)

    @override
    def size(self, site: FieldSite, plan: FieldPlan) -> Size:
        if isinstance(plan.payload, SelectionPayload):
            return unbounded(plan.path)
        payload: HistogramPayload = plan.payload
        return of_map(site.field, payload.keys, encoded_ends(_value(site), payload.number))

    @override
    def describe(self, plan: FieldPlan) -> Description:
        if isinstance(plan.payload, SelectionPayload):
            return key_selection.describe(plan.payload)
        payload: HistogramPayload = plan.payload
        low, high = payload.number.outputs
        words = f"{len(payload.keys)} keys, {number(low)} to {number(high)} each"
        return Description(words, error=payload.number.deviation, low=low, high=high)

    @override
    def refuses(self, plan: FieldPlan) -> tuple[str, str] | None:
        selects = isinstance(plan.payload, SelectionPayload)
        return ("NaN", "send 0 instead") if selects or plan.payload.number.refuses_nan else None


KIND = Histogram()


def _value(site: FieldSite) -> FieldDescriptor:
    """The field of the map's numbers."""
    field = site.field
    fix = "use it on map<key, number>"
    if not is_map(field):
        raise BadRuleError("kind-type", f"histogram does not fit {type_name(field)}", fix)
    assert field.message_type is not None
    value = field.message_type.fields_by_name["value"]
    if not is_number(value):
        raise BadRuleError("kind-type", f"histogram does not fit a map to {type_name(value)}", fix)
    if site.max_items:
        raise BadRuleError("max-items", "a histogram's keys decide how many leave", "remove max_items")
    return value


def _keys(site: FieldSite, rules: pb.Histogram) -> tuple[Any, ...]:
    """The public keys, as the map holds them."""
    assert site.field.message_type is not None
    key, names = site.field.message_type.fields_by_name["key"], tuple(rules.keys)
    if len(names) > ITEMS_LIMIT:
        raise BadRuleError("keys", f"has {len(names):,} keys, and {ITEMS_LIMIT:,} are possible", "list fewer")
    for name in ("threshold", "delta"):
        if rules.HasField(name):
            raise BadRuleError(name, "is for histograms without keys", "remove it, or the keys")
    keys: dict[Any, None] = {}
    for name in names:
        try:
            found = _key(key, name)
        except (KeyError, ValueError):
            raise BadRuleError("keys", f"has a key that is no {type_name(key)}: {name!r}") from None
        if found in keys:
            raise BadRuleError("keys", f"has a key twice: {name!r}", "remove one of them")
        keys[found] = None
    return tuple(keys)


def _key(field: FieldDescriptor, name: str) -> Any:
    if field.type == F.TYPE_STRING:
        return name
    if field.type == F.TYPE_BOOL:
        return _BOOLS[name]
    low, high = INTEGER_RANGES[field.type]
    found = int(name)
    if not low <= found <= high:
        raise ValueError("out of range")
    return found


def _own(
    value: FieldDescriptor, keys: tuple[Any, ...], rules: pb.Histogram, epsilon: Fraction
) -> tuple[HistogramPayload, Cost]:
    """A unit's own map: whatever it holds is hidden.

    Of the two ways to hide it, the one with the smaller worst-case variance is taken.
    """
    if rules.max_keys:
        raise BadRuleError("max-keys", "is for aggregates, and bounds say that this is not", "remove it")
    shape = pb.Numeric()
    for name in ("lower", "upper", "resolution"):
        if rules.HasField(name):
            setattr(shape, name, getattr(rules, name))
    grid, total = grid_of(value, shape), None
    if rules.HasField("contribution"):
        if grid.lower != 0:
            raise BadRuleError("contribution", "bounds the sum of values of at least 0", "set lower: 0")
        total = _total(rules.contribution, grid)
    for in_range in (False, True):
        options = list(_options(grid, total, epsilon, len(keys), in_range))
        mechanism, cost, bounded = min(options, key=lambda option: option[0].worst_variance)
        if in_range or outputs_fit(grid, mechanism, limits(value)):
            break
    return HistogramPayload(keys, NumericPayload(grid, mechanism, in_range), total if bounded else None), cost


def _total(contribution: float, grid: Grid) -> int:
    """The bound of a map's sum, in grid steps."""
    if not (math.isfinite(contribution) and contribution >= grid.step):
        raise BadRuleError("contribution", f"must be finite and at least the resolution {grid.step:g}")
    return math.floor(Fraction(contribution) / Fraction(grid.step))


def _options(
    grid: Grid, total: int | None, epsilon: Fraction, keys: int, in_range: bool
) -> Iterable[tuple[NumericMechanism, Cost, bool]]:
    """Mechanisms that hide a unit's own map, what they cost, and whether they need the sum to be bounded."""
    each = split(epsilon, keys)
    kind = numeric_choice.best(grid.size, grid.size, each, in_range=in_range, local=True)
    yield (
        numeric.make(kind, grid.size, grid.size, each, in_range=in_range),
        Cost.pure(each).times(keys),
        False,
    )
    if total is not None and 2 * total < keys * grid.size:
        yield (
            numeric.make(NumericKind.DISCRETE_LAPLACE, grid.size, 2 * total, epsilon, in_range=in_range),
            Cost.pure(epsilon),
            True,
        )


def _aggregate(
    value: FieldDescriptor, keys: tuple[Any, ...], rules: pb.Histogram, epsilon: Fraction
) -> tuple[HistogramPayload, Cost]:
    """An aggregate over many units: what one of them adds is hidden."""
    most = min(rules.max_keys or len(keys), len(keys))
    step = step_of(value, rules, most)
    integral = value.type in INTEGER_RANGES
    sensitivity = steps_of_contribution(rules.contribution, step, most, integral=integral)
    limit = limits(value)[1]
    last = MAX_SIZE if limit / step >= MAX_SIZE else int(limit // step)
    in_range = limits(value)[0] == 0
    mechanism = numeric.make(NumericKind.DISCRETE_LAPLACE, last, sensitivity, epsilon, in_range=in_range)
    if mechanism.high * Fraction(step) > limit:
        last -= mechanism.high - last
        if last < sensitivity:
            text = f"its noise does not fit {type_name(value)}"
            raise BadRuleError("output-range", text, "use a wider type, or raise epsilon")
        mechanism = numeric.make(NumericKind.DISCRETE_LAPLACE, last, sensitivity, epsilon, in_range=in_range)
    grid = Grid(0, last * step, step, last, integral)
    return HistogramPayload(keys, NumericPayload(grid, mechanism, in_range, refuses_nan=True)), Cost.pure(
        epsilon
    )


def _all_keys(name: str, plan: FieldPlan) -> Step:
    """Writes every public key."""
    payload: HistogramPayload = plan.payload
    keys, grid, total = payload.keys, payload.number.grid, payload.total
    lower, step = grid.lower, grid.step
    top = grid.upper if payload.number.in_range else math.inf
    index, draw = indexer(grid), draw_function(payload.number.mechanism.draws)
    if payload.number.refuses_nan and not grid.integral:
        index = refusing_nan(index, plan.name)

    def cut(held: Mapping[Any, Any]) -> Iterable[int]:
        left = total or 0
        for found in [index(held.get(key, 0)) for key in keys]:
            shown = min(found, left)
            left -= shown
            yield shown

    def step_cut(source: Any, target: Any, _pseudonymise: Any) -> None:
        into = getattr(target, name)
        for key, found in zip(keys, cut(getattr(source, name)), strict=True):
            out = lower + draw(found) * step
            into[key] = out if out < top else top

    def step_all(source: Any, target: Any, _pseudonymise: Any) -> None:
        held, into = getattr(source, name), getattr(target, name)
        for key in keys:
            out = lower + draw(index(held.get(key, 0))) * step
            into[key] = out if out < top else top

    return step_all if total is None else step_cut
