"""VectorMechanism: how a whole vector is released, in the field's own units and on a grid that the field can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import coordinate_sampling, numeric, priv_unit
from dpmesh.noise.coordinate_sampling import CoordinateSampling
from dpmesh.noise.draws import joint
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.pool import Block, Pool
from dpmesh.policy.codegen.source import function
from dpmesh.policy.diagnostics import BadRuleError

Array = NDArray[np.float64]

# What a pool of vectors holds at most, in bytes of randomness, and in vectors.
_POOL_BYTES, _POOL_ROWS = 1 << 20, 1 << 8
# Grid steps between 0 and the norm of a sampled coordinate, by default, where the field can hold them.
_SAMPLED_HALVES = [1 << bits for bits in (12, 10, 8, 6, 4)]
# Grid steps between 0 and the largest coordinate of a direction, by default.
_DIRECTION_STEPS = 1 << 22
# By default rounding to the grid adds at most this part to the sensitivity of an aggregate.
_ROUNDING = 1 / 1024
# How often the default step is doubled until the field can hold all outputs.
_DOUBLINGS = 64


@dataclass(frozen=True, eq=False)
class VectorMechanism:
    """One mechanism for vectors, with its parameters.

    Attributes:
        name: Which one.
        dimension: How many coordinates leave.
        epsilon: The loss of one release, at most; None for the discrete Gaussian.
        rho: The discrete Gaussian's zCDP loss, else None.
        step: All coordinates that leave are multiples of it; a power of two.
        reach: The largest absolute coordinate that leaves.
        release: Maps a list of `dimension` finite coordinates to what leaves.
        variance: Maps coordinates of what is held, any shape, to the variance of what leaves of each. Those beyond the
            norm count as clamped.
        worst_variance: The largest variance of a coordinate.
        worst_error: The largest expected squared distance of what leaves from what is held.
        relative_error: The largest expected squared error, in units of the squared norm: of the whole vector for
            l2_norm, of a coordinate for linf_norm. None for an aggregate.
    """

    name: str
    dimension: int
    epsilon: Fraction | None
    rho: Fraction | None
    step: float
    reach: float
    release: Callable[[list[float]], list[float]]
    variance: Callable[[Array], Array]
    worst_variance: float
    worst_error: float
    relative_error: float | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What the field can hold.

    Attributes:
        digits: Binary digits of the integers that it holds exactly.
        largest: Its largest number.
        smallest: Its smallest number with all digits.
        step: The step that the rule declares, or None.
    """

    digits: int
    largest: float
    smallest: float
    step: float | None

    def holds(self, step: float, reach: float) -> bool:
        """Whether all multiples of the step up to `reach` are numbers of the field."""
        return self.smallest <= step and reach <= min(self.largest, step * 2.0**self.digits)

    def check(self, step: float, reach: float) -> None:
        """Refuses outputs that the field can't hold.

        Raises:
            BadRuleError: It can't.
        """
        if not self.holds(step, reach):
            raise BadRuleError(
                "output-range",
                f"outputs reach {reach:.6g} in steps of {step:.6g}, which the field can't hold",
                "set a coarser resolution, use a repeated double, or declare a norm of usual size",
            )


def power_below(value: float) -> float:
    """The largest power of two that is at most a finite number above 0."""
    return math.ldexp(0.5, math.frexp(value)[1])


def directions(dimension: int, radius: float, cube: bool, epsilon: Fraction, room: Room) -> VectorMechanism:
    """PrivUnitG on the ball of that radius in L2: see `priv_unit.PrivUnit`.

    What leaves is rounded to the grid. That costs no privacy, because only the direction that was selected counts, and
    adds no bias that counts, because the step is at most a coordinate's standard deviation.

    Args:
        dimension: How many coordinates.
        radius: The largest length.
        cube: The vector is clipped to the largest cube in the ball instead, radius / sqrt(dimension) for a coordinate.
        epsilon: The loss.
        room: What the field can hold.

    Raises:
        BadRuleError: The field can't hold the outputs, or the declared step is too coarse.
    """
    law = priv_unit.make(dimension, epsilon)
    deviation = radius * math.sqrt(float(law.variance(0.0)))
    step = room.step or power_below(radius * law.scale / _DIRECTION_STEPS)
    _check_step(step, deviation)
    factor = radius / step
    reach = (math.floor(law.scale * factor) + 1) * step
    room.check(step, reach)
    take = _pooled(law.block, law.row_bytes())
    edge = radius / math.sqrt(dimension)
    worst = float(law.variance(np.array([0.0, edge / radius if cube else 1.0])).max())

    def small(x: list[float]) -> list[float]:
        if cube:
            x = [min(max(each, -edge), edge) for each in x]
        length = math.hypot(*x) / radius
        if length > 1 and not cube:  # The corner of a cube is further out by rounding alone.
            lifted = [*_shortened(np.array(x), radius).tolist(), 0.0]
        else:
            lifted = [each / radius for each in x] if radius != 1 else x[:]
            lifted.append(math.sqrt(max(0.0, 1 - length * length)))
        return [round(each) * step for each in law.release_framed(lifted, take(), factor)]

    def large(x: list[float]) -> list[float]:
        held = np.array(x)
        if cube:
            unit = np.clip(held, -edge, edge) / radius
        else:
            unit = held / radius if math.hypot(*x) <= radius else _shortened(held, radius)
        return (np.rint(law.release(unit, take()) * factor) * step).tolist()  # type: ignore[no-any-return]

    return VectorMechanism(
        "priv_unit_g",
        dimension,
        epsilon,
        None,
        step,
        reach,
        small if law.framed else large,
        lambda x: law.variance(np.clip(x / radius, -1, 1)) * radius**2,
        worst * radius**2,
        law.worst_error * radius**2,
        worst * dimension if cube else law.worst_error,
    )


def _shortened(x: Array, radius: float) -> Array:
    """A vector that is longer than the radius, scaled down to a length of 1 at most; nothing overflows."""
    scaled = x / max(float(np.abs(x).max()), radius)
    length = math.sqrt(float(scaled @ scaled))
    return np.asarray(scaled / length)


def coordinates(dimension: int, bound: float, epsilon: Fraction, room: Room) -> VectorMechanism:
    """Coordinate sampling for coordinates up to `bound`: see `coordinate_sampling.CoordinateSampling`.

    Args:
        dimension: How many coordinates.
        bound: The largest absolute coordinate.
        epsilon: The loss.
        room: What the field can hold.

    Raises:
        BadRuleError: The field can't hold the outputs, or the declared step is too coarse.
    """
    count = coordinate_sampling.best_count(dimension, epsilon)
    grown = dimension / count
    steps = [room.step] if room.step else [power_below(bound * grown / half) for half in _SAMPLED_HALVES]
    for shown in steps:
        _check_step(shown, bound * grown / _SAMPLED_HALVES[-1])
        # An output of one step stands for a step of the grid, times dimension / count.
        grid_step = shown / grown
        half = math.ceil(bound / grid_step)
        law = CoordinateSampling(dimension, epsilon, half, count)
        reach = max(law.mechanism.high - half, half - law.mechanism.low) * shown
        if room.holds(shown, reach):
            break
    room.check(shown, reach)
    return VectorMechanism(
        "coordinate_sampling",
        dimension,
        epsilon,
        None,
        shown,
        reach,
        _sampling(law, bound, grid_step, shown),
        lambda x: law.variance(np.clip(x, -bound, bound) / grid_step) * grid_step**2,
        law.worst_variance * grid_step**2,
        law.worst_variance * grid_step**2 * dimension,
        law.worst_variance * (grid_step / bound) ** 2,
    )


def _sampling(
    law: CoordinateSampling, bound: float, grid_step: float, shown: float
) -> Callable[[list[float]], list[float]]:
    pool = joint(law.columns())
    draw = function("draw", "x, code", law.mechanism.draws.decode, "y", {})
    half, count, dimension = law.half, law.count, law.dimension

    def release(x: list[float]) -> list[float]:
        try:
            codes = pool.pop()
        except IndexError:
            codes = pool.refill()
        out = [0.0] * dimension
        for coordinate, code in zip(law.chosen(codes), codes[count:], strict=True):
            value = min(max(x[coordinate], -bound), bound)
            index = min(max(half + round(value / grid_step), 0), 2 * half)
            out[coordinate] = (draw(index, code) - half) * shown
        return out

    return release


def noised(
    dimension: int,
    bound: float,
    sensitivity: float,
    kind: NumericKind,
    loss: tuple[Fraction, Fraction | None],
    room: Room,
) -> VectorMechanism:
    """Independent discrete noise on each coordinate of an aggregate, which is clamped to plus or minus `bound`.

    Clamping moves no two vectors apart, in any norm. The step is a power of two, so that division by it and rounding to
    an integer are exact, and two vectors' indexes differ by what they differ in steps and at most 1 for each
    coordinate. That adds sqrt(dimension) to the sensitivity in L2, and `dimension` to that in L1. The sum is rounded up
    to an integer above it, which pays many times over for the thresholds of all coordinates (see `numeric.padded`).

    Args:
        dimension: How many coordinates.
        bound: The largest absolute coordinate.
        sensitivity: In L1 for discrete Laplace, in L2 for the discrete Gaussian.
        kind: The one or the other.
        loss: epsilon, and rho for the Gaussian.
        room: What the field can hold.

    Raises:
        BadRuleError: The field can't hold the outputs.
        ValueError: The noise is out of the samplers' range.
    """
    added = math.sqrt(dimension) if kind is NumericKind.DISCRETE_GAUSSIAN else float(dimension)
    step = room.step or power_below(sensitivity * _ROUNDING / added)
    for _ in range(_DOUBLINGS):
        half = math.ceil(bound / step)
        steps = math.floor(Fraction(sensitivity) / Fraction(step) + math.ceil(added)) + 1
        fine = max(2 * half, steps) > numeric.MAX_SIZE
        if not fine:
            law = numeric.make(kind, 2 * half, steps, loss[0], rho=loss[1])
            reach = (law.high - half) * step
            fine = not room.holds(step, reach)
        if not fine or room.step:
            break
        step *= 2
    if fine:
        raise BadRuleError(
            "output-range",
            f"the field can't hold a range of {bound:.6g} in steps of {step:.6g}, with noise",
            "set a coarser resolution, use a repeated double, or declare a smaller norm",
        )
    block, low, high, variance = (
        law.draws.block,
        law.low - half,
        law.high - half,
        law.worst_variance * step**2,
    )
    take = _pooled(_rows(block, dimension), 8 * dimension)

    def release(x: list[float]) -> list[float]:
        index = np.rint(np.clip(x, -bound, bound) / step)
        shown: list[float] = (np.clip(index + take(), low, high) * step).tolist()
        return shown

    return VectorMechanism(
        str(kind),
        dimension,
        law.epsilon,
        law.rho,
        step,
        reach,
        release,
        lambda x: np.full(np.shape(x), variance),
        variance,
        variance * dimension,
    )


def _rows(block: Block, dimension: int) -> Callable[[int, KeyStream], NDArray[Any]]:
    """A block of vectors of noise, each an array by itself."""

    def rows(count: int, stream: KeyStream) -> NDArray[Any]:
        noise = block(count * dimension, stream).reshape(count, dimension)
        made = np.empty(count, object)
        for row in range(count):
            made[row] = noise[row]
        return made

    return rows


def _pooled(block: Callable[[int, KeyStream], NDArray[Any]], row_bytes: int) -> Callable[[], Any]:
    """What takes one draw of a vector from a pool of its own."""
    last = max(1, min(_POOL_ROWS, _POOL_BYTES // row_bytes))
    pool = Pool(block, first=max(1, last // 8), last=last)

    def take() -> Any:
        try:
            return pool.pop()
        except IndexError:
            return pool.refill()

    return take


def _check_step(step: float, coarsest: float) -> None:
    if not step <= coarsest:
        raise BadRuleError(
            "resolution",
            f"{step:.6g} is too coarse for this noise",
            f"{coarsest:.2g} will do, or leave it out",
        )
