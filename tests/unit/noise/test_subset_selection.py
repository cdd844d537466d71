"""Subset selection: the whole output law, from the thresholds in use and from every choice of the shuffle."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.subset_selection import SubsetSelection
from dpmesh.noise.thresholds import ONE
from tests.unit.noise.exact import decoding, worst_ratio
from tests.unit.noise.streams import KEY, Script, Tape

SMALL = [(2, 1), (3, 1), (3, 2), (4, 2), (5, 3), (6, 4), (7, 2)]
EPSILONS = [Fraction(1, 1000), Fraction(1, 2), Fraction(1), Fraction(4), Fraction(12)]


def output_law(law: SubsetSelection, x: int) -> dict[tuple[int, ...], Fraction]:
    """The probability of each subset under symbol x: `block` is given every choice that its bits can make, once."""
    choices = list(itertools.product(*(range(law.k - 1 - step) for step in range(law.w))))
    rows = [(coin, choice) for coin in (0, 0xFFFF) for choice in choices]
    words = np.array([coin for coin, _ in rows], np.uint16).tobytes()
    for step in range(law.w):
        words += np.array([choice[step] for _, choice in rows], np.uint64).tobytes()
    # Of the coin's 2^16 first words, those below the threshold's own all give heads, and those above it tails.
    assert 0 < law.threshold >> 112 < 0xFFFF
    codes = law.block(len(rows), Script(words)).tolist()
    heads = Fraction(law.threshold, ONE)
    decode = decoding(law)
    found: dict[tuple[int, ...], Fraction] = {}
    for (coin, _), code in zip(rows, codes, strict=True):
        subset = tuple(decode(x, code))
        weight = (1 - heads if coin else heads) / len(choices)
        found[subset] = found.get(subset, Fraction(0)) + weight
    return found


def below_exp(ratio: Fraction, epsilon: Fraction, slack: float) -> bool:
    """Whether a ratio is at most e^epsilon, and at least (1 - slack) of it."""
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        exact = mpmath.mpf(ratio.numerator) / ratio.denominator
        return bool(bound * (1 - mpmath.mpf(slack)) <= exact <= bound)


@pytest.mark.parametrize("epsilon", EPSILONS[:-1], ids=str)
@pytest.mark.parametrize(("k", "w"), SMALL)
def test_the_whole_law_is_private_and_no_more_than_it_has_to_be(k, w, epsilon):
    law = SubsetSelection(k, w, epsilon)
    tables = [output_law(law, x) for x in range(k)]
    for table in tables:
        assert sum(table.values()) == 1
        assert set(table) == set(itertools.combinations(range(k), w))
    assert below_exp(worst_ratio(tables), epsilon, 2**-60)


@pytest.mark.parametrize("epsilon", EPSILONS[1:-1], ids=str)
@pytest.mark.parametrize(("k", "w"), SMALL)
def test_shares_are_unbiased_and_vary_as_ye_and_barg_say(k, w, epsilon):
    law = SubsetSelection(k, w, epsilon)
    supports = [[Fraction(0)] * k for _ in range(k)]
    for x in range(k):
        for subset, probability in output_law(law, x).items():
            for symbol in subset:
                supports[x][symbol] += probability
    truth = Fraction(law.threshold, ONE)
    lie = (w - truth) / (k - 1)
    assert all(supports[x][y] == (truth if x == y else lie) for x in range(k) for y in range(k))
    e = math.exp(epsilon)
    p = w * e / (w * e + k - w)
    q = p * (w - 1) / (k - 1) + (1 - p) * w / (k - 1)
    assert float(lie * (1 - lie) / (truth - lie) ** 2) == pytest.approx(q * (1 - q) / (p - q) ** 2, rel=1e-12)


@pytest.mark.parametrize("epsilon", [*EPSILONS, Fraction(64)], ids=str)
@pytest.mark.parametrize(("k", "w"), [(2, 1), (17, 5), (1024, 1), (1024, 275), (1024, 1023)])
def test_the_threshold_of_large_sets_keeps_its_epsilon(k, w, epsilon):
    truth = Fraction(SubsetSelection(k, w, epsilon).threshold, ONE)
    assert below_exp(truth / (1 - truth) * Fraction(k - w, w), epsilon, 2**-24)


def test_known_answer_from_a_fixed_key():
    count, k, w, tape = 3000, 9, 3, Tape()
    law = SubsetSelection(k, w, Fraction(1))
    heads = [word < law.threshold >> 112 for word in np.frombuffer(tape.take(2 * count), np.uint16).tolist()]
    steps = [np.frombuffer(tape.take(8 * count), np.uint64).tolist() for _ in range(w)]
    expected = []
    for row in range(count):
        others = list(range(1, k))
        for step in range(w):
            at = step + steps[step][row] % (k - 1 - step)
            others[step], others[at] = others[at], others[step]
        expected.append(sorted(([0, *others[: w - 1]]) if heads[row] else others[:w]))
    assert law.block(count, KeyStream(KEY)).tolist() == expected


@pytest.mark.parametrize(("k", "w"), [(2, 1), (17, 5), (40, 39)])
def test_subsets_have_one_length_and_the_order_of_the_set(k, w):
    law = SubsetSelection(k, w, Fraction(1))
    decode, codes = decoding(law), law.block(300).tolist()
    for x in (0, k // 2, k - 1):
        for code in codes:
            subset = decode(x, code)
            assert subset == sorted(set(subset))
            assert len(subset) == w
            assert set(subset) <= set(range(k))
            assert (x in subset) == (0 in code)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_block_shapes(count):
    assert SubsetSelection(6, 2, Fraction(1)).block(count).shape == (count, 2)


def test_every_subset_comes_up_about_as_often_as_it_should():
    """60,000 draws, each of 10 subsets within 6 deviations: 2e-8."""
    law, count = SubsetSelection(5, 2, Fraction(1)), 60_000
    decode = decoding(law)
    seen = Counter(tuple(decode(3, code)) for code in law.block(count).tolist())
    truth = law.threshold / ONE
    for subset in itertools.combinations(range(5), 2):
        p = truth / 4 if 3 in subset else (1 - truth) / 6
        assert abs(seen[subset] - count * p) < 6 * math.sqrt(count * p * (1 - p))
