"""Variances to compare with, for values in [-1, 1]: the least possible one, and those of published mechanisms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

Array = NDArray[np.float64]


def piecewise_variance(epsilon: float, t: float) -> Array:
    """The variance of Piecewise mechanisms with continuous outputs, at 2,001 values from -1 to 1.

    Args:
        epsilon: The loss.
        t: How wide the window is: 1/(t+1) of all outputs. Piecewise (Wang et al. 2019) has exp(epsilon/2), PM-SUB
            (Zhao et al. 2020, "Local Differential Privacy-Based Federated Learning for Internet of Things")
            exp(epsilon/3).
    """
    grown, x = math.exp(epsilon), np.linspace(-1, 1, 2001)
    end = (grown + t) * (t + 1) / (t * (grown - 1))
    half, middle = (grown + t) / (t * (grown - 1)), x * (grown + t) / (grown - 1)
    base = 1 / (2 * end + 2 * half * (grown - 1))
    square = base * 2 * end**3 / 3 + base * (grown - 1) * ((middle + half) ** 3 - (middle - half) ** 3) / 3
    return np.asarray(square - x * x)


def duchi_variance(epsilon: float) -> Array:
    """The variance of Duchi's mechanism, at 2,001 values from -1 to 1."""
    return np.asarray(1 / math.tanh(epsilon / 2) ** 2 - np.linspace(-1, 1, 2001) ** 2)


def hybrid_variance(epsilon: float) -> Array:
    """The variance of the Hybrid mechanism (Wang et al. 2019), at 2,001 values from -1 to 1."""
    duchi = duchi_variance(epsilon)
    if epsilon <= 0.61:
        return duchi
    share = math.exp(-epsilon / 2)
    return share * duchi + (1 - share) * piecewise_variance(epsilon, math.exp(epsilon / 2))


def least_worst_variance(epsilon: float, reach: float, inputs: int, outputs: int) -> float:
    """The least worst-case variance of all unbiased laws, by a linear program.

    The unknowns are a base measure q, the probabilities p[x][y] from q[y] to E q[y], and the bound of all variances.

    Args:
        epsilon: The loss.
        reach: Outputs lie evenly in [-reach, reach]; nothing is lost if the best law's outputs do.
        inputs: How many values, evenly in [-1, 1], have to be unbiased. Fewer of them give a smaller figure.
        outputs: How many outputs there are. Fewer of them give a larger figure.
    """
    grown, xs, ys = math.exp(epsilon), np.linspace(-1, 1, inputs), np.linspace(-reach, reach, outputs)
    pairs = inputs * outputs
    p, q = np.arange(pairs), pairs + np.tile(np.arange(outputs), inputs)
    row_of, bound = np.repeat(np.arange(inputs), outputs), pairs + outputs
    ones, squares = np.ones(pairs), np.tile(ys**2, inputs)
    # q - p <= 0, p - E q <= 0, and for each input the second moment less the bound <= x^2.
    most = (
        (p, q, ones),
        (p, p, -ones),
        (pairs + p, p, ones),
        (pairs + p, q, -grown * ones),
        (2 * pairs + row_of, p, squares),
        (2 * pairs + np.arange(inputs), np.full(inputs, bound), -np.ones(inputs)),
    )
    # For each input the probabilities add up to 1, and the mean is x.
    equal = ((row_of, p, ones), (inputs + row_of, p, np.tile(ys, inputs)))
    cost = np.zeros(bound + 1)
    cost[bound] = 1
    solved = linprog(
        cost,
        A_ub=_matrix(most, 2 * pairs + inputs, bound + 1),
        b_ub=np.concatenate([np.zeros(2 * pairs), xs**2]),
        A_eq=_matrix(equal, 2 * inputs, bound + 1),
        b_eq=np.concatenate([np.ones(inputs), xs]),
        method="highs-ipm",
    )
    if not solved.success:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    return float(solved.fun)


def _matrix(
    entries: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], Array]], rows: int, columns: int
) -> Any:
    """A sparse matrix of blocks, each of which has the rows, the columns and the values of its entries."""
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return coo_matrix((value, (row, column)), shape=(rows, columns)).tocsr()
