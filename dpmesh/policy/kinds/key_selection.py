"""Key selection: a histogram without public keys. A key leaves if its value with noise passes a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.noise import partition_selection
from dpmesh.noise.numeric import MAX_SIZE
from dpmesh.noise.partition_selection import PartitionSelection
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.codegen.steps import Step
from dpmesh.policy.descriptors import INTEGER_RANGES, limits, type_name
from dpmesh.policy.diagnostics import BadRuleError
from dpmesh.policy.kinds.checks import above_zero
from dpmesh.policy.kinds.counts import indexer, refusing_nan, step_of, steps_of_contribution
from dpmesh.policy.kinds.grid import Grid
from dpmesh.policy.kinds.kind import Description
from dpmesh.policy.kinds.words import number
from dpmesh.v1 import privacy_pb2 as pb

MECHANISM_NAME = "partition_selection"


@dataclass(frozen=True, slots=True)
class SelectionPayload:
    """What leaves of a map without public keys, and how it is drawn.

    Attributes:
        grid: The points of the values; it begins at 0.
        law: What draws, by indexes in the grid less `below`.
        below: The last index with which a key never leaves, because of `threshold`.
    """

    grid: Grid
    law: PartitionSelection
    below: int

    @property
    def least(self) -> float:
        """The smallest value with which a key leaves."""
        return self.grid.value(self.law.middle + self.below)


def select(value: FieldDescriptor, rules: pb.Histogram, epsilon: Fraction) -> SelectionPayload:
    """What a rule without keys asks for.

    Args:
        value: The field of the map's numbers.
        rules: The rule.
        epsilon: The loss of the whole map.

    Raises:
        BadRuleError: The rule contradicts itself or the field's type.
        ValueError: The table of the law would be too long.
    """
    if rules.HasField("lower") or rules.HasField("upper"):
        text = "bounds make this the unit's own map, and then which keys it holds is hidden too"
        raise BadRuleError("keys", text, "list every key that may leave")
    if not 0 < rules.delta < 1:
        fix = "set delta, 1e-6 for example, or list every key that may leave"
        raise BadRuleError("keys", "has no keys, and a threshold needs a delta between 0 and 1", fix)
    integral = value.type in INTEGER_RANGES
    step = step_of(value, rules, max(rules.max_keys, 1))
    if not rules.max_keys and not (integral and step == 1):
        text = "does not say how many keys one unit adds to, and rounding can move each of their values"
        raise BadRuleError("max-keys", text, "set max_keys")
    steps = steps_of_contribution(rules.contribution, step, max(rules.max_keys, 1), integral=integral)
    law = partition_selection.make(epsilon, steps, Fraction(rules.delta))
    below = _below(rules, step)
    most = min(MAX_SIZE, int(Fraction(limits(value)[1]) // Fraction(step))) - below - len(law.thresholds)
    if most < 2 * len(law.thresholds):
        text = f"{type_name(value)} can't hold what passes the threshold"
        raise BadRuleError("output-range", text, "use a wider type")
    last = most + below
    return SelectionPayload(Grid(0, last * step, step, last, integral), law, below)


def _below(rules: pb.Histogram, step: Any) -> int:
    if not rules.HasField("threshold"):
        return 0
    threshold = above_zero(rules.threshold, "threshold")
    return min(math.ceil(Fraction(threshold) / Fraction(step)) - 1, MAX_SIZE)


def describe(payload: SelectionPayload) -> Description:
    """Says to people what leaves."""
    law, grid = payload.law, payload.grid
    half = next(n for n, threshold in enumerate(law.thresholds, 1) if 2 * threshold >= law.thresholds[-1])
    even = grid.value(half + payload.below)
    return Description(
        f"keys of about {number(even)} and more, {number(payload.least)} at least",
        error=math.sqrt(law.variance) * grid.step,
        low=payload.least,
        high=grid.value(grid.size + law.middle),
    )


def selected_keys(name: str, full_name: str, payload: SelectionPayload) -> Step:
    """Writes the keys that pass, in sorted order, so that the order in which they came does not show.

    Args:
        name: The field's name.
        full_name: Its full name, for refusals.
        payload: What leaves.
    """
    grid, below, middle = payload.grid, payload.below, payload.law.middle
    step = grid.step
    index, draw = indexer(grid), draw_function(payload.law.draws)
    if not grid.integral:
        index = refusing_nan(index, full_name)

    def step_selected(source: Any, target: Any, _pseudonymise: Any) -> None:
        held, into = getattr(source, name), getattr(target, name)
        # In proto2, a key that came over the wire and is no UTF-8 reads as bytes, and can't be sent.
        for key in sorted(key for key in held if key.__class__ is not bytes):
            count = index(held[key]) - below
            if count > 0:
                shown = draw(count)
                if shown >= middle:
                    into[key] = (shown + below) * step

    return step_selected
