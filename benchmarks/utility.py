"""How precise the mechanisms are: variances beside the least possible ones and those of published mechanisms.

One section for each kind of field. Every figure is computed from the thresholds in use, without drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from benchmarks.table import Row, show
from benchmarks.variances import hybrid_variance, least_worst_variance, piecewise_variance
from dpmesh.noise import numeric, numeric_choice

SIZE = 10_000
# Epsilon, how far the linear program's outputs reach, and its inputs and outputs: finer ones change the third digit.
PROGRAMS = (
    (0.5, 6, 33, 121),
    (1, 3.5, 33, 121),
    (2, 2, 33, 121),
    (3, 1.5, 33, 121),
    (4, 1.3, 33, 121),
    (6, 1.15, 33, 121),
    (8, 1.1, 65, 161),
)


def _numbers() -> Iterator[Row]:
    """A local number: AUTO on a grid of 10,000 steps, in units of half the range."""
    scale = (SIZE / 2) ** 2
    for epsilon, reach, inputs, outputs in PROGRAMS:
        least = least_worst_variance(epsilon, reach, inputs, outputs)
        pm_sub = float(np.mean(piecewise_variance(epsilon, math.exp(epsilon / 3))))
        hybrid = hybrid_variance(epsilon)
        yield Row(f"numbers, epsilon {epsilon:g}: least possible worst-case variance", least, "", "")
        yield Row("  Hybrid's beside it", float(hybrid.max()) / least, "times", "")
        for in_range in (False, True):
            exact = Fraction(str(epsilon))
            kind = numeric_choice.best(SIZE, SIZE, exact, in_range=in_range, local=True)
            mechanism = numeric.make(kind, SIZE, SIZE, exact, in_range=in_range)
            output = "IN_RANGE" if in_range else "UNBIASED"
            worst = mechanism.worst_variance / scale
            mean = float(np.mean([mechanism.variance(x) for x in range(0, SIZE + 1, 5)])) / scale
            yield Row(f"  AUTO's, {output} ({kind})", worst / least, "times", "at most 1.15")
            yield Row("    mean on uniform data beside PM-SUB's", mean / pm_sub, "times", "at most 1.15")
        yield Row(
            "  Hybrid's mean on uniform data beside PM-SUB's", float(hybrid.mean()) / pm_sub, "times", ""
        )


SECTIONS = (_numbers,)


def rows() -> Iterator[Row]:
    """All figures."""
    for section in SECTIONS:
        yield from section()


if __name__ == "__main__":
    show(rows())
