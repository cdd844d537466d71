"""The samplers in blocks beside OpenDP's vectorised ones, and single draws of the mechanisms from their pools.

OpenDP's integer mechanisms add noise to a vector of zeros in one call; dpmesh makes a block of noise in one call. Both
are timed in turns, and the best of the turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import opendp.prelude as dp

from benchmarks.table import Row, show
from dpmesh.noise import categorical, numeric
from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.source import draw_function

SCALE = 1000
TURNS = 5
BLOCK = 1 << 20
OPENDP_BLOCK = 20_000
DRAWS = 400_000
SIZE = 10_000


def _turns(*runs: tuple[Callable[[], object], int]) -> list[float]:
    """Nanoseconds per draw of each run, in turns; the best of TURNS."""
    best = [float("inf")] * len(runs)
    for _ in range(TURNS):
        for i, (run, draws) in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], (time.perf_counter() - start) / draws * 1e9)
    return best


def _blocks() -> Iterator[Row]:
    dp.enable_features("contrib")
    integers = dp.vector_domain(dp.atom_domain(T="i64"))
    laplace = dp.m.make_laplace(integers, dp.l1_distance(T="i64"), scale=float(SCALE))
    gaussian = dp.m.make_gaussian(integers, dp.l2_distance(T="f64"), scale=float(SCALE))
    zeros = [0] * OPENDP_BLOCK
    rows = (
        ("discrete Laplace", DiscreteLaplace(Fraction(SCALE)), laplace, 40),
        ("discrete Gaussian", DiscreteGaussian(Fraction(SCALE) ** 2), gaussian, 20),
    )
    for name, law, theirs, bar in rows:
        ours, opendp = _turns(
            (lambda law=law: law.block(BLOCK), BLOCK),  # type: ignore[misc]
            (lambda theirs=theirs: theirs(zeros), OPENDP_BLOCK),  # type: ignore[misc]
        )
        yield Row(f"{name}, scale {SCALE}, in blocks", ours, "ns/draw", "")
        yield Row("  OpenDP's, vectorised, integers", opendp, "ns/draw", "")
        yield Row("  OpenDP / dpmesh", opendp / ours, "times", f">= {bar}")


def _draws() -> Iterator[Row]:
    epsilon = Fraction(1)
    local = (
        (NumericKind.DISCRETE_LAPLACE, 250),
        (NumericKind.OPTIMIZED_PIECEWISE, 250),
        (NumericKind.DUCHI, 500),
        (NumericKind.PIECEWISE, 500),
        (NumericKind.HYBRID, 500),
    )
    made: list[tuple[str, Callable[[int], int], int]] = [
        (kind.value, draw_function(numeric.make(kind, SIZE, SIZE, epsilon).draws), bar) for kind, bar in local
    ]
    made.append(
        ("k-ary randomized response, k = 16", draw_function(categorical.make(16, epsilon).draws), 250)
    )
    for name, draw, bar in made:
        (nanoseconds,) = _turns((lambda draw=draw: [draw(5) for _ in range(DRAWS)], DRAWS))  # type: ignore[misc]
        yield Row(f"one draw: {name}", nanoseconds, "ns", f"<= {bar}")


def rows() -> Iterator[Row]:
    """All figures."""
    yield from _blocks()
    yield from _draws()


if __name__ == "__main__":
    show(rows())
