"""Estimates from columns: how many noisy values one core reads in a second, with all checks and intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import Row, show
from benchmarks.telemetry_pb2 import Reading
from dpmesh.estimate import Reader
from dpmesh.policy.codegen.source import draw_function
from dpmesh.v1 import policy_pb2, privacy_pb2

TURNS, DRAWN, COPIES = 5, 20_000, 200
MECHANISMS = (
    privacy_pb2.Numeric.AUTO,
    privacy_pb2.Numeric.DISCRETE_LAPLACE,
    privacy_pb2.Numeric.PIECEWISE,
)


def _millions(run: Callable[[], object], values: int) -> float:
    """Millions of values a second; the best of TURNS."""
    best = float("inf")
    for _ in range(TURNS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return values / best / 1e6


def _numbers(mechanism: privacy_pb2.Numeric.Mechanism) -> tuple[Reader, NDArray[np.float64]]:
    """A reader, and a column of temperatures as its policy releases them."""
    overlay = policy_pb2.Policy()
    rule = overlay.fields["dpmesh.bench.v1.Reading.temperature"].numeric
    rule.lower, rule.upper, rule.epsilon, rule.mechanism = -40, 120, 2.0, mechanism
    reader = Reader(Reading, overlay)
    payload = next(field for field in reader.plan.fields if field.path == "temperature").payload
    draw, index = draw_function(payload.mechanism.draws), payload.grid.index(21.0)
    drawn = np.array([payload.grid.value(draw(index)) for _ in range(DRAWN)])
    return reader, np.tile(drawn, COPIES)


def rows() -> Iterator[Row]:
    """All figures."""
    for mechanism in MECHANISMS:
        reader, column = _numbers(mechanism)
        name = privacy_pb2.Numeric.Mechanism.Name(mechanism)

        def mean(reader: Reader = reader, column: NDArray[np.float64] = column) -> object:
            return reader.mean("temperature", column)

        def distribution(reader: Reader = reader, column: NDArray[np.float64] = column) -> object:
            return reader.distribution("temperature", column, bins=4)

        yield Row(f"mean of a numpy column, {name}", _millions(mean, column.size), "million/s", ">= 20")
        yield Row("  distribution, 4 bins", _millions(distribution, column.size), "million/s", "")
    reader, states = Reader(Reading), np.arange(DRAWN * COPIES) % 4
    yield Row(
        "frequencies of a numpy column of an enum",
        _millions(lambda: reader.frequencies("status", states), states.size),
        "million/s",
        "",
    )


if __name__ == "__main__":
    show(rows())
