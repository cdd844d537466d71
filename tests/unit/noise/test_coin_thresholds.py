"""The coins of every mechanism have exactly the thresholds whose law the tests of that mechanism enumerate.

Those tests read attributes such as `inside`. A mechanism that tossed other coins would pass them: a difference of 2^-128 is
seen by no statistical test, and one of a hundredth only by a large one.
"""

from fractions import Fraction

import numpy as np
import pytest

from dpmesh.noise.coins import Coins
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.disk_area import DiskArea
from dpmesh.noise.duchi import Duchi
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.geometric import digits
from dpmesh.noise.hexagonal import _PADDING, HexagonalGeometric, _geometric
from dpmesh.noise.local_hashing import LocalHashing
from dpmesh.noise.optimized_piecewise import OptimizedPiecewise
from dpmesh.noise.piecewise import Piecewise
from dpmesh.noise.priv_unit import PrivUnit
from dpmesh.noise.randomized_response import RandomizedResponse
from dpmesh.noise.subset_selection import SubsetSelection
from dpmesh.noise.thresholds import ONE

EPSILONS = [Fraction(1, 10), Fraction(1), Fraction(3)]


def thresholds(coins: Coins) -> list[int]:
    """What the coins compare 128 uniform bits with."""
    return [int(high[0]) << 112 | low for high, low in zip(coins._high, coins._low, strict=True)]


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda epsilon: Piecewise(100, epsilon),
        lambda epsilon: OptimizedPiecewise(100, epsilon),
        lambda epsilon: OptimizedPiecewise(100, epsilon, in_range=True),
        lambda epsilon: DiskArea(90, 13, epsilon),
    ],
    ids=["piecewise", "optimized_piecewise", "optimized_piecewise in range", "disk_area"],
)
def test_coins_that_say_whether_the_output_is_near(make, epsilon):
    mechanism = make(epsilon)
    assert thresholds(mechanism._coin) == [mechanism.inside * ONE]


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda epsilon: RandomizedResponse(5, epsilon),
        lambda epsilon: LocalHashing(4, epsilon)._response,
        lambda epsilon: SubsetSelection(17, 4, epsilon),
        lambda epsilon: PrivUnit(8, epsilon),
    ],
    ids=["randomized_response", "local_hashing", "subset_selection", "priv_unit"],
)
def test_coins_that_say_whether_the_output_is_true(make, epsilon):
    mechanism = make(epsilon)
    assert thresholds(mechanism._coin) == [mechanism.threshold]


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize("in_range", [False, True])
def test_coins_of_duchis_lie_and_rounding(in_range, epsilon):
    mechanism = Duchi(7, epsilon, in_range=in_range)
    up = 0 if in_range else int(mechanism.margin % 1 * ONE)
    assert thresholds(mechanism._coins) == [mechanism.q * ONE, up]


@pytest.mark.parametrize("loss", [Fraction(1, 1000), Fraction(2)], ids=str)
def test_coins_of_hexagons(loss):
    mechanism = HexagonalGeometric(loss)
    one = digits(_PADDING / loss)
    assert thresholds(mechanism._coins) == [mechanism.zero, *one, *one]


def test_codes_of_priv_unit_are_uniform_in_both_parts():
    """The first, middle and last code of either part, of 50,000: within 6 standard errors, which one misses once in 2e8."""
    mechanism = PrivUnit(8, Fraction(1))
    drawn = [code for codes, _ in mechanism.block(50_000 // mechanism.copies, KeyStream()) for code in codes]
    p, top, count = mechanism.threshold / ONE, mechanism.top, len(drawn)
    for code in {0, top // 2, top - 1, top, (top + mechanism.directions) // 2, mechanism.directions - 1}:
        share = p / top if code < top else (1 - p) / (mechanism.directions - top)
        assert abs(drawn.count(code) - share * count) <= 6 * (share * count) ** 0.5


class Words(KeyStream):
    """A stream that answers with given integers, and fails when there are none left."""

    def __init__(self, *words: int) -> None:
        super().__init__()
        self.words_left = list(words)

    def integer(self, bits: int) -> int:
        assert bits == 128
        return self.words_left.pop(0)


def test_a_carry_goes_on_while_a_word_is_below_its_threshold():
    """A second carry comes once in 5e8 draws, so only given words show that its threshold is that of the first."""
    law = DiscreteLaplace(Fraction(100))
    draws, last = np.zeros(3, np.int64), digits(law.scale)[0]
    carries = np.array([0, 1, 1], np.int8)
    law._count_carries(carries, draws, -1, Words(last - 1, 0, last, last))
    assert draws.tolist() == [0, -2, 0]
    none = np.zeros((1, 3), bool)
    heads = np.concatenate([carries[np.newaxis].astype(bool), none])
    assert _geometric(heads, last, Words(last - 1, 0, last, last)).tolist() == [0, 6, 2]


def test_piecewise_rounds_by_a_uniform_part():
    """The largest of 20,000 parts is above 0.99 of a step but once in 1e30."""
    mechanism = Piecewise(6, Fraction(1))
    codes = mechanism.block(20_000, KeyStream())
    parts = ~codes[codes < 0] & ((1 << mechanism.shift) - 1)
    assert parts.max() > 0.99 * (1 << mechanism.shift)
