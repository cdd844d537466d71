"""The exact laws of the samplers, with all digits: what their thresholds really give, in mpmath or Fractions."""

from fractions import Fraction

import mpmath

from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.geometric import digits
from dpmesh.noise.hexagonal import _PADDING, HexagonalGeometric
from dpmesh.noise.thresholds import ONE, logistic
from dpmesh.policy.codegen.source import function


def geometric(law: DiscreteLaplace, count: int) -> list[Fraction]:
    """P(G = 0..count-1) of one of the two geometric variables, from the law's own integer thresholds."""
    return geometric_of(
        [law._carry, *(logistic(2**k / law.scale) for k in reversed(range(law._rows - 1)))], count
    )


def geometric_of(thresholds: list[int], count: int) -> list[Fraction]:
    """P(G = 0..count-1) from the thresholds of `geometric.digits`: the carry's, then the digits' from the highest."""
    carry, *ones = (Fraction(threshold, ONE) for threshold in thresholds)
    low = [Fraction(1)]
    for one in reversed(ones):
        low = [p * (1 - one) for p in low] + [p * one for p in low]
    return [low[g % len(low)] * (1 - carry) * carry ** (g // len(low)) for g in range(count)]


DIRECTIONS = [(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)]
"""The axial coordinates of a cell's neighbours, in turn."""


def hexagonal(law: HexagonalGeometric, reach: int) -> dict[tuple[int, int], Fraction]:
    """P(noise = (q, r)) of all cells up to `reach` steps away, from the thresholds in use. No cell may come twice."""
    steps = geometric_of(digits(_PADDING / law.loss), reach)
    zero = Fraction(law.zero, ONE)
    table = {(0, 0): zero}
    for turn, (q, r) in enumerate(DIRECTIONS):
        q2, r2 = DIRECTIONS[(turn + 1) % 6]
        for a in range(reach):
            for b in range(reach - a):
                cell = (q * (a + 1) + q2 * b, r * (a + 1) + r2 * b)
                assert cell not in table
                table[cell] = (1 - zero) / 6 * steps[a] * steps[b]
    return table


def laplace(law: DiscreteLaplace, reach: int, cut: int) -> dict[int, mpmath.mpf]:
    """P(Z = z) for |z| <= reach; sums over geometric variables up to `cut`."""
    p = [mpmath.mpf(g.numerator) / g.denominator for g in geometric(law, cut + reach + 1)]
    half = [mpmath.fsum(p[g] * p[g + z] for g in range(cut)) for z in range(reach + 1)]
    return {z: half[abs(z)] for z in range(-reach, reach + 1)}


def clamped(noise: dict[int, mpmath.mpf], x: int, low: int, high: int) -> dict[int, mpmath.mpf]:
    """The law of x + noise clamped to low..high. What `noise` leaves out counts as lying at the ends."""
    table = {y: mpmath.mpf(0) for y in range(low, high + 1)}
    for z, p in noise.items():
        table[min(max(x + z, low), high)] += p
    return table


def worst_ratio(tables: list[dict]) -> object:
    """The largest ratio of one output's probabilities under two inputs. All must have the same support."""
    support = {y for y, p in tables[0].items() if p > 0}
    assert all({y for y, p in table.items() if p > 0} == support for table in tables)
    return max(max(table[y] for table in tables) / min(table[y] for table in tables) for y in support)


def decoding(law):
    """What an index releases with a code: the law's own statements, as a function of both."""
    return function("decode", "x, code", law.draws.decode, "y", {})
