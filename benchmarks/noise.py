"""The samplers in blocks beside OpenDP's vectorised ones, single draws of the mechanisms from their pools, and vectors.

OpenDP's integer mechanisms add noise to a vector of zeros in one call; dpmesh makes a block of noise in one call. Both
are timed in turns, and the best of the turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import opendp.prelude as dp

from benchmarks.table import Row
from dpmesh.noise import categorical, numeric
from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.hexagonal import HexagonalGeometric
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.source import draw_function
from dpmesh.policy.kinds import place_code, vector_mechanism
from dpmesh.policy.kinds.region import region_of
from dpmesh.policy.kinds.vector_mechanism import Room
from dpmesh.v1 import privacy_pb2

SCALE = 1000
TURNS = 5
BLOCK = 1 << 20
OPENDP_BLOCK = 20_000
DRAWS = 400_000
SIZE = 10_000
DIMENSION = 256
VECTORS = 2_000


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
    kinds = (
        NumericKind.DISCRETE_LAPLACE,
        NumericKind.OPTIMIZED_PIECEWISE,
        NumericKind.DUCHI,
        NumericKind.PIECEWISE,
        NumericKind.HYBRID,
    )
    made = [
        *((kind.value, numeric.make(kind, SIZE, SIZE, epsilon).draws) for kind in kinds),
        ("k-ary randomized response, k = 16", categorical.make(16, epsilon).draws),
    ]
    for (name, draws), bar in zip(made, (250, 250, 500, 500, 500, 250), strict=True):
        draw = draw_function(draws)
        (nanoseconds,) = _turns((lambda draw=draw: [draw(5) for _ in range(DRAWS)], DRAWS))  # type: ignore[misc]
        yield Row(f"one draw: {name}", nanoseconds, "ns", f"<= {bar}")


def _vectors() -> Iterator[Row]:
    """What `release` takes with all its randomness, which comes in blocks."""
    x = np.full(DIMENSION, DIMENSION**-0.5)
    for epsilon in (1, 8):
        room = Room(24, 3e38, 2.0**-126, None)
        release = vector_mechanism.directions(DIMENSION, 1.0, False, Fraction(epsilon), room).release
        (nanoseconds,) = _turns((lambda release=release: [release(x) for _ in range(VECTORS)], VECTORS))  # type: ignore[misc]
        name = f"PrivUnitG, {DIMENSION} dimensions, epsilon {epsilon}"
        yield Row(name, 1e9 / nanoseconds, "vectors/s", ">= 5,000")


def _places() -> Iterator[Row]:
    """Places: noise in blocks, and single places through the generated code, with their pools filled on the way."""
    law = HexagonalGeometric(Fraction(1, 1000))
    region = region_of(
        privacy_pb2.Location(min_latitude=45.8, max_latitude=47.9, min_longitude=5.9, max_longitude=10.5)
    )
    text = place_code.hexagons(region, 0.2, region.cell_ranges(0.2), "0, 0", law.draws.decode)
    draw = place_code.drawing(region, 1.0, 0.2, law.draws, text, {})
    block, single = _turns(
        (lambda: law.block(BLOCK), BLOCK), (lambda: [draw(46.9, 7.4) for _ in range(DRAWS)], DRAWS)
    )
    yield Row("places on hexagons, noise in blocks", 1e9 / block, "/s", ">= 300,000")
    yield Row("  one place, through its generated code", single, "ns", "")


def rows() -> Iterator[Row]:
    """All figures."""
    yield from _blocks()
    yield from _draws()
    yield from _vectors()
    yield from _places()
