"""Frames: some columns of random rotations, exactly uniform, for spaces of few dimensions."""

from __future__ import annotations

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
    frames: NDArray[np.float64] = gaussian @ np.linalg.inv(lower).transpose(0, 2, 1)
    return frames
