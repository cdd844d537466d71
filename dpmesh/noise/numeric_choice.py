"""Which mechanism for a number has the smallest worst-case variance."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from dpmesh.noise import checks, discrete_laplace, duchi, numeric, piecewise
from dpmesh.noise.numeric import NumericKind

# Estimated variances are off by at most this part of them, where epsilon is not too small for floats.
_TOLERANCE, _FLOAT_EPSILON = 1e-3, Fraction(1, 1 << 40)
# Rounding to the grid adds at most so much to a variance.
_ROUNDING = 0.25
# The optimized Piecewise mechanism has less worst-case variance than all others between these two epsilons, on grids of
# at least so many steps; below the first it has Duchi's law.
_OPTIMIZED_FROM, _OPTIMIZED_TO, _OPTIMIZED_SIZE = Fraction(3, 16), 12, 1 << 12


def best(size: int, sensitivity: int, epsilon: Fraction, in_range: bool, local: bool) -> NumericKind:
    """The mechanism with the smallest worst-case variance.

    Args:
        size: The grid's last index.
        sensitivity: How far a unit can move the index.
        epsilon: Above 0 and at most 64.
        in_range: Whether outputs must lie in 0..size.
        local: Whether the value is the unit's own. For an aggregate the answer is always discrete Laplace.

    Raises:
        ValueError: An argument is out of range.
        TypeError: A number is not exact.
    """
    checks.integer("size", size, 1, numeric.MAX_SIZE)
    checks.integer("sensitivity", sensitivity, 1, numeric.MAX_SIZE)
    checks.epsilon(epsilon)
    return _best(size, sensitivity, epsilon, in_range) if local else NumericKind.DISCRETE_LAPLACE


@lru_cache(numeric.KEPT)
def _best(size: int, sensitivity: int, epsilon: Fraction, in_range: bool) -> NumericKind:
    """The mechanism with the smallest worst-case variance. Only those that come close to it are made."""
    fine = sensitivity >= size >= _OPTIMIZED_SIZE
    if fine and _OPTIMIZED_FROM <= epsilon <= _OPTIMIZED_TO:
        return NumericKind.OPTIMIZED_PIECEWISE
    bounds = _worst_variances(size, sensitivity, epsilon, in_range)
    least = min(high for _, high in bounds.values())
    near = [kind for kind, (low, _) in bounds.items() if low <= least]
    if len(near) == 1:
        return near[0]

    def worst(kind: NumericKind) -> float:
        try:
            return numeric.make(kind, size, sensitivity, epsilon, in_range=in_range).worst_variance
        except ValueError:
            return math.inf  # its noise does not fit 64 bits

    return min(near, key=worst)


def _worst_variances(
    size: int, sensitivity: int, epsilon: Fraction, in_range: bool
) -> dict[NumericKind, tuple[float, float]]:
    """Between which bounds the worst variance of each mechanism lies, without making one."""
    unknown = 0.0, math.inf
    optimized = {NumericKind.OPTIMIZED_PIECEWISE: unknown} if epsilon >= _OPTIMIZED_FROM else {}
    found = optimized | {NumericKind.DISCRETE_LAPLACE: unknown, NumericKind.DUCHI: unknown}
    hybrid = not in_range and epsilon > numeric.HYBRID_FROM
    if hybrid:
        found |= {NumericKind.PIECEWISE: unknown, NumericKind.HYBRID: unknown}
    if epsilon < _FLOAT_EPSILON:
        return found
    scale = numeric.padded(Fraction(sensitivity) / epsilon)
    if discrete_laplace.MIN_SCALE <= scale <= discrete_laplace.MAX_SCALE:
        found[NumericKind.DISCRETE_LAPLACE] = (
            numeric.laplace_variance(size, scale, in_range)(size // 2),
        ) * 2
    loss, places = float(epsilon), (size // 2, 0)
    middle, end = (duchi.estimated_variance(size, loss, x) for x in places)
    found[NumericKind.DUCHI] = _around([middle])
    parts = [piecewise.estimated_variance(size, loss, x) for x in places] if hybrid else [None]
    if (first := parts[0]) is not None and (last := parts[-1]) is not None:
        found[NumericKind.PIECEWISE] = _around([first, last])
        share = math.exp(-loss / 2)
        mixed = [share * middle + (1 - share) * first, share * end + (1 - share) * last]
        found[NumericKind.HYBRID] = _around(mixed)
    return found


def _around(variances: list[float]) -> tuple[float, float]:
    worst = max(variances)
    return worst * (1 - _TOLERANCE), worst * (1 + _TOLERANCE) + _ROUNDING
