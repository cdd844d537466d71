"""Weights that undo a law: they are an inverse, and the one of least variance."""

import numpy as np
import pytest

from dpmesh.estimate.inverse import weights_of

LAW = np.array([[0.5, 0.1], [0.3, 0.2], [0.1, 0.3], [0.1, 0.4]])
EXPECTED = LAW.mean(axis=1)


def test_the_weights_undo_the_law():
    assert LAW.T @ weights_of(LAW, EXPECTED, 1e6) == pytest.approx(np.eye(2))


def test_no_other_weights_that_undo_it_have_less_variance():
    weights = weights_of(LAW, EXPECTED, 1e6)
    others = np.linalg.svd(LAW.T)[2][2:].T  # A mean of 0 over both laws.
    for step in (-0.1, 0.1):
        for column in others.T:
            other = weights + step * column[:, np.newaxis]
            assert LAW.T @ other == pytest.approx(np.eye(2))
            assert np.all(EXPECTED @ other**2 > EXPECTED @ weights**2)


def test_a_law_that_tells_nothing_apart_has_none():
    assert weights_of(np.full((4, 2), 0.25), np.full(4, 0.25), 1e6) is None
    nearly = np.array([[0.5, 0.5 - 1e-9], [0.5, 0.5 + 1e-9]])
    assert weights_of(nearly, nearly.mean(axis=1), 1e6) is None
