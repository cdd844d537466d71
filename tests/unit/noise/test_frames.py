"""Frames are orthonormal, and uniform: 20,000 of them, 6 standard errors for each mean (2e-9)."""

import numpy as np
import pytest

from dpmesh.noise import frames
from dpmesh.noise.entropy import KeyStream
from tests.unit.noise.streams import KEY


@pytest.mark.parametrize("columns", [2, 9, 17])
def test_columns_are_orthonormal(columns):
    made = frames.uniform(50, 32, columns, KeyStream(KEY))
    assert made.shape == (50, 32, columns)
    assert np.abs(np.einsum("nri,nrj->nij", made, made) - np.eye(columns)).max() < 1e-12


def test_columns_are_uniform_and_their_signs_are():
    """Of a uniform unit vector in R^n: coordinates of mean 0, squares of mean 1/n, fourth powers of mean 3/(n(n+2))."""
    count, size = 20_000, 4
    made = frames.uniform(count, size, 3, KeyStream())
    for power, mean in ((1, 0), (2, 1 / size), (4, 3 / (size * (size + 2)))):
        powers = made**power
        errors = np.abs(powers.mean(axis=0) - mean) / (powers.std(axis=0) / count**0.5)
        assert errors.max() < 6
    # Products of two coordinates of one column, and of two columns, have the mean 0.
    for products in (made[:, 0] * made[:, 1], made[:, :, 0] * made[:, :, 1]):
        assert (np.abs(products.mean(axis=0)) / (products.std(axis=0) / count**0.5)).max() < 6


def test_equal_streams_give_equal_frames():
    one, other = (frames.uniform(2, 4, 2, KeyStream(KEY)) for _ in range(2))
    assert (one == other).all()
