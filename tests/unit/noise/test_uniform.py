"""Uniform integers: every remainder is equally likely."""

import numpy as np
import pytest

from dpmesh.noise import uniform
from dpmesh.noise.entropy import KeyStream
from tests.unit.noise.streams import Script


def words(*values):
    return Script(np.array(values, np.uint64).tobytes())


@pytest.mark.parametrize("bound", [3, 10_001, 2**46 - 1, 2**62 + 1])
def test_words_above_the_last_multiple_are_drawn_again(bound):
    end = 2**64 - 2**64 % bound
    script = words(end - 1, end, bound, 2**64 - 1, end, 5)
    assert uniform.below(bound, 3, script).tolist() == [bound - 1, 5 % bound, 0]
    assert not script.data


@pytest.mark.parametrize("bound", [1, 2, 2**20, 2**63])
def test_powers_of_two_reject_nothing(bound):
    script = words(2**64 - 1, 0)
    assert uniform.below(bound, 2, script).tolist() == [bound - 1, 0]


def test_all_values_occur():
    assert set(uniform.below(7, 10_000, KeyStream()).tolist()) == set(range(7))
