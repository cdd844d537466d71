"""Frames: some columns of random rotations, exactly uniform, for spaces of few dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise.entropy import KeyStream

_SEED_BITS = 256


def uniform(count: int, rows: int, columns: int, stream: KeyStream) -> NDArray[np.float64]:
    """Draws the first columns of rotations that are uniform (Haar).

    The orthonormal factor of a matrix of Gaussian numbers is uniform, if the other factor's diagonal is positive
    (Mezzadri 2007, "How to generate random matrices from the classical compact groups"). By Cholesky's decomposition
    that takes less time than by reflections, and is as exact as matrices that are taller than wide need.

    The Gaussian numbers are those of a generator for simulations: they are public, and no secret hangs on them.

    Args:
        count: How many.
        rows: The dimension of the space.
        columns: Fewer than `rows`.
        stream: The bits, of which a seed is taken.

    Returns:
        Orthonormal columns, shape (count, rows, columns).
    """
    generator = np.random.Generator(np.random.SFC64(stream.integer(_SEED_BITS)))
    gaussian = generator.standard_normal((count, rows, columns))
    lower = np.linalg.cholesky(gaussian.transpose(0, 2, 1) @ gaussian)
    return np.asarray(np.matmul(gaussian, _inverse(lower).transpose(0, 2, 1)), np.float64)


def _inverse(lower: NDArray[Any]) -> NDArray[Any]:
    """The inverses of lower triangular matrices, shape (count, n, n): half the time of np.linalg.inv for small n."""
    inverse = np.zeros_like(lower)
    scales = 1 / np.diagonal(lower, axis1=1, axis2=2)
    inverse[:, 0, 0] = scales[:, 0]
    for row in range(1, lower.shape[1]):
        above = np.matmul(lower[:, row, np.newaxis, :row], inverse[:, :row, :row])[:, 0]
        inverse[:, row, :row] = -scales[:, row, np.newaxis] * above
        inverse[:, row, row] = scales[:, row]
    return inverse
